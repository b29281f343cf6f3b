"""A recipe as it was read: its stages in order, each with its program, its method and its arguments."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.parameterization.chain import Layer
from align.parameterization.method import Method
from align.parameterization.traits import ParameterizationKeys
from align.recipe.document import Document
from align.recipe.keys import Recipe
from align.run_folder.launch import Launch
from align.stage.keys import StageKeys
from align.stage.program import Program
from align.stage.replay_keys import Replay


@dataclass(frozen=True)
class StagePlan:
    """One stage of a loaded recipe, with everything inherited filled in."""

    id: str
    program: Program
    policy: str  # the id of the stage whose policy it takes, or `base`
    rewards: tuple[str, ...]  # the ids of the stages that score its answers
    keys: StageKeys
    method: Method
    method_keys: ParameterizationKeys
    replay: Replay | None
    training: dict[str, Any]
    launch: Launch

    @property
    def inputs(self) -> tuple[str, ...]:
        """The ids of all that it takes something from."""
        return (self.policy, *self.rewards)

    @property
    def replays(self) -> bool:
        """Whether it needs rows to replay."""
        return self.replay is not None and self.replay.ratio > 0

    @property
    def mixes(self) -> bool:
        """Whether replayed rows are among those of its epochs."""
        return self.replay is not None and self.program.stage.replays is True

    @property
    def layer(self) -> Layer:
        """What it adds to the policy that comes in."""
        return Layer(self.method, self.method_keys, self.id)

    @property
    def trains_base(self) -> bool:
        """Whether base weights change."""
        return self.layer.traits.trains_base

    @property
    def global_batch(self) -> tuple[int, int]:
        """Rows of a process in one update: per-device batch size and accumulation steps."""
        return self.training["per_device_train_batch_size"], self.training["gradient_accumulation_steps"]


@dataclass(frozen=True)
class Loaded:
    """A recipe as read and checked, its stages in the order in which they run."""

    recipe: Recipe
    stages: list[StagePlan]
    document: Document
    root: Path  # relative paths of the recipe stand on it
    warnings: list[str]
