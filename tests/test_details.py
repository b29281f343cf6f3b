"""What stands beside the verdicts: all probes together, what is still right, how sure the choices are, what mended."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from align.forgetting.keys import ForgettingKeys
from align.forgetting.matrix import build
from align.forgetting.measurements import Item, Measurement, load
from align.forgetting.mended import mended
from align.forgetting.probes import Exact, Question
from align.forgetting.statistics import (
    Retention,
    Undefined,
    average_forgetting,
    best_rows,
    items_needed,
    mean_change,
    p_beyond,
    paired_binary,
    paired_perplexity,
    retention,
    smallest_drop,
    verdict,
    wilson,
)
from align.forgetting.table import Forgetting
from test_gate import measurement
from test_verdict import page, terminal, write

KEYS = ForgettingKeys()


def dropped(lost: int, n: int, gained: int = 0) -> tuple[list[float], list[float]]:
    rest = [1.0] * (n - lost - gained)
    return [1.0] * lost + [0.0] * gained + rest, [0.0] * lost + [1.0] * gained + rest


def test_the_p_value_against_the_limit_agrees_with_the_verdict() -> None:
    for n in (10, 60, 200):
        for lost in range(0, n + 1, max(1, n // 25)):
            for gained in (0, (n - lost) // 3):
                found = paired_binary(*dropped(lost, n, gained))
                for limit in (0.0, 0.05, 0.1, 0.3, 1.0):
                    assert (p_beyond(found, limit) < 0.05) is (verdict(found, limit) == "FORGOT")
    generator = np.random.default_rng(1)
    tokens = generator.integers(5, 90, 40).tolist()
    before = [(float(n * generator.normal(1, 0.2)), n) for n in tokens]
    for rise in (0.0, 0.1, 0.2, 0.3, 0.4):
        after = [(nll + n * generator.normal(rise, 0.2), n) for nll, n in before]
        change = paired_perplexity(before, after)
        assert change.estimate is not None
        by_hand = stats.t.sf((change.estimate.centre - math.log(1.2)) / change.estimate.error, 39)
        assert p_beyond(change, 1.2) == pytest.approx(min(1.0, 2 * by_hand))
        assert (p_beyond(change, 1.2) < 0.05) is (verdict(change, 1.2) == "FORGOT")


def test_the_p_value_of_right_and_wrong_items_by_hand() -> None:
    """60 of 200 lost, 10 gained: 62 and 12 hundredths of 202 with the pseudo-items, against a drop of 0.1."""
    lost, gained = 61 / 202, 11 / 202
    error = math.sqrt((lost + gained - (lost - gained) ** 2) / 202)
    expected = 2 * stats.norm.cdf((gained - lost + 0.1) / error)
    assert p_beyond(paired_binary(*dropped(60, 200, 10)), 0.1) == pytest.approx(expected)


def test_the_p_value_of_shares_is_the_more_cautious_one() -> None:
    generator = np.random.default_rng(2)
    before = generator.uniform(0.4, 1, 50)
    after = before - 0.2 + generator.normal(0, 0.02, 50)
    found = paired_binary(before.tolist(), after.clip(0, 1).tolist())
    assert found.estimate is not None and found.estimate.freedom == 49
    assert 2 * found.estimate.below(-0.1) < 1e-10 < 1e-4 < p_beyond(found, 0.1) < 0.05


def test_a_model_that_diverged_is_beyond_any_limit_and_an_unknown_one_beyond_none() -> None:
    gone = paired_perplexity([(1.0, 1), (1.0, 1)], [(1.0, 1), (math.inf, 1)])
    unknown = paired_perplexity([(math.inf, 1), (1.0, 1)], [(1.0, 1), (1.0, 1)])
    single = paired_perplexity([(1.0, 1)], [(9.0, 1)])
    assert (p_beyond(gone, 1.5), p_beyond(unknown, 1.5), p_beyond(single, 1.5)) == (0, 1, 1)


@pytest.mark.parametrize("limit", [0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 0.95, 1.0])
def test_how_many_items_a_limit_needs_by_brute_force(limit: float) -> None:
    def both(n: int) -> bool:
        unchanged, gone = paired_binary([1] * n, [1] * n), paired_binary([1] * n, [0] * n)
        return verdict(unchanged, limit) == "OK" and verdict(gone, limit) == "FORGOT"

    assert items_needed(limit) == next((n for n in range(1, 400) if both(n)), None)
    for n in (1, 5, 25, 60):
        drops = [lost / n for lost in range(n + 1) if verdict(paired_binary(*dropped(lost, n)), limit) == "FORGOT"]
        assert smallest_drop(n, limit) == (drops[0] if drops else None)
    with pytest.raises(ValueError, match="no items"):
        smallest_drop(0, limit)


def test_the_default_limit_needs_26_items() -> None:
    assert items_needed(0.1) == 26
    assert verdict(paired_binary([1] * 25, [1] * 25), 0.1) == "UNCLEAR"
    assert smallest_drop(25, 0.1) == 9 / 25


def test_retention() -> None:
    pairs = [(1.0, 1.0)] * 45 + [(1.0, 0.0)] * 5 + [(0.0, 1.0)] * 9 + [(0.0, 0.0)] * 11
    low, high = wilson(0.9, 50)
    assert retention(pairs) == Retention(0.9, low, high, 45, 50)
    assert retention([(0.0, 1.0), (0.0, 0.0)]) == Undefined("the base has nothing right here")
    assert retention([(0.5, 1.0)]) == Undefined("its scores are shares, not right or wrong")


def test_coverage_of_retention_over_probes_that_differ() -> None:
    """Pooled over ten skills of which some lost a lot and some nothing."""
    generator = np.random.default_rng(4)
    shares = np.linspace(0.5, 1.0, 10)
    kept = generator.binomial(100, shares, size=(4000, 10)).sum(1)
    inside = np.mean([wilson(k / 1000, 1000)[0] <= shares.mean() <= wilson(k / 1000, 1000)[1] for k in kept])
    assert 0.94 < inside < 1


def many(lost: dict[str, int], n: int = 100, splits: tuple[str, ...] = ("gate", "report")) -> Measurement:
    """Twenty skills of which the base has all right; `lost` are so many of the items."""
    names = [f"skill {i:02}" for i in range(20)]
    return measurement({name: (n - lost.get(name, 0), n) for name in names}, splits=splits)  # type: ignore[arg-type]


def matrix(*rows: Measurement) -> Forgetting:
    names = ["base", *(f"stage{i}" for i in range(1, len(rows)))]
    parents = dict(zip(names[1:], names, strict=False))
    return build(names, parents, dict(zip(names, rows, strict=True)), KEYS)


def test_a_family_keeps_what_stays_sure_when_all_are_looked_at() -> None:
    found = matrix(many({}), many({"skill 03": 40, "skill 07": 21, "skill 11": 60}))
    row = found.matrix["stage1"]
    assert [name for name, cell in row.items() if cell.verdict == "FORGOT"] == ["skill 03", "skill 07", "skill 11"]
    assert found.family["stage1"].written() == {"judged": 20, "beyond": ["skill 03", "skill 11"], "error": 0.05}
    assert "base" not in found.family
    one = build(["base", "sft"], {}, {"base": measurement({"a": (9, 10)}), "sft": measurement({"a": (0, 10)})}, KEYS)
    assert one.family == {}, "of one probe it would say what its verdict says"


def told(folder: Path, lost: dict[str, int]) -> str:
    write(folder, many({}, 200), many(lost, 200), KEYS)
    shown = " ".join(terminal(folder).split())
    assert " ".join(page(folder).split()).count("(Holm, 5 %)") == shown.count("(Holm, 5 %)")
    return shown


def test_terminal_and_report_say_it(tmp_path: Path) -> None:
    assert (
        "After sft, 2 of 20 probes are beyond their limit for sure even though 20 were looked at (Holm, 5 %): "
        "skill 03, skill 11."
    ) in told(tmp_path / "two", {"skill 03": 80, "skill 07": 34, "skill 11": 90})
    assert (
        "After sft, 1 of 20 probes is beyond its limit for sure even though 20 were looked at (Holm, 5 %): skill 03."
    ) in told(tmp_path / "one", {"skill 03": 80})
    assert (
        "After sft, none of 20 probes is beyond its limit for sure with 20 looked at (Holm, 5 %): skill 07 is FORGOT "
        "taken alone."
    ) in told(tmp_path / "none", {"skill 07": 34})
    assert "Holm" not in told(tmp_path / "kept", {})


def test_retention_in_the_matrix() -> None:
    found = matrix(many({"skill 00": 100}), many({"skill 00": 100, "skill 03": 40}))
    row = found.matrix["stage1"]
    assert row["skill 03"].written()["retention"] | {"ci95": None} == {
        "share": 0.6, "ci95": None, "kept": 60, "right": 100,
    }  # fmt: skip
    assert row["skill 00"].written()["retention"] == {"undefined": "the base has nothing right here"}
    overall = found.mean["stage1"]["all"].written()["retention"]
    low, high = wilson(1860 / 1900, 1900)
    assert (overall["kept"], overall["right"]) == (1860, 1900)
    assert overall["ci95"] == pytest.approx([low, high], rel=1e-5)
    texts = matrix(measurement(texts={"stories": 1.0}), measurement(texts={"stories": 1.1}))
    assert texts.matrix["stage1"]["stories"].retention is None


def test_transfer_has_the_interval_of_its_paired_items() -> None:
    found = matrix(many({}), many({"skill 03": 40}), many({"skill 03": 10, "skill 05": 30}))
    cell = found.mean["stage2"]["all"]
    assert found.backward_transfer_ci95 == {s: found.mean[s]["all"].ci95 for s in ("stage1", "stage2")}
    assert found.average_forgetting["stage2"] == pytest.approx(40 / 2000)
    assert cell.ci95 is not None and cell.ci95[0] is not None and cell.ci95[1] is not None
    assert found.average_forgetting_ci95["stage2"] == pytest.approx((-cell.ci95[1], -cell.ci95[0])), "base was best"
    assert "base" not in found.average_forgetting_ci95


def test_the_best_row_is_chosen_by_the_other_half() -> None:
    """A row that is the best of the report's items by luck alone is not taken for the best."""
    rows = [measurement({"copy": (80, 100)}), measurement({"copy": (80, 100)}), measurement({"copy": (70, 100)})]
    lucky = {str(i): Item(float(i < 90)) for i in range(100)}
    rows[1].items["report", "copy"] = lucky
    found = matrix(*rows)
    assert found.average_forgetting["stage2"] == pytest.approx(0.10)
    assert found.average_forgetting_ci95["stage2"][0] == pytest.approx(
        -mean_change([paired_binary([1] * 80 + [0] * 20, [1] * 70 + [0] * 30)]).high, abs=1e-6
    )


