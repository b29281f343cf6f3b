"""What a user's probe is: its items, what it needs of a model, and how its answers are scored. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from align.forgetting.measurements import Split
from align.forgetting.own.items import OwnItem


@dataclass(frozen=True)
class Greedy:
    """Needed of a model: greedy answers of at most so many tokens."""

    tokens: int


@dataclass(frozen=True)
class Likelihoods:
    """Needed of a model: the log-likelihoods of choices."""


@dataclass(frozen=True)
class Scorer:
    """What scores greedy answers.

    Attributes:
        metric: contains, regex, function or evaluate.
        path: the file of a function, or the script of a metric.
        name: the function, or the metric as the recipe names it.
        field: which number of a metric counts.
        sha256: of the file.
    """

    metric: str
    path: str = ""
    name: str = ""
    field: str | None = None
    sha256: str = ""


@dataclass(frozen=True)
class Answered:
    """Greedy answers, each with a score in 0..1."""

    name: str
    items: dict[Split, dict[str, OwnItem]]
    scorer: Scorer
    needs: Greedy
    chance: float = 0.0  # nothing can be guessed

    def identity(self) -> Any:
        """What makes another probe of it; neither the names of files nor where they are."""
        scorer = {name: value for name, value in asdict(self.scorer).items() if name != "path"}
        return ["answered", self.name, _items(self.items), scorer, self.needs.tokens]


@dataclass(frozen=True)
class Chosen:
    """Right or wrong: the likeliest of the choices is the right one."""

    name: str
    items: dict[Split, dict[str, OwnItem]]
    needs: Likelihoods = Likelihoods()

    @property
    def chance(self) -> float:
        """The share that guessing gets right."""
        shares = [1 / len(item.choices) for half in self.items.values() for item in half.values()]
        return math.fsum(shares) / len(shares)

    def identity(self) -> Any:
        """What makes another probe of it."""
        return ["chosen", self.name, _items(self.items)]


@dataclass(frozen=True)
class Task:
    """A task or a group of lm-evaluation-harness, measured by the harness itself.

    Attributes:
        task: its name.
        folder: where its YAML file lies.
        own: whether that is a folder of the user's, not one of the harness.
        group: whether it stands for several tasks.
        sha256: of the files that declare it.
        version: of the harness.
    """

    name: str
    task: str
    folder: str
    own: bool
    group: bool
    limit: int | None
    field: str | None
    sha256: str
    version: str

    def identity(self) -> Any:
        """What makes another probe of it."""
        return ["task", self.name, self.task, self.limit, self.field, self.sha256, self.version]


Own = Answered | Chosen | Task


def _items(halves: Mapping[Split, Mapping[str, OwnItem]]) -> Any:
    return {
        split: [
            [item.id, item.prompt, item.answer, list(item.choices), _plain(item.columns)] for item in items.values()
        ]
        for split, items in halves.items()
    }


def _plain(columns: Mapping[str, Any]) -> dict[str, str]:
    """What a scorer may look at, as text: a value that JSON does not know is no reason to fall over."""
    return {name: str(value) for name, value in sorted(columns.items())}
