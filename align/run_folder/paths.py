"""The paths of a run, what is replaced in it, and its lock."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from align.errors import AlignError
from align.run_folder.files import read_json, write_json


@dataclass(frozen=True)
class StageDir:
    """The paths of one stage."""

    root: Path

    @property
    def ticket(self) -> Path:
        return self.root / "ticket.json"

    @property
    def outcome(self) -> Path:
        return self.root / "outcome.json"

    @property
    def remeasuring(self) -> Path:
        """The outcome of a stage that is measured again, until that is done."""
        return self.root / "trained.json"

    @property
    def decision(self) -> Path:
        return self.root / "decision.json"

    @property
    def attempts(self) -> Path:
        """Other attempts at the stage than the one that stands in its folder, by their numbers."""
        return self.root / "attempts"

    def attempt(self, number: int) -> StageDir:
        """Where an attempt is kept that does not stand in the stage's folder."""
        return StageDir(self.attempts / str(number))

    @property
    def kept_attempts(self) -> list[StageDir]:
        """Those that do not stand in the stage's folder."""
        return [StageDir(path) for path in sorted(self.attempts.glob("[0-9]*"))]

    @property
    def moving(self) -> Path:
        """What is being moved between the stage's folder and its attempts; gone when that is done."""
        return self.root / "moving.json"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def error(self) -> Path:
        return self.root / "error.json"

    @property
    def log(self) -> Path:
        return self.root / "log.txt"

    def log_of(self, rank: int) -> Path:
        """What one of several processes prints."""
        return self.log if rank == 0 else self.root / f"log.rank{rank}.txt"

    def error_of(self, rank: int) -> Path:
        """Why one of several processes failed."""
        return self.error if rank == 0 else self.root / f"error.rank{rank}.json"

    @property
    def errors(self) -> list[Path]:
        """What the processes of the stage have failed of."""
        return [path for path in (self.error, *sorted(self.root.glob("error.rank*.json"))) if path.is_file()]

    @property
    def progress(self) -> Path:
        """What a stage is at before it trains, and its warnings as they come up."""
        return self.root / "progress.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def card(self) -> Path:
        return self.model / "README.md"

    @property
    def measurements(self) -> Path:
        return self.root / "measurements"

    @property
    def inside(self) -> Path:
        """What was measured while the stage trained."""
        return self.root / "inside"

    @property
    def curve(self) -> Path:
        """A line for each of these measurements, in the order of steps."""
        return self.inside / "measurements.jsonl"

    @property
    def pace(self) -> Path:
        """How often they are made, where that is chosen by what they cost."""
        return self.inside / "every.json"

    @property
    def kept(self) -> Path:
        """The trained weights of the last measurement within the limits; gone with the checkpoints."""
        return self.checkpoints / "kept.safetensors"

    @property
    def latency(self) -> Path:
        return self.measurements / "latency.json"

    @property
    def task_kl(self) -> Path:
        """How far the policy's distributions are from the base's on the prompts of the task."""
        return self.measurements / "task_kl.json"

    @property
    def drift(self) -> Path:
        """How far the policy's weights are from the base's."""
        return self.measurements / "drift.json"

    @property
    def answers(self) -> Path:
        """What the policy answers to the prompts that the base was asked."""
        return self.measurements / "answers.jsonl"

    @property
    def tokens(self) -> Path:
        """The rows as the trainer takes them, while the stage is at work."""
        return self.root / "tokens"

    @property
    def written(self) -> Path:
        """What the policy wrote before the stage began to train."""
        return self.root / "written"

    @property
    def spectrum(self) -> Path:
        """What `method: spectrum` measured and chose."""
        return self.root / "spectrum.json"

    @property
    def precision(self) -> Path:
        """What a stage computes in where its recipe leaves that to the machine it began on."""
        return self.root / "precision.json"

    @property
    def proofs(self) -> Path:
        """What the launch proved before its first step."""
        return self.root / "proofs.json"

    @property
    def reference(self) -> Path:
        return self.root / "reference.safetensors"

    @property
    def fisher(self) -> Path:
        """The diagonal of the Fisher information that `ewc` weighs by."""
        return self.root / "fisher.safetensors"

    @property
    def fisher_record(self) -> Path:
        """What it was measured on, and its hash."""
        return self.root / "fisher.json"

    @property
    def token_log_probs(self) -> Path:
        """How probable the policy that came in finds the tokens of the answers, where improbable ones are masked."""
        return self.root / "token_log_probs.safetensors"

    @property
    def rollouts(self) -> Path:
        """What a stage that learns from rewards knows of each rollout."""
        return self.root / "rollouts.jsonl"

    @property
    def critic(self) -> Path:
        """The value network of PPO, kept beside the policy."""
        return self.root / "critic"

    @property
    def aside(self) -> Path:
        """Says of a stage in `superseded/` that it comes back when what it was trained from does."""
        return self.root / "aside.json"

    @property
    def interpolation(self) -> Path:
        """What was measured of shares of the stage's update."""
        return self.root / "interpolation"

    @property
    def interpolation_request(self) -> Path:
        return self.interpolation / "request.json"

    @property
    def interpolation_result(self) -> Path:
        return self.interpolation / "result.json"

    def of_share(self, shape: str, share: float) -> Path:
        """The measurement of one share, on the gate's items."""
        return self.interpolation / shape / f"{share:g}"

    @property
    def measured_shares(self) -> list[Path]:
        """The measurements of shares that there are."""
        return sorted(self.interpolation.glob("*/0.*"))

    @property
    def decided(self) -> DecidedDir:
        """What goes on from the stage in place of what it trained, laid out as a stage."""
        return DecidedDir(self.root / "decided")


