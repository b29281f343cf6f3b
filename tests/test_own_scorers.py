"""The scorers of a user's probes: what they say of an answer is what the library, or plain Python, says of it."""

from __future__ import annotations

import json
import random
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

import models
from align.errors import AlignError, Place
from align.forgetting import measurements, probes
from align.forgetting.bench import Bench
from align.forgetting.keys import ForgettingKeys
from align.forgetting.measure import measure
from align.forgetting.own import measuring, scoring
from align.forgetting.own.items import OwnItem
from align.forgetting.own.kinds import Scorer
from align.lab import MODEL_DIR
from align.lab import probes as lab

N = 24  # items of a probe
TOKENS = 12
SCORE = """\
def right(prompt, completion, answer):
    return completion == answer

def share(completion, answer, **row):
    assert row["prompt"] and row["extra"] == "yes"
    said, wanted = set(completion.split()), set(answer.split())
    return len(said & wanted) / len(wanted)
"""
METRIC = """\
import datasets
import evaluate


class Mine(evaluate.Metric):
    def _info(self):
        texts = datasets.Value("string")
        features = datasets.Features({"predictions": texts, "references": texts})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        pairs = list(zip(predictions, references))
        same = sum(one == other for one, other in pairs) / len(pairs)
        begun = sum(one[:2] == other[:2] for one, other in pairs) / len(pairs)
        return RESULT
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every probe's files."""
    made = tmp_path_factory.mktemp("own")
    asked = [item for split in ("gate", "report") for item in lab.items("reverse", split)[: N // 2]]
    answers = sorted({item.answer for item in asked})
    drawn = random.Random(0)
    rows: list[dict[str, Any]] = []
    for item in asked:
        choices = [item.answer, *drawn.sample([one for one in answers if one != item.answer], 2)]
        drawn.shuffle(choices)
        rows.append({"prompt": item.prompt, "answer": item.answer, "choices": choices, "extra": "yes"})
    write(made / "items.jsonl", rows)
    first_word = [{"prompt": row["prompt"], "answer": f"^{row['answer'].split()[0]}\\b"} for row in rows]
    write(made / "patterns.jsonl", first_word)
    (made / "score.py").write_text(SCORE, encoding="utf-8")
    for name, result in (("same", '{"same": same}'), ("several", '{"same": same, "begun": begun}')):
        (made / name).mkdir()
        (made / name / f"{name}.py").write_text(METRIC.replace("RESULT", result), encoding="utf-8")
    return made


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


PROBES: dict[str, dict[str, Any]] = {
    "exact": {"data": "items.jsonl", "metric": "exact"},
    "contains": {"data": "items.jsonl", "metric": "contains", "tokens": TOKENS},
    "regex": {"data": "patterns.jsonl", "metric": "regex", "tokens": TOKENS},
    "right": {"data": "items.jsonl", "metric": "./score.py:right", "tokens": TOKENS},
    "share": {"data": "items.jsonl", "metric": "./score.py:share", "tokens": TOKENS},
    "choice": {"data": "items.jsonl", "metric": "choice", "seed": 3},
}
METRICS: dict[str, dict[str, Any]] = {
    "same": {"data": "items.jsonl", "metric": "evaluate:./same", "tokens": TOKENS},
    "begun": {"data": "items.jsonl", "metric": "evaluate:./several", "field": "begun", "tokens": TOKENS},
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return models.lab_tokenizer()


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    """The lab model after a shake, in float32: it has some answers right and some wrong."""
    shaken = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in shaken.parameters():
            parameter += 0.35 * parameter.std() * torch.randn_like(parameter)
    return shaken


def load(folder: Path, named: dict[str, dict[str, Any]]) -> list[probes.Probe]:
    found = probes.load(ForgettingKeys.model_validate({"probes": named}, strict=True), folder)
    measuring.prepare([probe for probe in found if isinstance(probe, probes.Own)])
    return found


Lines = dict[str, dict[str, dict[str, Any]]]  # by probe and id


def lines_of(folder: Path) -> Lines:
    found: Lines = {}
    for text in (folder / "items.jsonl").read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        found.setdefault(line["probe"], {})[line["id"]] = line
    return found


@pytest.fixture(scope="module")
def measured(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("measured")
    measure(Bench(model, tokenizer, autocast=False), load(folder, PROBES), out, base=None)
    return out


@pytest.fixture(scope="module")
def said(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What `generate` of transformers writes to each row."""
    rows = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
    found = []
    for row in rows:
        given = tokenizer.apply_chat_template(
            [{"role": "user", "content": row["prompt"]}],
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )
        made = model.generate(**given, max_new_tokens=TOKENS, do_sample=False, pad_token_id=tokenizer.pad_token_id)[
            0, given["input_ids"].shape[1] :
        ]
        found.append(tokenizer.decode(made, skip_special_tokens=True).strip())
    return found


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "items.jsonl").read_text(encoding="utf-8").splitlines()]


def scores(found: Lines, probe: str) -> list[float]:
    """In the order of the rows."""
    return [found[probe][f"{probe}-{n}"]["score"] for n in range(N)]


def test_an_answer_is_scored_as_plain_python_does(folder: Path, measured: Path, said: list[str]) -> None:
    found, rows = lines_of(measured), rows_of(folder)
    wanted = [row["answer"] for row in rows]
    by_hand = {
        "contains": [float(one.lower() in text.lower()) for one, text in zip(wanted, said, strict=True)],
        "regex": [float(text.split()[:1] == one.split()[:1]) for one, text in zip(wanted, said, strict=True)],
        "right": [float(one == text) for one, text in zip(wanted, said, strict=True)],
        "share": [
            len({*text.split()} & {*one.split()}) / len({*one.split()}) for one, text in zip(wanted, said, strict=True)
        ],
    }
    for probe, expected in by_hand.items():
        assert [found[probe][f"{probe}-{n}"]["said"] for n in range(N)] == said
        assert scores(found, probe) == pytest.approx(expected, abs=1e-6), probe
        assert 0 < sum(expected) < N, f"{probe} has right and wrong answers"
    assert scores(found, "exact") == by_hand["right"], "exact looks at the same answers"
    assert any(0 < score < 1 for score in by_hand["share"])


def test_the_likeliest_choice_is_that_of_one_plain_pass_each(
    folder: Path, measured: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    found = lines_of(measured)["choice"]
    for number, row in enumerate(rows_of(folder)):
        chat = [{"role": "user", "content": row["prompt"]}]
        asked = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        start = len(tokenizer(asked, add_special_tokens=False)["input_ids"])
        totals = []
        for choice in row["choices"]:
            ids = tokenizer(asked + choice, add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                known = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
            totals.append(sum(float(known[at - 1, ids[at]]) for at in range(start, len(ids))))
        line = found[f"choice-{number}"]
        right = row["choices"].index(row["answer"])
        assert line["said"] == row["choices"][totals.index(max(totals))]
        assert line["score"] == int(line["said"] == row["answer"])
        assert line["p"] == pytest.approx(float(torch.softmax(torch.tensor(totals), 0)[right]), abs=1e-4)
    assert {line["split"] for line in found.values()} == {"gate", "report"}


def test_the_record_says_what_guessing_gets(measured: Path) -> None:
    found = measurements.load(measured)
    assert {name: info.chance for name, info in found.probes.items()} == pytest.approx(
        {name: 1 / 3 if name == "choice" else 0 for name in PROBES}
    )
    assert all((info.kind, info.metric) == ("skill", "accuracy") for info in found.probes.values())


def test_answers_that_broke_are_shown_with_what_was_said(
    folder: Path, tokenizer: PreTrainedTokenizerBase, measured: Path, tmp_path: Path
) -> None:
    """Of a model that never was trained, all are."""
    named = {name: PROBES[name] for name in ("contains", "choice")}
    measure(Bench(models.tiny_llama(), tokenizer, autocast=False), load(folder, named), tmp_path, base=measured)
    before, after = lines_of(measured), lines_of(tmp_path)
    shown = [json.loads(line) for line in (tmp_path / "broken.jsonl").read_text().splitlines()]
    assert {line["probe"] for line in shown} == {"contains", "choice"}
    for line in shown:
        assert (line["before"], line["after"]) == (
            before[line["probe"]][line["id"]]["said"], after[line["probe"]][line["id"]]["said"],
        )  # fmt: skip
        assert (before[line["probe"]][line["id"]]["score"], after[line["probe"]][line["id"]]["score"]) == (1, 0)


def test_the_answers_to_one_file_are_generated_once(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And those of one length in one go."""
    asked: list[tuple[int, int]] = []
    true = measuring.generate_ids

    def counted(bench: Bench, rows: list[list[int]], tokens: int) -> list[list[int]]:
        asked.append((len(rows), tokens))
        return true(bench, rows, tokens)

    monkeypatch.setattr(measuring, "generate_ids", counted)
    named = {name: PROBES[name] for name in ("contains", "right", "regex", "share")}
    found = [probe for probe in load(folder, named) if isinstance(probe, probes.Own)]
    measuring.lines(Bench(model, tokenizer, autocast=False), found)
    assert asked == [(N, TOKENS)]


def test_a_model_without_a_chat_template_reads_a_text_as_it_is_and_a_conversation_written_out() -> None:
    bare = models.lab_tokenizer()
    bare.chat_template = None
    talk: list[dict[str, Any]] = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "2 + 2?"}]
    items = [OwnItem(str(n), prompt, "4", (), Place("x", 1)) for n, prompt in enumerate(["2 + 2 =", talk])]
    written_out = "Instructions: Be short.\nUser: 2 + 2?\nAssistant:"
    assert measuring.prompts(items, bare) == bare(["2 + 2 =", written_out])["input_ids"]


@pytest.mark.parametrize(
    ("answer", "said", "right"),
    [
        ("Paris", "It is PARIS.", True),
        ("New  York", "in new\nyork, of course", True),
        ("Straße", "die STRASSE", True),
        ("Paris", "Pari s", False),
    ],
)
def test_contains_folds_case_and_space(answer: str, said: str, right: bool) -> None:
    assert scoring.contains(OwnItem("1", "?", answer, (), Place("x", 1)), said) == right


# what `evaluate` computes


@pytest.fixture(scope="module")
def by_metrics(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory
) -> Lines:
    out = tmp_path_factory.mktemp("metrics")
    measure(Bench(model, tokenizer, autocast=False), load(folder, METRICS), out, base=None)
    return lines_of(out)


def test_a_metric_scores_as_evaluate_itself_does(folder: Path, by_metrics: Lines, said: list[str]) -> None:
    import evaluate

    wanted = [row["answer"] for row in rows_of(folder)]
    itself = evaluate.load(str(folder / "several" / "several.py")).compute(predictions=said, references=wanted)
    assert 0 < itself["same"] < itself["begun"] < 1
    for probe, key in (("same", "same"), ("begun", "begun")):
        mean = sum(scores(by_metrics, probe)) / N
        assert mean == pytest.approx(itself[key])


def test_which_number_counts_has_to_be_said(folder: Path) -> None:
    path = str(folder / "several" / "several.py")
    item = OwnItem("1", "?", "4", (), Place("items.jsonl", 7))
    for field, what, remedy in (
        (None, "gives same, begun", "name one of these as `field`"),
        ("f1", "gives no 'f1'", "choose one of these as `field`: same, begun"),
    ):
        score = scoring.of(Scorer("evaluate", path, "several", field))
        with pytest.raises(AlignError) as raised:
            score(item, "4")
        assert str(raised.value) == (
            f"the metric 'several' of `evaluate` {what} for the item items.jsonl:7\n  -> {remedy}"
        )


# a scorer that fails


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return completion.x", "raised AttributeError: 'str' object has no attribute 'x' (line 2)"),
        ("return 'yes'", "returned 'yes'"),
        ("return None", "returned None"),
        ("return 37.2", "returned 37.2"),
        ("return float('nan')", "returned nan"),
        ("raise SystemExit(3)", "raised SystemExit: 3 (line 2)"),
    ],
)  # fmt: skip
def test_a_scorer_that_fails_names_the_item(body: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "score.py").write_text(f"def right(completion):\n    {body}\n", encoding="utf-8")
    score = scoring.of(Scorer("function", str(tmp_path / "score.py"), "right"))
    with pytest.raises(AlignError) as raised:
        score(OwnItem("1", "?", "4", (), Place("items.jsonl", 12)), "4")
    remedy = "correct it" if "raised" in said else "return True, False or a number from 0 to 1"
    assert str(raised.value) == f"the scorer 'right' of score.py {said} for the item items.jsonl:12\n  -> {remedy}"
    assert raised.value.exit == 1


def test_a_scorer_may_import_what_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "of_mine.py").write_text("WORDS = 2\n", encoding="utf-8")
    (tmp_path / "lengths.py").write_text(
        textwrap.dedent("""
            import of_mine
            def short(completion): return len(completion.split()) <= of_mine.WORDS
        """),
        encoding="utf-8",
    )
    score = scoring.of(Scorer("function", str(tmp_path / "lengths.py"), "short"))
    item = OwnItem("1", "?", "", (), Place("items.jsonl", 12))
    assert (score(item, "two words"), score(item, "these are three")) == (1, 0)
