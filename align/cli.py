"""The `align` command. Imports nothing heavy: each command imports what it needs."""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from align.errors import AlignError, Exit, Faults, of_the_machine
from align.runner.lines import line

if TYPE_CHECKING:
    from align.merging.verdict import Merge

app = typer.Typer(
    name="align",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Take a base model through a chain of post-training stages, and measure after each one what it forgot.",
    epilog="Start with: [bold]align run recipes/dpo_qlora.yaml[/bold]",
)
lab_app = typer.Typer(no_args_is_help=True, help="The lab model that ships with align.")
app.add_typer(lab_app, name="lab", rich_help_panel="Use")
data_app = typer.Typer(no_args_is_help=True, help="Look at the rows that a stage trains on.")
app.add_typer(data_app, name="data", rich_help_panel="Look")

Set = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override a key: stages.dpo.beta=0.2")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, for example runs/dpo_qlora.")]


@app.command(rich_help_panel="Train")
def run(
    recipe: Annotated[
        str | None, typer.Argument(metavar="[RECIPE]", help="A recipe file, or a name of `align list`.")
    ] = None,
    set: Set = [],  # noqa: B006 - typer reads the default, nobody changes it
    run_dir: Annotated[Path | None, typer.Option(help="The run folder; defaults to runs/<name>.")] = None,
    from_stage: Annotated[
        str | None, typer.Option("--from", metavar="STAGE", help="Redo this stage and those that depend on it.")
    ] = None,
    only: Annotated[str | None, typer.Option(metavar="STAGE", help="Redo only this stage.")] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over; the old results are kept in superseded/.")
    ] = False,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Train with this many processes (accelerate launch).")
    ] = None,
    print_launch: Annotated[
        bool, typer.Option("--print-launch", help="Check the recipe, show how its stages would be started, and end.")
    ] = False,
    model: Annotated[str | None, typer.Option(help="Without a recipe: the base model.")] = None,
    data: Annotated[str | None, typer.Option(help="Without a recipe: the training data.")] = None,
    method: Annotated[str, typer.Option(help="Without a recipe: the parameterization.")] = "lora",
    stage: Annotated[str, typer.Option(help="Without a recipe: the stage.")] = "sft",
) -> None:
    """Run a recipe, or resume it: the same command again skips what is done and resumes the rest.

    [dim]align run recipes/dpo_qlora.yaml --set stages.dpo.beta=0.2[/dim]
    [dim]align run --model ./my-model --data ./my.jsonl --method qlora[/dim]
    """
    from align.api import folder_of
    from align.preflight.check import prepare
    from align.recipe import load as recipes
    from align.runner import print_launch as print_launches
    from align.runner.loop import Run
    from align.runner.options import Options
    from align.runner.progress import Watcher

    options = Options(from_stage, only, fresh)
    path = _without_recipe(model, data, method, stage, set) if recipe is None else recipes.locate(recipe)
    if recipe is not None and (model is not None or data is not None):
        raise AlignError(
            "--model and --data cannot be combined with a recipe", "use --set model.base=... with a recipe"
        )
    loaded = recipes.load(path, set if processes is None else [*set, f"launch.processes={processes}"])
    folder = folder_of(loaded.recipe.name, run_dir)
    if print_launch:
        prepare(loaded, weights=False)
        print(print_launches.shown(loaded, folder))
        return
    with Watcher(_errors()) as watcher:
        code = Run(loaded, options, folder, watcher).execute()
    _show(folder.root)
    if code == Exit.GATE:
        _errors().print(
            "the gate stopped the run: change the recipe (forgetting limits, replay, learning rate) and run "
            "the same command again",
            style="yellow",
        )
    raise typer.Exit(code)


def _without_recipe(model: str | None, data: str | None, method: str, stage: str, set: list[str]) -> Path:
    from align.recipe import from_flags

    path = from_flags.write(model, data, method=method, stage=stage, overrides=set)
    _errors().print(line(f"wrote {path}; running it"))
    return path


