"""The tuned recipe: the user's own file with the values of the best trial, its comments kept."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from align import shipped
from align.errors import AlignError
from align.recipe import document, load, resolved
from align.recipe.plan import Loaded, StagePlan
from align.tuning import space
from align.tuning.space import Values


def place(path: Path) -> Path:
    """Where the tuned recipe of a file stands by default: beside it, so that its paths mean the same; of one that ships
    with align in the current folder."""
    name = f"{path.stem}-tuned.yaml"
    known = shipped.find("recipes", path.stem)
    ships = known is not None and known.resolve() == path.resolve()
    return Path(name) if ships else path.with_name(name)


def text(given: str, loaded: Loaded, plan: StagePlan, values: Values) -> str:
    """The recipe's text with what the command line set, and the values of a trial."""
    yaml = YAML(typ="rt", pure=True)
    yaml.width, yaml.preserve_quotes = 4096, True
    recipe = yaml.load(given)
    for dotted in loaded.document.overrides:
        keys = dotted.split(".")
        _put(recipe, keys, _at(loaded.document.data, keys))
    for name, value in space.settings(values, plan).items():
        _put(recipe, ["stages", plan.id, *name.split(".")], value)
    recipe["name"] = f"{loaded.recipe.name}-tuned"
    out = StringIO()
    yaml.dump(recipe, out)
    return out.getvalue()


def check(path: Path, text: str, wanted: Loaded) -> None:
    """Refuse to write a text that would be another recipe there.

    Args:
        path: where it is to stand; its paths count from there.
        wanted: the recipe with the values set.

    Raises:
        AlignError: it is another.
    """
    try:
        same = _named(load.load(path, text=text)) == _named(wanted)
    except AlignError:
        same = False
    if not same:
        what = f"the recipe would not mean the same in '{path}': its paths, or its YAML, do not carry over"
        raise AlignError(what, "give an --out beside the recipe")


def _named(loaded: Loaded) -> dict[str, Any]:
    return resolved.resolved(loaded) | {"name": ""}


def _put(recipe: Any, keys: list[str], value: Any) -> None:
    """Set a value; what stands in several places by an alias or a merge is taken apart on the way."""
    node = recipe
    for key in keys[:-1]:
        inner = node.get(key)
        if not isinstance(inner, dict):
            node[key] = {}
        elif id(inner) in _shared(recipe):
            node[key] = document.plain(inner)
        node = node[key]
    node[keys[-1]] = value


def _shared(recipe: Any) -> set[int]:
    """The mappings that stand in more than one place."""
    seen, twice, todo = set[int](), set[int](), [recipe]
    while todo:
        node = todo.pop()
        if id(node) in seen:
            twice.add(id(node))
            continue
        seen.add(id(node))
        todo += [one for one in (node.values() if isinstance(node, dict) else node) if isinstance(one, dict | list)]
    return twice


def _at(data: Any, keys: list[str]) -> Any:
    for key in keys:
        data = data[key]
    return data
