"""`align data`: the rows that a stage trains on."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from align.cli.options import Recipe, Set


def show(
    recipe: Recipe,
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="A stage of the recipe.")],
    row: Annotated[int, typer.Option(min=1, help="The number of the row among the training rows, from 1.")] = 1,
    set: Set = [],  # noqa: B006 - typer reads the default, nobody changes it
) -> None:
    """Show a row exactly as the model sees it, with special tokens, and the trained tokens in brackets."""
    from align.recipe import load as recipes
    from align.results import show_rows

    out = Console(highlight=False, soft_wrap=True)
    for text in show_rows.show(recipes.load(recipes.locate(recipe), set), stage, row):
        out.print(text)
