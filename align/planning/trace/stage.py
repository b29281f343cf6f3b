"""One stage, traced at a few depths."""

from __future__ import annotations

import gc
import logging
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from align.planning.records import Asked, Moments, Traced
from align.planning.trace.fakes import in_place
from align.planning.trace.tally import Tally
from align.run_folder.paths import RunDir
from align.worker import execute


def trace(folder: Path, asked: Asked) -> Traced:
    """The moments of a stage at each depth, or why there are none: a program may ask for content."""
    run, found = RunDir(folder), dict[int, Moments]()
    for name in ("transformers", "trl", "peft", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        for depth in asked.depths:
            found[depth] = _at(run, asked, depth)
            gc.collect()
    except Exception as error:  # whatever a stage's program does
        lines = str(error).strip().splitlines()
        return Traced(stage=asked.ticket.stage, failed=f"{type(error).__name__}: {lines[0] if lines else ''}")
    return Traced(stage=asked.ticket.stage, moments=found)


def _at(run: RunDir, asked: Asked, depth: int) -> Moments:
    ticket = asked.ticket
    tally = Tally(asked.block, casts=asked.casts)
    with FakeTensorMode(allow_non_fake_inputs=True), tally, in_place(tally, Path(ticket.policy.base.path), depth):
        torch.manual_seed(0)
        at = execute.load(run, ticket, lambda: False)
        execute.build(at)
        tally.vocabulary = at.job.model.config.get_text_config(decoder=True).vocab_size
        tally.phase = "loading"
        at.program.stage.train(at.job)
    return tally.moments
