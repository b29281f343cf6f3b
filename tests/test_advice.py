"""The advice on a run: its cause, the changes, what speaks for them; folders are written through their records."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

import compared_runs as made
import runs
from align.advice import evidence, words
from align.advice.advise import MOST, advise
from align.advice.causes import CHANGES as BY_CAUSE
from align.advice.causes import causes
from align.advice.changes import CHANGES, Change, make
from align.advice.evidence import Cell, Figures, Measured, Mended
from align.advice.facts import Losses, Lost, RunFacts, StageFacts
from align.advice.lines import Line, block, number, source, stage, written
from align.forgetting.distances import KlEstimate, TaskKl
from align.forgetting.table import Cell as Score
from align.forgetting.table import Forgetting, ProbeEntry
from align.report import records, shown
from align.report.next_step import steps
from align.run_folder import files
from align.run_folder.decisions import Attempt, Decision, Figure
from align.run_folder.paths import RunDir
from align.run_folder.records import Policy
from benchmarks import written_tables

ENTRY = {"training": {"learning_rate": 1e-4}, "replay": {"data": {"source": "old.jsonl"}, "ratio": 0.2}}
LOST = (Lost("facts", 0.9, 0.4), Lost("code", 0.6, 0.3))
FINE = StageFacts(
    id="sft", program="sft", entry=ENTRY, gained=("task right",), mean=(0.9, 0.9), kl=0.3, usual_rate=2e-4,
    replays=True, replayed=0.2, steps=100, epochs=2.0, train=(2.0, 0.9),
)  # fmt: skip
FORGOT = replace(FINE, lost=LOST, mean=(0.9, 0.6))
BARE = {**ENTRY, "replay": None}
RUN = RunFacts("mine", base="org/model")


def at(rate: float, **more: Any) -> dict[str, Any]:
    return {**ENTRY, "training": {"learning_rate": rate}, **more}


FORGETTING = "sft forgot facts and code (mean of the skills 0.900 -> 0.600)"
CASES: dict[str, tuple[StageFacts, str, str, tuple[str, ...]]] = {
    "rate": (
        replace(FORGOT, entry=at(2e-3), gained=(), train=(2.0, 1.8)),
        "rate_too_high",
        f"{FORGETTING} and learnt nothing of its task: its learning rate, 0.002, 10 times the usual 2.0e-4, "
        "is too high; "
        "its training loss went from 2 to 1.8.",
        ("stages:", "  sft:", "    training:", "      learning_rate: 2.0e-4  # was 0.002"),
    ),
    "no replay": (
        replace(FORGOT, entry=BARE, replayed=0.0),
        "nothing_replayed",
        f"{FORGETTING}: nothing of what the base could do was replayed in it.",
        ("stages:", "  sft:", "    replay:", "      data: FILE", "      ratio: 0.2"),
    ),
    "overfitted": (
        replace(FORGOT, overfitted=True, evaluation=Losses(2.0, 1.2, 40, 1.5)),
        "overfitted",
        f"{FORGETTING}: it overfitted: its evaluation loss rose from 1.2 at step 40 to 1.5 at its end (step 100, 2 "
        "epochs).",
        ("stages:", "  sft:", "    training:", "      max_steps: 40  # was 100"),
    ),
    "not covered": (
        replace(FORGOT, lost=(replace(LOST[0], covered=False), replace(LOST[1], covered=True))),
        "not_covered",
        f"{FORGETTING} although 20% of its rows were replayed: they do not cover facts.",
        ("stages:", "  sft:", "    replay:", "      data: [old.jsonl, FILE]  # was old.jsonl"),
    ),
    "coverage unknown": (
        FORGOT,
        "not_covered",
        f"{FORGETTING} although 20% of its rows were replayed, and kept other skills: they seem to hold nothing like "
        "these.",
        ("stages:", "  sft:", "    replay:", "      data: [old.jsonl, FILE]  # was old.jsonl"),
    ),
    "too little": (
        replace(FORGOT, lost=tuple(replace(lost, covered=True) for lost in LOST)),
        "replay_too_little",
        f"{FORGETTING} although 20% of its rows were replayed, which cover facts and code.",
        ("stages:", "  sft:", "    replay:", "      ratio: 0.4  # was 0.2"),
    ),
    "drift": (
        StageFacts(
            id="dpo", program="dpo", entry={"beta": 0.02, "training": {"learning_rate": 1e-4}}, lost=LOST, kl=3.0,
            kl_before=0.5, usual_rate=1e-5, default_beta=0.1, accuracy=1.0, steps=40,
        ),
        "drifted",
        "dpo forgot facts and code: it moved away from the policy that it started from (KL to the base 0.5 "
        "-> 3 nats per "
        "token); its `beta` of 0.02 is below the default of 0.1 and its learning rate is 1.0e-4, 10 times the usual "
        "1.0e-5.",
        ("stages:", "  dpo:", "    training:", "      learning_rate: 1.0e-5  # was 1.0e-4"),
    ),
    "loose": (
        replace(FORGOT, id="dpo", entry={"beta": 0.02, "training": {"learning_rate": 1e-5}}, usual_rate=1e-5,
                default_beta=0.1, accuracy=0.9, kl=3.0),
        "held_too_loosely",
        "dpo forgot facts and code (mean of the skills 0.900 -> 0.600): it moved away from the policy that it "
        "started from "
        "(KL to the base 3 nats per token); its `beta` of 0.02 is below the default of 0.1.",
        ("stages:", "  dpo:", "    beta: 0.1  # was 0.02"),
    ),
    "PPO": (
        replace(FORGOT, id="ppo", entry={"reward": "judge", "kl": {"target": 6.0}, "training": {"learning_rate": 1e-5}},
                usual_rate=1e-5, kl=None, alarms=(("reward hacking", "read the samples"),)),
        "drifted",
        "ppo forgot facts and code (mean of the skills 0.900 -> 0.600): it moved away from the policy that it "
        "started from; "
        "it raised the alarm reward hacking.",
        ("stages:", "  ppo:", "    training:", "      learning_rate: 3.3e-6  # was 1.0e-5"),
    ),
    "small KL": (
        replace(FORGOT, entry=BARE, replayed=0.0, kl=0.01),
        "small_kl",
        f"{FORGETTING} although it hardly moved on the prompts of its task (KL to the base 0.01 nats per "
        "token): look at "
        "what broke.",
        ("stages:", "  sft:", "    replay:", "      data: FILE", "      ratio: 0.2"),
    ),
    "no lever": (
        replace(FORGOT, entry={"training": {"learning_rate": 1e-4}}, replays=False, replayed=0.0),
        "step_too_large",
        f"{FORGETTING}: it was too large a step (KL to the base 0.3 nats per token).",
        ("stages:", "  sft:", "    training:", "      learning_rate: 5.0e-5  # was 1.0e-4"),
    ),
    "slow": (
        replace(FINE, entry=at(2e-6), gained=(), train=(2.0, 1.9)),
        "rate_too_low",
        "sft forgot nothing and learnt nothing for certain: its learning rate, 2.0e-6, 1/100 of the usual "
        "2.0e-4, is too "
        "low; its training loss went from 2 to 1.9.",
        ("stages:", "  sft:", "    training:", "      learning_rate: 2.0e-4  # was 2.0e-6"),
    ),
    "masked": (
        replace(FINE, entry={**ENTRY, "mask_above_perplexity": 2.5, "l2_sp": 0.1}, gained=(), masked=0.455,
                held={"ewc": 0.4, "l2_sp": 2.559}),
        "held_back",
        "sft forgot nothing and learnt nothing for certain: 46% of the tokens of its answers were masked and `l2_sp` "
        "pulled 2.6 times as hard as the task.",
        ("stages:", "  sft:", "    mask_above_perplexity: null  # was 2.5"),
    ),
    "penalised": (
        replace(FINE, entry={**ENTRY, "ewc": {"weight": 10.0}}, gained=(), held={"ewc": 12.0}),
        "held_back",
        "sft forgot nothing and learnt nothing for certain: `ewc` pulled 12 times as hard as the task.",
        ("stages:", "  sft:", "    ewc:", "      weight: 1  # was 10"),
    ),
    "short": (
        replace(FINE, gained=(), steps=30),
        "too_short",
        "sft forgot nothing and learnt nothing for certain: 30 steps at a learning rate of 1.0e-4, 1/2 of the usual "
        "2.0e-4, are too few; its training loss went from 2 to 0.9.",
        ("stages:", "  sft:", "    training:", "      max_steps: 60  # was 30"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_a_stage_shows_has_a_cause_and_a_first_change(name: str) -> None:
    facts, key, sentence, lines = CASES[name]
    found = advise(replace(RUN, stages=(facts,)))
    assert [cause.key for cause in found.causes] == [key]
    assert found.verdict == sentence
    assert block(found.changes[0].change.lines) == lines


def test_a_low_rate_is_not_called_too_high() -> None:
    """A stage that forgot, and learnt nothing, at a rate below the usual one."""
    slow = replace(FORGOT, entry=at(1e-5), gained=(), lost=(replace(LOST[0], covered=True),))
    assert [cause.key for cause in causes(slow)] == ["replay_too_little"]
    fast = replace(slow, entry=at(2e-4))
    assert causes(fast)[0].sentence == (
        "sft forgot facts (mean of the skills 0.900 -> 0.600) and learnt nothing of its task: its learning "
        "rate, 2.0e-4, "
        "about the usual one, is too high; its training loss went from 2 to 0.9."
    )


def test_every_cause_is_among_the_cases() -> None:
    assert {key for _, key, _, _ in CASES.values()} == set(BY_CAUSE)
    assert {change for changes in BY_CAUSE.values() for change in changes} == set(CHANGES)


def test_two_faults_of_a_stage_take_turns() -> None:
    both = replace(FORGOT, entry=BARE, replayed=0.0, overfitted=True, evaluation=Losses(2.0, 1.2, 40, 1.5))
    found = advise(replace(RUN, stages=(both,)))
    assert [cause.key for cause in found.causes] == ["nothing_replayed", "overfitted"]
    assert [one.change.key for one in found.changes][:2] == ["replay", "end_there"]
    assert found.causes[1].sentence == (
        "sft overfitted: its evaluation loss rose from 1.2 at step 40 to 1.5 at its end (step 100, 2 epochs)."
    )


@pytest.mark.parametrize(
    ("run", "verdict", "notes"),
    [
        (RUN, "No stage that gives a policy is done: there is nothing to judge yet.", ()),
        (
            replace(RUN, stages=(FINE,)),
            "Nothing was forgotten and the task was learnt: there is nothing to change.",
            (),
        ),
        (
            replace(RUN, stages=(FINE, replace(FINE, id="more", gained=None))),
            "Nothing was forgotten. Whether more learnt its task was not measured: hold rows out with "
            "`eval_data`, or name "
            "a probe of the task.",
            (),
        ),
        (
            replace(RUN, stages=(replace(FINE, gained=None), replace(FINE, id="more", gained=None))),
            f"Nothing was forgotten. Whether {FINE.id} and more learnt their task was not measured: hold rows out with "
            "`eval_data`, or name a probe of the task.",
            (),
        ),
        (
            replace(RUN, stages=(replace(FINE, gained=None, mean=None),), measured=False),
            "Nothing was measured, so nothing can be said of what was forgotten: set `forgetting.probes` and run the "
            "recipe again; what is trained is measured, not trained again.",
            (),
        ),
        (
            replace(RUN, stages=(FINE,), undecided=(("facts", 840), ("code", None)), unfinished=("dpo",)),
            "Nothing was forgotten for certain, and nothing is known to ask for a change; some of it is undecided.",
            (
                "dpo is not done: run the same command again; this is about the stages before.",
                "Undecided: facts and code: too few items to decide; about 840 would. More `items` change the verdict, "
                "not the model.",
            ),
        ),
        (
            replace(RUN, stages=(FINE,), unfinished=("dpo",), ended_by="sft"),
            "Nothing was forgotten and the task was learnt: there is nothing to change.",
            ("dpo is not done, because the gate ended the run after sft; this is about the stages before.",),
        ),
        (
            replace(RUN, stages=(FINE,), unfinished=("dpo",), failed="dpo"),
            "Nothing was forgotten and the task was learnt: there is nothing to change.",
            (
                "dpo is not done, because dpo failed: mend what its error says, and run the same command again; this "
                "is about the stages before.",
            ),
        ),
    ],
)
def test_a_run_that_asks_for_no_change_is_told_none(run: RunFacts, verdict: str, notes: tuple[str, ...]) -> None:
    found = advise(run)
    assert (found.verdict, found.changes, found.notes) == (verdict, (), notes)


def test_a_stage_is_held_closer_by_what_holds_it() -> None:
    def lines(entry: dict[str, Any], default: float | None = None) -> list[tuple[str, ...]]:
        facts = StageFacts("x", entry=entry, default_beta=default)
        return [block(change.lines) for change in make(["closer"], facts, RUN)]

    assert lines({"beta": 0.3}, 0.1) == [("stages:", "  x:", "    beta: 0.6  # was 0.3")]
    assert lines({"beta": 0.01}, 0.1) == [("stages:", "  x:", "    beta: 0.1  # was 0.01")]
    assert lines({"kl": {"controller": "adaptive", "target": 6.0, "coef": 0.05}}) == [
        ("stages:", "  x:", "    kl:", "      target: 3  # was 6")
    ]
    assert lines({"kl": {"controller": "fixed", "target": 6.0, "coef": 0.05}}) == [
        ("stages:", "  x:", "    kl:", "      coef: 0.1  # was 0.05")
    ]
    assert lines({"beta": 0.0}, 0.0) == lines({}) == []


@pytest.mark.parametrize("named", [{"data": {"source": "old.jsonl"}}, {"self": {}}, {"sources": [{"self": {}}]}])
def test_what_a_recipe_names_and_does_not_replay_is_replayed(named: dict[str, Any]) -> None:
    facts = StageFacts("x", entry={"replay": {**named, "ratio": 0.0}}, replays=True)
    line = stage("x", "replay", "ratio", old=0.0, new=0.2)
    assert list(make(["replay"], facts, RUN)) == [
        Change("replay", "Replay in x what the recipe names for it.", (line,))
    ]


def test_what_a_stage_warned_of_is_told_beside_its_cause() -> None:
    warned = {"warnings": ("12 answers are cut off",), "alarms": (("answers cut off", "raise max_completion_length"),)}
    said = "sft warned: 12 answers are cut off.", "sft raised the alarm answers cut off: raise max_completion_length."
    assert advise(replace(RUN, stages=(replace(FORGOT, **warned),))).notes == said[::-1]
    assert advise(replace(RUN, stages=(replace(FINE, **warned),))).notes == said[1:]


def test_what_says_that_a_task_was_learnt() -> None:
    blank = StageFacts("sft")
    assert blank.learnt is None
    assert replace(blank, gained=("right",)).learnt and replace(blank, gained=()).learnt is False
    assert replace(blank, gained=(), accuracy=0.9).learnt and replace(blank, accuracy=0.5).learnt is False
    assert replace(blank, evaluation=Losses(2.0, 1.0, 10, 1.0)).learnt
    assert replace(blank, evaluation=Losses(2.0, 1.99, 10, 2.5)).learnt is False
    level = replace(blank, train=(2.0, 1.99), points=12)
    assert level.learnt is False and replace(level, train=(2.0, 1.0)).learnt is None
    assert replace(level, points=11).learnt is None and replace(level, entry={"reward": "judge"}).learnt is None


def test_many_steps_that_move_nothing_at_the_usual_rate_ask_for_a_higher_one() -> None:
    level = replace(FINE, gained=(), train=(2.0, 1.99), entry=at(2e-4))
    assert advise(replace(RUN, stages=(level,))).verdict == (
        "sft forgot nothing and learnt nothing for certain: its learning rate, 2.0e-4, about the usual one, "
        "is too low; "
        "its training loss went from 2 to 1.99."
    )
    assert block(advise(replace(RUN, stages=(level,))).changes[0].change.lines)[-1].endswith("6.0e-4  # was 2.0e-4")
    assert [cause.key for cause in causes(replace(level, steps=99))] == ["too_short"]
    assert [cause.key for cause in causes(replace(level, entry=at(1e-3)))] == ["too_short"], "it is high already"
    assert [cause.key for cause in causes(replace(level, steps=99, entry=at(2e-5)))] == ["rate_too_low"]


# Evidence -------------------------------------------------------------------------------------------------------------


def test_the_page_has_the_rows_that_advice_cites() -> None:
    page = written_tables.PAGE.read_text(encoding="utf-8")
    assert written_tables.filled(page, evidence.measured()) == page
    rows = evidence.measured().mended
    assert len({row.case for row in rows}) >= 5
    for row in rows:
        (found,) = [one for one in evidence.of_change(row.cause, row.change) if one.row.startswith(row.case)]
        assert f"| {row.case} | {row.made} |" in page and found.table in page
        assert f"mean of the skills {row.before.skills:.3f} -> {row.after.skills:.3f}" in found.figures


def test_the_first_change_of_every_case_is_measured_and_mends_it() -> None:
    first = {row.case: row for row in reversed(evidence.measured().mended)}
    for row in first.values():
        assert row.change in BY_CAUSE[row.cause]
        assert row.after.skills > row.before.skills or row.after.task > row.before.task, row.case


GENTLER = Cell(
    name="half the rate", method="lora", seeds=3, task=0.3, skills=0.95, perplexity=2.0, cpu=40, change="rate_half"
)
CELLS = (
    Cell(name="none", method="lora", seeds=3, task=0.8, skills=0.5, perplexity=5.0, cpu=40),
    Cell(name="replay 20 %", method="lora", seeds=3, task=0.8, skills=0.9, perplexity=2.0, cpu=41, change="replay",
         title="replay old rows", stage="sft", keys={"replay": {"data": "lab/general", "ratio": 0.2}}),
    Cell(name="EWC 1", method="lora", seeds=3, task=0.7, skills=0.8, perplexity=2.0, cpu=50, title="hold weights",
         stage="sft", keys={"ewc": {"data": "lab/general", "weight": 1.0}}),
    Cell(name="interpolate lines", method="lora", seeds=3, task=0.55, skills=0.9, perplexity=2.0, cpu=45,
         title="keep a share", keys={"on_violation": "interpolate", "interpolate": {"shape": "lines"}}),
    Cell(name="harmful", method="lora", seeds=3, task=0.1, skills=0.9, perplexity=2.0, cpu=45, title="harm",
         stage="sft", keys={"kl_coef": 9.0}),
    Cell(name="EWC 1", method="full", seeds=3, task=0.9, skills=0.9, perplexity=2.0, cpu=50, title="hold weights",
         stage="sft", keys={"ewc": {"data": "lab/general", "weight": 1.0}}),
)  # fmt: skip


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of our own in place of the measured ones."""
    row = Mended(
        case="bare", cause="nothing_replayed", change="replay", made="`ratio: 0.2`", task="task right", seed=1,
        before=Figures(task=0.5, skills=0.4, perplexity=9.0), after=Figures(task=0.6, skills=0.9, perplexity=1234.5),
    )  # fmt: skip
    found = Measured(mended=(row,), cells=CELLS)
    monkeypatch.setattr(evidence, "measured", lambda: found)


