"""`align import`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from align.cli import printed
from align.cli.options import AsJson, Processes
from align.runner.lines import line


def import_(
    file: Annotated[Path, typer.Argument(help="A YAML file of LLaMA-Factory, Axolotl or TRL, or a `trl` command.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The recipe to write; defaults to NAME.yaml.")
    ] = None,
    stage: Annotated[
        str | None, typer.Option(help="Of a file of TRL that does not tell: sft, dpo, reward, ...")
    ] = None,
    processes: Processes = None,
    as_json: AsJson = False,
) -> None:
    """Write the file of another tool as a recipe, and say what became of each of its keys.

    [dim]align import llama3_lora_dpo.yaml --out mine.yaml[/dim]
    """
    from align.importing import translate
    from align.recipe import load

    found = translate.translate(file, stage=stage, processes=processes)
    target = out or Path(f"{file.stem}-align.yaml")
    printed.refuse_unwritable(target)
    translate.write(found, target)
    if as_json:
        load.load(target)
        parts = {"mapped": found.mapped, "idle": found.idle, "lost": found.lost}
        print(json.dumps({"tool": found.tool, "recipe": str(target), **parts}, indent=1, ensure_ascii=False))
        return
    console = Console(highlight=False)
    for title, entries, style in (
        ("in the recipe", found.mapped, "green"),
        ("not needed", found.idle, "dim"),
        ("not in the recipe", found.lost, "yellow"),
    ):
        if not entries:
            continue
        table = Table(box=None, show_header=False, title=Text(title, style=f"bold {style}"), title_justify="left")
        table.add_column(no_wrap=True)
        table.add_column()
        for key, said in entries.items():
            table.add_row(line(key), line(said))
        console.print(table)
    total = len(found.mapped) + len(found.idle) + len(found.lost)
    print(
        f"{target}: of {total} keys of {found.tool} {len(found.mapped)} are in the recipe, "
        f"{len(found.idle)} are not needed, {len(found.lost)} are not in it"
    )
    load.load(target)
    print(f"next: align check {target}")
