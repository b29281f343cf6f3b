"""`align plan`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from align.cli import printed
from align.cli.options import AsJson, Recipe, RunDir, Set
from align.errors import AlignError
from align.runner.lines import line

if TYPE_CHECKING:
    from align.planning.records import Forecast
    from align.planning.target import Target
    from align.recipe.plan import Loaded


def plan(
    recipe: Recipe,
    set: Set = [],  # noqa: B006 - typer reads the default, nobody changes it
    run_dir: RunDir = None,
    gpu: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Plan for a GPU of this memory, 24GB, instead of this machine.")
    ] = None,
    calibrate: Annotated[
        bool,
        typer.Option("--calibrate", help="Train a few updates of each stage here, and say how long all take."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what would run, and what each stage takes: steps, tokens, memory, disk. Nothing is trained.

    [dim]align plan recipes/dpo_qlora.yaml --gpu 24GB[/dim]
    """
    from align.api import folder_of
    from align.planning import forecast, standing, target
    from align.preflight.check import prepare
    from align.recipe import load as recipes

    if calibrate and gpu:
        raise AlignError("--calibrate measures this machine, not a GPU of another size", "leave --gpu out")
    device = target.asked(gpu) if gpu else target.here()
    path = recipes.locate(recipe)
    loaded = recipes.load(path, set)
    folder = folder_of(loaded.recipe.name, run_dir)
    commit = standing.commit(loaded, folder)
    prepared = prepare(loaded, weights=False, commit=commit, here=gpu is None)
    made = forecast.make(loaded, prepared, folder, device)
    if calibrate:
        made = _calibrated(made, path, set, loaded)
    if as_json:
        print(json.dumps(_document(made, device), indent=1, ensure_ascii=False))
        return
    _show(made, device)
    for stage in made.stages:
        if stage.fits is False and stage.memory is not None:
            _show_changes(path, set, stage.id, device, stage.memory.peak, commit)


def _calibrated(made: Forecast, path: Path, overrides: list[str], loaded: Loaded) -> Forecast:
    from align.planning import calibration
    from align.runner.progress import Watcher

    with Watcher(printed.errors()) as watcher:
        took = calibration.seconds(path, overrides, loaded, watcher)
    return made.but(stages=tuple(stage.but(seconds_per_step=took.get(stage.id)) for stage in made.stages))


def _document(made: Forecast, device: Target) -> dict[str, object]:
    stages = [
        {
            **stage.model_dump(mode="json", exclude={"memory", "standing"}),
            "action": stage.standing.action,
            "why": stage.standing.why,
            "seconds": stage.seconds,
            "peak_memory_bytes": stage.memory.peak if stage.memory else None,
            "device_memory_bytes": device.taken(stage.memory.peak) if stage.memory else None,
            "parts": stage.memory.parts if stage.memory else {},
            "phase": stage.memory.phase if stage.memory else None,
            "left_out": list(stage.memory.left_out) if stage.memory else [],
            "not_traced": stage.why,
            "measured_peak_bytes": stage.standing.peak,
        }
        for stage in made.stages
    ]
    return {**made.model_dump(mode="json", exclude={"stages"}), "stages": stages}


def _show(made: Forecast, device: Target) -> None:
    from rich.table import Table

    from align.planning import words

    printed.found(made.notes, made.warnings)
    out = Console(highlight=False, soft_wrap=True)
    out.print(line(f"{made.name}, on {made.device} ({words.size(made.memory)}), in {made.run_dir}"))
    table = Table(box=None, pad_edge=False)
    for name in words.COLUMNS:
        table.add_column(name, justify="right" if name in ("rows", "tokens", "longest", "disk") else "left")
    for stage in made.stages:
        table.add_row(*map(line, words.row(stage)))
    Console(highlight=False).print(table)
    for stage in made.stages:
        out.print(line(stage.id))
        for text in words.details(stage):
            out.print(line(f"  {text}"))
    for stage in made.stages:
        taken = device.taken(stage.memory.peak) if stage.memory else 0
        if (verdict := words.verdict(made, stage, taken)) is not None:
            out.print(line(verdict))


def _show_changes(path: Path, set: list[str], stage: str, device: Target, peak: int, commit: str | None) -> None:
    from align.planning import changes, words
    from align.recipe import load as recipes

    out = Console(highlight=False, soft_wrap=True)
    found = changes.helpful(lambda more: recipes.load(path, [*set, *more]), stage, device, peak, commit)
    for change in found:
        fits = "fits" if device.fits(change.peak) else "does not fit either"
        given = " ".join(f"--set '{text}'" for text in change.texts)
        out.print(line(f"  {given}: {words.size(device.taken(change.peak))}, {fits}"))