def test_changes_without_evidence_are_left_out_and_remedies_follow_by_what_they_did(tables: None) -> None:
    found = advise(replace(RUN, stages=(replace(FORGOT, entry=BARE, replayed=0.0),)))
    assert len(found.changes) == MOST == 3
    assert [one.change.key for one in found.changes] == ["replay", "EWC 1", "interpolate lines"]
    assert [str(row) for one in found.changes for row in one.evidence] == [
        'docs/remedies.md, "Runs that went wrong", bare, `ratio: 0.2`: mean of the skills 0.400 -> 0.900, task right '
        "0.500 -> 0.600, perplexity 9.00 -> 1,234",
        'docs/remedies.md, "Remedies side by side", EWC 1, lora: mean of the skills 0.500 -> 0.800, helpdesk correct '
        "0.800 -> 0.700, perplexity 5.00 -> 2.00",
        'docs/remedies.md, "Remedies side by side", interpolate lines, lora: mean of the skills 0.500 -> '
        "0.900, helpdesk "
        "correct 0.800 -> 0.550, perplexity 5.00 -> 2.00",
    ]
    assert [block(one.change.lines) for one in found.changes[1:]] == [
        ("stages:", "  sft:", "    ewc:", "      data: FILE", "      weight: 1"),
        ("forgetting:", "  on_violation: interpolate", "  interpolate:", "    shape: lines"),
    ]


