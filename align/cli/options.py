"""The arguments and options of the commands that take many, or share them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Recipe = Annotated[str, typer.Argument(help="A recipe file, or a name of `align list`.")]
Set = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override a key: stages.dpo.beta=0.2")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, for example runs/dpo_qlora.")]

# `align run`, in the order of its help
RecipeIfAny = Annotated[
    str | None, typer.Argument(metavar="[RECIPE]", help="A recipe file, or a name of `align list`.")
]
RunDir = Annotated[Path | None, typer.Option(help="The run folder; defaults to runs/<name>.")]
FromStage = Annotated[
    str | None, typer.Option("--from", metavar="STAGE", help="Redo this stage and those that depend on it.")
]
Only = Annotated[str | None, typer.Option(metavar="STAGE", help="Redo only this stage.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start over; the old results are kept in superseded/.")]
Processes = Annotated[int | None, typer.Option(min=1, help="Train with this many processes (accelerate launch).")]
Machines = Annotated[int | None, typer.Option(min=1, help="Divide them among machines; each runs this command.")]
MachineRank = Annotated[int, typer.Option(min=0, help="The number of this machine; machine 0 runs the recipe.")]
MainAddress = Annotated[
    str | None, typer.Option(metavar="HOST[:PORT]", help="Where the other machines reach machine 0.")
]
PrintLaunch = Annotated[
    bool, typer.Option("--print-launch", help="Check the recipe, show how its stages would be started, and end.")
]
Model = Annotated[str | None, typer.Option(help="Without a recipe: the base model.")]
Data = Annotated[str | None, typer.Option(help="Without a recipe: the training data.")]
Method = Annotated[str, typer.Option(help="Without a recipe: the parameterization.")]
Stage = Annotated[str, typer.Option(help="Without a recipe: the stage.")]
PrintSbatch = Annotated[
    bool, typer.Option("--print-sbatch", help="Check it, print a SLURM script that runs it, and start nothing.")
]
Sbatch = Annotated[
    list[str], typer.Option(metavar="OPTION=VALUE", help="Of that script: an option of sbatch, time=08:00:00")
]
