"""What a policy writes itself: which texts are kept, which answers replace the data's, what stays in the run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from align.data.tokenizer import TextTokenizer
from align.errors import AlignError
from align.forgetting import probes
from align.forgetting.keys import ForgettingKeys
from align.lab import MODEL_DIR
from align.report.schema import StageRecord
from align.report.written_page import written_page
from align.run_folder.records import Outcome, UserFunction
from align.run_folder.run_record import StageEntry
from align.written import asking, checker, keep, probed, rewriting, words
from align.written.filters import Draft, Sieve, counted, repetition, told
from align.written.keep import Shelf
from align.written.rewriting import Ask, Chosen

WORDS = [5, 6, 7, 8, 9, 10, 11, 12]


def draft(answer: str = "It is four.", ids: Sequence[int] = WORDS, *, ended: bool = True, **more: Any) -> Draft:
    return Draft(**{"prompt": "What is it?", "length": 20} | more, answer=answer, ids=ids, ended=ended)


def sieve(**changed: Any) -> Sieve:
    usual = {"min_tokens": 1, "max_repetition": 0.3, "max_length": None, "keep_unfinished": False}
    return Sieve(**usual | changed)


@pytest.mark.parametrize(
    ("ids", "share"),
    [
        ([], 0.0),
        ([1, 2, 3], 0.0),
        ([1, 1, 1, 1], 0.0),
        ([1] * 10, 1 - 1 / 7),
        ([1, 2, 3, 4, 1, 2, 3, 4], 1 - 4 / 5),
        ([1, 2, 3, 4, 5, 6, 7], 0.0),
    ],
)
def test_repetition_is_one_minus_distinct_by_all_four_grams(ids: list[int], share: float) -> None:
    assert repetition(ids) == pytest.approx(share)


@pytest.mark.parametrize(
    ("one", "settings", "why"),
    [
        (draft(), {}, None),
        (draft(asked=False), {}, "without a whole question"),
        (draft(" \n"), {}, "empty"),
        (draft(" \n"), {"keep_unfinished": True}, "empty"),
        (draft(ended=False), {}, "unfinished"),
        (draft(ended=False), {"keep_unfinished": True}, None),
        (draft(ids=[1, 2]), {"min_tokens": 3}, "too short"),
        (draft(ids=[1, 2, 3]), {"min_tokens": 3}, None),
        (draft(length=33), {"max_length": 32}, "longer than max_length"),
        (draft(length=32), {"max_length": 32}, None),
        (draft(ids=[1] * 10), {}, "repetitive"),
        (draft(ids=[1, 2, 3, 4, 1]), {"max_repetition": 0.0}, None),
        (draft(prompt="WHAT  is it?"), {"probed": {"what is it?"}}, "asked by a probe"),
        (draft(prompt=[{"role": "user", "content": "What is it?"}]), {"probed": {"what is it?"}}, "asked by a probe"),
        (draft("A story.", prompt=None), {"probed": {"a story."}}, "asked by a probe"),
        (draft(), {"check": lambda one: one.answer != "It is four."}, "refused by the checker"),
    ],
)
def test_a_text_is_dropped_for_a_reason(one: Draft, settings: dict[str, Any], why: str | None) -> None:
    assert sieve(**settings).why(one) == why


def test_the_same_question_and_answer_are_kept_once() -> None:
    strict = sieve()
    texts = [draft(), draft("it is  FOUR."), draft(prompt="And now?"), draft("It is five."), draft()]
    assert [strict.why(one) for one in texts] == [None, "written before", None, None, "written before"]


def test_the_checker_is_asked_last_and_of_nothing_that_is_dropped_anyway() -> None:
    asked: list[str] = []

    def check(one: Draft) -> bool:
        asked.append(one.answer)
        return True

    strict = sieve(check=check)
    for one in (draft(), draft(), draft(""), draft("Five.", ended=False), draft("Six.", ids=[1] * 9)):
        strict.why(one)
    assert asked == ["It is four."]


def test_reasons_are_counted_the_most_frequent_first() -> None:
    reasons = counted(["empty", "unfinished", "unfinished"])
    assert list(reasons.items()) == [("unfinished", 2), ("empty", 1)]
    assert told(reasons) == "2 unfinished, 1 empty"


def test_a_draft_becomes_a_row_that_is_trained_on() -> None:
    talk = [{"role": "user", "content": "What?"}]
    assert draft("Four.", prompt=None).row() == {"text": "Four."}
    assert draft(" four", prompt="2 + 2 =").row() == {"prompt": "2 + 2 =", "completion": " four"}
    assert draft("4", prompt=talk).row() == {
        "prompt": talk,
        "completion": [{"role": "assistant", "content": "4"}],
    }


def test_what_probes_ask_is_known() -> None:
    found = probes.load(ForgettingKeys(probes="lab"), Path())
    asked = probed.asked(found)
    exact = next(probe for probe in found if isinstance(probe, probes.Exact))
    stories = next(probe for probe in found if isinstance(probe, probes.Texts))
    assert " ".join(exact.items["gate"][0].prompt.casefold().split()) in asked
    assert " ".join(stories.texts["report"][0].casefold().split()) in asked
    battery = probes.load(ForgettingKeys(probes="general", items=10), Path(), items=10)
    skill = next(probe for probe in battery if isinstance(probe, probes.Battery))
    (item, *_) = skill.items["gate"].values()
    assert " ".join(item.messages[-1]["content"].casefold().split()) in probed.asked(battery)


def test_where_a_question_stands_in_a_chat_template() -> None:
    lab = TextTokenizer.of_folder(MODEL_DIR)
    assert lab is not None
    assert asking.around_question(lab) == ("<|bos|><|user|>", "<|end|><|assistant|>")
    loud = TextTokenizer.of_folder(MODEL_DIR, "{{ messages[0]['content'] | lower }}")
    assert loud is not None
    with pytest.raises(AlignError) as caught:
        asking.around_question(loud)
    assert str(caught.value) == (
        "the chat template changes a user's words, so the policy cannot write the questions\n  -> give `prompts`"
    )


def test_what_is_written_is_kept_until_it_is_something_else(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "written", "replay")
    assert shelf.kept("a") is None
    shelf.put("a", [{"text": "Überall"}], [{"text": "", "why": "empty"}], {"kept": 1}, begun=False)
    assert shelf.rows.read_text(encoding="utf-8") == '{"text": "Überall"}\n'
    assert json.loads(shelf.rejected.read_text(encoding="utf-8")) == {"text": "", "why": "empty"}
    found = shelf.kept("a")
    assert found is not None and found.figures == {"kept": 1} and shelf.read() == [{"text": "Überall"}]
    assert shelf.kept("b") is None, "of another ticket"
    shelf.rows.write_text('{"text": "Anderes"}\n', encoding="utf-8")
    assert shelf.kept("a") is None, "somebody changed it"
    shelf.put("a", [{"text": "Überall"}], [], {"kept": 1}, begun=True)
    assert shelf.kept("a") is not None, "written again, the same"
    with pytest.raises(AlignError) as caught:
        shelf.put("a", [{"text": "Neues"}], [], {"kept": 1}, begun=True)
    assert str(caught.value) == (
        f"{shelf.rows} was changed, and what is written now is not what the stage began to train on\n"
        "  -> redo the stage with --from"
    )
    shelf.put("a", [{"text": "Neues"}], [], {"kept": 1}, begun=False)
    assert shelf.read() == [{"text": "Neues"}]


CHECKS = """\
def right(completion, answer="4"):
    return completion == answer