@app.command(rich_help_panel="Train")
def check(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or a name of `align list`.")],
    set: Set = [],  # noqa: B006 - as above
    offline: Annotated[
        bool, typer.Option("--offline", help="Do not look up models and datasets on the Hugging Face Hub.")
    ] = False,
) -> None:
    """Check a recipe, its data row by row and its model's files, without loading a model."""
    from align import api

    gc.disable()  # many small rows and no cycles: looking for some is a twentieth of the time
    found = api.check(recipe, set, offline=offline)
    for note in found.notes:
        _errors().print(line(note, "note"))
    for id, texts in found.warnings.items():
        for text in texts:
            _errors().print(line(f"{id}: {text}", "warning"))
    for stage in found.stages:
        print(stage)
    print(f"{recipe}: ok")


@data_app.command("show")
def show(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or a name of `align list`.")],
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="A stage of the recipe.")],
    row: Annotated[int, typer.Option(min=1, help="The number of the row among the training rows, from 1.")] = 1,
    set: Set = [],  # noqa: B006 - as above
) -> None:
    """Show a row exactly as the model sees it, with special tokens, and the trained tokens in brackets."""
    from align.recipe import load as recipes
    from align.results import show_rows

    out = Console(highlight=False, soft_wrap=True)
    for text in show_rows.show(recipes.load(recipes.locate(recipe), set), stage, row):
        out.print(text)


@app.command(rich_help_panel="Look")
def status(run_dir: RunFolder) -> None:
    """Show the state of each stage of a run."""
    from rich.table import Table

    from align.run_folder import files, paths, reading
    from align.run_folder.decisions import Decision
    from align.run_folder.run_record import RunRecord, StageEntry

    folder = paths.RunDir(run_dir)
    record = reading.whole(folder.record, RunRecord)
    held = record is not None and folder.is_held()
    if record is None:
        what = f"'{run_dir}' is not a run folder" if run_dir.exists() else f"there is not a run folder '{run_dir}'"
        raise AlignError(what, "give a folder that `align run` wrote, such as runs/NAME")
    table = Table(box=None, title=Text(record.name, style="italic"), title_justify="left")
    for name in ("stage", "program", "from", "status", "steps", "seconds"):
        table.add_column(name, justify="right" if name in ("steps", "seconds") else "left")
    for id in record.order:
        entry = record.stages.get(id, StageEntry(stage=""))
        outcome = files.read_json(folder.stage(id).outcome, {})
        decision = reading.whole(folder.stage(id).decision, Decision)
        state = "interrupted" if entry.status == "running" and not held else entry.status
        cells = [
            id,
            entry.stage,
            entry.inputs.get("policy", ""),
            ", ".join(filter(None, (state, decision.not_as_trained if decision else ""))),
            outcome.get("steps", ""),
            "" if entry.seconds is None else entry.seconds,
        ]
        table.add_row(*(Text(str(cell)) for cell in cells))
    Console().print(table)


@app.command(rich_help_panel="Look")
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
    _show(run_dir)


@app.command(rich_help_panel="Look")
def advise(
    run_dir: RunFolder,
    as_json: Annotated[bool, typer.Option("--json", help="Print the advice as one JSON document.")] = False,
) -> None:
    """Say why a finished run forgot, or learnt nothing, and which changes of its recipe are most likely to help."""
    import json

    from align.advice import words
    from align.advice.advise import advise as advice_on
    from align.report import records, shown
    from align.run_folder.paths import RunDir

    folder = RunDir(run_dir)
    if folder.record.is_file() and folder.is_held():
        raise AlignError(f"'{run_dir}' is under way", "wait until it has ended")
    found = advice_on(shown.facts(records.load(run_dir)))
    if as_json:
        print(json.dumps(words.document(found), indent=1))
        return
    out = Console(highlight=False, soft_wrap=True)
    for told in words.text(found):
        out.print(line(told))


