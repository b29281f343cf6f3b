"""`align spectrum`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from align.cli import printed


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
    printed.refuse_unwritable(json_file)
    records = scan.scan(folder, estimator, workers=workers)
    Console().print(table.snr_table(records, estimator, snr_threshold))
    if json_file is not None:
        files.write_json(json_file, table.spectrum(records, estimator).written())