def number(completion):
    return 0.7

def broken(completion):
    return 1 / 0
"""


def function(folder: Path, name: str) -> UserFunction:
    (folder / "check.py").write_text(CHECKS, encoding="utf-8")
    return checker.find(f"./check.py:{name}", folder, ("prompt", "completion"))


def test_a_checker_is_given_what_it_names(tmp_path: Path) -> None:
    right = checker.load(function(tmp_path, "right"))
    assert right({"prompt": "2 + 2?", "completion": "4"}) is True
    assert right({"prompt": "2 + 2?", "completion": "5"}) is False
    assert right({"prompt": "2 + 2?", "completion": "5", "answer": "5"}) is True


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("number", "the checker 'number' of check.py returned 0.7 for the answer '4'\n  -> return True or False"),
        (
            "broken",
            "the checker 'broken' of check.py raised ZeroDivisionError: division by zero for the answer '4' (line 8)\n"
            "  -> correct it",
        ),
    ],
)
def test_a_checker_that_says_neither_yes_nor_no(name: str, says: str, tmp_path: Path) -> None:
    check = checker.load(function(tmp_path, name))
    with pytest.raises(AlignError) as caught:
        check({"prompt": "2 + 2?", "completion": "4"})
    assert str(caught.value) == says


ASK = [{"role": "user", "content": "2 + 2?"}]
SAID = {"role": "assistant", "content": "4"}


@pytest.mark.parametrize(
    ("row", "ask"),
    [
        ({"messages": [*ASK, SAID]}, Ask(ASK, "4")),
        ({"messages": [*ASK, {**SAID, "train": False}, *ASK, SAID]}, Ask([*ASK, SAID, *ASK], "4")),
        ({"messages": [*ASK, SAID], "tools": [{"name": "f"}]}, Ask(ASK, "4", [{"name": "f"}])),
        ({"prompt": "2 + 2 =", "completion": " 4"}, Ask("2 + 2 =", " 4")),
        ({"prompt": ASK, "completion": [SAID]}, Ask(ASK, "4")),
        ({"text": "Four."}, None),
        ({"messages": [*ASK, {**SAID, "train": False}]}, None),
        ({"messages": [*ASK, {"role": "assistant", "content": "", "tool_calls": []}]}, None),
        ({"messages": [*ASK, SAID, SAID]}, None),
        ({"messages": [*ASK, SAID, *ASK]}, None),
        ({"messages": [SAID]}, None),
    ],
)
def test_what_a_row_asks_before_an_answer_that_can_be_replaced(row: dict[str, Any], ask: Ask | None) -> None:
    assert rewriting.asked(row) == ask


def test_the_first_sample_that_a_checker_accepts() -> None:
    samples = [None, "5", "four", "4"]
    assert rewriting.first(samples, lambda text: text in ("4", "four")) == Chosen("four", 2)
    assert rewriting.first(samples, lambda text: False) == "the checker refused all samples"
    assert rewriting.first([None, None], lambda text: True) == "no sample came to its end"
    assert rewriting.first([], lambda text: True) == "the prompt leaves no room for an answer"


@pytest.mark.parametrize(
    ("scores", "least", "own", "found"),
    [
        ([0.1, None, 0.9, 0.9], None, 0.5, Chosen("c", 2, 0.9)),
        ([0.1, None, 0.5, 0.2], None, 0.5, Chosen("c", 2, 0.5)),
        ([0.1, None, 0.4, 0.2], None, 0.5, "all samples scored below the data's answer"),
        ([0.1, None, 0.4, 0.2], 0.3, None, Chosen("c", 2, 0.4)),
        ([0.1, None, 0.2, 0.2], 0.3, None, "all samples scored below min"),
        ([-0.1, None, -0.2, -3.0], None, None, Chosen("a", 0, -0.1)),
        ([None] * 4, 0.0, None, "no sample came to its end"),
    ],
)
def test_the_sample_with_the_highest_reward(
    scores: list[float | None], least: float | None, own: float | None, found: Chosen | str
) -> None:
    assert rewriting.best(["a", None, "c", "d"], scores, least, own) == found


def test_rows_are_rewritten_kept_or_dropped() -> None:
    rows = [{"messages": [*ASK, SAID]}, {"prompt": "1", "completion": "2"}, {"prompt": "3", "completion": "4"}]
    stays = {"messages": [*ASK, {**SAID, "train": False}]}  # nothing that could be replaced: not dropped either
    kept = [rewriting.line(0, Ask(ASK, "4"), Chosen("four", 1, 0.12345678)), {"row": 2, "answer": "5"}]
    assert kept[0] == {"row": 0, "prompt": ASK, "answer": "four", "was": "4", "sample": 1, "score": 0.123457}
    new = {"messages": [*ASK, {**SAID, "content": "four"}]}
    last = {"prompt": "3", "completion": "5"}
    assert rewriting.apply([*rows, stays], kept, drop=False) == [new, rows[1], last, stays]
    assert rewriting.apply([*rows, stays], kept, drop=True) == [new, last, stays]
    assert rows[0] == {"messages": [*ASK, SAID]}, "the data stay as they are"


FIGURES = {"by": "base", "written": 1080, "kept": 1077, "rejected": {"written before": 2, "empty": 1}}
ANSWERS = {"rows": 48, "rewritten": 39, "same": 1, "dropped": 9, "not_rewritten": {rewriting.NONE_ACCEPTED: 9}}


def test_the_report_shows_what_was_written_and_examples_of_each_kind(tmp_path: Path) -> None:
    talk = draft("4", prompt=ASK).row()
    texts = [talk, {"prompt": "2 + 2 =", "completion": " 4"}, {"text": "A story."}, {"text": "Not shown."}]
    Shelf(tmp_path, "replay").put("a", texts, [{"text": "", "why": "empty"}], FIGURES, begun=False)
    new = [rewriting.line(0, Ask(ASK, "4"), Chosen("four", 1))]
    old = [{"row": 1, "prompt": ASK, "was": "4", "sample": "5", "why": rewriting.NONE_ACCEPTED}]
    Shelf(tmp_path, "rewrite").put("a", new, old, ANSWERS, begun=False)
    done = {"seconds": 1.0, "cpu_seconds": 1.0, "measure_seconds": 0.0, "measure_cpu_seconds": 0.0}
    outcome = Outcome.model_validate(
        done
        | {"stage": "sft", "program": "sft", "fingerprint": "", "probes_sha256": "", "world_size": 1, "steps": 1}
        | {"distributed_type": "NO", "global_batch_size": 1, "parameters": {}, "parameterization": {}, "metrics": {}}
        | {"data": {"self_replay": FIGURES, "rewrite": ANSWERS}, "artifacts": {}}
    )
    entry = StageEntry(stage="sft", about="", inputs={}, fingerprint="")
    page = written_page(StageRecord(id="sft", entry=entry, outcome=outcome, own_rows=keep.examples(tmp_path)))
    assert page is not None
    assert page.told == (
        "The base wrote 1,080 rows to replay, of which 1,077 are kept (2 written before, 1 empty).",
        "39 of 48 answers are the policy's own (1 of them the same as the data's), 9 rows are dropped; not replaced: "
        "the checker refused all samples (9).",
    )
    assert [(one.title, one.asked, one.said, one.was, one.why) for one in page.examples] == [
        ("Replayed", "2 + 2?", "4", "", ""),
        ("Replayed", "2 + 2 =", " 4", "", ""),
        ("Replayed", "", "A story.", "", ""),
        ("Dropped", "", "", "", "empty"),
        ("Rewritten", "2 + 2?", "four", "4", ""),
        ("Not rewritten", "2 + 2?", "5", "4", "the checker refused all samples"),
    ]
    assert written_page(StageRecord(id="sft", entry=entry)) is None
    assert keep.examples(tmp_path / "nothing") == ()


def test_one_row_is_told_as_one() -> None:
    assert words.replayed({"written": 1, "kept": 1, "rejected": {}}) == "1 row to replay, of which 1 is kept"
    figures = {"rows": 4, "rewritten": 1, "same": 0, "dropped": 1, "not_rewritten": {}}
    said = "1 of 4 answers is the policy's own (0 of them the same as the data's), 1 row is dropped"
    assert words.rewritten(figures) == said