@app.command(rich_help_panel="Look")
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Run folders; the first is compared with.")],
    json_: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON instead.")] = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write it to this file as a page.")] = None,
) -> None:
    """Compare runs of one base that were measured alike: which of them is better, and is that sure?

    [dim]align compare runs/dpo_qlora runs/dpo_qlora_no_replay --html compare.html[/dim]
    """
    import json

    from align.compare import build, words
    from align.compare.terminal import Comparison

    if html is not None and (html.is_dir() or not html.absolute().parent.is_dir()):
        raise AlignError(f"'{html}' cannot be written", "choose a file in an existing folder")
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
        print(f"page: {_near(html)}")


@app.command("list", rich_help_panel="Look")
def list_() -> None:
    """List the available recipes, pipelines, stages and parameterizations."""
    from rich.table import Table

    from align import shipped
    from align.parameterization import method as methods
    from align.recipe import pipeline
    from align.stage.program import load

    console = Console()
    sections: list[tuple[str, dict[str, str]]] = [
        ("recipes", {name: _purpose(shipped.find("recipes", name)) for name in shipped.names("recipes")}),
        ("pipelines", {name: pipeline.preset(name).description for name in shipped.names("pipelines")}),
        ("stages", {name: load(name, Path()).stage.description for name in shipped.names("stages")}),
        ("parameterizations", {name: methods.load(name).DESCRIPTION for name in methods.files()}),
        ("other PEFT methods", {"": ", ".join(methods.others())}),
    ]
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


@app.command(rich_help_panel="Look")
def schema() -> None:
    """Print the JSON Schema of a recipe, for editors."""
    import json

    from align.recipe.json_schema import recipe_schema

    print(json.dumps(recipe_schema(), indent=1))


