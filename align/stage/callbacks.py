"""What watches a trainer for the parent: progress, whole checkpoints, and the wish to stop."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from align.run_folder import checkpoints, files, heartbeats


class Interrupted(Exception):
    """The run was asked to stop; a checkpoint was written."""


def figures(state: TrainerState) -> dict[str, float]:
    """The last logged value of every figure, and `train_loss`, the mean over all steps, resumed or not."""
    found: dict[str, float] = {}
    losses: list[tuple[int, float]] = []  # steps that a log speaks of, and their mean loss
    before = 0
    for entry in state.log_history:
        found.update({k: float(v) for k, v in entry.items() if isinstance(v, int | float)})
        if "loss" in entry:
            losses.append((entry["step"] - before, float(entry["loss"])))
            before = entry["step"]
    steps = sum(count for count, _ in losses)
    if steps:
        found["train_loss"] = sum(count * loss for count, loss in losses) / steps
    drop = {"step", "epoch", "train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos"}
    return {key: value for key, value in found.items() if key not in drop}


class Watch(TrainerCallback):
    """Writes each log of the trainer into metrics.jsonl, with tokens per second and memory."""

    def __init__(self, path: Path, *, resumed: bool) -> None:
        self.path, self.resumed = path, resumed
        self.tokens, self.time = 0.0, time.monotonic()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.time = time.monotonic()
        if not state.is_world_process_zero:
            return
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        kept = [line for line in lines if self.resumed and _step(line) <= state.global_step]
        files.write_text(self.path, "".join(line + "\n" for line in kept))
        self._write({"step": state.global_step, "max_steps": state.max_steps, "time": time.time()})

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_log = True  # the last loss, whatever logging_steps is

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return
        entry = {k: v for k, v in logs.items() if isinstance(v, int | float)}
        now = time.monotonic()
        if "num_tokens" in entry:
            entry["tokens_per_second"] = max(entry["num_tokens"] - self.tokens, 0) / max(now - self.time, 1e-9)
            self.tokens = entry["num_tokens"]
        self.time = now
        if torch.cuda.is_available():
            entry["memory_bytes"] = torch.cuda.max_memory_allocated()
        self._write({"step": state.global_step, "max_steps": state.max_steps, "time": time.time(), **entry})

    def _write(self, entry: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def _step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):
        return 2**62


class Seal(TrainerCallback):
    """Marks a checkpoint as whole once every process has written its part."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        from accelerate import PartialState

        PartialState().wait_for_everyone()
        if state.is_world_process_zero and args.output_dir:
            checkpoints.seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")
        PartialState().wait_for_everyone()  # hashing takes a while: one that leaves has the others ended


class Ready(TrainerCallback):
    """Looks at the trainer when all is ready for the first step."""

    def __init__(self, look: Callable[[], None]) -> None:
        self.look = look

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.look()


class Stop(TrainerCallback):
    """Ends training after the step at which the run was asked to stop, with a checkpoint."""

    def __init__(self, asked: Callable[[], bool]) -> None:
        self.asked, self.stopped = asked, False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step < state.max_steps and self._anyone_asked(args):
            self.stopped = control.should_save = control.should_training_stop = True

    def _anyone_asked(self, args: TrainingArguments) -> bool:
        """All processes must stop after the same step: the signal may reach them in different ones."""
        if args.world_size == 1:
            return self.asked()
        flag = torch.tensor(int(self.asked()), device=args.device)
        torch.distributed.all_reduce(flag)
        return bool(flag.item())


class Alive(TrainerCallback):
    """Tells of life at the boundaries of steps and of batches. Stands last, where all know what comes after a step."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        heartbeats.beat("step", step=state.global_step)

    def on_substep_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        heartbeats.beat("step", step=state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        next_phase: heartbeats.Phase = "saving" if control.should_save else "step"
        heartbeats.beat("evaluation" if control.should_evaluate else next_phase, step=state.global_step)

    on_epoch_end = on_step_end

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        heartbeats.beat("evaluation", step=state.global_step)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        heartbeats.beat("saving" if control.should_save else "step", step=state.global_step)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        heartbeats.beat("step", step=state.global_step)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        heartbeats.beat("closing", step=state.global_step)
