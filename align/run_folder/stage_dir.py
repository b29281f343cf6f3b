"""The paths of one stage of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


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
    def batch(self) -> Path:
        """How many rows at a time the memory was enough for, where it was not for those of the recipe."""
        return self.root / "batch.json"

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

    @property
    def logs(self) -> list[Path]:
        """What the processes of the stage have printed."""
        return [path for path in (self.log, *sorted(self.root.glob("log.rank*.txt"))) if path.is_file()]

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
