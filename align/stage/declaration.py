"""What a stage is: the declaration at the end of a stage file, and the records that go in and come out.

A stage file declares one `STAGE = Stage(...)`. It is loaded by name (`stages/sft.py` is `sft`) or by path
(`./my_stage.py`), in the torch-free parent too: import torch and trl inside its functions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from align.data.formats import Kind
from align.run_folder.records import Gives, Ticket
from align.stage.keys import StageKeys

if TYPE_CHECKING:
    from align.stage.job import Job


@dataclass(frozen=True)
class Stage:
    """What a stage file declares.

    Attributes:
        description: one line for `align list`.
        rows: the kinds of rows it trains on.
        train: trains `job.model` in place and returns its final metrics.
        gives: what later stages may take from it.
        keys: its recipe keys, a subclass of StageKeys.
        arguments: the TRL config whose names `training:` takes; None: any name, the stage checks them itself.
        defaults: training arguments where it departs from TRL's defaults, by family: all, full, adapter.
        samples: whether the policy samples answers in training, to prompts.
        demonstrated: whether it needs the rows' own answers beside that; `rows` are then those that have one.
        replays: whether it takes replayed rows: True mixes them into `job.rows`; `term` puts them into `job.replay`,
            for a term of the loss, where the stage itself names a replay: the recipe's is for those that mix.
        evaluates: whether it can take `eval_data`.
        reserved: training arguments that a recipe writes elsewhere, or that this stage sets, each with what to write.
        preload: puts adapters onto the model that must lie under the one that the stage trains.
    """

    description: str
    rows: frozenset[Kind]
    train: Callable[[Job], dict[str, Any]]
    gives: Gives = "policy"
    keys: type[StageKeys] = StageKeys
    arguments: str | None = None
    defaults: dict[str, dict[str, Any]] = field(default_factory=dict)
    samples: bool = False
    demonstrated: bool = False
    replays: bool | Literal["term"] = False
    evaluates: bool = True
    reserved: dict[str, str] = field(default_factory=dict)
    preload: Callable[[Ticket, Any, Path], Any] | None = None

    def __post_init__(self) -> None:
        """Raises ValueError where it would sample answers to something else than prompts."""
        if self.samples and not self.demonstrated and "prompt" not in self.rows:
            raise ValueError("a stage with samples=True takes rows of the kind 'prompt': add it to `rows`")