def test_a_remedy_that_the_recipe_has_or_that_is_of_another_stage_is_not_advised(tables: None) -> None:
    has = replace(FORGOT, entry={**BARE, "ewc": {"data": "a.jsonl"}}, replayed=0.0)
    acts = {"on_violation": "rollback"}
    assert [one.change.key for one in advise(replace(RUN, stages=(has,), forgetting=acts)).changes] == ["replay"]
    other = replace(FORGOT, program="kto", replays=False, replayed=0.0, entry={"training": {"learning_rate": 1e-4}})
    found = advise(replace(RUN, stages=(other,)))
    assert [one.change.key for one in found.changes] == ["rate_half", "interpolate lines"]
    assert found.changes[0].evidence == (), "the first change is told even so"
    assert "   Evidence: no table has this change on such a run." in words.text(found)


@pytest.mark.parametrize(("task", "advised"), [(0.3, False), (0.5, True)])
def test_a_change_that_cost_more_than_it_kept_is_not_advised(
    monkeypatch: pytest.MonkeyPatch, task: float, advised: bool
) -> None:
    cells = (CELLS[0], GENTLER.model_copy(update={"task": task}))
    monkeypatch.setattr(evidence, "measured", lambda: Measured(cells=cells))
    found = advise(replace(RUN, stages=(replace(FORGOT, entry=BARE, replayed=0.0),)))
    assert [one.change.key for one in found.changes] == ["replay", *(["rate_half"] if advised else [])]


