"""`forgetting.budgets`: units, what crosses a budget, what then happens, and that nothing is trained again for it."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from align.errors import AlignError, Exit
from align.forgetting.budget_keys import memory, seconds
from align.forgetting.budgets import Costs
from align.forgetting.gate import decide, decide_on_costs
from align.forgetting.keys import ForgettingKeys
from align.run_folder import files
from align.run_folder.decisions import Decision
from test_gate import measurement
from test_loop import RECIPE, Runs, probes, runs

__all__ = ["probes", "runs"]

BASE = measurement({"copy": (90, 100), "sort": (90, 100)}, others={"same": ("task", (90, 100))})


def keys(**budgets: Any) -> ForgettingKeys:
    action = {"on_budget": budgets.pop("on_budget")} if "on_budget" in budgets else {}
    return ForgettingKeys.model_validate({"max_mean_drop": 1.0, "max_drop": 1.0, "budgets": budgets, **action})


@pytest.mark.parametrize(
    ("text", "expected"),
    [("20GB", 20 * 10**9), ("1.5 GiB", 3 * 2**29), ("800mb", 800 * 10**6), ("512KiB", 2**19), ("7B", 7)],
)
def test_sizes(text: str, expected: int) -> None:
    assert memory(text) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(90, 90), (1.5, 1.5), ("2h", 7200), ("1h 30min", 5400), ("1h30m", 5400), ("800ms", 0.8), ("2 d", 172800)],
)
def test_times(value: float | str, expected: float) -> None:
    assert seconds(value) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        (
            {"peak_memory": "20 gigs"},
            "'20 gigs' is not a size of memory: write a number and its unit, as in 20GB or 24GiB",
        ),
        ({"peak_memory": "20"}, "'20' is not a size of memory: write a number and its unit, as in 20GB or 24GiB"),
        ({"peak_memory": "0GB"}, "'0GB' is not a size of memory: write a number and its unit, as in 20GB or 24GiB"),
        (
            {"wall_time": "2 fortnights"},
            "'2 fortnights' is not a time: write seconds, or a number and its unit, as in 90s, 30min or 2h",
        ),
        ({"wall_time": 0}, "0.0 is not a time: write seconds, or a number and its unit, as in 90s, 30min or 2h"),
        ({"latency": "2"}, "'2' is not a time: write seconds, or a number and its unit, as in 90s, 30min or 2h"),
        ({"perplexity": 0.5}, "a perplexity is at least 1: write its ceiling, as in 40, not 0.5"),
        ({"accuracy": {"copy": 50}}, "an accuracy is from 0 to 1: write 0.5 for half of the items, not 50"),
    ],
)
def test_nonsense_is_refused(budgets: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        keys(**budgets)
    assert [fault["msg"] for fault in caught.value.errors()] == [f"Value error, {message}"]


def test_budgets_of_probes_that_there_are_not() -> None:
    with pytest.raises(ValidationError, match=r"budgets\.accuracy needs probes, and there are none: write `probes: a"):
        ForgettingKeys.model_validate({"probes": "none", "budgets": {"accuracy": 0.5}})
    own = {"law": {"data": "a.jsonl", "metric": "accuracy"}}
    with pytest.raises(ValidationError, match=r"budgets\.accuracy names lwa, but the probes are law"):
        ForgettingKeys.model_validate({"probes": own, "budgets": {"accuracy": {"lwa": 0.5}}})
    with pytest.raises(AlignError) as caught:
        decide("sft", BASE, BASE, keys(accuracy={"cpoy": 0.5}))
    assert str(caught.value) == (
        "budgets.accuracy names cpoy, but the probes are copy, sort, same\n"
        "  -> correct the name under `forgetting.budgets.accuracy`, or remove it"
    )


def test_a_floor_of_accuracy() -> None:
    after = measurement({"copy": (49, 100), "sort": (50, 100)}, others={"same": ("task", (90, 100))})
    decision = decide("sft", BASE, after, keys(accuracy=0.5))
    assert [crossed.model_dump() for crossed in decision.budgets] == [
        {"budget": "accuracy", "probe": "copy", "value": 0.49, "limit": 0.5}
    ]
    assert decision.action == "continue" and decision.reasons[:2] == [
        "copy has an accuracy of 0.49 (100 items, 95 % interval 0.394 to 0.587), its budget is at least 0.5",
        "the run continues anyway, because on_budget is warn",
    ]
    assert decision.thresholds["budgets.accuracy"] == 0.5 and decision.thresholds["on_budget"] == "warn"
    named = decide("sft", BASE, after, keys(accuracy={"same": 0.95, "sort": 0.6}, on_budget="stop"))
    assert named.action == "stop" and [crossed.probe for crossed in named.budgets] == ["sort", "same"]
    assert Decision.model_validate_json(named.model_dump_json()) == named


def test_a_ceiling_of_perplexity_is_absolute() -> None:
    base, after = measurement(texts={"stories": 1.2}), measurement(texts={"stories": 1.2})
    decision = decide("sft", base, after, keys(perplexity=3))
    assert decision.violations == [] and decision.reasons[0] == (
        "stories has a perplexity of 3.32, its budget is at most 3"
    )
    assert decide("sft", base, after, keys(perplexity={"stories": 4})).budgets == []
    gone = decide("sft", base, measurement(texts={"stories": float("inf")}), keys(perplexity=40))
    assert (
        gone.budgets[0].value is None and "stories has no finite perplexity, its budget is at most 40" in gone.reasons
    )
    none = decide("sft", BASE, BASE, keys(perplexity=40))
    assert none.budgets == [] and "no probe measures a perplexity, so its budget was not checked" in none.reasons


def test_what_a_stage_takes() -> None:
    limits = keys(peak_memory="20GB", wall_time="2h", latency="800ms")
    over = Costs(peak_memory_bytes=21_340_000_000, seconds=7500.4, latency=1.234, answers=9)
    decision = decide_on_costs("reward", limits, over)
    assert decision.reasons == [
        "the stage took 21.3 GB of memory, its budget is 20GB",
        "the stage took 2.08 h, its budget is 2h",
        "an answer took 1234 ms (median of 9), its budget is 800ms",
        "the run continues anyway, because on_budget is warn",
    ]
    assert [(crossed.budget, crossed.limit) for crossed in decision.budgets] == [
        ("peak_memory", 20e9), ("wall_time", 7200), ("latency", 0.8),
    ]  # fmt: skip
    assert decision.alarming == decision.reasons[:3]
    within = Costs(peak_memory_bytes=20_000_000_000, seconds=7200, latency=0.8, answers=9)
    assert decide_on_costs("reward", limits, within).reasons == []
    assert decide_on_costs("reward", limits, Costs()).reasons == [
        "the peak memory is not known, so its budget was not checked",
        "no answer was timed, so the budget of the latency was not checked",
    ]


def test_a_violation_and_a_budget_together() -> None:
    after = measurement({"copy": (10, 100), "sort": (90, 100)}, others={"same": ("task", (90, 100))})
    limits = ForgettingKeys.model_validate({"max_mean_drop": 1.0, "budgets": {"accuracy": 0.5}})
    decision = decide("sft", BASE, after, limits)
    assert [text.split(":")[0].split(" has")[0] for text in decision.alarming] == ["copy", "copy"]
    assert "the run continues anyway, because on_violation and on_budget are warn" in decision.reasons


def test_an_older_decision_reads_without_budgets() -> None:
    written = decide("sft", BASE, BASE, ForgettingKeys()).model_dump(mode="json")
    del written["budgets"]
    assert Decision.model_validate(written).budgets == []
    assert "on_budget" not in written["thresholds"], "or every run folder would be decided on again"


def test_a_changed_budget_is_decided_on_again_without_training(runs: Runs, probes: str) -> None:
    runs.right = {"sft": 60, "dpo": 60}
    limits = ["forgetting.max_drop=1", "forgetting.max_mean_drop=1"]
    assert runs.run(probes, *limits)[-1] == "finish" and runs.code == Exit.DONE
    for budget, code in (("0.7", Exit.GATE), ("0.5", Exit.DONE)):
        asked = runs.run(probes, *limits, f"forgetting.budgets={{accuracy: {budget}}}", "forgetting.on_budget=stop")
        assert runs.code == code and [one for one in asked if one != "finish"] == []
    assert runs.statuses()["sft"] == "done"


def test_a_crossed_budget_is_told_and_stops(runs: Runs, probes: str) -> None:
    budget = "forgetting.budgets={wall_time: 1s}"
    asked = runs.run(probes, budget, "forgetting.on_budget=stop")
    assert (asked, runs.code) == (["sft, and the base"], Exit.GATE)
    assert "gate sft: the stage took 2 s, its budget is 1s" in runs.said
    assert files.read_json(runs.dir.stage("sft").decision)["action"] == "stop"


def test_what_is_not_measured_has_budgets_of_what_it_takes(runs: Runs) -> None:
    """RECIPE measures nothing."""
    assert "probes: none" in RECIPE
    assert runs.run("forgetting.budgets={wall_time: 1s, peak_memory: 1GB}") == ["sft", "dpo", "finish"]
    assert "gate dpo: the stage took 2 s, its budget is 1s" in runs.said
    decision = files.read_json(runs.dir.stage("dpo").decision)
    assert decision["reasons"][-1] == "the peak memory is not known, so its budget was not checked"
    assert runs.run() == ["finish"] and not runs.dir.stage("dpo").decision.exists()


def test_answers_are_timed_where_a_budget_asks_for_it_and_not_twice(runs: Runs, probes: str) -> None:
    runs.run(probes)
    assert not files.read_json(runs.dir.stage("sft").ticket)["latency"]
    latency = "forgetting.budgets={latency: 2s}"
    assert runs.run(probes, latency) == ["sft measured", "dpo measured", "finish"]
    assert files.read_json(runs.dir.stage("sft").ticket)["latency"]
    for stage in ("sft", "dpo"):
        files.write_json(runs.dir.stage(stage).latency, {"seconds": 3.0, "answers": 9, "most_tokens": 32})
        runs.dir.stage(stage).decision.unlink()
    assert runs.run(probes, latency) == ["finish"]
    assert "gate sft: an answer took 3 s (median of 9), its budget is 2s" in runs.said
    assert runs.run(probes) == ["finish"], "a budget that is gone is no reason to measure again"
