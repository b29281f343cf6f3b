"""`align data`: what files of rows hold, what is wrong with them, and a row as the model sees it."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from align.cli import printed
from align.cli.options import AsJson, Set
from align.data.faults import raise_all
from align.errors import AlignError, Exit, did_you_mean

Data = Annotated[str, typer.Argument(help="A file, a folder, a pattern, org/name on the Hub, or lab/NAME.")]
Split = Annotated[str, typer.Option(help="The split of a Hub dataset, or of a folder with files named after splits.")]
Format = Annotated[str, typer.Option(help="The format of the rows; auto: inferred from their fields.")]
ForStage = Annotated[str | None, typer.Option("--stage", help="Check that this stage can train on them: sft, dpo, ...")]
Model = Annotated[str | None, typer.Option(help="Count tokens with this model's tokenizer and chat template.")]
Template = Annotated[str | None, typer.Option("--chat-template", help="With --model: plain, or a .jinja file.")]
MaxLength = Annotated[int | None, typer.Option(min=1, help="With --model: count the rows that are longer.")]
Rejects = Annotated[Path | None, typer.Option(metavar="FILE", help="Write bad rows there as JSONL, with the reason.")]

_SHOWN = 20  # faults one by one


def show(
    data: Annotated[str, typer.Argument(help="A file, a folder, a pattern or a dataset; or a recipe.")],
    stage: Annotated[str | None, typer.Argument(metavar="[STAGE]", help="With a recipe: one of its stages.")] = None,
    row: Annotated[int, typer.Option(min=1, help="The number of the row to show, from 1.")] = 1,
    set: Set = [],  # noqa: B006 - typer reads the default, nobody changes it
    model: Model = None,
    chat_template: Template = None,
    max_length: MaxLength = None,
    split: Split = "train",
    format: Format = "auto",
    as_json: AsJson = False,
) -> None:
    """Say what rows are, how long, and which stages can train on them; and show one.

    With a recipe and a stage, the row is shown as the stage's own trainer gives it to the model.

    [dim]align data show chats.jsonl --model ./my-model[/dim]
    """
    from align.recipe import load as recipes

    if recipes.is_recipe(data):
        own = (model, chat_template, max_length, as_json or None, None if split == "train" else split)
        if any(value is not None for value in own) or format != "auto":
            raise AlignError(f"'{data}' is a recipe, which has its own model and data", "leave the other options out")
        _show_of_stage(data, stage, row, set)
        return
    if stage is not None or set:
        what = f"'{data}' is not a recipe, so it has no stages" if stage is not None else "--set needs a recipe"
        raise AlignError(what, "give a recipe and a stage, or the data alone")
    from align.inspection import look, words

    gc.disable()  # many small rows and no cycles
    found = look.over(data, look.How(split, format, None, model, chat_template, max_length), row=row)
    if not found.survey.rows:
        raise_all(found.faults, _SHOWN, "errors in the data")
    if found.row is None:
        raise AlignError(f"there is no row {row:,}: '{data}' has {found.survey.rows:,}", "count from 1")
    if as_json:
        print(json.dumps(words.document(found) | words.faults(found, {}), indent=1, ensure_ascii=False))
        return
    out = Console(highlight=False)
    for shown in words.summary(found):
        out.print(shown)
    _warn(data, found.warnings)
    if found.bad:
        _warn(data, [f"{found.bad:,} {'row' if found.bad == 1 else 'rows'} cannot be used: align data check {data}"])
    for shown in ("", *words.row(found.row, row, found.tokens)):
        out.print(shown)


def _show_of_stage(recipe: str, stage: str | None, row: int, overrides: list[str]) -> None:
    from align.inspection import rows
    from align.recipe import load as recipes

    if stage is None:
        raise AlignError(f"'{recipe}' is a recipe", f"name one of its stages as well: align data show {recipe} STAGE")
    out = Console(highlight=False, soft_wrap=True)
    for text in rows.show(recipes.load(recipes.locate(recipe), overrides), stage, row):
        out.print(text)


def check(
    data: Annotated[list[str], typer.Argument(metavar="DATA...", help="Files, folders, patterns or datasets.")],
    stage: ForStage = None,
    against: Annotated[
        list[str], typer.Option(metavar="DATA", help="Held-out data: say which of its prompts are among the rows.")
    ] = [],  # noqa: B006 - typer reads the default, nobody changes it
    against_split: Annotated[str, typer.Option(help="Of --against, the split.")] = "test",
    model: Model = None,
    chat_template: Template = None,
    max_length: MaxLength = None,
    split: Split = "train",
    format: Format = "auto",
    rejects: Rejects = None,
    as_json: AsJson = False,
) -> None:
    """Find everything that is wrong with files of rows, with file and line.

    The data of a recipe is checked by `align check`.

    [dim]align data check train.jsonl --stage dpo --against test.jsonl[/dim]
    """
    from align.inspection import look, survey, words
    from align.recipe import load as recipes

    for name in (*data, *against):
        if recipes.is_recipe(name):
            raise AlignError(f"'{name}' is a recipe", f"check it together with its data: align check {name}")
    if rejects is not None and len(data) > 1:
        raise AlignError("--rejects takes the bad rows of one source", "check them one by one")
    printed.refuse_unwritable(rejects)
    gc.disable()  # many small rows and no cycles
    how = look.How(split, format, stage, model, chat_template, max_length)
    held = [look.over(name, look.How(against_split)) for name in against]
    documents, faults, left_out = [], [fault for one in held for fault in one.faults], 0
    for name in data:
        found = look.over(name, how, rejects=rejects)
        leaks = {one.survey.name: survey.leaked(found.survey, one.survey) for one in held}
        faults += found.faults
        left_out += found.bad - len(found.faults)
        if as_json:
            documents.append(words.document(found) | words.faults(found, leaks))
            continue
        _warn(name, [*found.warnings, *words.leaks(leaks)])
        if not found.bad:
            rows = found.survey.rows
            print(f"{name}: {rows:,} {'row' if rows == 1 else 'rows'}, ok")
    if as_json:
        print(json.dumps(documents, indent=1, ensure_ascii=False))
        raise typer.Exit(Exit.BAD_INPUT if faults else Exit.DONE)
    raise_all(faults, _SHOWN, "errors in the data", uncounted=left_out)


def convert(
    data: Data,
    to: Annotated[Path, typer.Argument(metavar="FILE", help="The .jsonl file to write.")],
    stage: ForStage = None,
    on_bad_row: Annotated[str, typer.Option(metavar="stop|skip", help="Stop at a bad row, or leave it out.")] = "stop",
    rejects: Rejects = None,
    split: Split = "train",
    format: Format = "auto",
) -> None:
    """Write rows of any format as JSONL with the field names of align: messages, prompt, completion, chosen, rejected.

    [dim]align data convert sharegpt.json messages.jsonl[/dim]
    """
    from align.inspection import convert as converting
    from align.inspection import look

    if on_bad_row not in ("stop", "skip"):
        raise AlignError(f"--on-bad-row does not take '{on_bad_row}'", did_you_mean(on_bad_row, ("stop", "skip")))
    printed.refuse_unwritable(to)
    printed.refuse_unwritable(rejects)
    if rejects is not None and on_bad_row == "stop":
        raise AlignError("--rejects needs --on-bad-row skip", "at `stop` the first bad row ends it")
    how = look.How(split, format, stage)
    look.refuse_to_harm(data, how, to, rejects)
    rows = how.rows(data)
    done = converting.convert(rows, to, skip=on_bad_row == "skip", rejects=rejects)
    print(f"{to}: {done.rows:,} rows" + (f", {done.rejected:,} left out" if done.rejected else ""))
    if done.dropped:
        named = ", ".join(f"{name} ({count:,} rows)" for name, count in done.dropped.most_common(8))
        _warn(str(to), [f"not written, as no format has a place for it: {named}"])


def _warn(data: str, told: list[str]) -> None:
    printed.found([], {data: told})
