"""The file of another tool -> the text of a recipe, with what became of every key."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from align.errors import AlignError
from align.importing import axolotl, llama_factory, trl_cli
from align.importing.draft import Draft, read
from align.recipe import document, writing

_TOOLS: Final = ", ".join((llama_factory.NAME, axolotl.NAME, trl_cli.NAME))
_SHORT: Final = 60  # characters of a value in a comment


@dataclass(frozen=True)
class Imported:
    """What became of a file.

    Attributes:
        tool: whose it was.
        text: the recipe.
        mapped: where the value of each key stands in the recipe.
        idle: keys that need no place in a recipe, with why.
        lost: keys that ask for what the recipe does not have, with why or what to write.
    """

    tool: str
    text: str
    mapped: dict[str, str]
    idle: dict[str, str]
    lost: dict[str, str]


def translate(file: Path, *, stage: str | None = None, processes: int | None = None) -> Imported:
    """Read a file and say it as a recipe.

    Args:
        stage: for a file of TRL that does not tell: its subcommand.
        processes: how many processes train, which such files do not say.

    Raises:
        AlignError: it is no file of a known tool, it does not train, or by a method that align does not have.
    """
    try:
        draft = _draft(file, stage, processes)
        recipe = draft.finish()
    except (ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        what = f"'{file}' has a value of a kind that no key of its tool takes: {error}"
        raise AlignError(what, "see which key it is, and correct it") from error
    return Imported(draft.tool, _text(recipe, draft, file), draft.mapped, draft.idle, draft.lost)


def _draft(file: Path, stage: str | None, processes: int | None) -> Draft:
    if file.suffix.lower() not in (".yaml", ".yml", ".json"):
        command = trl_cli.of_command(_read(file))
        if command is None:
            what = f"'{file}' has no command line of TRL"
            raise AlignError(what, f"give a YAML file of {_TOOLS}, or a script with `trl sft ...`")
        name, given = command
        if "config" in given:
            named = Path(str(given.pop("config")))
            path = named if named.is_file() else file.parent / named
            given = read(document.read(path).data) | given
        return trl_cli.translate(given, file, processes, name)
    data = document.read(file).data
    if not isinstance(data, dict):
        raise AlignError(f"'{file}' is not a mapping of keys", f"known are files of {_TOOLS}")
    given = read(data)
    if axolotl.fits(given):
        return axolotl.translate(given, file, processes)
    if llama_factory.fits(given):
        return llama_factory.translate(given, file, processes)
    if trl_cli.fits(given):
        return trl_cli.translate(given, file, processes, stage)
    if {"model", "train_dataset"} <= given.keys():
        what = f"'{file}' is in the new format of LLaMA-Factory (v1), which is not known here"
        raise AlignError(what, "give a file with `model_name_or_path`")
    if "stages" in given:
        raise AlignError(f"'{file}' is a recipe of align already", f"align check {file}")
    remedy = f"known are files of {_TOOLS}, by `base_model` or `model_name_or_path`"
    raise AlignError(f"it is not clear which tool '{file}' is for", remedy)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise AlignError(f"there is no file '{file}'", "give a file of " + _TOOLS) from None
    except UnicodeDecodeError:
        raise AlignError(f"'{file}' is not a text", f"give a YAML file of {_TOOLS}") from None


def _text(recipe: dict[str, Any], draft: Draft, file: Path) -> str:
    """The recipe as YAML, with a comment for each key that is lost."""
    head = [f"# from {file.name} of {draft.tool}, by `align import`"]
    if draft.lost:
        head.append("# not in this recipe:")
        for key, why in draft.lost.items():
            value = f": {_shown(draft.given[key])}" if key in draft.given else ""
            head.append(f"#   {key}{value} - {why}")
    return "\n".join(head) + "\n" + writing.dump(recipe)


def _shown(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= _SHORT else text[: _SHORT - 3] + "..."


def write(imported: Imported, out: Path) -> None:
    """Write the recipe.

    Raises:
        AlignError: another file is there.
    """
    if out.is_file() and out.read_text(encoding="utf-8") != imported.text:
        raise AlignError(f"'{out}' already exists and differs", "give another --out, or remove it")
    out.write_text(imported.text, encoding="utf-8")
