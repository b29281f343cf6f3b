"""The recipe key `forgetting`, and the decision after a stage."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest
from pydantic import ValidationError

from align.errors import AlignError
from align.forgetting import probes
from align.forgetting.gate import Decision, decide
from align.forgetting.judgement import is_skill
from align.forgetting.keys import ForgettingKeys
from align.forgetting.measurements import Item, Kind, Measurement, ProbeInfo, Split

Right = tuple[int, int]  # the first so many of so many items are right


def measurement(
    skills: Mapping[str, Right] | None = None,
    *,
    others: Mapping[str, tuple[Kind, Right]] | None = None,
    texts: Mapping[str, float] | None = None,
    replayed: Mapping[str, bool | None] | None = None,
    splits: tuple[Split, ...] = ("gate", "report"),
    place: str = "the measurement",
) -> Measurement:
    """A measurement whose items are the same in each split; texts are 40 items of so many nats per token."""
    kinds: dict[str, tuple[Kind, Right]] = {name: ("skill", right) for name, right in (skills or {}).items()}
    kinds |= others or {}
    probes = {name: ProbeInfo("accuracy", True, kind, (replayed or {}).get(name)) for name, (kind, _) in kinds.items()}
    probes |= {name: ProbeInfo("perplexity", False, "text", False) for name in texts or {}}
    items: dict[tuple[Split, str], dict[str, Item]] = {}
    for split in splits:
        for name, (_, (right, n)) in kinds.items():
            items[split, name] = {str(i): Item(float(i < right)) for i in range(n)}
        for name, nats in (texts or {}).items():
            items[split, name] = {str(i): Item(10 * nats * (1.1 if i % 2 else 0.9), 10) for i in range(40)}
    return Measurement(probes, items, place)


BASE = measurement({"copy": (95, 100), "sort": (90, 100)})


def faults(**keys: object) -> list[tuple[tuple[int | str, ...], str]]:
    with pytest.raises(ValidationError) as caught:
        ForgettingKeys.model_validate(keys)
    return [(fault["loc"], fault["msg"]) for fault in caught.value.errors()]


def test_defaults_and_limits_by_name() -> None:
    keys = ForgettingKeys()
    assert (keys.probes, keys.max_drop, keys.max_mean_drop, keys.on_violation) == ("auto", 0.10, 0.05, "warn")
    skill, text = ProbeInfo("accuracy", True, "skill"), ProbeInfo("perplexity", False, "text")
    agreement = ProbeInfo("accuracy", True, "agreement")
    assert keys.limit("copy", skill) == 0.10
    assert keys.limit("stories", text) == 1.5
    assert keys.limit("own answers", agreement) is None, "anything that is learnt changes some answers"
    assert ForgettingKeys(max_perplexity_ratio=None).limit("stories", text) is None
    keys = ForgettingKeys.model_validate({"max_drop": {"copy": 0.3, "default": 0.2}, "max_perplexity_ratio": 1.2})
    assert (keys.limit("copy", skill), keys.limit("sort", skill)) == (0.3, 0.2)
    assert keys.limit("stories", text) == 1.2
    assert keys.limit("own answers", agreement) is None
    assert ForgettingKeys.model_validate({"max_drop": {"copy": 0.3}}).limit("sort", skill) == 0.10
    assert ForgettingKeys.model_validate({"max_drop": {"own answers": 0.3}}).limit("own answers", agreement) == 0.3


def test_every_key_is_described() -> None:
    schema = ForgettingKeys.model_json_schema()
    inner = ("ProbeFile", "ProbeTask", "Budgets", "Retry", "Interpolate")
    parts = [schema, *(schema["$defs"][name] for name in inner)]
    described = [entry for part in parts for entry in part["properties"].values()]
    assert len(described) == 34 and all(len(entry["description"]) > 40 for entry in described)


@pytest.mark.parametrize(
    ("keys", "place", "message"),
    [
        (
            {"max_drop": 10},
            ("max_drop", "for all"),
            "Value error, a drop is a fraction of all items, from 0 to 1: write 0.1 for ten points, not 10",
        ),
        (
            {"max_drop": {"copy": -0.1}},
            ("max_drop", "by name", "copy"),
            "Value error, a drop is a fraction of all items, from 0 to 1: write 0.1 for ten points, not -0.1",
        ),
        (
            {"max_mean_drop": float("nan")},
            ("max_mean_drop",),
            "Value error, a drop is a fraction of all items, from 0 to 1: write 0.1 for ten points, not nan",
        ),
        (
            {"max_perplexity_ratio": 0.2},
            ("max_perplexity_ratio",),
            "Value error, a perplexity ratio is after divided by before, at least 1: write 1.2 for a fifth more, "
            "not 0.2",
        ),
        (
            {"probes": "mmlu"},
            ("probes", "for all"),
            "Value error, 'mmlu' is not a set of probes: write auto, general, lab or none, or name your own, as in "
            "`probes: {medicine: {data: medicine.jsonl, metric: exact}}`",
        ),
        (
            {"probes": {}},
            ("probes", "by name"),
            "Value error, no probe is given: write `probes: none` to measure nothing",
        ),
        (
            {"probes": {"default": {"data": "a.jsonl", "metric": "accuracy"}}},
            ("probes", "by name"),
            "Value error, a probe cannot be called 'default', which means all other probes in `max_drop`: "
            "choose another name",
        ),
        (
            {"probes": {"law": {"data": "a.jsonl", "metric": "f1"}}},
            ("probes", "by name", "law", "a file of items", "metric"),
            "Value error, 'f1' is not a metric; choose one of: exact, contains, regex, choice, perplexity, "
            "./score.py:right or evaluate:exact_match",
        ),
        (
            {"probes": {"law": {"data": "a.jsonl", "metric": "accuracy"}}, "max_drop": {"lwa": 0.2}},
            (),
            "Value error, max_drop has limits for lwa, but the probes are law",
        ),
        (
            {"probes": {"law": {"data": "a.jsonl", "metric": "exact"}}, "every": 5, "watch": ["lwa"]},
            (),
            "Value error, `watch` names lwa, but the probes are law",
        ),
        ({"max_drp": 0.1}, ("max_drp",), "Extra inputs are not permitted"),
    ],
)
def test_bad_keys(keys: dict[str, object], place: tuple[str, ...], message: str) -> None:
    assert faults(**keys) == [(place, message)]


def test_a_skill_of_a_set_can_be_watched_and_limited_among_probes_of_ones_own() -> None:
    own = {"lab": True, "law": {"data": "a.jsonl", "metric": "exact"}}
    keys = ForgettingKeys.model_validate({"probes": own, "every": 5, "watch": ["facts"], "max_drop": {"sort": 0.2}})
    assert keys.unwatched(probes.names(keys)) is None and keys.unlimited(probes.names(keys)) is None


def test_a_skill_that_was_lost_is_a_violation_with_its_figures() -> None:
    after = measurement({"copy": (45, 100), "sort": (90, 100)})
    decision = decide("sft", BASE, after, ForgettingKeys(max_mean_drop=1.0))
    assert (decision.action, decision.policy, decision.split) == ("continue", "as_trained", "gate")
    (violation,) = decision.violations
    assert (violation.probe, violation.before, violation.after) == ("copy", 0.95, 0.45)
    assert (violation.delta, violation.limit) == (pytest.approx(-0.5), 0.10)
    # Bonett & Price by hand: 50 lost, none gained, of 100
    centre, spread = -50 / 102, 1.959964 * ((52 / 102 - (50 / 102) ** 2) / 102) ** 0.5
    assert (violation.low, violation.high) == pytest.approx((centre - spread, centre + spread))
    assert decision.reasons == [
        "copy: 0.95 -> 0.45 (-0.500, 95 % interval -0.591 to -0.389, 100 items) is beyond the limit, a drop of 0.1",
        "the run continues anyway, because on_violation is warn",
        "2 of 3 limits met, 1 violated, 0 unclear",
    ]


def test_stop_stops_only_on_a_violation() -> None:
    keys = ForgettingKeys(on_violation="stop", max_mean_drop=1.0)
    assert decide("sft", BASE, measurement({"copy": (45, 100), "sort": (90, 100)}), keys).action == "stop"
    # 12 lost of 100: the deviation with pseudo-items is 0.3478, and (2.8016 * 0.3478 / 0.02)^2 = 2375
    unclear = decide("sft", BASE, measurement({"copy": (83, 100), "sort": (90, 100)}), keys)
    assert (unclear.action, unclear.violations, unclear.unclear) == ("continue", [], ["copy"])
    assert unclear.reasons == [
        "copy: 0.95 -> 0.83 (-0.120, 95 % interval -0.186 to -0.049, 100 items) may or may not be beyond the limit, "
        "a drop of 0.1: about 2375 items would decide",
        "2 of 3 limits met, 0 violated, 1 unclear",
    ]
    assert decide("sft", BASE, BASE, keys).action == "continue"


def test_small_drops_everywhere_break_the_mean_alone() -> None:
    names = [f"skill{i}" for i in range(8)]
    base = measurement(dict.fromkeys(names, (95, 100)))
    after = measurement(dict.fromkeys(names, (86, 100)))
    decision = decide("dpo", base, after, ForgettingKeys(max_drop=0.2, max_mean_drop=0.05))
    assert [violation.probe for violation in decision.violations] == ["mean of the skills"]
    assert (decision.violations[0].before, decision.violations[0].after) == (
        pytest.approx(0.95),
        pytest.approx(0.86),
    )
    assert decide("dpo", base, after, ForgettingKeys(max_drop=0.2, max_mean_drop=0.2)).violations == []


def test_the_task_is_judged_agreement_only_by_name_and_neither_counts_in_the_mean() -> None:
    base = measurement({"copy": (95, 100)}, others={"helpdesk": ("task", (90, 100)), "same": ("agreement", (100, 100))})
    after = measurement({"copy": (95, 100)}, others={"helpdesk": ("task", (0, 100)), "same": ("agreement", (20, 100))})
    decision = decide("sft", base, after, ForgettingKeys())
    assert [violation.probe for violation in decision.violations] == ["helpdesk"]
    assert decision.reasons[1:] == [
        "the run continues anyway, because on_violation is warn",
        "2 of 3 limits met, 1 violated, 0 unclear",
    ]
    decision = decide("sft", base, after, ForgettingKeys(max_drop={"same": 0.3, "helpdesk": 1}))
    assert [violation.probe for violation in decision.violations] == ["same"]
    assert not any("is not judged" in reason for reason in decision.reasons)


def test_only_gate_items_are_judged() -> None:
    base, after = measurement({"copy": (95, 100)}), measurement({"copy": (0, 100)})
    after.items["gate", "copy"] = base.items["gate", "copy"]
    assert decide("sft", base, after, ForgettingKeys()).violations == []
    held = measurement({"copy": (95, 100)}, splits=("report",))
    assert decide("sft", held, held, ForgettingKeys()).reasons == [
        "nothing was judged: no probe with a limit has gate items"
    ]


def test_perplexity_is_judged_once_it_has_a_limit() -> None:
    base, after = measurement(texts={"stories": 0.6}), measurement(texts={"stories": 1.2})
    assert decide("sft", base, after, ForgettingKeys(max_perplexity_ratio=None)).violations == []
    decision = decide("sft", base, after, ForgettingKeys(max_perplexity_ratio=1.5))
    (violation,) = decision.violations
    assert (violation.metric, violation.before, violation.after) == (
        "perplexity",
        pytest.approx(1.8221, abs=1e-4),
        pytest.approx(3.3201, abs=1e-4),
    )
    assert decision.reasons[0] == (
        "stories: 1.82 -> 3.32 (x1.82, 95 % interval x1.79 to x1.86, 40 items) is beyond the limit, x1.5"
    )
    assert decide("sft", base, after, ForgettingKeys(max_perplexity_ratio=2)).violations == []


def test_a_diverged_model_is_a_violation_that_survives_json() -> None:
    base, after = measurement(texts={"stories": 0.6}), measurement(texts={"stories": float("inf")})
    decision = decide("sft", base, after, ForgettingKeys(max_perplexity_ratio=1.5))
    assert decision.reasons[0] == "stories: 1.82 -> no finite perplexity any more: the model has diverged"
    written = decision.model_dump_json()
    assert json.loads(written)["violations"][0]["after"] is None
    assert Decision.model_validate_json(written) == decision


def test_deciding_again_with_other_limits_needs_only_the_measurements() -> None:
    after = measurement({"copy": (60, 100), "sort": (85, 100)})
    strict = decide("sft", BASE, after, ForgettingKeys())
    keys = ForgettingKeys.model_validate({"max_drop": {"copy": 0.6}, "max_mean_drop": 0.5, "on_violation": "stop"})
    loose = decide("sft", BASE, after, keys)
    assert [violation.probe for violation in strict.violations] == ["copy", "mean of the skills"]
    assert (loose.violations, loose.action) == ([], "continue")
    assert loose.thresholds == {
        "max_drop": {"copy": 0.6},
        "max_mean_drop": 0.5,
        "max_perplexity_ratio": 1.5,
        "on_violation": "stop",
    }, "as an older align wrote it, or every run folder would be decided on again"
    assert decide("sft", BASE, after, ForgettingKeys()) == strict


def test_a_limit_for_no_probe_is_refused() -> None:
    keys = ForgettingKeys.model_validate({"max_drop": {"cpoy": 0.2, "default": 0.1}})
    with pytest.raises(AlignError) as caught:
        decide("sft", BASE, BASE, keys)
    assert str(caught.value) == (
        "max_drop has limits for cpoy, but the probes are copy, sort\n"
        "  -> correct the name under `forgetting.max_drop`, or remove it"
    )


def test_other_items_are_refused() -> None:
    base = measurement({"copy": (5, 10)}, place="base/measurements")
    for after, only in ((measurement({"copy": (5, 8)}, place="sft"), "2 only before, 0 only after"),
                        (measurement({"copy": (5, 12)}, place="sft"), "0 only before, 2 only after"),
                        (measurement({}, place="sft"), "10 only before, 0 only after")):  # fmt: skip
        with pytest.raises(AlignError) as caught:
            decide("sft", base, after, ForgettingKeys())
        assert str(caught.value) == (
            f"base/measurements and sft did not measure the same gate items of the probe 'copy': {only}\n"
            "  -> delete the later of the two folders and run `align run` again: the model is measured again"
        )


def test_no_probes_no_verdict() -> None:
    nothing = measurement()
    decision = decide("sft", nothing, nothing, ForgettingKeys(probes="none", on_violation="stop"))
    assert (decision.action, decision.violations) == ("continue", [])


def test_the_mean_is_over_accuracies_of_what_the_base_could_do() -> None:
    kinds: tuple[Kind, ...] = ("skill", "task", "agreement", "text")
    assert [kind for kind in kinds if is_skill(ProbeInfo("accuracy", True, kind))] == ["skill"]
    assert not any(is_skill(ProbeInfo("perplexity", False, kind)) for kind in kinds)
