"""One verdict on a run: in the gate, in the matrix, in the sentence, on the page and in the terminal."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from align import report
from align.forgetting.gate import decide
from align.forgetting.keys import ForgettingKeys
from align.forgetting.matrix import build
from align.forgetting.measurements import Item, Measurement, Split
from align.report.records import load
from align.report.terminal import matrix_table, verdict_line
from test_gate import measurement

SAME = "agreement with the base"


def general(nats: float, agreeing: int) -> Measurement:
    """What an older align measured for `probes: auto`: running text, and agreement on 100 answers."""
    return measurement(others={SAME: ("agreement", (agreeing, 100))}, texts={"general text": nats})


def skilled(copy: int, sort: int, task: int, nats: float = 0.6) -> Measurement:
    return measurement(
        {"copy": (copy, 200), "sort": (sort, 200)},
        others={"helpdesk": ("task", (task, 200))},
        texts={"stories": nats},
        replayed={"copy": True, "sort": False},
    )


def write(folder: Path, base: Measurement, after: Measurement, keys: ForgettingKeys) -> dict[str, Any]:
    """A run of one stage whose matrix and decision come from these measurements; returns the decision."""
    decision = decide("sft", base, after, keys).model_dump(mode="json")
    table = build(["base", "sft"], {"sft": "base"}, {"base": base, "sft": after}, keys)
    entry = {"stage": "sft", "inputs": {"policy": "base"}, "status": "done"}
    run = {"format": 1, "name": "one", "order": ["sft"], "stages": {"sft": entry}, "probes": "own"}
    (folder / "stages" / "sft").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "forgetting.json").write_text(json.dumps(table.written()))
    (folder / "stages" / "sft" / "decision.json").write_text(json.dumps(decision))
    return decision


def page(folder: Path) -> str:
    body = re.sub(r"<style.*?</style>|<svg.*?</svg>", " ", report.write(folder)[0].read_text(), flags=re.DOTALL)
    text = html.unescape(re.sub(r"<[^>]*>", " ", body)).replace("−", "-").replace("×", "x").replace("\u00a0", " ")
    return " ".join(text.split())


def terminal(folder: Path) -> str:
    console = Console(file=StringIO(), width=100)
    console.print(matrix_table(load(folder)))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("after", "keys"),
    [
        (skilled(190, 190, 190), {}),
        (skilled(100, 190, 0), {}),
        (skilled(172, 168, 190, 1.2), {}),
        (skilled(178, 178, 190), {"max_drop": 0.2, "max_mean_drop": 0.01}),
        (skilled(100, 100, 100), {"max_drop": {"copy": 0.6, "default": 0.02}, "max_perplexity_ratio": None}),
    ],
)
def test_what_is_gated_is_what_is_drawn(after: Measurement, keys: dict[str, Any]) -> None:
    """Both halves hold the same items here, so that gate and matrix look at the same."""
    base, limits = skilled(190, 190, 190), ForgettingKeys(**keys)
    decision = decide("sft", base, after, limits)
    table = build(["base", "sft"], {"sft": "base"}, {"base": base, "sft": after}, limits)
    drawn = {name: cell.verdict for name, cell in table.matrix["sft"].items()}
    drawn["mean of the skills"] = table.mean["sft"]["all"].verdict
    assert {name for name, verdict in drawn.items() if verdict == "FORGOT"} == {
        one.probe for one in decision.violations
    }
    assert {name for name, verdict in drawn.items() if verdict == "UNCLEAR"} == set(decision.unclear)
    judged = sum(verdict is not None for verdict in drawn.values())
    assert f"of {judged} limits met" in " ".join(decision.reasons)


def test_agreement_stands_apart_and_running_text_alone_is_judged(tmp_path: Path) -> None:
    base, after = general(3.414, 98), general(3.4367, 60)
    decision = write(tmp_path, base, after, ForgettingKeys(on_violation="stop"))
    assert (decision["action"], decision["violations"]) == ("continue", [])
    assert decision["reasons"] == ["1 of 1 limits met, 0 violated, 0 unclear"]
    assert verdict_line(load(tmp_path)) == (
        "After sft general text is within its limit of x1.5 (perplexity 30.39 to 31.08, x1.02); no skill was measured, "
        "so what else the model forgot is not known (95 % intervals, the same held-out items before and after)."
    )
    text, table = page(tmp_path), terminal(tmp_path)
    assert "Not judged agreement with the base" in text and "\nNot judged" in table
    lost = text.partition("What was lost")[2].partition("What the gate decided")[0]
    assert "general text" in lost and SAME not in lost
    assert "tolerated drop" not in text and "Drawn" not in text, "no axis, no limit"
    for told in (text, " ".join(table.split())):
        assert (
            "Anything" not in told and "Whatever is learnt moves it, so it is no capability and has no verdict" in told
        )
        assert "No skill was measured. Perplexity of running text says whether the language of the model broke" in told
    assert [line.rstrip() for line in table.splitlines() if line.startswith(SAME)] == [f"{SAME}  0.980  0.600 -0.380"]
    assert "Tolerated perplexity ratio 1.5:  FORGOT surely past it" in table


def test_skills_that_the_base_guesses_are_named_everywhere(tmp_path: Path) -> None:
    guessed = ("code", "facts", "reading", "sums")

    def with_chance(right: int) -> Measurement:
        found = measurement({"copy": (right, 100), **dict.fromkeys(guessed, (right // 4, 100))})
        found.probes.update({name: replace(found.probes[name], chance=0.25) for name in guessed})
        return found

    write(tmp_path, with_chance(96), with_chance(90), ForgettingKeys())
    said = (
        "code, facts, reading and 1 more cannot show forgetting: the base is not surely better at them than guessing."
    )
    text, table = page(tmp_path), " ".join(terminal(tmp_path).split())
    assert said in text and said in table and "No skill was measured" not in table
    why = "it cannot show forgetting, since the base gets 24% of 200 items right, guessing gets 25%"
    assert f"facts is not shown: {why}" in text
    assert "copy" in table and "facts 0.24" not in table


def test_agreement_with_a_limit_of_its_own_is_judged_everywhere(tmp_path: Path) -> None:
    keys = ForgettingKeys(max_drop={SAME: 0.2}, on_violation="stop")
    decision = write(tmp_path, general(3.4, 98), general(3.4, 60), keys)
    assert (decision["action"], [one["probe"] for one in decision["violations"]]) == ("stop", [SAME])
    assert verdict_line(load(tmp_path)) == (
        "After sft the model gained nothing for certain and forgot agreement with the base (-0.380), beyond the "
        "tolerated drop of 0.2; all 2 capabilities are decided (95 % intervals, the same held-out items before and "
        "after)."
    )
    assert f"{SAME}  0.980  0.600 -0.380 FORGOT" in terminal(tmp_path)
    text = page(tmp_path)
    assert "What was lost Agreement with the base Capability" in text and "Not judged" not in text


@pytest.mark.parametrize(
    ("nats", "limit", "sentence"),
    [
        (3.9, 1.5, "general text is past its limit of x1.5 (perplexity 30.39 to 49.90, x1.64)"),
        (
            3.81,
            1.5,
            "it is UNCLEAR whether general text is within its limit of x1.5 (perplexity 30.39 to 45.60, x1.50)",
        ),
        (3.9, None, "general text is not judged (perplexity 30.39 to 49.90, x1.64)"),
    ],
)
def test_running_text_alone_is_told_by_its_verdict(
    tmp_path: Path, nats: float, limit: float | None, sentence: str
) -> None:
    base, after = general(3.414, 98), general(nats, 98)
    texts = after.items["report", "general text"]
    for name in list(texts)[::2]:  # half of the texts suffer more, so that the ratio is not known exactly
        texts[name] = Item(texts[name].value + 0.2, texts[name].tokens)
    after.items["gate", "general text"] = texts
    write(tmp_path, base, after, ForgettingKeys(max_perplexity_ratio=limit))
    assert verdict_line(load(tmp_path)).startswith(f"After sft {sentence}; no skill was measured, so")


def test_a_mean_that_fell_is_in_the_sentence_and_the_limits_are_those_that_were_broken(tmp_path: Path) -> None:
    keys = ForgettingKeys(max_drop=0.2, max_mean_drop=0.01)
    write(tmp_path, skilled(190, 190, 0), skilled(178, 178, 190), keys)
    assert verdict_line(load(tmp_path)) == (
        "After sft the model gained helpdesk (0.000 to 0.950) and forgot nothing for certain beyond the tolerated drop "
        "of 0.2, though 2 of 4 capabilities fell; the mean of the skills fell past its limit of 0.01 (-0.060); all 4 "
        "capabilities are decided (95 % intervals, the same held-out items before and after)."
    )


def test_forgotten_text_is_held_against_its_ratio(tmp_path: Path) -> None:
    write(tmp_path, skilled(190, 190, 0), skilled(190, 190, 0, 1.2), ForgettingKeys())
    line = verdict_line(load(tmp_path))
    assert "forgot stories (x1.82), beyond the tolerated perplexity ratio of 1.5; all 4 capabilities" in line


def test_one_judged_capability_is_one(tmp_path: Path) -> None:
    base, after = measurement({"copy": (190, 200)}), measurement({"copy": (188, 200)})
    write(tmp_path, base, after, ForgettingKeys())
    assert "forgot nothing for certain; the one capability that is judged is decided (" in verdict_line(load(tmp_path))


def test_a_gate_that_saw_other_items_is_told_beside_the_page(tmp_path: Path) -> None:
    """The gate decides on its own half of the items; where the halves differ, the sentence says both."""
    base, after = measurement({"copy": (190, 200)}), measurement({"copy": (188, 200)})
    half: Split = "gate"
    after.items[half, "copy"] = {name: Item(0.0) for name in after.items[half, "copy"]}
    decision = write(tmp_path, base, after, ForgettingKeys(on_violation="stop"))
    assert decision["action"] == "stop"
    assert verdict_line(load(tmp_path)).endswith(
        "before and after); after sft the gate, which looks at the other half of the items, found copy and mean of the "
        "skills past their limits."
    )


def test_probes_none_is_not_a_measurement_to_come(tmp_path: Path) -> None:
    run = {"format": 1, "name": "quiet", "probes": "none", "order": ["sft"], "stages": {"sft": {"stage": "sft"}}}
    (tmp_path / "run.json").write_text(json.dumps(run))
    assert verdict_line(load(tmp_path)) == "Nothing was measured: the recipe says `probes: none`."
    assert terminal(tmp_path) == "Nothing was measured: the recipe says `probes: none`.\n"
    html_file, markdown = report.write(tmp_path)
    for text in (html_file.read_text(), markdown.read_text()):
        assert "not been measured yet" not in text.lower()
    assert html_file.read_text().count("Nothing was measured: the recipe says <code>probes: none</code>.") == 2
