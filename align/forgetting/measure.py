"""Measure a model on probes, item by item, and write what was found."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from align.data import encode
from align.data.tokenizer import TextTokenizer
from align.forgetting.battery import answering
from align.forgetting.battery.answering import Answer
from align.forgetting.battery.skill import Item
from align.forgetting.bench import Bench, encode_questions, exact, generate, generate_ids, hits_of, likelihoods
from align.forgetting.measurements import Split
from align.forgetting.own import measuring as own_probes
from align.forgetting.own.items import OwnItem
from align.forgetting.own.kinds import Answered, Chosen, Own
from align.forgetting.probes import SPLITS, Agreement, Battery, Exact, Graded, Probe, Texts
from align.forgetting.records import BrokenAnswer, Sample
from align.run_folder import files

ANSWER_TOKENS = 32  # of a graded answer
AGREEMENT_TOKENS = 24  # of the base's own answer
BROKEN_SHOWN = 4  # a probe, of the answers that were right before
SAMPLES_SHOWN = 8

Record = dict[str, Any]


def measure(bench: Bench, probes: Sequence[Probe], folder: Path, *, base: Path | None) -> Record:
    """Run all probes and write `summary.json`, `items.jsonl`, `samples.jsonl` and, against `base`, `broken.jsonl`.

    Args:
        base: the measurement folder of the base model, when this is not the base itself.

    Returns:
        the content of summary.json.
    """
    started, cpu = time.monotonic(), time.process_time()
    was_training = bench.model.training
    bench.model.eval()
    if base is not None:
        bench.own_answers = files.read_json(base / "own_answers.json", {})
    with torch.inference_mode():
        right = _answered(bench, [probe for probe in probes if isinstance(probe, Exact)])
        answered = _battery(bench, [probe for probe in probes if isinstance(probe, Battery)])
        own = own_probes.lines(bench, [probe for probe in probes if isinstance(probe, Own)])
        for probe in probes:
            _run(bench, probe, right, answered, own)
        broken = _broken(bench, probes, base) if base is not None else []
    bench.model.train(was_training)
    if base is None and bench.own_answers:
        files.write_json(folder / "own_answers.json", bench.own_answers)
    _write_lines(folder / "items.jsonl", bench.items)
    _write_lines(folder / "samples.jsonl", [sample.written() for sample in bench.samples])
    _write_lines(folder / "broken.jsonl", [answer.written() for answer in broken])
    summary = {
        "probes": _describe(probes),
        "scores": _scores(bench.items),
        "seconds": time.monotonic() - started,
        "cpu_seconds": time.process_time() - cpu,
    }
    files.write_json(folder / "summary.json", summary)
    return summary


def _answered(bench: Bench, probes: Sequence[Exact]) -> dict[tuple[str, str], bool]:
    """Whether each question was answered right, by split and id: of all probes in one go, so that rows of one length
    share a batch."""
    asked: list[tuple[Split, str]] = []
    prompts: list[list[int]] = []
    answers: list[list[int]] = []
    for probe in probes:
        for split, questions in probe.items.items():
            key = (probe.name, split)
            if key not in bench.encoded:
                bench.encoded[key] = encode_questions(bench.tokenizer, questions)
            asked += [(split, question.id) for question in questions]
            prompts += bench.encoded[key][0]
            answers += bench.encoded[key][1]
    return dict(zip(asked, exact(bench, (prompts, answers)), strict=True))


def _battery(bench: Bench, probes: Sequence[Battery]) -> dict[str, list[Answer]]:
    """The answers to the skills of the general battery, by skill."""
    found: dict[str, list[Answer]] = {probe.name: [] for probe in probes}
    for probe in probes:
        if probe.name not in bench.asked:
            bench.asked[probe.name] = answering.encode(probe, bench.tokenizer)
    asked = [(probe, bench.asked[probe.name]) for probe in probes]

    def texts(prompts: Sequence[list[int]], tokens: int) -> list[str]:
        made = generate_ids(bench, prompts, tokens)
        return [bench.tokenizer.decode(ids, skip_special_tokens=True) for ids in made]

    pad = bench.tokenizer.pad_token_id
    for answer in answering.answers(bench.model, asked, texts, pad=pad, autocast=bench.autocast):
        found[answer.probe].append(answer)
    return found


def _run(
    bench: Bench,
    probe: Probe,
    right: Mapping[tuple[str, str], bool],
    answered: Mapping[str, list[Answer]],
    own: Mapping[str, list[Record]],
) -> None:
    if isinstance(probe, Graded):
        _graded(bench, probe)
        return
    if isinstance(probe, Battery):
        bench.items += [answer.line() for answer in answered[probe.name]]
        return
    if isinstance(probe, Own):
        bench.items += own[probe.name]
        return
    for split in SPLITS:
        if isinstance(probe, Exact):
            for question in probe.items[split]:
                score = int(right[split, question.id])
                bench.items.append({"probe": probe.name, "split": split, "id": question.id, "score": score})
        elif isinstance(probe, Texts):
            for i, (nll, tokens) in enumerate(likelihoods(bench, probe.texts[split])):
                if tokens > 0:  # a text of one token predicts nothing
                    item = {"probe": probe.name, "split": split, "id": f"text-{i}", "nll": nll, "tokens": tokens}
                    bench.items.append(item)
        else:
            _agreement(bench, probe, split)


def _graded(bench: Bench, probe: Graded) -> None:
    asked = [(split, question) for split in SPLITS for question in probe.items[split]]
    answers = generate(bench, [question.prompt for _, question in asked], ANSWER_TOKENS)
    shown = {question.id for question in probe.items["report"][:SAMPLES_SHOWN]}
    for (split, question), ids in zip(asked, answers, strict=True):
        text = bench.tokenizer.decode(ids, skip_special_tokens=True).strip()
        grades = probe.grade(split, question.id, text)
        for name in probe.measures:
            item = {"probe": f"{probe.name} {name}", "split": split, "id": question.id, "score": int(grades[name])}
            bench.items.append(item)
        if split == "report" and question.id in shown:
            sample = Sample(
                probe=probe.name, split=split, id=question.id, prompt=question.prompt, output=text, marks=grades
            )
            bench.samples.append(sample)


def _agreement(bench: Bench, probe: Agreement, split: Split) -> None:
    questions = probe.items[split]
    missing = [question for question in questions if question.id not in bench.own_answers]
    for question, ids in zip(missing, generate(bench, [q.prompt for q in missing], AGREEMENT_TOKENS), strict=True):
        bench.own_answers[question.id] = ids
    prompts = encode.prompt_ids([question.prompt for question in questions], TextTokenizer.of(bench.tokenizer))
    answers = [bench.own_answers[question.id] for question in questions]
    for question, hits in zip(questions, hits_of(bench, prompts, answers), strict=True):
        score = sum(hits) / len(hits) if hits else 1.0
        bench.items.append({"probe": probe.name, "split": split, "id": question.id, "score": round(score, 6)})


def _broken(bench: Bench, probes: Sequence[Probe], base: Path) -> list[BrokenAnswer]:
    """Answers of skills that the base had right and this model has wrong, written out."""
    before = {(r["probe"], r["split"], r["id"]): r for r in _read_lines(base / "items.jsonl")}
    now = {(r["probe"], r["split"], r["id"]): r for r in bench.items}
    out: list[BrokenAnswer] = []
    for probe in probes:
        if isinstance(probe, Exact | Battery | Answered | Chosen):
            here = [key for key in now if key[:2] == (probe.name, "report")]
            lost = [key for key in here if before.get(key, {}).get("score") and not now[key]["score"]][:BROKEN_SHOWN]
            shown = _exact_answers(bench, probe, lost) if isinstance(probe, Exact) else _said(probe, lost, before, now)
            out += shown
    return out


Key = tuple[str, Split, str]  # probe, split, id


def _exact_answers(bench: Bench, probe: Exact, lost: Sequence[Key]) -> list[BrokenAnswer]:
    """What the model answers now, generated."""
    by_id = {question.id: question for question in probe.items["report"]}
    questions = [by_id[id] for _, _, id in lost]
    answers = generate(bench, [q.prompt for q in questions], ANSWER_TOKENS) if questions else []
    texts = [bench.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in answers]
    return [
        BrokenAnswer(
            probe=probe.name, id=q.id, split="report", prompt=q.prompt, answer=q.answer, before=q.answer, after=text
        )
        for q, text in zip(questions, texts, strict=True)
    ]


def _said(
    probe: Battery | Answered | Chosen, lost: Sequence[Key], before: Mapping[Key, Record], now: Mapping[Key, Record]
) -> list[BrokenAnswer]:
    """What both said, as measured."""
    found = []
    for key in lost:
        item: Item | OwnItem = probe.items["report"][key[2]]
        prompt = "\n".join(message["content"] for message in item.messages)
        found.append(
            BrokenAnswer(
                probe=probe.name,
                id=key[2],
                split="report",
                prompt=prompt,
                answer=item.answer,
                before=before[key].get("said", ""),
                after=now[key].get("said", ""),
            )
        )
    return found


def _describe(probes: Sequence[Probe]) -> Record:
    out: Record = {}
    accuracy = {"metric": "accuracy", "higher_is_better": True}
    for probe in probes:
        if isinstance(probe, Texts):
            out[probe.name] = {"metric": "perplexity", "higher_is_better": False, "kind": "text", "replayed": None}
        elif isinstance(probe, Graded):
            out |= {f"{probe.name} {name}": {**accuracy, "kind": "task", "replayed": None} for name in probe.measures}
        elif isinstance(probe, Battery):
            out[probe.name] = {**accuracy, "kind": "skill", "replayed": None, "chance": probe.skill.chance}
        elif isinstance(probe, Own):
            out[probe.name] = {**accuracy, "kind": "skill", "replayed": None, "chance": own_probes.chance(probe)}
        elif isinstance(probe, Exact):
            out[probe.name] = {**accuracy, "kind": probe.kind, "replayed": probe.replayed, "chance": 0.0}
        else:
            out[probe.name] = {**accuracy, "kind": "agreement", "replayed": None}
    return out


def _scores(items: Sequence[Record]) -> Record:
    groups: dict[str, dict[str, list[Record]]] = {}
    for item in items:
        groups.setdefault(item["split"], {}).setdefault(item["probe"], []).append(item)
    return {
        split: {probe: {"score": _score(rows), "n": len(rows)} for probe, rows in probes.items()}
        for split, probes in groups.items()
    }


def _score(rows: list[Record]) -> float:
    if "nll" in rows[0]:
        mean = sum(r["nll"] for r in rows) / max(sum(r["tokens"] for r in rows), 1)
        return float(torch.tensor(mean, dtype=torch.float64).exp())
    return float(sum(r["score"] for r in rows) / len(rows))


def _write_lines(path: Path, records: Sequence[Record]) -> None:
    files.write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def _read_lines(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
