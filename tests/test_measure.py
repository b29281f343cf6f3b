"""Measuring a model: one pass instead of one a token, and it gives what real generation gives."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import processors
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

import models
from align.forgetting import bench as bench_
from align.forgetting import latency, measurements, probes
from align.forgetting import measure as measuring
from align.forgetting.battery import likelihoods
from align.forgetting.battery.skill import Item, Skill, user
from align.forgetting.bench import Bench
from align.forgetting.keys import ForgettingKeys
from align.forgetting.probes import Battery, Exact, Graded, Probe, Question, Texts
from align.lab import MODEL_DIR, skills
from align.lab import probes as lab

ITEMS = 60


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return models.lab_tokenizer()


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    """The lab model, in float32, so that no tie is broken by rounding."""
    return AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def worse(model: PreTrainedModel) -> PreTrainedModel:
    """The same after a shake: it has about half of the answers right still."""
    shaken = copy.deepcopy(model)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in shaken.parameters():
            parameter += 0.5 * parameter.std() * torch.randn_like(parameter)
    return shaken


@pytest.fixture
def bench(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Bench:
    return Bench(model, tokenizer, autocast=False)


def questions(skill: str, split: Any = "report", n: int = ITEMS) -> list[Question]:
    return [Question(item.id, item.prompt, item.answer) for item in lab.items(skill, split)[:n]]


@torch.no_grad()
def greedy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: list[Question], tokens: int
) -> list[tuple[list[int], bool]]:
    """What `generate` of transformers writes after each question, and whether it ended by itself."""
    chats = [[{"role": "user", "content": question.prompt}] for question in asked]
    rows = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, return_dict=True, padding=True, padding_side="left", return_tensors="pt"
    )
    made = model.generate(**rows, max_new_tokens=tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    out = []
    for row in made[:, rows["input_ids"].shape[1] :].tolist():
        ended = tokenizer.eos_token_id in row
        out.append((row[: row.index(tokenizer.eos_token_id)] if ended else row, ended))
    return out


def said(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True).strip()


def right(tokenizer: PreTrainedTokenizerBase, question: Question, made: tuple[list[int], bool]) -> bool:
    """The answer and its end, without another mark before or within it."""
    ids, ended = made
    return ended and tokenizer.decode(ids).strip() == question.answer


@pytest.mark.parametrize("skill", skills.SKILLS)
def test_exact_is_what_greedy_generation_says(
    skill: str, bench: Bench, worse: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    asked = questions(skill)
    for judged in (bench.model, worse):
        found = bench_.exact(Bench(judged, tokenizer, autocast=False), bench_.encode_questions(tokenizer, asked))
        generated = greedy(judged, tokenizer, asked, 32)
        expected = [right(tokenizer, *pair) for pair in zip(asked, generated, strict=True)]
        assert found == expected
        if judged is bench.model:
            assert sum(expected) > ITEMS / 2, "the base has most of them right"


def test_the_shaken_model_has_right_and_wrong_answers(
    worse: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Otherwise the comparison with greedy generation would compare little."""
    asked = [question for skill in skills.SKILLS for question in questions(skill, n=20)]
    found = bench_.exact(Bench(worse, tokenizer, autocast=False), bench_.encode_questions(tokenizer, asked))
    assert 20 < sum(found) < len(found) - 20


def test_an_answer_that_does_not_end_is_wrong(bench: Bench, tokenizer: PreTrainedTokenizerBase) -> None:
    [whole] = questions("copy", n=1)
    half = Question(whole.id, whole.prompt, whole.answer.rpartition(" ")[0])
    assert bench_.exact(bench, bench_.encode_questions(tokenizer, [whole, half])) == [True, False]


def test_likelihoods_are_those_of_each_text_alone(bench: Bench, tokenizer: PreTrainedTokenizerBase) -> None:
    texts = [*lab.stories("report")[:12], "A", " ".join(lab.stories("gate")[:40])]
    for text, (nll, tokens) in zip(texts, bench_.likelihoods(bench, texts), strict=True):
        ids = tokenizer(text)["input_ids"][:256]
        assert ids[0] == tokenizer.bos_token_id and ids[-1] != tokenizer.eos_token_id
        with torch.no_grad():
            logits = bench.model(input_ids=torch.tensor([ids])).logits[0].double()
        direct = -logits[:-1].log_softmax(-1)[range(len(ids) - 1), ids[1:]].sum().item()
        assert tokens == len(ids) - 1
        assert nll == pytest.approx(direct, rel=1e-5)
    assert bench_.likelihoods(bench, texts[-1:])[0][1] == 255, "a longer text is cut where the model ends"


