"""What ends a training that diverges, at the step at which it does, and says so while a loss explodes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from align.data.order import GROUP
from align.engines import choose
from align.errors import AlignError, Exit
from align.run_folder.paths import RunDir
from align.run_folder.records import Ticket
from align.stage.keys import StageKeys

if TYPE_CHECKING:
    from torch import nn
    from transformers import Trainer

IN_A_ROW = 3  # so many steps may be left out, one after another
NAMED = 16  # rows of a step that are named
TIMES = 3.0  # a loss explodes at so many times its lowest,
ABOVE = 1.5  # and so many times its first
EMPTY = 2  # logged gradients of 0, one after another, are no accident
RISEN = 1.1  # times the loss of the first third of the steps,
LEAST = 2  # where a third has so many that were logged


class Job(Protocol):
    """What of a job is looked at; see align.stage.job."""

    run: RunDir
    ticket: Ticket
    keys: StageKeys
    rows: list[dict[str, Any]]
    groups: list[int]
    global_batch: int
    model: Any

    def warn(self, text: str) -> None: ...


class Finite(TrainerCallback):
    """Looks at the norm of the gradients before each update. One that is no number ends the stage before it changes a
    weight, or the update is left out, as `on_nan` says. With `fp16` the scaler leaves such steps out by itself: so it
    finds its scale."""

    def __init__(self, job: Job, trainer: Trainer) -> None:
        self.job, self.trainer, self.skipped = job, trainer, 0
        self.engine = choose.of(job.ticket.launch)
        self.norm: Any = None
        self.good = True  # whether the last update could be made
        whole = trainer._get_grad_norm

        def noted(*arguments: Any, **named: Any) -> Any:
            self.norm = whole(*arguments, **named)
            return self.norm

        trainer._get_grad_norm = noted

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: torch.optim.Optimizer | None = None,
        **_: Any,
    ) -> None:
        if self.norm is None or self.trainer.is_deepspeed_enabled or self.trainer.accelerator.scaler is not None:
            return
        norm = float(self.norm.full_tensor() if hasattr(self.norm, "full_tensor") else self.norm)
        self.good = math.isfinite(norm)
        if not self.good:
            self._diverged(state.global_step + 1, f"the norm of its gradients is {norm:g}")
            if optimizer is not None:
                optimizer.zero_grad(set_to_none=True)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.engine.left_out(self.trainer):
            self._diverged(state.global_step, "its gradients contain NaN or infinite values")
        elif self.good:
            self.skipped = 0

    def _diverged(self, step: int, how: str) -> None:
        """A step has no update to make.

        Raises:
            AlignError: the stage is not to leave it out, or too many in a row were.
        """
        stage = self.job.ticket.stage
        if step == 1 and (name := _not_finite(self.job.model.named_parameters())):
            what = f"the weights that stage '{stage}' starts from contain NaN or infinite values, in {name}"
            raise AlignError(what, "choose another base, or train the stage before again", exit=Exit.STAGE_FAILED)
        self.skipped += 1
        rows = self._rows(step)
        where = f"step {step}, {rows}" if rows else f"step {step}"
        if self.job.keys.on_nan == "skip" and self.skipped <= IN_A_ROW:
            self.job.warn(f"{where} was left out: {how}")
            return
        before = f", and {IN_A_ROW} steps before it were left out" if self.skipped > IN_A_ROW else ""
        remedy = f"lower `stages.{stage}.training.learning_rate`, or see whether something is wrong with its rows"
        skip = "" if before else f"; `on_nan: skip` in stage '{stage}' leaves such a step out"
        raise AlignError(
            f"the training of stage '{stage}' diverged in {where}: {how}{before}",
            f"{remedy}{skip}. What was saved before it is kept",
            exit=Exit.STAGE_FAILED,
        )

    def _rows(self, step: int) -> str:
        """Where the rows of a step stand; empty where they are no longer one by one in the order of a file."""
        order, ticket = getattr(self.trainer, "row_order", None), self.job.ticket
        table = getattr(self.trainer.train_dataset, "rows", self.trainer.train_dataset)  # rows by the place of a step
        columns = getattr(table, "column_names", ())
        if order is None or GROUP not in columns or len(table) != len(self.job.rows):
            return ""
        rows, batch = order(), self.job.global_batch
        at = (step - 1) * batch
        own = [row + 1 for row in rows.rows(at // len(rows))[at % len(rows) :][:batch] if not self.job.groups[row]]
        if not own or ticket.train is None:
            return ""
        told = ", ".join(str(line) for line in sorted(own)[:NAMED])
        more = f" and {len(own) - NAMED} more" if len(own) > NAMED else ""
        replayed = f" and {batch - len(own)} replayed ones" if batch > len(own) else ""
        return f"with lines {told}{more} of {self.job.run.root / ticket.train.path}{replayed}"


class Learning(TrainerCallback):
    """Warns, once each, of a loss that has become many times what it was, of gradients that are all 0, and at the end
    of a loss that is above that of the start."""

    def __init__(self, job: Job) -> None:
        self.job, self.told, self.empty = job, set[str](), 0

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        found, logs = losses(state), logs or {}  # those before a resumption too
        if "loss" in logs and len(found) > 1:
            first, lowest, last = found[0], min(found), found[-1]
            if lowest > 0 and last > max(TIMES * lowest, ABOVE * first):
                figures = f"it is {last:.3g} at step {state.global_step}, and was {lowest:.3g}"
                self._warn("explodes", f"the loss explodes: {figures}; lower the stage's `learning_rate`")
        if "grad_norm" in logs and logs.get("learning_rate"):
            self.empty = self.empty + 1 if float(logs["grad_norm"]) == 0 else 0
        if self.empty == EMPTY:
            what = f"all gradients are 0 at step {state.global_step}, as they were before: nothing is learnt"
            self._warn(
                "empty", f"{what}; lower the stage's `learning_rate`, or see whether its rows can teach anything"
            )

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step < state.max_steps:  # it was asked to stop
            return
        found = losses(state)
        third = len(found) // 3
        if third >= LEAST:
            first, last = sum(found[:third]) / third, sum(found[-third:]) / third
            if last > RISEN * max(first, found[0]) > 0 and "explodes" not in self.told:
                figures = f"{last:.3g} in the last third of the steps, {first:.3g} in the first"
                self._warn("risen", f"the loss has risen: {figures}; lower the stage's `learning_rate`")

    def _warn(self, kind: str, text: str) -> None:
        if kind not in self.told:
            self.told.add(kind)
            self.job.warn(text)


def losses(state: TrainerState) -> list[float]:
    """The losses that were logged, in the order of steps."""
    return [entry["loss"] for entry in state.log_history if "loss" in entry]


def assert_finite(model: nn.Module, stage: str) -> None:
    """Raises AlignError where training left a weight that is no number."""
    name = _not_finite((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)
    if name is not None:
        raise AlignError(
            f"the training of stage '{stage}' diverged: {name} contains NaN or infinite values",
            f"lower `stages.{stage}.training.learning_rate`, or train in float32",
            exit=Exit.STAGE_FAILED,
        )


def _not_finite(weights: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """The first of these weights that holds something that is no number."""
    return next((name for name, weight in weights if not bool(torch.isfinite(weight).all())), None)
