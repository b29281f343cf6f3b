"""Recipes of one stage: of a method that is only tried on paper, and the one that is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from align.errors import AlignError
from align.guidance.rules import Choice
from align.recipe import from_flags, load, writing
from align.recipe.plan import Loaded

_WIDTH = 100  # characters of a comment


def tried(base: str, data: str, stage: str, method: str, rows: int, folder: Path) -> Loaded:
    """A recipe that trains so many rows at a time by a method, with its defaults.

    Raises:
        AlignError: anything that `align check` finds in a recipe's text.
    """
    path = folder / f"{method}.yaml"
    path.write_text(
        writing.dump(_recipe(base, data, stage, {"method": method}, {"per_device_train_batch_size": rows})), "utf-8"
    )
    try:
        return load.load(path)
    except AlignError as error:  # nobody wrote that file
        raise AlignError(error.what, error.remedy) from None


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
    return "\n".join(lines) + "\n" + writing.dump(made)


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


def _wrapped(reason: str) -> list[str]:
    lines, line = [], "# -"
    for word in reason.split():
        if len(line) + len(word) >= _WIDTH:
            lines.append(line)
            line = "#  "
        line += f" {word}"
    return [*lines, line]
