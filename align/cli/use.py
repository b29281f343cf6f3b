"""What uses a finished run, or adapters of several: talking to it, exporting, merging."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from align.cli import printed
from align.cli.options import RunFolder
from align.errors import AlignError
from align.runner.lines import line

if TYPE_CHECKING:
    from align.merging.verdict import Merge


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
        printed.errors().print(line(merge.warning, "warning"), soft_wrap=True)
