"""The Fisher information of a stage in its run folder: measured once, by the first process, and checked by hash."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import PartialState
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import nn

from align.data import encode
from align.data.encode import IGNORE
from align.data.tokenizer import TextTokenizer
from align.errors import AlignError
from align.penalties import fisher
from align.penalties.fisher import Row
from align.penalties.keys import LONGEST
from align.penalties.start import Part
from align.run_folder import files
from align.run_folder.records import Fisher, Ticket
from align.run_folder.stage_dir import StageDir

Tell = Callable[[str], Callable[[int, int], None]]
"""Tells what is being done, and gives what tells how much of it is done, and of how much."""


def diagonal(
    model: nn.Module, parts: Sequence[Part], here: StageDir, ticket: Ticket, rows: Callable[[], list[Row]], tell: Tell
) -> tuple[dict[str, torch.Tensor], Fisher]:
    """The diagonal by the name of a part, of mean 1, and its record. All processes read the file of the first, so that
    their number makes no difference.

    Args:
        rows: gives the examples, where it has to be measured.
    """
    state = PartialState()
    if state.is_main_process and _record(here, ticket) is None:
        _measure(model, parts, here, ticket, rows(), tell)
    state.wait_for_everyone()
    record = Fisher.model_validate(files.read_json(here.fisher_record))
    return load_file(here.fisher, device=str(next(model.parameters()).device)), record


def examples(values: Sequence[dict[str, Any]], ticket: Ticket, tokenizer: Any) -> list[Row]:
    """Canonical rows as token ids and labels, cut to what the stage reads of a row; without those of which nothing to
    learn is left.

    Raises:
        AlignError: none is left.
    """
    given = ticket.training.get("max_length")
    limit = given if isinstance(given, int) else LONGEST
    cut = [(row.ids[:limit], row.labels[:limit]) for row in encode.encoded(values, TextTokenizer.of(tokenizer))]
    found: list[Row] = [(ids, labels) for ids, labels in cut if any(label != IGNORE for label in labels[1:])]
    if not found:
        what = f"no row of `stages.{ticket.stage}.ewc.data` has an answer within {limit:,} tokens"
        raise AlignError(what, "give rows with shorter prompts")
    return found


def _record(here: StageDir, ticket: Ticket) -> Fisher | None:
    """What is kept, if it is of this stage as it now is, and whole."""
    try:
        found = Fisher.model_validate(files.read_json(here.fisher_record))
    except ValidationError:
        return None
    whole = found.made_for == ticket.made_from and here.fisher.is_file()
    return found if whole and files.file_sha256(here.fisher) == found.sha256 else None


def _measure(
    model: nn.Module, parts: Sequence[Part], here: StageDir, ticket: Ticket, rows: list[Row], tell: Tell
) -> None:
    """Write the file, and then the record, without which it counts for nothing."""
    begun, kind = time.monotonic(), ticket.keys["ewc"]["fisher"]
    told = tell("measuring the Fisher information")
    found, mean = fisher.normalized(
        fisher.diagonal(model, parts, rows, kind, ticket.seed, lambda done: told(done, len(rows)))
    )
    part = here.fisher.with_suffix(".part")
    save_file({name: tensor.contiguous().cpu() for name, tensor in found.items()}, part)
    part.replace(here.fisher)
    record = Fisher(
        made_for=ticket.made_from,
        sha256=files.file_sha256(here.fisher),
        kind=kind,
        rows=len(rows),
        tokens=sum(label != IGNORE for _, labels in rows for label in labels[1:]),
        weights=sum(tensor.numel() for tensor in found.values()),
        mean=mean,
        seconds=time.monotonic() - begun,
    )
    files.write_json(here.fisher_record, record.model_dump(mode="json"))
