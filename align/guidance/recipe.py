"""Recipes of one stage: of a method that is only tried on paper, and the one that is written."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from align.guidance.rules import Choice
from align.recipe import from_flags, load
from align.recipe.plan import Loaded

_WIDTH = 100  # characters of a comment


def tried(base: str, data: str, stage: str, method: str, folder: Path) -> Loaded:
    """A recipe that trains one row at a time by a method, with its defaults.

    Raises:
        AlignError: anything that `align check` finds in a recipe's text.
    """
    path = folder / f"{method}.yaml"
    path.write_text(_yaml(_recipe(base, data, stage, {"method": method}, {"per_device_train_batch_size": 1})), "utf-8")
    return load.load(path)


def text(base: str, data: str, stage: str, choice: Choice, *, held_out: bool) -> str:
    """The recipe of a choice, its reasons as comments."""
    extra = {"eval_data": 0.05} if held_out else {}
    made = _recipe(base, data, stage, choice.settings, choice.training, extra)
    if choice.launch:
        made["launch"] = choice.launch
        made["stages"] = made.pop("stages")
    lines = [f"# {stage} of {base} on {data}, advised by `align advise`"]
    for reason in choice.reasons:
        lines += _wrapped(reason)
    return "\n".join(lines) + "\n" + _yaml(made)


def name_of(base: str, data: str, stage: str, method: str) -> str:
    """The name of such a recipe, and of its file."""
    return "-".join(from_flags.word(part) for part in (base, Path(data).stem, stage, method))


def _recipe(
    base: str,
    data: str,
    stage: str,
    settings: dict[str, Any],
    training: dict[str, Any],
    extra: dict[str, Any] | None = None,
) -> dict[str, Any]:
    model = {"base": base} | ({"chat_template": "plain"} if from_flags.bare(base) else {})
    return {
        "name": name_of(base, data, stage, settings["method"]),
        "model": model,
        "parameterization": settings,
        "stages": {stage: {"data": data, **(extra or {}), "training": training}},
    }


def _yaml(made: dict[str, Any]) -> str:
    yaml, out = YAML(typ="rt", pure=True), StringIO()
    yaml.width = 4096
    yaml.dump(_flow(made, 0), out)
    return re.sub(r"\b(\d+)e-(\d+)\b", r"\1.0e-\2", out.getvalue())  # as YAML 1.1 wants numbers


def _flow(value: Any, depth: int) -> Any:
    """The inmost mappings on a line."""
    if not isinstance(value, dict):
        return value
    found = CommentedMap({key: _flow(each, depth + 1) for key, each in value.items()})
    if depth and not any(isinstance(each, dict) for each in value.values()):
        found.fa.set_flow_style()
    return found


def _wrapped(reason: str) -> list[str]:
    lines, line = [], "# -"
    for word in reason.split():
        if len(line) + len(word) >= _WIDTH:
            lines.append(line)
            line = "#  "
        line += f" {word}"
    return [*lines, line]