def test_without_another_half_the_choice_leaves_the_figure_without_an_interval() -> None:
    rows = [measurement({"copy": (right, 100)}, splits=("report",)) for right in (80, 90, 70)]
    found = matrix(*rows)
    assert found.average_forgetting["stage2"] == pytest.approx(0.20)
    assert list(found.average_forgetting_ci95) == ["stage1"]


def test_the_choice_by_other_items_counts_no_luck_as_forgotten() -> None:
    """Twenty skills and three rows that are all alike: chosen by the items that are compared, forgetting is found where
    there is none."""
    generator = np.random.default_rng(6)
    history = ["base", "sft", "dpo", "kto"]

    def scores() -> dict[str, dict[str, float]]:
        return {row: {str(j): generator.binomial(50, 0.8) / 50 for j in range(20)} for row in history}

    drawn = [(scores(), scores()) for _ in range(300)]
    lucky = [average_forgetting(here, history) for here, _ in drawn]
    honest = [average_forgetting(here, history, other) for here, other in drawn]
    assert np.mean(lucky) > 0.03 and abs(float(np.mean(honest))) < 0.004  # type: ignore[arg-type]
    assert best_rows({"base": {"a": 1.0}, "sft": {"a": 1.0}, "dpo": {"a": 9.0}}, ["base", "sft", "dpo"]) == {
        "a": "base"
    }


