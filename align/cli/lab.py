"""`align lab`: the lab model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from align.cli import printed
from align.runner.lines import line


def build(
    out: Annotated[Path, typer.Argument(help="A folder for the model.")],
    seed: Annotated[int, typer.Option(help="Seed for the data and the weights.")] = 0,
) -> None:
    """Pretrain the lab model from scratch, in under ten CPU minutes."""
    from align.lab import build as lab

    lab.build(out, seed=seed, progress=lambda text: printed.errors().print(line(text)))
    print(out)
