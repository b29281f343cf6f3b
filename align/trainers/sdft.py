"""Self-distillation on TRL's SDFTTrainer (Shenfeld et al. 2026, arXiv 2601.19897): the policy answers, and learns from
a teacher that reads the demonstration too. Its rollouts, order, teacher, precision and checkpoints are ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import torch
from accelerate.utils import set_seed
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl.experimental.sdft import SDFTTrainer

from align.policy import generation, stack
from align.policy.switchboard import Switchboard, checkpointing
from align.policy.unwrapped import unwrapped
from align.rl import critic, reference, rollouts, scoring, shared_base
from align.rl.health import Health
from align.rl.recorder import Recorder
from align.rl.rollouts import Sampled
from align.run_folder import heartbeats
from align.run_folder.records import Policy
from align.trainers.base import BaseTrainer, autocast
from align.trainers.rollout_checkpoints import OWN
from align.trainers.rollout_record import RolloutRecord

if TYPE_CHECKING:
    from align.stage.job import Job

Kind = Literal["incoming", "base", "ema"]

_TEACHER: Final = "teacher.safetensors"  # of a checkpoint
_REMEDIES: Final = {
    "not_finite": "lower `training.learning_rate`",
    "mode_collapse": "lower `training.learning_rate`, raise `training.temperature`, or write `teacher: incoming`",
    "missing_eos": "raise `training.max_completion_length`, or lower `training.learning_rate`",
}


class Averaged(reference.Swapped):
    """The same model with a moving average of the weights that are trained."""

    @torch.no_grad()
    def follow(self, rate: float) -> None:
        """Move towards the weights as they are now: kept = (1 - rate) kept + rate now."""
        for parameter, kept in self.kept:
            kept.lerp_(parameter.detach().to(kept.dtype), rate)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The average, in the order of the parameters."""
        return {str(number): kept for number, (_, kept) in enumerate(self.kept)}

    @torch.no_grad()
    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Put it back."""
        for name, kept in self.tensors.items():
            kept.copy_(tensors[name])


class _Following(TrainerCallback):
    """Lets the average follow after every `teacher_sync_steps` steps, before a checkpoint is written."""

    def __init__(self, teacher: Averaged) -> None:
        self.teacher = teacher

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step % args.teacher_sync_steps == 0:
            self.teacher.follow(args.teacher_update_rate)


class SdftTrainer(RolloutRecord, BaseTrainer, SDFTTrainer):
    """SDFTTrainer with our prompts, teacher, precision, record and checkpoints.

    Args:
        job: the stage at work.
        teacher: the policy that came in, the base, or a moving average of the policy that starts as the former.
    """

    def __init__(self, *, job: Job, teacher: Kind, **arguments: Any) -> None:
        self.job, self.kind = job, teacher
        self.record = Recorder(job, Health(None, 0), remedies=_REMEDIES)
        self.sets = shared_base.plan(job.ticket, job.run.root)
        super().__init__(**arguments)
        set_seed(self.args.seed, device_specific=True)  # TRL's processes would all draw the same numbers
        self.lm: Any = unwrapped(self.model)
        self.switchboard = Switchboard(self.model, self.sets.policy) if self.sets else None

    # ---- the teacher ----------------------------------------------------------------------------------------------

    def _setup_teacher_model(self) -> None:
        """`learning` makes ours. TRL's would be the base where adapters came in, or one loaded by its configured name,
        and its averages start from zero and are in no checkpoint."""

    def _get_teacher_context_for_self_distillation(self) -> AbstractContextManager[None]:
        return nullcontext()

    @contextmanager
    def learning(self) -> Iterator[None]:
        """The model as it is trained, with its teacher; as it was, afterwards."""
        critic.without_dropout(self.model)
        with ExitStack() as entered:
            # what the recipe leaves open must not come from the base's own settings, such as a penalty
            most, pad = self.args.max_completion_length, scoring.padding(self.processing_class)
            plain = generation.plain(self.eos_token_ids, pad, most, self.args.temperature)
            entered.enter_context(generation.settings(self.model, plain))
            if self.switchboard is not None:
                entered.enter_context(checkpointing(self.lm, self.switchboard))
            self.teacher_model: Any = self._teacher()
            if isinstance(self.teacher_model, Averaged):
                self.add_callback(_Following(self.teacher_model))
            yield

    def _teacher(self) -> Any:
        ticket, sets = self.job.ticket, self.sets
        came_in = ticket.policy.adapters or ticket.policy.weights
        if self.kind == "ema":
            return Averaged(self.model)
        if self.kind == "base" and came_in:
            if sets is not None and self.switchboard is not None and ticket.policy.weights is None:
                return reference.Adapters(self.model, self.switchboard, [])
            return reference.Frozen(stack.load_policy(Policy(base=ticket.policy.base), ticket.model, self.job.run.root))
        if sets is not None and self.switchboard is not None:
            return reference.Adapters(self.model, self.switchboard, sets.reference)
        return reference.Swapped(self.model)

    # ---- the rollout ----------------------------------------------------------------------------------------------

    def _generate_transformers(self, prompt_ids: list[list[int]]) -> Any:
        """In the precision of the steps."""
        with autocast(self):
            return super()._generate_transformers(prompt_ids)

    def _compute_rollout_logps(self, **rollout: torch.Tensor) -> torch.Tensor | None:
        """In that precision too, and in minibatches: TRL takes the logits of a whole rollout at once."""
        size, count = self.args.per_device_train_batch_size, len(rollout["prompt_ids"])
        found = []
        for start in range(0, count, size):
            with autocast(self):
                part = {name: tensor[start : start + size] for name, tensor in rollout.items()}
                one = super()._compute_rollout_logps(**part)
            if one is None:
                return None
            found.append(one)
        return torch.cat(found)

    def _prepare_training_batch(self, inputs: list[dict[str, Any]]) -> Any:
        with heartbeats.during("rollout"):
            batch = super()._prepare_training_batch(inputs)
        self._begin(inputs, self._get_completion_ids_list(batch))
        return batch

    def _begin(self, inputs: list[dict[str, Any]], answers: list[list[int]]) -> None:
        """Begin the record of a rollout, over all processes."""
        every = self.gathered(answers)
        cut = [float(ids[-1] not in self.eos_token_ids) for ids in every]
        chosen = [i * len(answers) // rollouts.SAMPLES for i in range(min(rollouts.SAMPLES, len(answers)))]
        said = self.processing_class.batch_decode([answers[i] for i in chosen], skip_special_tokens=True)
        asked = [inputs[i]["prompt"] for i in chosen]
        shown = [prompt if isinstance(prompt, str) else str(prompt[-1]["content"]) for prompt in asked]
        self.record.begin(
            step=self.state.global_step,
            episodes=len(every),
            score=None,
            score_std=None,
            rewards={},
            length=sum(map(len, every)) / len(every),
            distinct_2=rollouts.distinct_2(every),
            repetition=rollouts.repetition(every),
            missing_eos=sum(cut) / len(cut),
            samples=[Sampled(prompt, answer, None, None) for prompt, answer in zip(shown, said, strict=True)],
        )

    def _log_self_distillation_metric(self, mode: str, value: float) -> None:
        super()._log_self_distillation_metric(mode, value)
        self.record.sums["policy_loss"].append(value)

    # ---- checkpoints ----------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if isinstance(self.teacher_model, Averaged) and self.accelerator.is_main_process:
            save_file(
                {name: t.cpu() for name, t in self.teacher_model.tensors.items()}, self._checkpoint(trial) / _TEACHER
            )

    def restored(self, checkpoint: Path) -> None:
        super().restored(checkpoint)
        if isinstance(self.teacher_model, Averaged):
            self.teacher_model.load(load_file(checkpoint / OWN / _TEACHER))
