"""Measurement folders, and the matrix that is built from them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from align.errors import AlignError
from align.forgetting.gate import decide
from align.forgetting.keys import ForgettingKeys
from align.forgetting.matrix import build
from align.forgetting.measurements import Item, Measurement, load
from align.forgetting.statistics import mean_change, paired_binary
from align.forgetting.table import Forgetting
from test_gate import measurement

KEYS = ForgettingKeys(max_drop=0.10, max_mean_drop=0.05, max_perplexity_ratio=1.5)


def row(copy: int, sort: int, nats: float, task: int) -> Measurement:
    return measurement(
        {"copy": (copy, 100), "sort": (sort, 100)},
        others={"helpdesk": ("task", (task, 100))},
        texts={"stories": nats},
        replayed={"copy": True, "sort": False},
    )


def table(
    order: list[str], parents: dict[str, str], measured: dict[str, Measurement], keys: ForgettingKeys
) -> dict[str, Any]:
    """The matrix as it stands in forgetting.json."""
    return build(order, parents, measured, keys).written()


MEASURED = {"base": row(90, 80, 0.6, 0), "sft": row(82, 30, 1.2, 95), "dpo": row(86, 40, 1.1, 80)}
ORDER = ["base", "sft", "reward", "dpo"]
PARENTS = {"sft": "base", "reward": "sft", "dpo": "sft"}


def write(folder: Path, measured: Measurement) -> Path:
    """A measurement folder as a run has it."""
    folder.mkdir(parents=True, exist_ok=True)
    scores: dict[str, dict[str, dict[str, float]]] = {"gate": {}, "report": {}}
    lines = []
    for (split, probe), items in measured.items.items():
        scores[split][probe] = {"score": measured.score(split, probe), "n": len(items)}
        for name, item in items.items():
            line: dict[str, object] = {"probe": probe, "split": split, "id": name}
            if measured.probes[probe].metric == "accuracy":
                line |= {"score": item.value, "answer": "a field that is not read\u2028"}
            else:
                line |= {"nll": item.value, "tokens": item.tokens}
            lines.append(json.dumps(line, ensure_ascii=False))
    probes = {name: vars(info) for name, info in measured.probes.items()}
    summary = {"probes": probes, "scores": scores, "seconds": 1.5, "cpu_seconds": 1.2}
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    (folder / "items.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return folder


def test_a_folder_reads_back_as_what_was_measured(tmp_path: Path) -> None:
    found = load(write(tmp_path, MEASURED["base"]))
    assert (found.probes, found.items) == (MEASURED["base"].probes, MEASURED["base"].items)
    assert found.score("report", "copy") == pytest.approx(0.9)
    assert found.score("report", "stories") == pytest.approx(math.exp(0.6))
    assert found.place == str(tmp_path)


@pytest.mark.parametrize("nll", ["NaN", "Infinity", "null"])
def test_a_likelihood_that_is_no_number_reads_as_infinite(tmp_path: Path, nll: str) -> None:
    write(tmp_path, measurement(texts={"stories": 0.6}, splits=("gate",)))
    file = tmp_path / "items.jsonl"
    first, rest = file.read_text(encoding="utf-8").split("\n", 1)
    file.write_text(json.dumps(json.loads(first) | {"nll": "?"}).replace('"?"', nll) + "\n" + rest, encoding="utf-8")
    found = load(tmp_path)
    assert found.items["gate", "stories"]["0"] == Item(math.inf, 10)
    assert found.score("gate", "stories") == math.inf


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"probe": "copy", "split": "gate", "id": "a", "sc', ":1: the measurement is damaged: Invalid JSON: "),
        (
            '{"probe": "copy", "split": "gate", "id": "a", "score": 2}',
            ":1: the measurement is damaged: score: Input should be less than or equal to 1",
        ),
        (
            '{"probe": "copy", "split": "gate", "id": "a", "score": NaN}',
            ":1: the measurement is damaged: score: Input should be ",
        ),
        (
            '{"probe": "copy", "split": "gate", "id": "a"}',
            ":1: the measurement is damaged: an item of the probe 'copy' has no score",
        ),
        (
            '{"probe": "stories", "split": "gate", "id": "a", "nll": 3}',
            ":1: the measurement is damaged: an item of the probe 'stories' has no number of tokens",
        ),
        (
            '{"probe": "law", "split": "gate", "id": "a", "score": 1}',
            ":1: the measurement is damaged: summary.json knows no probe 'law'",
        ),
        (
            '{"probe": "copy", "split": "gate", "id": "0", "score": 1}',
            ":2: the measurement is damaged: the item '0' of the probe 'copy' occurs twice",
        ),
        (
            '{"probe": "copy", "split": "gate", "id": "new", "score": 1}',
            ": the measurement is damaged: 3 gate items of the probe 'copy', where summary.json counts 2",
        ),
    ],
)
def test_damaged_items_are_refused(tmp_path: Path, line: str, fault: str) -> None:
    measured = measurement({"copy": (1, 2)}, texts={"stories": 0.6}, splits=("gate",))
    file = write(tmp_path, measured) / "items.jsonl"
    file.write_text(line + "\n" + file.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(AlignError) as caught:
        load(tmp_path)
    assert str(caught.value).startswith(f"{file}{fault}")
    remedy = "delete this folder and run `align run` again: the model is measured again"
    assert str(caught.value).endswith(f"\n  -> {remedy}")


def test_lost_lines_and_files_are_refused(tmp_path: Path) -> None:
    remedy = "delete this folder and run `align run` again: the model is measured again"
    file = write(tmp_path, measurement({"copy": (1, 3)}, splits=("gate",))) / "items.jsonl"
    file.write_text(file.read_text(encoding="utf-8").split("\n", 1)[1], encoding="utf-8")
    with pytest.raises(AlignError) as caught:
        load(tmp_path)
    why = "the measurement is damaged: 2 gate items of the probe 'copy', where summary.json counts 3"
    assert str(caught.value) == f"{file}: {why}\n  -> {remedy}"
    file.unlink()
    with pytest.raises(AlignError) as caught:
        load(tmp_path)
    assert str(caught.value) == f"items.jsonl is missing from the measurement {tmp_path}\n  -> {remedy}"


def test_a_perplexity_said_to_be_better_when_higher_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path, measurement(texts={"stories": 0.6})) / "summary.json"
    file.write_text(file.read_text(encoding="utf-8").replace("false", "true"), encoding="utf-8")
    with pytest.raises(AlignError) as caught:
        load(tmp_path)
    assert str(caught.value) == (
        f"{file}: the measurement is damaged: the probe 'stories' says that of perplexity the wrong end is better\n"
        "  -> delete this folder and run `align run` again: the model is measured again"
    )


def test_the_matrix_of_a_chain() -> None:
    found = table(ORDER, PARENTS, MEASURED, KEYS)
    assert (found["format"], found["split"], found["stages"]) == (1, "report", ["base", "sft", "dpo"])
    assert found["parent"] == {"sft": "base", "dpo": "sft"}
    assert found["no_row"] == {"reward": "it hands on no policy, so there is nothing to probe"}
    assert found["probes"]["copy"] == {
        "metric": "accuracy", "higher_is_better": True, "kind": "skill", "replayed": True, "n": 100,
        "limit": 0.1,
    }  # fmt: skip
    assert found["matrix"]["base"]["copy"] == {"score": 0.9, "n": 100}
    cell = found["matrix"]["dpo"]["sort"]
    by_hand = paired_binary([1] * 80 + [0] * 20, [1] * 40 + [0] * 60)
    assert (cell["score"], cell["delta"], cell["verdict"]) == (0.4, -0.4, "FORGOT")
    assert cell["ci95"] == pytest.approx([by_hand.low, by_hand.high], abs=1e-6)
    assert cell["p_value"] == pytest.approx(2 * 0.5**40, rel=1e-5)
    assert (cell["lost"], cell["gained"], cell["items_to_decide"]) == (40, 0, None)
    since = paired_binary([1] * 30 + [0] * 70, [1] * 40 + [0] * 60)
    assert cell["since_parent"]["delta"] == 0.1
    assert cell["since_parent"]["ci95"] == pytest.approx([since.low, since.high], abs=1e-6)
    task = found["matrix"]["dpo"]["helpdesk"]
    assert (task["verdict"], task["since_parent"]["delta"]) == ("OK", -0.15)
    assert found["matrix"]["sft"]["copy"]["verdict"] == "UNCLEAR"
    assert isinstance(found["matrix"]["sft"]["copy"]["items_to_decide"], int)


def test_perplexity_has_ratios() -> None:
    cell = table(ORDER, PARENTS, MEASURED, KEYS)["matrix"]["dpo"]["stories"]
    assert (cell["score"], cell["delta"]) == (3.00417, round(math.exp(1.1) - math.exp(0.6), 5))
    assert cell["ratio"] == pytest.approx(math.exp(0.5), rel=1e-5)
    low, high = cell["ci95"]
    assert low is not None and high is not None and low < cell["ratio"] < high
    assert (cell["verdict"], cell["lost"], cell["gained"]) == ("FORGOT", None, None)
    assert cell["since_parent"]["ratio"] == pytest.approx(math.exp(-0.1), rel=1e-5)
    unlimited = table(ORDER, PARENTS, MEASURED, ForgettingKeys(max_perplexity_ratio=None))["matrix"]["dpo"]["stories"]
    assert unlimited["verdict"] is None


def test_means_over_the_skills_and_their_groups() -> None:
    found = table(ORDER, PARENTS, MEASURED, KEYS)
    assert found["mean"]["base"] == {
        "all": {"score": 0.85, "probes": 2, "n": 200},
        "replayed": {"score": 0.9, "probes": 1, "n": 100},
        "not_replayed": {"score": 0.8, "probes": 1, "n": 100},
    }
    cell = found["mean"]["sft"]["all"]
    copy = paired_binary([1] * 90 + [0] * 10, [1] * 82 + [0] * 18)
    sort = paired_binary([1] * 80 + [0] * 20, [1] * 30 + [0] * 70)
    mean = mean_change([copy, sort])
    assert (cell["score"], cell["delta"], cell["verdict"]) == (0.56, -0.29, "FORGOT")
    assert cell["ci95"] == pytest.approx([mean.low, mean.high], abs=1e-6)
    assert found["mean"]["sft"]["not_replayed"]["delta"] == -0.5
    assert [found["mean"]["sft"][group]["verdict"] for group in ("replayed", "not_replayed")] == [None, None]
    assert found["backward_transfer"] == {
        "base": {"undefined": "nothing was trained before this row"}, "sft": -0.29, "dpo": -0.22,
    }  # fmt: skip
    assert found["average_forgetting"]["dpo"] == 0.22
    unknown = {"base": measurement({"copy": (9, 10)}), "sft": measurement({"copy": (9, 10)})}
    assert list(table(["base", "sft"], {}, unknown, KEYS)["mean"]["sft"]) == ["all"]


def test_branches_are_compared_along_their_own_line() -> None:
    """Two stages from one SFT: the second is not measured against the first."""
    measured = MEASURED | {"ppo": row(90, 10, 0.6, 90)}
    found = table([*ORDER, "ppo"], PARENTS | {"ppo": "sft"}, measured, KEYS)
    assert found["parent"]["ppo"] == "sft"
    assert found["matrix"]["ppo"]["sort"]["since_parent"]["delta"] == -0.2
    assert found["average_forgetting"]["ppo"] == pytest.approx((0 + 0.7) / 2)


def test_a_parent_without_a_row_is_stepped_over() -> None:
    measured = {"base": MEASURED["base"], "dpo": MEASURED["dpo"]}
    found = table(["base", "sft", "dpo"], {"sft": "base", "dpo": "sft"}, measured, KEYS)
    assert (found["parent"], found["stages"]) == ({"dpo": "base"}, ["base", "dpo"])


def test_gate_items_serve_where_there_are_no_others() -> None:
    measured = {stage: measurement({"copy": (9, 10)}, splits=("gate",)) for stage in ("base", "sft")}
    assert table(["base", "sft"], {"sft": "base"}, measured, KEYS)["split"] == "gate"
    mixed = measurement({"copy": (9, 10), "sort": (9, 10)})
    del mixed.items["report", "sort"]
    found = table(["base"], {}, {"base": mixed}, KEYS)
    assert (found["split"], list(found["probes"])) == ("report", ["copy"])
    assert found["left_out"] == {"sort": "it has no report items"}


def test_the_advice_that_an_older_align_wrote_is_passed_over() -> None:
    """`align advise` has taken its place, which reads the run."""
    found = build(["base", "sft"], PARENTS, MEASURED, KEYS)
    written = found.written()
    assert "advice" not in written
    assert Forgetting.model_validate(written | {"advice": ["sft forgot add: raise `replay.ratio`."]}) == found


def test_a_skill_that_the_base_guesses_cannot_show_forgetting() -> None:
    """Of 100 items in both halves, with four choices: 32 right are surely more than guessing, 31 may be luck."""
    for right, shown in ((32, True), (31, False)):
        measured = {}
        for stage, now in (("base", right), ("sft", 0)):
            found = measurement({"copy": (90, 100), "facts": (now, 100)})
            found.probes["facts"] = replace(found.probes["facts"], chance=0.25)
            measured[stage] = found
        table = build(["base", "sft"], {"sft": "base"}, measured, KEYS)
        assert ("facts" in table.probes) is shown
        why = "it cannot show forgetting, since the base gets 31% of 200 items right, guessing gets 25%"
        assert table.left_out == ({} if shown else {"facts": why})
        assert table.mean["base"]["all"].probes == (2 if shown else 1)
        decision = decide("sft", measured["base"], measured["sft"], KEYS)
        assert [violation.probe for violation in decision.violations][:1] == (["facts"] if shown else [])


def test_a_checked_skill_without_a_right_answer_cannot_show_forgetting() -> None:
    measured = measurement({"copy": (90, 100), "lists": (0, 100)})
    measured.probes["lists"] = replace(measured.probes["lists"], chance=0.0)
    table = build(["base"], {}, {"base": measured}, KEYS)
    why = "it cannot show forgetting, since the base gets 0% of 200 items right, guessing gets 0%"
    assert table.left_out == {"lists": why}


def test_a_skill_that_the_base_lacks_and_a_stage_learns_is_shown_and_not_judged() -> None:
    measured = {
        stage: measurement({"copy": (90, 100), "law": (right, 100)}) for stage, right in (("base", 0), ("sft", 70))
    }
    for found in measured.values():
        found.probes["law"] = replace(found.probes["law"], chance=0.0)
    table = build(["base", "sft"], {"sft": "base"}, measured, KEYS)
    assert table.left_out == {} and list(table.probes) == ["copy", "law"]
    assert table.matrix["sft"]["law"].score == 0.7 and table.matrix["sft"]["law"].verdict is None
    assert (table.mean["base"]["all"].probes, table.mean["sft"]["all"].score) == (1, 0.9)


def test_what_json_cannot_hold_is_null() -> None:
    measured = {
        "base": measurement(texts={"stories": 0.6}),
        "sft": measurement(texts={"stories": float("inf")}),
        "dpo": measurement(texts={"stories": float("inf")}),
    }
    found = table(["base", "sft", "dpo"], PARENTS, measured, KEYS)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    cell = found["matrix"]["dpo"]["stories"]
    assert (cell["score"], cell["delta"], cell["ratio"], cell["verdict"]) == (None, None, None, "FORGOT")
    assert cell["since_parent"] == {"delta": None, "ci95": [0.0, None], "p_value": 1.0, "ratio": None}
    assert found["mean"] == {"base": {}, "sft": {}, "dpo": {}}
    assert found["backward_transfer"]["sft"] == {"undefined": "no skill was measured"}


def test_without_a_base_there_is_no_matrix() -> None:
    with pytest.raises(AlignError) as caught:
        table(["base", "sft"], PARENTS, {"sft": MEASURED["sft"]}, KEYS)
    assert str(caught.value) == (
        "the base was not measured, so nothing can be compared with it\n  -> run `align run` again"
    )


def test_numbers_have_six_digits_and_tiny_p_values_are_not_zero() -> None:
    measured = {"base": measurement({"copy": (2, 3)}), "sft": measurement({"copy": (2, 3)})}
    assert table(["base", "sft"], PARENTS, measured, KEYS)["matrix"]["sft"]["copy"]["score"] == 0.666667
    measured = {"base": measurement({"copy": (100, 100)}), "sft": measurement({"copy": (0, 100)})}
    p_value = table(["base", "sft"], PARENTS, measured, KEYS)["matrix"]["sft"]["copy"]["p_value"]
    assert p_value == float(f"{2 * 0.5**100:.6g}")
