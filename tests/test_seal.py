"""When a checkpoint counts as whole, among several processes."""

from __future__ import annotations

from pathlib import Path

import accelerate
import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from align.run_folder import checkpoints
from align.stage.callbacks import Seal


@pytest.mark.parametrize("rank", [0, 1])
def test_no_process_leaves_before_the_first_has_sealed_a_checkpoint(
    rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was asked to stop leaves after it, and the others are ended ten seconds later."""
    done: list[str] = []
    monkeypatch.setattr(accelerate.PartialState, "wait_for_everyone", lambda self: done.append("wait"))
    monkeypatch.setattr(checkpoints, "seal", lambda path: done.append(path.name))
    state = TrainerState(global_step=7, is_world_process_zero=rank == 0)
    Seal().on_save(TrainingArguments(output_dir=str(tmp_path), use_cpu=True), state, TrainerControl())
    assert done == (["wait", "checkpoint-7", "wait"] if rank == 0 else ["wait", "wait"])
