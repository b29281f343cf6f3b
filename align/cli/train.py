"""`align run`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from align.cli import options as given
from align.cli import printed
from align.errors import AlignError, Exit
from align.runner.lines import line

if TYPE_CHECKING:
    from align.recipe.plan import Loaded
    from align.run_folder.launch import Place
    from align.runner.options import Options


def run(
    recipe: given.RecipeIfAny = None,
    set: given.Set = [],  # noqa: B006 - typer reads the default, nobody changes it
    run_dir: given.RunDir = None,
    from_stage: given.FromStage = None,
    only: given.Only = None,
    fresh: given.Fresh = False,
    processes: given.Processes = None,
    machines: given.Machines = None,
    machine_rank: given.MachineRank = 0,
    main_address: given.MainAddress = None,
    print_launch: given.PrintLaunch = False,
    model: given.Model = None,
    data: given.Data = None,
    method: given.Method = "lora",
    stage: given.Stage = "sft",
    print_sbatch: given.PrintSbatch = False,
    sbatch: given.Sbatch = [],  # noqa: B006 - as above
) -> None:
    """Run a recipe, or resume it: the same command again skips what is done and resumes the rest.

    [dim]align run recipes/dpo_qlora.yaml --set stages.dpo.beta=0.2[/dim]
    [dim]align run --model ./my-model --data ./my.jsonl --method qlora[/dim]
    """
    from align.api import folder_of
    from align.recipe import load as recipes
    from align.run_folder.launch import ALONE
    from align.runner.machines import check
    from align.runner.options import Options

    options = Options(from_stage, only, fresh)
    if sbatch and not print_sbatch:
        raise AlignError("--sbatch says what the script of --print-sbatch asks for", "add --print-sbatch")
    if print_launch and print_sbatch:
        raise AlignError("--print-launch and --print-sbatch each print something else", "give one of them")
    runs = not (print_sbatch or print_launch)
    path = recipes.locate(recipe) if recipe else _without_recipe(model, data, method, stage, set, run=runs)
    if recipe is not None and (model is not None or data is not None):
        raise AlignError(
            "--model and --data cannot be combined with a recipe", "use --set model.base=... with a recipe"
        )
    counts = {"processes": processes, "machines": machines}
    launched = [f"launch.{name}={count}" for name, count in counts.items() if count is not None]
    loaded = recipes.load(path, [*set, *launched])
    place = _place(machine_rank, main_address)
    if print_launch or place.machine:
        check((plan.launch for plan in loaded.stages), place)
    if print_launch:
        from align.preflight.check import prepare
        from align.runner import print_launch as print_launches

        options.check([plan.id for plan in loaded.stages])
        checked = prepare(loaded, weights=False)
        printed.found(checked.notes, checked.warnings)
        print(print_launches.shown(loaded, folder_of(loaded.recipe.name, run_dir), place))
        return
    if print_sbatch:
        from align.runner import slurm

        if place != ALONE:
            what = "the script of --print-sbatch numbers the machines itself and knows where they meet"
            raise AlignError(what, "leave --machine-rank and --main-address out")
        words = slurm.command(recipe or str(path), set, run_dir, options, processes, machines)
        found = slurm.of_recipe(loaded, options, folder_of(loaded.recipe.name, run_dir), words, sbatch)
        printed.found(found.notes, found.warnings)
        print(found.script, end="")
        return
    raise typer.Exit((_executed if place.machine == 0 else _followed)(loaded, options, run_dir, place))


def _without_recipe(model: str | None, data: str | None, method: str, stage: str, set: list[str], *, run: bool) -> Path:
    from align.recipe import from_flags

    path = from_flags.write(model, data, method=method, stage=stage, overrides=set)
    printed.errors().print(line(f"wrote {path}; running it" if run else f"wrote {path}"))
    return path


def _place(machine: int, address: str | None) -> Place:
    """Which of several machines this is.

    Raises:
        AlignError: the port is none, or the others are not told where the first one is.
    """
    from align.run_folder.launch import Place

    if machine and address is None:
        what = f"--machine-rank {machine} takes part in the run of another machine"
        raise AlignError(what, "say with --main-address where it reaches that one, and give --machines")
    host, port = address or "", ""
    if host.count(":") == 1 or "]:" in host:  # otherwise an address of IPv6
        host, _, port = host.rpartition(":")
    if port and not (port.isdigit() and 0 < int(port) < 2**16):
        raise AlignError(f"--main-address {address}: '{port}' is no port", "write HOST or HOST:PORT")
    return Place(machine, host.strip("[]"), int(port or 0))


def _followed(loaded: Loaded, options: Options, run_dir: Path | None, place: Place) -> int:
    """Take part in the run of the first machine, and give its exit code."""
    from align.api import folder_of
    from align.recipe import resolved
    from align.runner.follow import Follower

    def say(text: str) -> None:
        printed.errors().print(line(text))

    return Follower(folder_of(loaded.recipe.name, run_dir), place, resolved.digest(loaded), say).follow()


def _executed(loaded: Loaded, options: Options, run_dir: Path | None, place: Place) -> int:
    """Run it, print its result, and give its exit code."""
    from align.api import folder_of
    from align.runner.loop import Run
    from align.runner.progress import Watcher

    folder = folder_of(loaded.recipe.name, run_dir)
    with Watcher(printed.errors()) as watcher:
        code = Run(loaded, options, folder, watcher, place).execute()
    printed.result(folder.root)
    if code == Exit.GATE:
        printed.errors().print(
            "the gate stopped the run: change the recipe (forgetting limits, replay, learning rate) and run "
            "the same command again",
            style="yellow",
        )
    return code