@dataclass(frozen=True)
class DecidedDir(StageDir):
    """The paths of a policy that was decided on; what it is at is told where the stage's own is."""

    @property
    def progress(self) -> Path:
        return self.root.parent / "progress.jsonl"


@dataclass(frozen=True)
class RunDir:
    """The paths of a run."""

    root: Path

    @property
    def recipe(self) -> Path:
        return self.root / "recipe.yaml"

    @property
    def record(self) -> Path:
        return self.root / "run.json"

    @property
    def forgetting(self) -> Path:
        return self.root / "forgetting.json"

    @property
    def comparison(self) -> Path:
        """What the branches of a run score, side by side."""
        return self.root / "comparison.json"

    @property
    def base_measurements(self) -> Path:
        return self.root / "base" / "measurements"

    @property
    def base_answers(self) -> Path:
        """What the base answers to the prompts that every stage is asked."""
        return self.base_measurements / "answers.jsonl"

    @property
    def quantization(self) -> Path:
        """What quantising the base costs it, before anything is trained."""
        return self.base_measurements / "quantization.json"

    @property
    def battery_size(self) -> Path:
        """How many items of each skill are asked, where a run chose."""
        return self.base_measurements / "battery.json"

    @property
    def base_identity(self) -> Path:
        return self.root / "base" / "identity.json"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def queue(self) -> Path:
        return self.root / ".queue"

    def asked(self, number: int) -> Path:
        """What the parent asks of the child, one file each."""
        return self.queue / f"{number}.json"

    @property
    def launch(self) -> Path:
        """How each child was started: accelerate's configuration, and the line as a script."""
        return self.root / "launch"

    @property
    def stop(self) -> Path:
        """A file whose presence asks every process of the child to save and end."""
        return self.queue / "stop"

    def child_log_of(self, machine: int) -> Path:
        """What the processes of one of several machines print before they know their stage."""
        return self.child_log if machine == 0 else self.root / f"child.machine{machine}.log"

    @property
    def call(self) -> Path:
        """What the first of several machines wants of the others."""
        return self.machines / "call.json"

    def answer(self, machine: int) -> Path:
        """What another machine says to it."""
        return self.machines / f"{machine}.json"

    @property
    def machines(self) -> Path:
        """What the machines of a run tell each other."""
        return self.root / "machines"

    @property
    def heartbeats(self) -> Path:
        """A sign of life of each process of the child."""
        return self.queue / "heartbeats"

    def heartbeat(self, rank: int) -> Path:
        return self.heartbeats / f"{rank}.json"

    @property
    def child_log(self) -> Path:
        return self.root / "child.log"

    def stage(self, id: str) -> StageDir:
        return StageDir(self.root / "stages" / id)

    def stages_of(self, *paths: str) -> list[StageDir]:
        """The stages in whose folders these paths lie, which begin at the root; others are left out."""
        parts = [Path(path).parts for path in paths]
        return [self.stage(part[1]) for part in parts if part[:1] == ("stages",)]

    def relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    @property
    def superseded(self) -> Path:
        """What was replaced, under names that say when."""
        return self.root / "superseded"

    def supersede(self, path: Path) -> None:
        """Move a part of the run to `superseded/`, under a name that says when; nothing is overwritten."""
        if not path.exists():
            return
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
        target = self.superseded / f"{stamp}-{path.name}"
        target.parent.mkdir(exist_ok=True)
        path.replace(target)

    def is_there(self) -> bool:
        """Whether the folder is the one that was locked: not one that was deleted since, or made anew."""
        return (self.root / ".lock").is_file()

    def is_held(self) -> bool:
        """Whether a process is at work on this run."""
        lock = FileLock(self.root / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
        return False

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process.

        Raises:
            AlignError: another process holds it.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            (self.root / ".lock").touch()
        except OSError as error:
            what = f"the run folder '{self.root}' cannot be written ({error.strerror})"
            raise AlignError(what, "give another --run-dir") from None
        lock = FileLock(self.root / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            holder = read_json(self.root / ".holder", {}).get("pid")
            who = f"process {holder}" if holder else "another process"
            raise AlignError(
                f"the run folder '{self.root}' is in use by {who}", "wait for it to end, or give another --run-dir"
            ) from None
        try:
            write_json(self.root / ".holder", {"pid": os.getpid()})
            yield
        finally:
            lock.release()
