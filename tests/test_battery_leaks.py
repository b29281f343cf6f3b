"""Questions of the battery that a stage trains on are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from align.forgetting import probes
from align.forgetting.battery import leaks
from align.forgetting.keys import ForgettingKeys
from align.forgetting.probes import Battery


@pytest.fixture(scope="module")
def battery() -> list[Battery]:
    loaded = probes.load(ForgettingKeys(probes="general", items=20), Path())
    return [probe for probe in loaded if isinstance(probe, Battery)]


@pytest.mark.parametrize("form", ["text", "messages", "pair"])
def test_a_question_that_is_trained_on_is_told(battery: list[Battery], form: str) -> None:
    capitals = next(probe for probe in battery if probe.name == "capitals")
    content = next(iter(capitals.items["report"].values())).messages[-1]["content"]
    turn = {"role": "user", "content": content.upper() + "  "}
    row: dict[str, Any] = {
        "text": {"prompt": turn["content"], "completion": "x"},
        "messages": {"messages": [turn, {"role": "assistant", "content": "x"}]},
        "pair": {"prompt": [turn], "chosen": "x", "rejected": "y"},
    }[form]
    assert list(leaks.warnings(battery, [{"text": content}, row])) == [
        "1 of the 20 questions of the skill 'capitals' is in the training data too, such as "
        f"{content[:80]!r}, so it measures memorisation"
    ]


def test_other_questions_are_not(battery: list[Battery]) -> None:
    assert list(leaks.warnings(battery, [{"prompt": "What is the capital?", "completion": "Paris"}])) == []