def test_what_a_tokenizer_puts_around_a_text_is_not_counted() -> None:
    """Here it puts two marks before a text and one after it; the words are the same with and without them."""
    wrapping = models.merging_tokenizer(None)
    marks = [("<s>", 0), ("<|im_start|>", 3), ("</s>", 1)]
    wrapping._tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> <|im_start|> $A </s>", special_tokens=marks
    )
    text = "What is 7 plus 2?"
    bare = wrapping(text, add_special_tokens=False)["input_ids"]
    assert wrapping(text)["input_ids"] == [0, 3, *bare, 1]
    rows, firsts = bench_.text_ids(wrapping, [text, "<s>" + text])
    assert rows == [[0, 3, *bare], [0, *bare]], "and a mark that the text begins with is not doubled"
    assert firsts == [2, 1]


def test_only_the_text_counts_behind_two_marks() -> None:
    wrapping, tiny = models.merging_tokenizer(None), models.tiny_llama()
    wrapping._tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> <|im_start|> $A </s>", special_tokens=[("<s>", 0), ("<|im_start|>", 3), ("</s>", 1)]
    )
    text = "What is 7 plus 2?"
    bare = wrapping(text, add_special_tokens=False)["input_ids"]
    ids = [0, 3, *bare]
    with torch.no_grad():
        known = tiny(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    by_hand = -sum(known[at - 1, ids[at]].item() for at in range(2, len(ids)))
    [(nll, tokens)] = bench_.likelihoods(Bench(tiny, wrapping, autocast=False), [text])
    assert tokens == len(bare)
    assert nll == pytest.approx(by_hand, rel=1e-5)


def test_batches_do_not_matter(
    bench: Bench, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, texts = questions("copy", n=20) + questions("extract", n=20), lab.stories("report")[:20]
    found = bench_.exact(bench, bench_.encode_questions(tokenizer, asked))
    nlls = bench_.likelihoods(bench, texts)
    answers = bench_.generate(bench, [q.prompt for q in asked[:12]], 16)
    for budget in (2**26, 2**17):  # all at once, and one or two at a time
        monkeypatch.setattr(bench_, "LOGIT_BUDGET", budget)
        monkeypatch.setitem(likelihoods.NODES, "cpu", budget // 2**10)
        monkeypatch.setattr(bench_, "ANSWERS", budget // 2**15)
        assert bench_.exact(bench, bench_.encode_questions(tokenizer, asked[::-1]))[::-1] == found
        again = bench_.likelihoods(bench, texts[::-1])[::-1]
        assert [tokens for _, tokens in again] == [tokens for _, tokens in nlls]
        assert [nll for nll, _ in again] == pytest.approx([nll for nll, _ in nlls], rel=1e-5)
        assert bench_.generate(bench, [q.prompt for q in asked[11::-1]], 16)[::-1] == answers


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 8.0},
        {"min_new_tokens": 20},
        {"no_repeat_ngram_size": 2},
        {"eos_token_id": "two"},
        {"suppress_tokens": "said"},
        {"do_sample": True, "temperature": 0.3, "top_k": 5},
    ],
    ids=lambda settings: "-".join(settings),
)
@pytest.mark.parametrize("adapted", [False, True], ids=["whole", "adapted"])
def test_answers_are_plain_whatever_the_model_s_own_settings_say(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any], adapted: bool
) -> None:
    base: Any = copy.deepcopy(model)
    asked = questions("extract", n=8)
    plain = greedy(base, tokenizer, asked, 24)
    if settings == {"eos_token_id": "two"}:  # answers end at a token in their middle, too
        other, whole = next(ids[1] for ids, _ in plain if len(ids) > 2), plain
        settings = {"eos_token_id": [tokenizer.eos_token_id, other]}
        plain = [(ids[: ids.index(other)] if other in ids else ids, ended) for ids, ended in plain]
        assert plain != whole
    if settings == {"suppress_tokens": "said"}:
        settings = {"suppress_tokens": [ids[0] for ids, _ in plain]}
    own = GenerationConfig(**{"eos_token_id": tokenizer.eos_token_id, **settings})
    base.generation_config = own
    if adapted:
        base = get_peft_model(base, LoraConfig(target_modules=["q_proj"]))
    with torch.inference_mode():
        found = bench_.generate(Bench(base, tokenizer, autocast=False), [question.prompt for question in asked], 24)
    assert found == [ids for ids, _ in plain]
    assert base.generation_config is own, "the settings are left as they were"