def test_the_method_decides_which_rows_speak(tables: None) -> None:
    full = replace(FORGOT, family="full", entry=BARE, replayed=0.0)
    assert evidence.ranked("full") == []
    assert [one.change.key for one in advise(replace(RUN, stages=(full,))).changes] == ["replay"]


# Lines ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        0.005,
        5e-5,
        1,
        True,
        None,
        "lab/general",
        "a: b",
        "yes",
        "",
        "-",
        ["a", {"source": "b c", "limit": 3}],
        {"self": {}},
    ],
)
def test_a_value_is_the_same_in_yaml(value: Any) -> None:
    assert YAML(typ="safe").load(f"key: {written(value)}") == {"key": value}


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.005, "0.005"), (5e-5, "5.0e-5"), (1.24e-6, "1.2e-6"), (0.1, "0.1"), (0.00099, "9.9e-4"), (10, "10")],
)
def test_a_small_number_is_one_in_yaml_too(value: float, text: str) -> None:
    assert number(value) == text
    assert isinstance(YAML(typ="safe").load(text), float | int)


def test_lines_of_one_mapping_stand_together() -> None:
    lines = (
        Line(("stages", "sft", "replay", "data"), None, "FILE"),
        Line(("stages", "sft", "replay", "ratio"), 0.1, 0.2),
        Line(("stages", "sft", "training", "max_steps"), 10, 5),
    )
    assert block(lines) == (
        "stages:",
        "  sft:",
        "    replay:",
        "      data: FILE",
        "      ratio: 0.2  # was 0.1",
        "    training:",
        "      max_steps: 5  # was 10",
    )
    whole = {"source": "a", "split": "train", "subset": None, "format": "auto", "columns": {}, "limit": None}
    assert source([whole, {**whole, "limit": 5}, "b"]) == ["a", {"source": "a", "limit": 5}, "b"]


