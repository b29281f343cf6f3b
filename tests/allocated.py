"""What a stage really allocates on a CPU: the peak of torch's own allocator, while the stage trains two steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import torch
from trl import RLOOTrainer

from align.run_folder.paths import RunDir
from align.run_folder.records import Ticket
from align.worker import execute

_sampled = RLOOTrainer._generate_single_turn


def peak(run: RunDir, ticket: Ticket) -> int:
    """Bytes, those of weights that are mapped from their file included."""
    from torch.profiler import ProfilerActivity, profile, record_function

    with (
        mock.patch.object(RLOOTrainer, "_generate_single_turn", _to_the_end),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled,
    ):
        at = execute.load(run, ticket, lambda: False)
        execute.build(at)
        held = {one.untyped_storage()._cdata: one.untyped_storage().nbytes() for one in _tensors(at.job.model)}
        with record_function("built"):
            pass
        at.program.stage.train(at.job)
    every: Any = profiled.profiler
    events = every.kineto_results.events()
    built = next(event.start_ns() for event in events if event.name() == "built")
    # a file that is mapped counts whole, as long as one tensor of it is used: instead, what is used of it is counted
    file = (Path(ticket.policy.base.path) / "model.safetensors").stat().st_size
    moved = [(one.start_ns(), one.nbytes()) for one in events if one.name() == "[memory]" and abs(one.nbytes()) != file]
    moved.sort(key=lambda move: move[0])
    mapped = sum(held.values()) - sum(size for when, size in moved if when < built)
    live = most = 0
    for _, size in moved:
        live += size
        most = max(most, live)
    return most + max(0, mapped)


def _tensors(model: Any) -> list[torch.Tensor]:
    found = [*model.parameters(), *model.buffers()]
    states = [state for one in found if (state := getattr(one, "quant_state", None)) is not None]
    nested = [state.state2 for state in states if state.state2 is not None]
    return found + [one for state in (*states, *nested) for one in (state.absmax, state.code) if one is not None]


def _to_the_end(self: Any, prompt_ids: Any, *rest: Any) -> Any:
    """Answers of the greatest length, as a plan takes them: the tokens that are missing are those of the prompt."""
    answers = _sampled(self, prompt_ids, *rest)
    most, fill = self.args.max_completion_length, prompt_ids[0][0]
    return [[*answer, *[fill] * (most - len(answer))] for answer in answers]
