"""The recipe keys that every stage has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from align.data.formats import Example
from align.data.sources import DataSource
from align.penalties.keys import Ewc
from align.stage.replay_keys import Replay

if TYPE_CHECKING:
    from align.parameterization.chain import Layer


@dataclass(frozen=True)
class Setting:
    """Where a stage stands in its recipe.

    Attributes:
        own: its parameterization.
        replays: whether rows of earlier knowledge are mixed in.
        policy: the stage whose policy it starts from, or `base`.
        rewards: the stages that score its answers.
        layers: the adapters that each stage before it hands on.
    """

    own: Layer
    replays: bool
    policy: str
    rewards: tuple[str, ...]
    layers: Mapping[str, Sequence[Layer]]


class StageKeys(BaseModel):
    """The recipe keys that every stage has. A stage adds its own by a subclass.

    Attributes:
        later: keys that came to a shipped stage after runs had been written: at its default such a key is not in a
            fingerprint, so that those runs go on.
    """

    model_config = ConfigDict(extra="forbid")
    later: ClassVar[frozenset[str]] = frozenset()
    stage: str | None = Field(
        None,
        description="the program: a name from `align list`, or ./my_stage.py; defaults to the name of the entry",
    )
    policy: str | None = Field(None, description="the stage whose policy it starts from; `base` is the base model")
    data: DataSource | list[DataSource] = Field(
        description="the training data: a file, a folder, a Hub id, lab/helpdesk"
    )
    eval_data: DataSource | list[DataSource] | int | float | None = Field(
        None,
        description="held-out rows for a validation loss: a source, or a share (0.05) or number (200) of `data`'s rows",
    )
    parameterization: dict[str, Any] | None = Field(
        None, description="which weights this stage trains, as in `{method: qlora}`; replaces the recipe's entirely"
    )
    launch: dict[str, Any] | None = Field(
        None,
        description="how this stage's processes are started, as in `{processes: 2}`; replaces the recipe's entirely",
    )
    replay: Replay | None = Field(None, description="replaces the recipe's; `null` turns replay off for this stage")
    ewc: Ewc | None = Field(
        None, description="keeps weights near where they were, those most that given rows need most (EWC)"
    )
    l2_sp: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="draws every weight back to where it was (L2-SP)"
    )
    too_long: Literal["refuse", "drop"] = Field(
        "refuse",
        description="rows whose answer `max_length` would cut off entirely: refuse the recipe, or drop them and report "
        "their number",
    )
    on_nan: Literal["stop", "skip"] = Field(
        "stop",
        description="what to do at a step whose gradients are NaN or infinite: end the stage and keep its last "
        "checkpoint, or make no update in it and go on; the fourth such step in a row ends it",
    )
    on_out_of_memory: Literal["halve", "stop"] = Field(
        "halve",
        description="what to do where the memory runs out in training: go on from the last checkpoint with half as "
        "many rows at a time, and twice as many of them accumulated, so that the batch stays; or end the stage",
    )
    training: dict[str, Any] = Field(
        default_factory=dict, description="training arguments, as in `{learning_rate: 1e-4}`"
    )

    def splits(self, training: dict[str, Any]) -> bool:
        """Whether the loss of a batch is that of its parts together, passed through the model one by one."""
        return True

    def contradictions(self, setting: Setting) -> list[tuple[str, str, str]]:
        """What does not go together with where the stage stands: the key, what is wrong, and the way out."""
        return []

    def refusals(self, rows: Sequence[Example]) -> list[tuple[str, str, str]]:
        """What of the checked training rows does not go with these keys: the key, what is wrong, and the way out."""
        return []

    def notes(self, rows: Sequence[Example]) -> list[str]:
        """What is questionable about the stage's checked training rows, with these keys."""
        return []