def with_choices(right: float, n: int = 40) -> Measurement:
    """A skill all of whose answers stay right, at some probability."""
    found = measurement({"facts": (n, n)})
    generator = np.random.default_rng(8)
    for split in ("gate", "report"):
        items = found.items[split, "facts"]  # type: ignore[index]
        for id, item in items.items():
            items[id] = replace(item, probability=float(np.clip(generator.normal(right, 0.05), 0, 1)))
    return found


def test_the_probability_of_the_right_choice_moves_before_an_answer_does() -> None:
    base, after = with_choices(0.9), with_choices(0.6)
    cell = matrix(base, after).matrix["stage1"]["facts"]
    assert cell.delta == 0 and cell.right_choice is not None
    both = [[item.probability for item in row.items["report", "facts"].values()] for row in (base, after)]
    expected = stats.ttest_rel(both[1], both[0]).confidence_interval(0.95)
    assert cell.right_choice.ci95 == pytest.approx((expected.low, expected.high), abs=1e-5)
    assert cell.right_choice.before == pytest.approx(np.mean(both[0]), rel=1e-5)
    assert cell.right_choice.delta == pytest.approx(np.mean(both[1]) - np.mean(both[0]), rel=1e-4)
    mixed = matrix(base, measurement({"facts": (40, 40)})).matrix["stage1"]["facts"]
    assert mixed.right_choice is None, "an older run did not write it"


