"""A command that is forked from a warm process answers as one that a shell starts."""

from __future__ import annotations

from pathlib import Path

import pytest

import runs

RECIPE = "name: x\nmodel: {base: lab}\nstages:\n  sft: {data: chats.jsonl, training: {max_steps: STEPS}}\n"
CHAT = '{"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]}\n'


@pytest.mark.parametrize(("steps", "code"), [("4", 0), ("four", 2)])
def test_warm_or_cold_it_says_the_same(tmp_path: Path, steps: str, code: int) -> None:
    (tmp_path / "x.yaml").write_text(RECIPE.replace("STEPS", steps))
    (tmp_path / "chats.jsonl").write_text(CHAT * 4)
    warm, cold = (runs.align("check", "x.yaml", cwd=tmp_path, code=code, cold=cold) for cold in (False, True))
    assert (warm.stdout, warm.stderr) == (cold.stdout, cold.stderr) != ("", "")
