"""SDFT: the policy answers by itself and learns from a teacher, the same model that reads the row's answer too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from align.recipe import verdicts
from align.rl import defaults
from align.stage import ReplayingKeys, Setting, Stage

if TYPE_CHECKING:
    from align.stage import Job

# that of the paper (arXiv 2601.19897)
TEMPLATE = (
    "{prompt}\n\nThis is an example for a response to the question:\n{privileged_context}\n\n"
    "Now answer with a response of your own, including the thinking process:"
)


class Keys(ReplayingKeys):
    """Recipe keys of an `sdft` stage."""

    teacher: Literal["incoming", "base", "ema"] = Field(
        "incoming",
        description="who is shown the row's answer: the starting policy; the base; or ema, a moving average of the "
        "policy that starts as the starting policy",
    )

    def contradictions(self, setting: Setting) -> list[tuple[str, str, str]]:
        """What TRL would refuse once the model is loaded, and a weight of nothing."""
        found, given = super().contradictions(setting), self.training
        template = given.get("teacher_prompt_template")
        if isinstance(template, str) and not all(part in template for part in ("{prompt}", "{privileged_context}")):
            what = "`teacher_prompt_template` must contain {prompt} and {privileged_context}, the place of the answer"
            return [*found, ("training", what, "add what is missing")]
        mode, alpha = given.get("distillation_mode"), given.get("distillation_alpha", 0.5)
        if mode == "sampled_token" and alpha != 1:
            what = "`distillation_mode: sampled_token` knows the reverse KL alone"
            return [*found, ("training", what, "write `distillation_alpha: 1.0` next to it")]
        return found


def train(job: Job) -> dict[str, Any]:
    """Distil the teacher into the policy, on the policy's own answers."""
    from trl.experimental.sdft import SDFTConfig

    from align.data import demonstrations
    from align.rl import recorder
    from align.trainers import replay_term
    from align.trainers.sdft import SdftTrainer

    assert isinstance(job.keys, Keys)
    pairs = [demonstrations.split(row) for row in job.rows]
    columns: dict[str, list[Any]] = {
        "prompt": [prompt for prompt, _ in pairs],
        "privileged_context": [answer for _, answer in pairs],
    }
    trainer = SdftTrainer(
        job=job,
        teacher=job.keys.teacher,
        model=job.model,
        args=job.arguments(SDFTConfig, disable_dropout=True, max_prompt_length=None, teacher_model_kind="base"),
        processing_class=job.tokenizer,
        train_dataset=job.dataset(columns),
    )
    replay_term.add(job, trainer, job.keys.ptx_coef)
    with trainer.learning():
        metrics: dict[str, Any] = dict(job.fit(trainer))
    return metrics | recorder.figures(trainer.finish())


STAGE = Stage(
    description="self-distillation: the policy's own answers, by a teacher that reads the row's answer",
    rows=frozenset({"chat", "prompt_completion"}),
    samples=True,
    demonstrated=True,
    train=train,
    keys=Keys,
    arguments="SDFTConfig",
    defaults={
        "all": {"num_generations": 1, "max_completion_length": 128, "teacher_prompt_template": TEMPLATE},
        "full": {"learning_rate": 1e-5, "warmup_steps": 0.05},
        "adapter": {"learning_rate": 1e-4, "warmup_steps": 0.05},
    },
    replays="term",
    evaluates=False,
    reserved=verdicts.DISTILLED,
    preload=defaults.preload,
)