# Folders --------------------------------------------------------------------------------------------------------------


def folder(home: Path, *, sources: list[str], replayed: float, status: str = "done") -> Path:
    """A run of the lab whose sft lost `sort`, which lab/general covers, and `reverse`, which it does not."""
    entry = {
        "stage": "sft", "policy": "base", "training": {"learning_rate": 5e-3},
        "replay": {"data": [{"source": name} for name in sources], "ratio": replayed} if replayed else None,
    }  # fmt: skip
    recipe = {"model": {"base": "lab"}, "stages": {"sft": entry}}
    made.write_run(home, {"sft": {"sort": 40, "reverse": 40, "copy": 99}}, recipe=recipe)
    lora = {"method": "lora", "lora": {"r": 16}}
    data = {"rows": 64, "replay_rows": 16 if replayed else 0, "replay_ratio": replayed}
    made.finish(RunDir(home), "sft", parameterization=lora, data=data)

    def score(value: float, verdict: Any = None, before: float = 1.0) -> Score:
        low = value - before
        return Score(score=value, n=100, delta=low, ci95=(low - 0.01, low + 0.01), verdict=verdict)

    covered = {"sort": True, "reverse": False, "copy": True} if replayed else {}
    probes = {name: ProbeEntry(limit=0.1, n=100, replayed=covered.get(name)) for name in ("sort", "reverse", "copy")}
    probes["task right"] = ProbeEntry(kind="task", n=100)
    rows = {"sort": score(0.4, "FORGOT"), "reverse": score(0.4, "FORGOT"), "copy": score(0.99, "OK")}
    rows["task right"] = score(0.8, before=0.0)
    table = Forgetting(
        stages=("base", "sft"),
        parent={"sft": "base"},
        probes=probes,
        matrix={"base": {name: Score(score=0.0 if "task" in name else 1.0, n=100) for name in rows}, "sft": rows},
        mean={"base": {"all": Score(score=1.0)}, "sft": {"all": score(0.6, "FORGOT")}},
        task_kl={"sft": TaskKl(own_answers=KlEstimate(kl=2.0, ci95=(1.9, 2.1), n=32))},
    )
    files.write_json(RunDir(home).forgetting, table.written())
    return home


