"""The door to the engines: what each must have, and the one that a launch names. No torch until a rank begins."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from align.run_folder.launch import Launch, Place

if TYPE_CHECKING:
    from accelerate import PartialState
    from transformers import Trainer


class Engine(Protocol):
    """A file of this folder, as the others see it. The first two are asked by the parent, without torch."""

    @staticmethod
    def missing(launch: Launch) -> tuple[str, str] | None:
        """What this machine lacks for it, and the line that installs that."""

    @staticmethod
    def configuration(launch: Launch, place: Place) -> dict[str, Any] | None:
        """The file that `accelerate launch` is given; None where the process is started without it."""

    @staticmethod
    def begin(launch: Launch) -> PartialState:
        """Meet the other processes.

        Raises:
            AlignError: another number came up than was asked for.
        """

    @staticmethod
    def arguments(launch: Launch) -> dict[str, Any]:
        """Training arguments that it needs, whatever the recipe says."""

    @staticmethod
    def prepare(trainer: Trainer) -> None:
        """Bring a trainer into agreement with the engine, before it puts anything around its model."""

    @staticmethod
    def prove(trainer: Trainer, launch: Launch) -> None:
        """Look at a trainer that is ready for its first step.

        Raises:
            AlignError: what is about to train is not what was launched.
        """

    @staticmethod
    def left_out(trainer: Trainer) -> bool:
        """Whether it made no update in the step that has just ended, of its own accord."""

    @staticmethod
    def whole(trainer: Trainer) -> None:
        """Leave the trained model by itself: every weight whole, in each process that is to measure or save it."""


def of(launch: Launch) -> Engine:
    """The engine of a launch."""
    return cast(Engine, importlib.import_module(f"align.engines.{launch.engine}"))


def names() -> list[str]:
    """Every engine there is: the files of this folder that are one."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if "\ndef begin(" in path.read_text("utf-8"))
