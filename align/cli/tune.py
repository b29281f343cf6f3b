"""`align tune`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from align.cli import printed
from align.cli.options import AsJson, Recipe, Set
from align.errors import AlignError
from align.runner.lines import line

if TYPE_CHECKING:
    from align.recipe.plan import Loaded, StagePlan
    from align.tuning.result import Result
    from align.tuning.study import Study, Tried

TRIALS = 8

Stage = Annotated[str | None, typer.Option(metavar="STAGE", help="The stage; may be left out where there is one.")]
Over = Annotated[
    list[str],
    typer.Option(metavar="NAME[=LOW:HIGH]", help="What is tuned: learning_rate, rank, replay; learning_rate=1e-5:1e-3"),
]
Gain = Annotated[
    list[str], typer.Option(metavar="PROBE", help="A probe that tells what the stage gains; else its held-out rows.")
]
Steps = Annotated[
    int | None, typer.Option(min=1, help="Steps of a trial; a third of the stage's if left out.", show_default=False)
]
Trials = Annotated[
    int | None, typer.Option(min=1, help=f"How many trials; {TRIALS} if --minutes is left out too.", show_default=False)
]
Minutes = Annotated[float | None, typer.Option(min=0, help="Begin no trial after so many minutes of trials.")]
RunDir = Annotated[Path | None, typer.Option(help="The folder of the trials; defaults to runs/<name>-tune-<stage>.")]
Out = Annotated[Path | None, typer.Option(metavar="FILE", help="The recipe to write; defaults to <recipe>-tuned.yaml.")]


def tune(
    recipe: Recipe,
    stage: Stage = None,
    over: Over = [],  # noqa: B006 - typer reads the default, nobody changes it
    gain: Gain = [],  # noqa: B006 - as above
    steps: Steps = None,
    trials: Trials = None,
    minutes: Minutes = None,
    set: Set = [],  # noqa: B006 - as above
    run_dir: RunDir = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Try learning rates, ranks or shares of replay in short trials, and write the recipe that gains most and forgets
    least; the same command again goes on.

    [dim]align tune recipes/sft_lora.yaml --stage sft --over learning_rate --trials 8[/dim]
    """
    from align.recipe import load as recipes
    from align.tuning import picture, result, space, words, written
    from align.tuning.chooser import check_package

    check_package()
    path = recipes.locate(recipe)
    study, given = _study(path, stage, over, gain, steps, trials, minutes, set, run_dir)
    file, kept = out or written.place(path), study.root / "tuned.yaml"
    printed.refuse_unwritable(file)
    if file.is_file() and file.resolve() == path.resolve():
        raise AlignError(f"'{file}' is the recipe itself", "give another --out")
    if file.is_file() and not (kept.is_file() and kept.read_bytes() == file.read_bytes()):
        raise AlignError(f"'{file}' already exists, and is not what was tuned here", "give another --out, or remove it")
    written.check(file, written.text(given, study.whole, study.plan, {}), study.whole)
    found = result.of(study.run())
    image = study.root / "front.svg"
    image.write_text(picture.drawn(found), encoding="utf-8")
    if as_json:
        print(json.dumps(words.document(found, study.plan, str(file)), indent=1, ensure_ascii=False))
    else:
        _show(found, study)
    text = written.text(given, study.whole, study.plan, found.values)
    written.check(file, text, study.load(space.texts(found.values, study.plan)))
    for target in (file, kept):
        target.write_text(text, encoding="utf-8")
    if not as_json:
        print(f"picture: {printed.near(image)}\nrecipe: {printed.near(file)}\nnext: align run {printed.near(file)}")


def _study(
    path: Path,
    stage: str | None,
    over: list[str],
    gain: list[str],
    steps: int | None,
    trials: int | None,
    minutes: float | None,
    set: list[str],
    run_dir: Path | None,
) -> tuple[Study, str]:
    """What is asked, checked before anything heavy is loaded; and the recipe's text, which is read once."""
    from align.preflight.check import prepare
    from align.preflight.rows_that_fit import of_an_epoch
    from align.recipe import document, resolved, run_length
    from align.recipe import load as recipes
    from align.tuning import content, space, words
    from align.tuning.figures import Measure
    from align.tuning.study import Asked, Budget, Study

    if minutes is not None and minutes <= 0:
        raise AlignError("--minutes is how long trials may take, above 0", "give more, or --trials")
    document.read(path)  # which says what is wrong with a file that is none
    given = path.read_text(encoding="utf-8")
    loaded = recipes.load(path, set, text=given)
    plan = _plan(loaded, stage)
    if plan.launch.machines > 1:
        raise AlignError("align tune trains on one machine", "set launch.machines=1")
    dimensions = space.dimensions(over, plan, loaded.stages)
    measure = Measure.of(gain, plan, loaded.recipe.forgetting)
    prepared = prepare(loaded, weights=False)
    printed.found(prepared.notes, prepared.warnings)
    whole = run_length.steps(plan, of_an_epoch(plan, prepared.rows[plan.id]), plan.launch.processes)
    if steps is None and whole is None:
        raise AlignError(f"how many steps the stage '{plan.id}' makes is not known before it runs", "give --steps")
    short = steps or max(1, -(-(whole or 1) // 3))
    ends = {one.name: (one.low, one.high) for one in dimensions}
    asked = Asked(
        recipe=resolved.digest(loaded),
        data=content.digest(loaded, prepared, plan),
        stage=plan.id,
        over=dict(ends),
        steps=short,
        gain=measure.gain,
        format=1,
    )
    for text in words.plan(asked, measure, dimensions, whole):
        printed.errors().print(line(text), soft_wrap=True)
    budget = Budget(TRIALS if trials is None and minutes is None else trials, minutes)
    folder = (run_dir or Path("runs") / f"{loaded.recipe.name}-tune-{plan.id}").absolute()

    def told(one: Tried) -> None:
        printed.errors().print(line(words.told(one, short)), soft_wrap=True)

    def load(more: Sequence[str]) -> Loaded:
        return recipes.load(path, [*set, *more], text=given)

    study = Study(folder, asked, dimensions, measure, load, loaded, whole, budget, printed.errors(), told)
    return study, given


def _plan(loaded: Loaded, stage: str | None) -> StagePlan:
    """The stage that is tuned.

    Raises:
        AlignError: the recipe has no such stage, or several and none is named.
    """
    from align.errors import did_you_mean

    ids = [plan.id for plan in loaded.stages]
    if stage is None and len(ids) > 1:
        raise AlignError(f"the recipe has {len(ids)} stages", f"name one with --stage: {', '.join(ids)}")
    if stage is not None and stage not in ids:
        raise AlignError(f"the recipe has no stage '{stage}'", did_you_mean(stage, ids))
    return next(plan for plan in loaded.stages if plan.id == (stage or ids[0]))


def _show(found: Result, study: Study) -> None:
    from rich.table import Table

    from align.tuning import words

    table = Table(box=None, pad_edge=False)
    for name in words.head(study.over):
        table.add_column(name, justify="right" if name else "left")
    for one in found.trials:
        table.add_row(*map(line, words.row(one, study.over, found)))
    Console(highlight=False).print(table)
    Console(highlight=False, soft_wrap=True).print(line(words.judged_by(study.measure)))
