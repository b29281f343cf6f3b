"""A checkpoint that would not fit on the disk is not begun."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from align.errors import AlignError, Exit
from align.stage import room

Usage = namedtuple("Usage", "free")


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    frozen = nn.Linear(100, 100).requires_grad_(False)
    trained = nn.Linear(100, 10, bias=False)
    state = {trained.weight: {"step": torch.zeros(()), "exp_avg": torch.zeros(10, 100), "told": 3}}
    guard = room.Room(SimpleNamespace(model=nn.Sequential(frozen, trained), optimizer=SimpleNamespace(state=state)))
    args = TrainingArguments(str(tmp_path / "checkpoints"), use_cpu=True, report_to=[])

    def ended(free: int, *, save: bool = True) -> None:
        monkeypatch.setattr(room.shutil, "disk_usage", lambda path: Usage(free) if path.exists() else None)
        guard.on_step_end(args, TrainerState(global_step=9), TrainerControl(should_save=save))

    return ended


def test_the_first_takes_the_trained_weights_and_what_the_optimizer_keeps(look) -> None:
    look(free=8_004)
    look(free=0, save=False)
    with pytest.raises(AlignError, match="the checkpoint of step 9 takes") as error:
        look(free=8_003)
    assert error.value.exit == Exit.MACHINE


def test_the_next_takes_what_the_last_one_took(look, tmp_path: Path) -> None:
    for step, size in ((6, 2_000_000), (12, 3_000_000)):
        file = tmp_path / f"checkpoints/checkpoint-{step}/optimizer.pt"
        file.parent.mkdir(parents=True)
        file.write_bytes(b"x" * size)
    look(free=3_000_000)
    with pytest.raises(AlignError, match=r"takes about 3.0 MB, but only 2.9 MB are free in '.*'") as error:
        look(free=2_900_000)
    assert error.value.remedy.startswith("free some space, and run the same command again")
