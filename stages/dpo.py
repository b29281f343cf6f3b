"""Direct preference optimization on TRL's DPOTrainer; the reference is the starting policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationInfo, field_validator

from align.stage import ReplayingKeys, Setting, Stage

if TYPE_CHECKING:
    from datasets import Dataset

    from align.stage import Job

LOSSES = (
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
)

_SMOOTHED = ("exo_pair", "robust", "aot", "aot_unpaired")  # the losses in which TRL uses label_smoothing

_OF_DIFFERENCES = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop")


class Keys(ReplayingKeys):
    """Recipe keys of a `dpo` stage, by TRL's names."""

    beta: float = Field(0.1, gt=0, description="0.1-0.5; higher values stay closer to the starting policy")
    loss_type: str | list[str] = Field("sigmoid", description=f"one of {', '.join(LOSSES)}, or several")
    loss_weights: list[float] | None = Field(None, description="one weight per loss, if there are several")
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        validate_default=True,
        description=f"assumed share of flipped labels; for the losses {', '.join(_SMOOTHED)}",
    )

    @field_validator("loss_type")
    @classmethod
    def _known(cls, value: str | list[str]) -> str | list[str]:
        unknown = [name for name in ([value] if isinstance(value, str) else value) if name not in LOSSES]
        if unknown:
            raise ValueError(f"TRL has no DPO loss '{unknown[0]}'; choose from {', '.join(LOSSES)}")
        if not value:
            raise ValueError(f"no loss is given; choose from {', '.join(LOSSES)}")
        return value

    @field_validator("loss_weights")
    @classmethod
    def _one_each(cls, value: list[float] | None, info: ValidationInfo) -> list[float] | None:
        losses = _listed(info.data.get("loss_type", []))
        if value is not None and losses and len(value) != len(losses):
            raise ValueError(
                f"there must be as many weights as losses ({len(losses)}), not {len(value)}: write one for each"
            )
        return value

    @field_validator("label_smoothing")
    @classmethod
    def _used(cls, value: float, info: ValidationInfo) -> float:
        losses = _listed(info.data.get("loss_type", []))
        if losses and value > 0 and not set(losses) & set(_SMOOTHED):
            what = f"TRL has no label smoothing for the loss '{losses[0]}'"
            raise ValueError(f"{what}: write `loss_type: robust`, which is sigmoid with label smoothing")
        if "exo_pair" in losses and value == 0:
            raise ValueError("the loss 'exo_pair' needs label smoothing: write `label_smoothing: 0.001`")
        return value

    def splits(self, training: dict[str, Any]) -> bool:
        """`aot` sorts the pairs of a pass; `bco_pair` keeps a mean over passes, `sft` one over a pass's tokens."""
        return not {"aot", "aot_unpaired", "bco_pair", "sft"} & set(_listed(self.loss_type))

    def contradictions(self, setting: Setting) -> list[tuple[str, str, str]]:
        """An f-divergence applies to the difference of two answers, which not every loss uses."""
        found = super().contradictions(setting)
        divergence = self.training.get("f_divergence_type", "reverse_kl")
        losses = _listed(self.loss_type)
        beside = _OF_DIFFERENCES if losses == ["sft"] else (*_OF_DIFFERENCES, "sft")
        others = [name for name in losses if name not in beside]
        if divergence == "reverse_kl" or not others:
            return found
        what = f"the loss '{others[0]}' does not support `f_divergence_type: {divergence}`"
        return [*found, ("training", what, f"leave it out, or choose from {', '.join(_OF_DIFFERENCES)}")]


def _listed(losses: str | list[str]) -> list[str]:
    return [losses] if isinstance(losses, str) else losses


def train(job: Job) -> dict[str, float]:
    """Train on the pairs of the job."""
    from trl import DPOConfig

    from align.data import tokens
    from align.trainers import replay_term
    from align.trainers.dpo import DpoTrainer

    keys = job.keys
    assert isinstance(keys, Keys)
    args = job.arguments(
        DPOConfig,
        beta=keys.beta,
        loss_type=_listed(keys.loss_type),
        loss_weights=keys.loss_weights,
        label_smoothing=keys.label_smoothing,
        precompute_ref_log_probs=True,
    )

    def pairs(name: str, rows: list[dict[str, Any]]) -> Dataset:
        return job.table(name, tokens.preference(rows, job.tokenizer, args), len(rows))

    trainer = DpoTrainer(
        model=job.model,
        args=args,
        processing_class=job.tokenizer,
        reference_file=job.dir.reference,
        train_dataset=pairs("train", job.rows),
        eval_dataset=pairs("eval", job.evaluation) if job.evaluation else None,
    )
    replay_term.add(job, trainer, keys.ptx_coef)
    return job.fit(trainer)


STAGE = Stage(
    description="direct preference optimization against the starting policy",
    rows=frozenset({"preference"}),
    train=train,
    keys=Keys,
    arguments="DPOConfig",
    defaults={
        "full": {"learning_rate": 1e-6, "warmup_steps": 0.1},
        "adapter": {"learning_rate": 1e-5, "warmup_steps": 0.1},
    },
    replays="term",
)
