"""Measures a policy while it is trained, without a trace in what is trained; ends a stage that has surely forgotten.

The processes share the probes, and the first judges and writes. Nothing that decides about a later step differs from a
training without measurements: the state of random numbers, the mode of every layer and what stands around the model are
put back.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from align.forgetting import inside, measurements, pace
from align.forgetting.inside import Judge, Measured
from align.forgetting.pace import Pace, Schedule
from align.run_folder import files, messages
from align.run_folder.messages import Told
from align.run_folder.records import Inside, Insight
from align.run_folder.stage_dir import StageDir
from align.stage.callbacks import Watch
from align.stage.random_state import unmoved

KEPT = "kept"  # the folder of a checkpoint that holds the weights kept until then: beside its own it would be loaded


@dataclass(frozen=True)
class Measuring:
    """What a stage is told of the measurements inside it.

    Attributes:
        base, incoming: the folders of measurements of the base and of the policy that came in.
        measure: writes the gate's half of the watched probes of a model into a folder; all processes call it.
    """

    settings: Inside
    dir: StageDir
    base: Path
    incoming: Path
    measure: Callable[[Any, Path], Any]

    def insight(self, steps: int) -> Insight:
        """What the outcome says of it."""
        chosen = pace.read(self.dir.pace) if self.settings.every == "auto" else None
        every = chosen.every or chosen.first if chosen else None
        return inside.insight(self.dir, self.settings, steps, every if chosen else _number(self.settings.every))

    def last(self, steps: int) -> None:
        """End the curve with what was measured of the policy that the stage hands on. Of the first process."""
        lines = inside.read(self.dir)
        if not lines or any(line.step == steps for line in lines):
            return
        if inside.ended(self.dir, self.settings, steps) is None:
            line = Judge.of(self.base, self.settings).stored(steps, "after", self.dir.measurements)
            inside.write(self.dir, [*lines, *([line] if line else [])])


class Watching(TrainerCallback):
    """Measures after the steps that are due. Stands before `Seal`, which closes the checkpoints.

    Args:
        model: what is trained, outside of what a trainer puts around it.
        watch: whose clock stands still while is measured.
        checkpoint: that training goes on from.
    """

    def __init__(self, told: Measuring, model: Any, watch: Watch, checkpoint: Path | None) -> None:
        self.told, self.model, self.watch, self.checkpoint = told, model, watch, checkpoint
        self.settings, self.dir = told.settings, told.dir
        self.lines: list[Measured] = []
        self.seen, self.cpu = 0, 0.0  # steps that this process has made, and its CPU seconds after the first
        self.spent = 0.0  # CPU seconds of measuring
        self.schedule = Schedule("auto", 0, False)
        self.judge: Judge | None = None

    # ---- what the trainer calls -----------------------------------------------------------------------------------

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        chosen = pace.read(self.dir.pace) if self.settings.every == "auto" else None
        self.schedule = Schedule(self.settings.every, state.max_steps, self.settings.early_stop, chosen)
        stored = self._begin(state) if state.is_world_process_zero else None
        if agreed(args, int(state.is_world_process_zero and not self.lines and stored is None)):
            line = self._line(state.global_step)
            stored = line.but(origin="before") if line else None
        if stored:
            self._add(stored)

    def _begin(self, state: TrainerState) -> Measured | None:
        """Put in place what the first process has of measurements; one of the policy that training begins with, where
        it is needed and there."""
        self.judge = Judge.of(self.told.base, self.settings)
        step = state.global_step
        self.lines = inside.read(self.dir, step) if self.checkpoint else []
        for folder in self.dir.inside.glob("step-*"):
            if not self.lines or int(folder.name.rpartition("-")[2]) > step:
                shutil.rmtree(folder)
        if self.settings.early_stop:
            if self.checkpoint:
                files.link(self.checkpoint / KEPT / self.dir.kept.name, self.dir.kept)
            else:
                keep(self.model, self.dir.kept, step)
        return self.judge.stored(step, "before", self.told.incoming) if step == 0 and not self.lines else None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        step, schedule = state.global_step, self.schedule
        self.seen += 1
        if self.seen == 1:
            self.cpu = time.process_time()
        if schedule.asked == "auto" and schedule.pace is None and self.seen == schedule.waits and step < schedule.last:
            self._share(args, lambda: schedule.begin(step, self._foreseen(), self._one_step()))
        if not schedule.due(step):
            return
        one_step, line = self._one_step(), self._line(step)
        stop = line is not None and self.settings.early_stop and bool(line.broken)
        if line is not None:
            if self.settings.early_stop and not stop:
                keep(self.model, self.dir.kept, step)
            self._add(line)
        if agreed(args, int(stop)):
            control.should_training_stop = control.should_log = True  # the last loss too, wherever logging would be due
        chosen = schedule.pace
        if schedule.asked == "auto" and chosen is not None and chosen.every is None and step < schedule.last:
            took = line.cpu_seconds if line else 0.0  # of the others the first's counts
            self._share(args, lambda: schedule.settle(chosen, took, one_step))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.settings.early_stop and state.is_world_process_zero and args.output_dir:
            files.link(
                self.dir.kept, Path(args.output_dir) / f"checkpoint-{state.global_step}" / KEPT / self.dir.kept.name
            )

    # ---- a measurement --------------------------------------------------------------------------------------------

    def _line(self, step: int) -> Measured | None:
        """Measure what is trained now, with all processes; the first one judges it."""
        wall, cpu = time.monotonic(), time.process_time()
        folder = self.dir.inside / f"step-{step}"
        if self.judge is not None:
            shutil.rmtree(folder, ignore_errors=True)
        with undisturbed(self.model):
            self.told.measure(self.model, folder)
        line = self.judge.judged(step, measurements.load(folder)) if self.judge is not None else None
        seconds, spent = time.monotonic() - wall, time.process_time() - cpu
        self.watch.time += seconds
        self.spent += spent
        return line.but(origin="inside", seconds=round(seconds, 3), cpu_seconds=round(spent, 3)) if line else None

    def _add(self, line: Measured) -> None:
        self.lines.append(line)
        inside.write(self.dir, self.lines)
        messages.tell(self.dir.progress, Told(time=time.time(), inside=f"step {line.step}: {line.short()}"))

    # ---- how often ------------------------------------------------------------------------------------------------

    def _one_step(self) -> float:
        """CPU seconds of a step, without measurements; the first one warms up and is left out."""
        return (time.process_time() - self.cpu - self.spent) / max(self.seen - 1, 1)

    def _foreseen(self) -> float:
        """CPU seconds that a measurement will take, by the share of items in one of the policy at rest."""
        assert self.judge is not None
        folder = self.told.incoming if (self.told.incoming / "summary.json").is_file() else self.told.base
        whole = sum(map(len, measurements.load(folder).items.values()))
        part = sum(len(items) for (split, _), items in self.judge.base.items.items() if split == "gate")
        took = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["cpu_seconds"]
        return float(took) * part / max(whole, 1)

    def _share(self, args: TrainingArguments, choose: Callable[[], Pace]) -> None:
        """Let the first process choose, and all act by it."""
        chosen = Pace(first=0)
        if self.judge is not None:
            chosen = choose()
            pace.write(self.dir.pace, chosen)
        first, every = agreed(args, chosen.first), agreed(args, chosen.every or 0)
        self.schedule.pace = chosen if self.judge is not None else Pace(first=first, every=every or None)


def agreed(args: TrainingArguments, number: int) -> int:
    """A number of the first process, in all of them; they wait for it."""
    if args.world_size == 1:
        return number
    shared = torch.tensor(number, device=args.device)
    torch.distributed.broadcast(shared, src=0)
    return int(shared.item())


@contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """Within, a model in training is itself, in evaluation; afterwards nothing tells that it was."""
    modes = [(module, module.training) for module in model.modules()]
    plain, wrapped = vars(model).get("_original_forward"), vars(model).get("forward")  # accelerate's autocast
    with unmoved():
        if plain is not None:
            model.forward = plain
        model.eval()
        try:
            yield
        finally:
            if plain is not None:
                model.forward = wrapped
            for module, training in modes:
                module.training = training


def keep(model: torch.nn.Module, path: Path, step: int) -> None:
    """Write the weights that are trained, in place of those kept before."""
    found = {name: p.detach().cpu().contiguous().clone() for name, p in model.named_parameters() if p.requires_grad}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    save_file(found, part, metadata={"step": str(step)})
    part.replace(path)


def restore(model: torch.nn.Module, path: Path) -> int:
    """Put kept weights back, exactly; the step that they are of."""
    with safe_open(path, framework="pt") as stored, torch.no_grad():
        own = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if set(stored.keys()) != own.keys():
            raise ValueError(f"{path} holds other weights than this stage trains")
        for name, parameter in own.items():
            parameter.copy_(stored.get_tensor(name))
        return int(stored.metadata()["step"])


def _number(every: object) -> int | None:
    return every if isinstance(every, int) else None