def battery_of(lab_skill: str, scorer: Any) -> Battery:
    """Questions of the lab as a skill of the battery: its answer beside three others, or checked."""
    answers = [question.answer for question in questions(lab_skill, n=40)]

    def made(split: Any) -> dict[str, Item]:
        found = {}
        for number, question in enumerate(questions(lab_skill, split, 20)):
            others = [answer for answer in dict.fromkeys(answers[number:] + answers) if answer != question.answer]
            choices = (question.answer, *others[:3]) if scorer == "choice" else ()
            found[question.id] = Item((user(question.prompt),), question.answer, choices)
        return found

    skill = Skill("lab", list, scorer, (), 0.25, lambda item, said: said == item.answer, 16)
    return Battery(lab_skill, skill, {"gate": made("gate"), "report": made("report")})


def test_the_battery_is_scored_item_by_item(
    bench: Bench, worse: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """By hand: the likeliest choice by one plain pass each, and the greedy answer of transformers' own generation."""
    probes_ = [battery_of("facts", "choice"), battery_of("reverse", "check")]
    for name, model in (("base", bench.model), ("worse", worse)):
        base = tmp_path / "base" if name == "worse" else None
        measuring.measure(Bench(model, tokenizer, autocast=False), probes_, tmp_path / name, base=base)
        found = {(item["probe"], item["split"], item["id"]): item for item in lines(tmp_path / name / "items.jsonl")}
        assert len(found) == 80
        for id, item in probes_[0].items["report"].items():
            prompt = tokenizer.apply_chat_template(list(item.messages), add_generation_prompt=True, tokenize=False)
            asked = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            scores = []
            for choice in item.choices:
                ids = tokenizer(prompt + choice, add_special_tokens=False)["input_ids"]
                with torch.no_grad():
                    log_probs = torch.log_softmax(model(torch.tensor([ids])).logits[0], -1)
                scores.append(sum(float(log_probs[at - 1, ids[at]]) for at in range(len(asked), len(ids))))
            line = found["facts", "report", id]
            assert line["said"] == item.choices[scores.index(max(scores))]
            assert line["score"] == int(line["said"] == item.answer)
            assert line["p"] == pytest.approx(float(torch.softmax(torch.tensor(scores), 0)[0]), abs=1e-4)
        said = greedy(model, tokenizer, questions("reverse", n=20), 16)
        for (ids, _), question in zip(said, questions("reverse", n=20), strict=True):
            line = found["reverse", "report", question.id]
            assert line["said"] == tokenizer.decode(ids, skip_special_tokens=True).strip()
            assert line["score"] == int(line["said"] == question.answer)
    before, after = (
        {
            (item["probe"], item["id"]): item
            for item in lines(tmp_path / name / "items.jsonl")
            if item["split"] == "report"
        }
        for name in ("base", "worse")
    )
    broken = lines(tmp_path / "worse" / "broken.jsonl")
    assert broken
    for line in broken:
        key = line["probe"], line["id"]
        assert before[key]["score"] == 1 and after[key]["score"] == 0
        assert (line["before"], line["after"]) == (before[key]["said"], after[key]["said"])
    gained = [key for key in after if after[key]["score"] and not before[key]["score"]]
    mended = lines(tmp_path / "worse" / "mended.jsonl")
    assert {(line["probe"], line["id"]) for line in mended} <= set(gained)
    assert len(mended) == sum(min(4, sum(key[0] == name for key in gained)) for name in {key[0] for key in gained})
    assert all(line["after"] == after[line["probe"], line["id"]]["said"] for line in mended)
    assert not (tmp_path / "base" / "mended.jsonl").exists()


def test_answers_are_timed_one_at_a_time(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine of the probes in turn, after one that does not count; the clock says 1 s, then 2 s and so on."""
    found: list[Probe] = [
        Exact(name, "skill", {"gate": questions(name, "gate", 10), "report": []}) for name in ("copy", "sort")
    ]
    asked: list[str] = []

    def generate(bench: Bench, rows: list[list[int]], tokens: int) -> list[list[int]]:
        assert tokens == latency.TOKENS and torch.is_inference_mode_enabled() and not bench.model.training
        asked.extend(bench.tokenizer.decode(row) for row in rows)
        return [[] for _ in rows]

    ticks = iter([0.0, 100.0, *(value for n in range(1, 10) for value in (0.0, float(n)))])
    monkeypatch.setattr(latency, "generate_ids", generate)
    monkeypatch.setattr(latency.time, "perf_counter", lambda: next(ticks))
    timed = latency.measured(bench, found)
    assert timed.written() == {"seconds": 5.0, "answers": 9, "most_tokens": 32}
    first, second = (probe.items["gate"][0].prompt for probe in found if isinstance(probe, Exact))
    assert first in asked[0] and first in asked[1] and second in asked[2] and len(asked) == 10
    monkeypatch.undo()
    assert 0 < (latency.measured(bench, found).seconds or 0) < 5
    texts: list[Probe] = [Texts("stories", {"gate": ["a b"], "report": ["c d"]})]
    assert latency.measured(bench, texts).written() == {}, "running text asks nothing"


def test_broken_answers_were_right_before_and_are_wrong_now(
    bench: Bench, worse: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    found = [
        Exact(name, "skill", {"gate": questions(name, "gate", 10), "report": questions(name, "report", 30)})
        for name in ("copy", "extract", "larger", "sort")
    ]
    measuring.measure(bench, found, tmp_path / "base", base=None)
    measuring.measure(Bench(worse, tokenizer, autocast=False), found, tmp_path / "after", base=tmp_path / "base")
    shown = lines(tmp_path / "after" / "broken.jsonl")
    assert (tmp_path / "base" / "broken.jsonl").read_text() == ""
    for probe in found:
        asked = probe.items["report"]
        before, after = (
            [right(tokenizer, *pair) for pair in zip(asked, made, strict=True)]
            for made in (greedy(bench.model, tokenizer, asked, 32), greedy(worse, tokenizer, asked, 32))
        )
        lost = [question.id for question, was, now in zip(asked, before, after, strict=True) if was and not now]
        mine = [row for row in shown if row["probe"] == probe.name]
        assert [row["id"] for row in mine] == lost[:4]
        for row in mine:
            [question] = [q for q in asked if q.id == row["id"]]
            [(ids, _)] = greedy(worse, tokenizer, [question], 32)
            assert (row["prompt"], row["answer"], row["before"]) == (question.prompt, question.answer, question.answer)
            assert row["after"] == said(tokenizer, ids)
    assert len(shown) >= 4, "something broke"


def test_what_is_written(bench: Bench, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    graded: list[tuple[str, str, str]] = []

    def grade(split: str, id: str, text: str) -> dict[str, bool]:
        graded.append((split, id, text))
        return {"short": len(text) < 8, "empty": not text}

    parts: Any = ("gate", "report")
    stories = {split: lab.stories(split)[:5] for split in parts}
    asked = {split: questions("add", split, 10) for split in parts}
    found = [
        Exact("add", "skill", asked, replayed=False),
        Texts("stories", stories),
        Graded("desk", asked, ("short", "empty"), grade),
    ]
    bench.model.train()
    summary = measuring.measure(bench, found, tmp_path, base=None)
    assert bench.model.training, "the model is left as it was"
    bench.model.eval()
    written = json.loads((tmp_path / "summary.json").read_text())
    assert {name: value for name, value in written.items() if name not in ("files", "seal")} == summary
    assert measurements.is_whole(tmp_path)
    items = lines(tmp_path / "items.jsonl")
    for split in parts:
        scores = summary["scores"][split]
        for name in ("add", "desk short", "desk empty"):
            mine = [item for item in items if (item["probe"], item["split"]) == (name, split)]
            assert [item["id"] for item in mine] == [question.id for question in asked[split]]
            assert scores[name] == {"score": sum(item["score"] for item in mine) / 10, "n": 10}
        mine = [item for item in items if (item["probe"], item["split"]) == ("stories", split)]
        mean = sum(item["nll"] for item in mine) / sum(item["tokens"] for item in mine)
        assert scores["stories"]["score"] == pytest.approx(math.exp(mean))
        answers = {id: text for where, id, text in graded if where == split}
        generated = greedy(bench.model, tokenizer, asked[split], measuring.ANSWER_TOKENS)
        assert list(answers.values()) == [said(tokenizer, ids) for ids, _ in generated]
    described = {name: (probe["metric"], probe["higher_is_better"]) for name, probe in summary["probes"].items()}
    assert described == {
        "add": ("accuracy", True),
        "stories": ("perplexity", False),
        "desk short": ("accuracy", True),
        "desk empty": ("accuracy", True),
    }
    assert [sample["id"] for sample in lines(tmp_path / "samples.jsonl")] == [q.id for q in asked["report"]][:8]


def test_the_probes_of_the_lab_are_its_items() -> None:
    loaded = probes.load(ForgettingKeys(probes="lab"), Path.cwd(), replays=True)
    exact = {probe.name: probe for probe in loaded if isinstance(probe, Exact)}
    assert set(exact) == set(skills.SKILLS)
    for name, probe in exact.items():
        assert probe.items["report"][:ITEMS] == questions(name)
        assert not {q.id for q in probe.items["gate"]} & {q.id for q in probe.items["report"]}
    assert [name for name, probe in exact.items() if probe.replayed is False] == ["reverse", "larger"]
    bare = [p for p in probes.load(ForgettingKeys(probes="lab"), Path.cwd()) if isinstance(p, Exact)]
    assert {probe.replayed for probe in bare} == {None}, "nothing is replayed, so nothing is told apart by it"
    assert probes.load(ForgettingKeys(probes="none"), Path.cwd()) == []