def test_what_a_folder_shows(tmp_path: Path) -> None:
    run = shown.facts(records.load(folder(tmp_path / "mine", sources=["lab/general"], replayed=0.25)))
    assert (run.name, run.base, run.measured, run.unfinished) == ("mine", "lab", True, ())
    (stage,) = run.stages
    assert (stage.program, stage.family, stage.replays, stage.replayed) == ("sft", "adapter", True, 0.25)
    assert (stage.gained, stage.mean, stage.kl, stage.kl_before) == (("task right",), (1.0, 0.6), 2.0, None)
    assert stage.usual_rate == pytest.approx(25 * 2e-4) and stage.rate == 5e-3
    assert (stage.train, stage.evaluation, stage.steps, stage.epochs) == (
        (2.0, 0.5),
        Losses(0.75, 0.75, 12, 0.75),
        12,
        1.5,
    )
    assert {lost.name: lost.covered for lost in stage.lost} == {"sort": True, "reverse": False}
    assert not stage.everything_lost and stage.learnt


def decide(home: Path, **more: Any) -> None:
    """The attempts that were made at the stage of `folder`, of which the second stands."""
    tried = {"replay": (0.25, 0.5), "learning_rate": (0.5, 0.05)}
    first = Attempt(number=1, violated=["sort", "reverse", "copy"])
    gain = Figure(name="task right", before=0.0, after=0.7)
    second = Attempt(number=2, changed=tried, gain=gain, violated=["sort", "mean of the skills"])
    decided = Decision(
        stage="sft", action="stop", attempt=2, reasons=[], violations=[], unclear=[], thresholds={},
        attempts=[first, second],
    )  # fmt: skip
    share = [second.model_copy(update={"share": more["share"], "violated": []})] if "share" in more else []
    decided = decided.model_copy(update={**more, "attempts": [*decided.attempts, *share]})
    files.write_json(RunDir(home).stage("sft").decision, decided.model_dump(mode="json"))