@app.command(rich_help_panel="Use")
def chat(
    run_dir: RunFolder,
    stage: Annotated[
        str | None, typer.Option(help="Talk to the policy of this stage; defaults to the last one.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
) -> None:
    """Talk to the result of a run. An empty line or Ctrl-D ends it; /new starts a new conversation."""
    from align.results import chat as chats

    chats.talk(run_dir, stage, max_new_tokens=max_new_tokens, temperature=temperature)


@app.command(rich_help_panel="Look")
def spectrum(
    model: Annotated[str, typer.Argument(help="A model folder, a Hugging Face id, or lab.")],
    snr_threshold: Annotated[
        float,
        typer.Option(min=0, max=1, help="Mark the layers that `method: spectrum` would train; higher marks fewer."),
    ] = 0.5,
    estimator: Annotated[str, typer.Option(help="Noise estimator: mp, or reference (as published).")] = "mp",
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the scan to this file.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Number of processes; defaults to one per core.")] = None,
) -> None:
    """Show the signal-to-noise ratio of every weight matrix of a model, read directly from its files."""
    from align.policy import base as bases
    from align.run_folder import files
    from align.spectrum import scan, table

    folder = bases.resolve(model, None, root=Path.cwd()).path
    assert folder is not None
    if json_file is not None and (json_file.is_dir() or not json_file.absolute().parent.is_dir()):
        raise AlignError(f"'{json_file}' cannot be written", "choose a file in an existing folder")
    records = scan.scan(folder, estimator, workers=workers)
    Console().print(table.snr_table(records, estimator, snr_threshold))
    if json_file is not None:
        files.write_json(json_file, table.spectrum(records, estimator).written())


@app.command(rich_help_panel="Use")
def export(
    run_dir: RunFolder,
    out: Annotated[Path, typer.Argument(help="A new folder.")],
    stage: Annotated[
        str | None, typer.Option(help="The stage whose policy or reward model to export; defaults to the last policy.")
    ] = None,
    form: Annotated[str, typer.Option(help="merged: full weights; adapter: only the trained adapter.")] = "merged",
    dtype: Annotated[
        str, typer.Option(help="dtype of merged weights; auto: as in the recipe, or in the files.")
    ] = "auto",
) -> None:
    """Export a result to a separate folder: full weights or adapters, tokenizer, chat template, model card."""
    from align.results import export as exports

    for option, value, choices in (("--form", form, exports.FORMS), ("--dtype", dtype, exports.DTYPES)):
        if value not in choices:
            raise AlignError(f"{option} cannot be '{value}'", f"choose one of: {', '.join(choices)}")
    done = exports.export(run_dir, stage, out, form, dtype)
    _warn_of(done.merge)
    print(f"{done.folder}: {done.bytes / 1e6:,.1f} MB, {form}{_figures(done.merge)}")


@app.command(rich_help_panel="Use")
def merge(
    out: Annotated[Path, typer.Argument(help="A new folder.")],
    adapter: Annotated[list[str], typer.Argument(metavar="ADAPTER[=WEIGHT]...", help="Folders of LoRA adapters.")],
    rank: Annotated[
        int | None, typer.Option(min=1, help="Truncate to this rank; defaults to the sum of their ranks.")
    ] = None,
    form: Annotated[str, typer.Option(help="adapter: one LoRA; merged: full weights.")] = "adapter",
) -> None:
    """Combine LoRA adapters of one base with weights; 0.5 and 0.5 averages two.

    [dim]align merge mean runs/a/stages/sft/model=0.7 runs/b/stages/sft/model=0.3[/dim]
    """
    from align.results import merge as merges

    done = merges.merge(out, adapter, rank=rank, form=form)
    cost = f", {done.error:.2%} of the update lost" if done.error else ""
    _warn_of(done.merge)
    print(f"{done.folder}: rank {done.rank}{cost}{_figures(done.merge)}; base {done.base}")


def _figures(merge: Merge | None) -> str:
    return f"; {merge.figures}" if merge else ""


def _warn_of(merge: Merge | None) -> None:
    if merge and merge.warning:
        _errors().print(line(merge.warning, "warning"), soft_wrap=True)


@lab_app.command("build")
def lab_build(
    out: Annotated[Path, typer.Argument(help="A folder for the model.")],
    seed: Annotated[int, typer.Option(help="Seed for the data and the weights.")] = 0,
) -> None:
    """Pretrain the lab model from scratch, in under ten CPU minutes."""
    from align.lab.build import build

    build(out, seed=seed, progress=lambda text: _errors().print(line(text)))
    print(out)


def _show(run_dir: Path) -> None:
    """The matrix, the verdict and where the report is."""
    from align.report import records, terminal

    console = Console()
    found = records.load(run_dir)
    if found.forgetting is not None:
        console.print(terminal.matrix_table(found))
        console.print(line(terminal.verdict_line(found)))
    print(f"report: {_near(run_dir / 'report.html')}")


def _near(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _errors() -> Console:
    return Console(stderr=True)


def guarded(command: Callable[[], Any]) -> int:
    """Run a command; an expected failure is shown as its sentences, without a traceback."""
    try:
        command()
    except AlignError as error:
        for fault in error.faults if isinstance(error, Faults) else [error]:
            _errors().print(line(str(fault), "error", "red"), soft_wrap=True)
        return error.exit
    except KeyboardInterrupt:
        return _interrupted()
    except BrokenPipeError:
        sys.stderr.close()
        return Exit.DONE
    except OSError as error:
        expected = of_the_machine(error)
        if expected is None:
            raise
        _errors().print(line(str(expected), "error", "red"))
        return expected.exit
    except SystemExit as leave:
        if leave.code == Exit.INTERRUPTED:  # typer takes Ctrl-C itself, and says nothing
            return _interrupted()
        return leave.code if isinstance(leave.code, int) else Exit.BAD_INPUT
    return Exit.DONE


def _interrupted() -> int:
    _errors().print("interrupted; run the same command again to resume")
    return Exit.INTERRUPTED


def _end(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """The console script."""
    for number in (signal.SIGTERM, signal.SIGHUP):  # a scheduler, a lost connection: as Ctrl-C, with a checkpoint
        signal.signal(number, _end)
    sys.exit(guarded(app))
