"""What looks at a recipe, at runs, and at what ships with align."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from align.cli import printed
from align.cli.options import AsJson, Recipe, RunFolder, Set
from align.errors import AlignError
from align.runner.lines import line


def check(
    recipe: Recipe,
    set: Set = [],  # noqa: B006 - typer reads the default, nobody changes it
    offline: Annotated[
        bool, typer.Option("--offline", help="Do not look up models and datasets on the Hugging Face Hub.")
    ] = False,
) -> None:
    """Check a recipe, its data row by row and its model's files, without loading a model."""
    from align import api

    gc.disable()  # many small rows and no cycles: looking for some is a twentieth of the time
    found = api.check(recipe, set, offline=offline)
    printed.found(found.notes, found.warnings)
    for stage in found.stages:
        print(stage)
    print(f"{recipe}: ok")


def status(run_dir: RunFolder, as_json: AsJson = False) -> None:
    """Show the state of each stage of a run."""
    from rich.table import Table

    from align.run_folder import files, paths, reading
    from align.run_folder.decisions import Decision
    from align.run_folder.run_record import RunRecord, StageEntry

    folder = paths.RunDir(run_dir)
    record = reading.sound(folder.record, RunRecord, reading.OTHER)
    held = record is not None and folder.is_held()
    if record is None:
        what = f"'{run_dir}' is not a run folder" if run_dir.exists() else f"there is no run folder '{run_dir}'"
        raise AlignError(what, "give a folder that `align run` wrote, such as runs/NAME")
    rows = []
    for id in record.order:
        entry = record.stages.get(id, StageEntry(stage=""))
        outcome = files.read_object(folder.stage(id).outcome)
        decision = reading.whole(folder.stage(id).decision, Decision)
        state = "interrupted" if entry.status == "running" and not held else entry.status
        rows.append(
            {
                "stage": id,
                "program": entry.stage,
                "from": entry.inputs.get("policy"),
                "status": ", ".join(filter(None, (state, decision.not_as_trained if decision else ""))),
                "steps": outcome.get("steps"),
                "seconds": entry.seconds,
            }
        )
    if as_json:
        print(json.dumps({"name": record.name, "stages": rows}, indent=1))
        return
    table = Table(box=None, title=Text(record.name, style="italic"), title_justify="left")
    for name in ("stage", "program", "from", "status", "steps", "seconds"):
        table.add_column(name, justify="right" if name in ("steps", "seconds") else "left")
    for row in rows:
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in row.values()))
    Console().print(table)


def report(
    run_dir: RunFolder,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report as one JSON document, and write nothing.")
    ] = False,
) -> None:
    """Write report.html and report.md of a run, and print what was gained and what was forgotten."""
    from align import report as reports
    from align.run_folder.paths import RunDir

    folder = RunDir(run_dir)
    live = folder.record.is_file() and folder.is_held()
    if as_json:
        from align.report import as_json as document
        from align.report import records

        print(document.render(records.load(run_dir, live=live)))
        return
    reports.write(run_dir, live=live)
    printed.result(run_dir)


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Run folders; the first is compared with.")],
    json_: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON instead.")] = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write it to this file as a page.")] = None,
) -> None:
    """Compare runs of one base that were measured alike: which of them is better, and is that sure?

    [dim]align compare runs/dpo_qlora runs/dpo_qlora_no_replay --html compare.html[/dim]
    """
    from align.compare import build, words
    from align.compare.terminal import Comparison

    printed.refuse_unwritable(html)
    found = build.compare(runs)
    if html is not None:
        from align.compare import page
        from align.run_folder import files

        files.write_text(html, page.render(found))
    if json_:
        print(json.dumps(found.written(), indent=1, ensure_ascii=False))
        return
    console = Console()
    console.print(Comparison(found))
    for sentence in words.conclusion(found):
        console.print(line(sentence))
    if html is not None:
        print(f"page: {printed.near(html)}")


def list_(as_json: AsJson = False) -> None:
    """List the available recipes, pipelines, stages and parameterizations."""
    from rich.table import Table

    from align import shipped
    from align.parameterization import method as methods
    from align.recipe import pipeline
    from align.stage.program import load

    sections: list[tuple[str, dict[str, str]]] = [
        ("recipes", {name: _purpose(shipped.find("recipes", name)) for name in shipped.names("recipes")}),
        ("pipelines", {name: pipeline.preset(name).description for name in shipped.names("pipelines")}),
        ("stages", {name: load(name, Path()).stage.description for name in shipped.names("stages")}),
        ("parameterizations", {name: methods.load(name).DESCRIPTION for name in methods.files()}),
    ]
    others = methods.others()
    if as_json:
        print(json.dumps({**dict(sections), "other PEFT methods": list(others)}, indent=1))
        return
    console = Console()
    sections.append(("other PEFT methods", {"": ", ".join(others)}))
    for title, entries in sections:
        table = Table(box=None, show_header=False, title=title, title_justify="left", title_style="bold")
        table.add_column(no_wrap=True, width=28)
        table.add_column()
        for name, text in entries.items():
            table.add_row(line(name), line(text))
        console.print(table, highlight=False)


def _purpose(path: Path | None) -> str:
    """The first comment of a shipped recipe says what it is for."""
    if path is None:
        return ""
    comments = [line[1:].strip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    first = next((line for line in comments if not line.startswith("yaml-language-server")), "")
    return first.removeprefix("What it is for: ")


def schema() -> None:
    """Print the JSON Schema of a recipe, for editors."""
    from align.recipe.json_schema import recipe_schema

    print(json.dumps(recipe_schema(), indent=1))