def test_what_is_said_of_a_stage_is_of_the_attempt_that_stands(tmp_path: Path, tables: None) -> None:
    home = folder(tmp_path / "mine", sources=["lab/general"], replayed=0.25)
    decide(home)
    run = shown.facts(records.load(home))
    (stage,) = run.stages
    assert stage.rate == 0.05 and stage.number("replay", "ratio") == 0.5
    given = advise(run)
    assert given.notes == (
        "What is said of sft is of attempt 2, with replay 0.5 instead of 0.25 and learning_rate 0.05 instead of "
        "0.5; the changes have these values too.",
    )
    assert "its learning rate, 0.05, 10 times the usual 0.005, is too high" in given.verdict
    assert given.changes[0].change.lines == (
        Line(("stages", "sft", "replay", "ratio"), 0.25, 0.5),
        Line(("stages", "sft", "training", "learning_rate"), 0.5, 0.005),
    )


def test_a_stage_of_which_a_share_goes_on_is_judged_by_its_whole_update(tmp_path: Path) -> None:
    home = folder(tmp_path / "mine", sources=["lab/general"], replayed=0.25)
    decide(home, action="continue", policy="interpolated", share=0.4, shape="flat")
    run = shown.facts(records.load(home))
    given = advise(run)
    assert [lost.name for lost in run.stages[0].lost] == ["sort"] and run.stages[0].mean_fell
    assert given.verdict.startswith("sft forgot sort: its learning rate, 0.05, 10 times the usual 0.005, is too high")
    assert given.notes == (
        "Of sft a share of 0.4 goes on; what is said of it is of its whole update (attempt 2, with replay 0.5 instead "
        "of 0.25 and learning_rate 0.05 instead of 0.5); the changes have these values too.",
    )


def test_what_the_labs_probes_say_of_coverage_holds_for_the_labs_rows_alone(tmp_path: Path) -> None:
    run = shown.facts(records.load(folder(tmp_path / "mine", sources=["other.jsonl"], replayed=0.25)))
    assert {lost.name: lost.covered for lost in run.stages[0].lost} == {"sort": None, "reverse": None}
    assert causes(run.stages[0])[0].sentence == (
        "sft forgot sort and reverse (mean of the skills 1.000 -> 0.600) although 25% of its rows were "
        "replayed, and kept "
        "other skills: they seem to hold nothing like these."
    )


def test_the_command_prints_the_cause_and_the_lines(tmp_path: Path, tables: None) -> None:
    home = folder(tmp_path / "mine", sources=[], replayed=0.0)
    found = advise(shown.facts(records.load(home)))
    assert list(words.text(found)) == [
        "sft forgot sort and reverse (mean of the skills 1.000 -> 0.600): nothing of what the base could do "
        "was replayed "
        "in it.",
        "",
        "What to change in its recipe.yaml, the most likely to help first:",
        "",
        "1. Replay old rows in sft: what the lab model was pretrained on.",
        "",
        "    stages:",
        "      sft:",
        "        replay:",
        "          data: lab/general",
        "          ratio: 0.2",
        "",
        '   Evidence: docs/remedies.md, "Runs that went wrong", bare, `ratio: 0.2`: mean of the skills 0.400 '
        "-> 0.900, task "
        "right 0.500 -> 0.600, perplexity 9.00 -> 1,234.",
        "",
        "2. Hold weights.",
        "",
        "    stages:",
        "      sft:",
        "        ewc:",
        "          data: lab/general",
        "          weight: 1",
        "",
        '   Evidence: docs/remedies.md, "Remedies side by side", EWC 1, lora: mean of the skills 0.500 -> '
        "0.800, helpdesk "
        "correct 0.800 -> 0.700, perplexity 5.00 -> 2.00.",
        "",
        "3. Keep a share.",
        "",
        "    forgetting:",
        "      on_violation: interpolate",
        "      interpolate:",
        "        shape: lines",
        "",
        '   Evidence: docs/remedies.md, "Remedies side by side", interpolate lines, lora: mean of the skills '
        "0.500 -> 0.900, "
        "helpdesk correct 0.800 -> 0.550, perplexity 5.00 -> 2.00.",
    ]


