"""What the report needs to know of the recipe that a run wrote out: data, replay and learning rate of each stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import PurePath
from typing import Any

from align.run_folder.records import Record


class StageRecipe(Record):
    """One stage.

    Attributes:
        sources: names of its data, without the folders that they lie in.
        replays: whether it can replay rows at all.
        replay_ratio: share of replayed rows that the recipe asks for; None without replay.
    """

    sources: tuple[str, ...] = ()
    replays: bool = False
    replay_ratio: float | None = None
    learning_rate: float | None = None
    eval_data: bool = False


class RecipeView(Record):
    """The recipe; empty where the file is missing or is no recipe.

    Attributes:
        probes: the shipped set, alone or among one's own; None without one.
        own_files: names of one's own probes with items of a file.
        tasks: of those of the harness by name: the task, how many documents of it, and the metric; None where all, or
            the first.
    """

    stages: Mapping[str, StageRecipe] = {}
    probes: str | None = None
    own_files: tuple[str, ...] = ()
    tasks: Mapping[str, tuple[str, int | None, str | None]] = {}
    items: int | None = None
    on_violation: str | None = None


@lru_cache(maxsize=8)
def whole(text: str) -> Mapping[str, Any]:
    """The recipe in the text of a run's recipe.yaml; empty where it is none. Not to be changed."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        found = YAML(typ="safe").load(text)
    except (YAMLError, ValueError):
        return {}
    return _mapping(found)


def view(text: str) -> RecipeView:
    """Read the text of a run's recipe.yaml."""
    recipe = whole(text)
    stages, forgetting = _mapping(recipe.get("stages")), _mapping(recipe.get("forgetting"))
    probes, items, action = (forgetting.get(name) for name in ("probes", "items", "on_violation"))
    own = {str(name): one for name, one in _mapping(probes).items() if isinstance(one, dict)}
    return RecipeView(
        stages={str(id): _stage(_mapping(entry)) for id, entry in stages.items()},
        probes=_shipped(probes),
        own_files=tuple(name for name, one in own.items() if "task" not in one),
        tasks={name: _task(one) for name, one in own.items() if "task" in one},
        items=items if isinstance(items, int) else None,
        on_violation=action if isinstance(action, str) else None,
    )


def _task(one: Mapping[str, Any]) -> tuple[str, int | None, str | None]:
    limit, field = one.get("limit"), one.get("field")
    return str(one["task"]), limit if isinstance(limit, int) else None, field if isinstance(field, str) else None


def _stage(entry: Mapping[str, Any]) -> StageRecipe:
    replay, training = _mapping(entry.get("replay")), _mapping(entry.get("training"))
    return StageRecipe(
        sources=tuple(dict.fromkeys(_sources(entry.get("data")))),
        replays="replay" in entry,
        replay_ratio=_number(replay.get("ratio")),
        learning_rate=_number(training.get("learning_rate")),
        eval_data=entry.get("eval_data") is not None,
    )


def _shipped(probes: Any) -> str | None:
    """The set among the probes. Of both, the battery: more items of it can be asked."""
    if isinstance(probes, str):
        return probes
    return next((name for name in ("general", "lab") if _mapping(probes).get(name) is True), None)


def _sources(data: Any) -> Sequence[str]:
    if isinstance(data, list):
        return [name for part in data for name in _sources(part)]
    source = data.get("source") if isinstance(data, dict) else data
    if not isinstance(source, str):
        return []
    path = PurePath(source)
    return [path.name if path.is_absolute() or source.startswith(".") else source]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
