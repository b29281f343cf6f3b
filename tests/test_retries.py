"""What an attempt at a stage changes, and how what was tried is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from align.forgetting import action_keys
from align.forgetting.action_keys import Chain, Retry
from align.forgetting.table import Forgetting
from align.recipe import retries
from align.recipe.load import load
from align.recipe.plan import StagePlan
from align.report import decisions_page, sentence
from align.run_folder.decisions import Attempt, Decision, Figure

RECIPE = """\
name: small
model: {base: lab}
stages:
  sft: {data: lab/helpdesk, replay: {data: lab/general, ratio: RATIO}, training: {learning_rate: 0.01, max_steps: 10}}
"""


def plan(folder: Path, ratio: float = 0.2) -> StagePlan:
    path = folder / "small.yaml"
    path.write_text(RECIPE.replace("RATIO", str(ratio)), encoding="utf-8")
    return load(path, ()).stages[0]


def test_each_attempt_has_the_factors_to_another_power(tmp_path: Path) -> None:
    retry, stage = Retry(times=3, replay=2, learning_rate=0.5, max_steps=0.3), plan(tmp_path)
    assert retries.changed(stage, retry, 1) == {} == retries.changed(stage, None, 2)
    second, third = (retries.changed(stage, retry, number) for number in (2, 3))
    assert second == {"replay": (0.2, 0.4), "learning_rate": (0.01, 0.005), "max_steps": (10, 3)}
    assert third == {"replay": (0.2, 0.8), "learning_rate": (0.01, 0.0025), "max_steps": (10, 1)}
    assert retries.changed(stage, retry, 5)["replay"] == (0.2, retries.MOST_REPLAY)
    assert retries.training(stage, third) == {**stage.training, "learning_rate": 0.0025, "max_steps": 1}
    said = "replay 0.4 instead of 0.2, learning_rate 0.005 instead of 0.01 and max_steps 3 instead of 10"
    assert retries.sentence(second) == said


@pytest.mark.parametrize("ratio", [0.0, 0.95])
def test_replay_that_is_off_stays_off_and_more_than_the_most_stays(tmp_path: Path, ratio: float) -> None:
    assert retries.changed(plan(tmp_path, ratio), Retry(replay=2), 2) == {}
    assert retries.changed(plan(tmp_path, ratio), Retry(replay=2, learning_rate=0.5), 2).keys() == {"learning_rate"}


@pytest.mark.parametrize(
    ("chains", "strictest"),
    [
        ([("retry", "stop"), ("warn",)], ("retry", "stop")),
        ([("retry", "warn"), ("retry", "rollback"), ("retry", "interpolate", "rollback")], ("retry", "rollback")),
        ([("interpolate", "rollback"), ("retry", "stop")], ("interpolate", "rollback")),
        ([("stop",), ("rollback",)], ("stop",)),
    ],
)
def test_the_strictest_chain(chains: list[Chain], strictest: Chain) -> None:
    assert action_keys.strictest(chains) == strictest == action_keys.strictest(chains[::-1])


def test_what_happens_where_nothing_of_a_chain_helps() -> None:
    assert action_keys.chains("retry") == {"default": ("retry", "stop")}
    assert action_keys.chains(["retry", "interpolate"]) == {"default": ("retry", "interpolate", "rollback")}
    assert action_keys.chains({"copy": "stop"}) == {"default": ("warn",), "copy": ("stop",)}
    assert action_keys.of({"mean": "stop", "kl": "rollback"}, ["KL to the base", "mean of the skills", "copy"]) == {
        "KL to the base": ("rollback",),
        "mean of the skills": ("stop",),
        "copy": ("warn",),
    }


def test_the_table_of_the_attempts_says_which_goes_on() -> None:
    gain = Figure(name="task", before=0.0, after=0.5)
    first = Attempt(number=1, gain=gain, violated=["copy", "sort"])
    part = Attempt(number=2, share=0.4, changed={"learning_rate": (0.01, 0.005)}, gain=gain)
    decision = Decision(
        stage="sft", action="continue", policy="interpolated", attempt=2, share=0.4, shape="flat", reasons=[],
        violations=[], unclear=[], attempts=[first, part], thresholds={},
    )  # fmt: skip
    assert decisions_page.text(decision) == (
        "continue with a share of 0.4 of the update (flat) (attempt 2), decided on the gate's items"
    )
    rows = [decisions_page._row(one, decision) for one in decision.attempts]
    assert rows == [
        decisions_page.AttemptRow(
            "1", "nothing", "task 0 to 0.5", "not measured", "past its limit: copy and sort", goes_on=False
        ),
        decisions_page.AttemptRow(
            *("2, a share of 0.4", "learning_rate 0.01 to 0.005", "task 0 to 0.5", "not measured"),
            "no limit surely broken",
            goes_on=True,
        ),
    ]
    back = decision.model_copy(update={"policy": "rolled_back", "share": None})
    assert not any(decisions_page._row(one, back).goes_on for one in back.attempts)
    assert decisions_page.text(back) == (
        "continue with the policy before it (rolled back) (attempt 2), decided on the gate's items"
    )
    last = Attempt(number=2, violated=["copy"])
    stopped = back.model_copy(update={"action": "stop", "policy": "as_trained", "attempts": [first, last]})
    assert not any(decisions_page._row(one, stopped).goes_on for one in stopped.attempts)
    assert [one.not_as_trained for one in (decision, back, stopped)] == [
        "a share of 0.4 of attempt 2",
        "rolled back",
        "attempt 2",
    ]


def test_columns_that_are_not_of_what_goes_on_as_trained_are_noted() -> None:
    acted = Forgetting(matrix={"base": {}}, rolled_back=("sft",), interpolated={"dpo": 0.3})
    assert sentence.notes(acted)[:2] == [
        "sft was rolled back: its column shows what it had trained, and no stage goes on from that.",
        "The column dpo shows a share of 0.3 of what it trained, which goes on.",
    ]