def test_the_command_as_json(tmp_path: Path) -> None:
    home = folder(tmp_path / "mine", sources=["lab/general"], replayed=0.25)
    found = json.loads(runs.align("advise", str(home), "--json").stdout)
    assert list(found) == ["version", "run", "verdict", "causes", "changes", "notes"]
    first = found["changes"][0]
    assert list(first) == ["key", "cause", "what", "lines", "yaml", "evidence"]
    assert (first["key"], first["cause"]) == ("cover", "not_covered")
    path = "stages.sft.replay.data"
    assert first["lines"] == [{"path": path, "old": "lab/general", "new": ["lab/general", "FILE"]}]
    assert first["what"] == "Replay rows of what was lost as well: FILE holds rows like reverse."


def test_the_report_says_the_first_change(tmp_path: Path) -> None:
    home = folder(tmp_path / "mine", sources=["lab/general"], replayed=0.25)
    report = records.load(home)
    first = advise(shown.facts(report))
    (step,) = steps(report)
    assert (step.why, step.what, step.lines) == (
        first.verdict,
        first.changes[0].change.what,
        block(first.changes[0].change.lines),
    )


@pytest.mark.parametrize(
    ("entry", "done", "what", "lines"),
    [
        (
            {},
            {},
            "Hold sft closer to the policy that it starts from, by `kl_coef`.",
            ("stages:", "  sft:", "    kl_coef: 0.1"),
        ),
        (
            {"kl_coef": 0.3},
            {},
            "Hold sft closer to the policy that it starts from, by twice `kl_coef`.",
            ("stages:", "  sft:", "    kl_coef: 0.6  # was 0.3"),
        ),
        (
            {"beta": 0.1},
            {"program": "dpo"},
            "Hold sft closer to the policy that it starts from: twice `beta`.",
            ("stages:", "  sft:", "    beta: 0.2  # was 0.1"),
        ),
        (
            {"training": {"learning_rate": 1e-4}},
            {"program": "./mine.py"},
            "Train sft at half of its learning rate.",
            ("stages:", "  sft:", "    training:", "      learning_rate: 5.0e-5  # was 1.0e-4"),
        ),
        ({}, {"program": "./mine.py", "steps": 1}, "", ()),
    ],
)
def test_a_limit_on_the_kl_that_is_broken_has_a_next_step(
    entry: dict[str, Any], done: dict[str, Any], what: str, lines: tuple[str, ...], tmp_path: Path
) -> None:
    """Of the first stage past it, where no cause is told of the same stage already."""
    home = tmp_path / "mine"
    stages = {id: {"stage": "sft", "policy": "base", **entry} for id in ("sft", "more")}
    recipe = {"model": {"base": "lab"}, "stages": stages}
    made.write_run(home, {id: {"copy": 99} for id in stages}, recipe=recipe)
    for id in stages:
        made.finish(RunDir(home), id, **done)
    estimate = KlEstimate(kl=0.62, ci95=(0.5, 0.7), n=32)

    def said(limit: float) -> list[tuple[str, str, tuple[str, ...]]]:
        kl = TaskKl(own_answers=estimate).against(limit)
        table = Forgetting(
            stages=("base", *stages),
            parent={"sft": "base", "more": "sft"},
            probes={"copy": ProbeEntry(limit=0.1, n=100)},
            matrix={id: {"copy": Score(score=0.99, n=100, verdict="OK")} for id in ("base", *stages)},
            task_kl=dict.fromkeys(stages, kl),
        )
        files.write_json(RunDir(home).forgetting, table.written())
        return [(step.why, step.what, step.lines) for step in steps(records.load(home)) if "max_kl" in step.why]

    why = "sft went further from the base than `max_kl` allows: 0.62 nats per token, limit 0.3."
    mean = "If no probe fell, the limit may be lower than you mean."
    assert said(0.3) == [(why, f"{what} {mean}".strip(), lines)]
    assert said(0.6) == [], "the interval reaches below it"


def test_it_reads_without_torch(tmp_path: Path) -> None:
    home = folder(tmp_path / "mine", sources=[], replayed=0.0)
    code = (
        "import sys; from align.cli.commands import app\n"
        f"try: app(['advise', {str(home)!r}])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_run_under_way_is_refused(tmp_path: Path) -> None:
    home = folder(tmp_path / "mine", sources=[], replayed=0.0)
    with RunDir(home).locked():
        done = runs.align("advise", str(home), code=2)
    assert done.stderr == f"error '{home}' is under way\n  -> wait until it has ended\n"


def test_a_stage_of_ones_own_has_no_usual_rate(tmp_path: Path) -> None:
    home = folder(tmp_path / "mine", sources=[], replayed=0.0)
    made.finish(
        RunDir(home), "sft", program="./gone.py", parameterization={"method": "unheard"}, policy=Policy(base=made.LAB)
    )
    (stage,) = shown.facts(records.load(home)).stages
    assert (stage.usual_rate, stage.default_beta, stage.family, stage.replays) == (None, None, "adapter", True)