def test_the_probability_is_read_from_the_items(tmp_path: Path) -> None:
    probes = {"facts": {"metric": "accuracy", "higher_is_better": True, "kind": "skill"}}
    (tmp_path / "summary.json").write_text(json.dumps({"probes": probes, "scores": {"report": {"facts": {"n": 2}}}}))
    line = {"probe": "facts", "split": "report", "score": 1}
    lines = [line | {"id": "a", "said": "3", "p": 0.75}, line | {"id": "b", "said": "4"}]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = load(tmp_path).items["report", "facts"]
    assert found == {"a": Item(1.0, probability=0.75), "b": Item(1.0)}


def test_the_report_shows_what_is_still_right_and_how_sure_the_choices_are(tmp_path: Path) -> None:
    base, after = with_choices(0.9), with_choices(0.6)
    after.items["report", "facts"]["3"] = replace(after.items["report", "facts"]["3"], value=0.0)
    write(tmp_path, base, after, KEYS)
    line = {"probe": "facts", "id": "7", "split": "report", "prompt": "2 <b>?", "before": "3", "after": "2"}
    folder = tmp_path / "stages" / "sft" / "measurements"
    folder.mkdir()
    (folder / "mended.jsonl").write_text(json.dumps(line) + "\n")
    text = page(tmp_path)
    assert "facts 0.975 (39 of 40) [0.871, 0.996] 0.9" in text
    assert "All skills 0.975 (39 of 40)" in text
    assert "Answers that were mended" in text and "Asked 2 <b>? Before 3 After 2" in text
    markdown = (tmp_path / "report.md").read_text()
    assert "| facts | 0.975 (39 of 40) | [0.871, 0.996] | 0.9" in markdown
    assert "- asked `2 <b>?`, before `3`, after `2`" in markdown
    assert "Backward transfer sft -0.025 [-0." in text


def test_mended_answers_were_wrong_before_and_are_right_now() -> None:
    def lines(right: str) -> list[dict[str, object]]:
        return [
            {"probe": "sums", "split": split, "id": f"{split}{i}", "score": int(mark == "+")}
            for split in ("gate", "report")
            for i, mark in enumerate(right)
        ]

    questions = {
        split: [Question(f"{split}{i}", f"1 + {i}?", str(1 + i)) for i in range(7)] for split in ("gate", "report")
    }
    probe = Exact("sums", "skill", questions)  # type: ignore[arg-type]
    found = mended([probe], lines("+------"), lines("-+++-++"))
    assert [(answer.id, answer.prompt, answer.before, answer.after) for answer in found] == [
        (f"report{i}", f"1 + {i}?", "", str(1 + i)) for i in (1, 2, 3, 5)
    ]
