"""Measure a model on probes, item by item, and write what was found."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Sized
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from align.forgetting import content
from align.forgetting.battery import answering
from align.forgetting.battery.answering import Answer
from align.forgetting.bench import ANSWER_TOKENS, Bench, encode_questions, exact, generate, generate_ids, likelihoods
from align.forgetting.broken import broken
from align.forgetting.measurements import Split
from align.forgetting.mended import mended
from align.forgetting.own import measuring as own_probes
from align.forgetting.own.kinds import Own, Task
from align.forgetting.probes import SPLITS, Battery, Exact, Graded, Probe, Texts, called, part
from align.forgetting.records import BrokenAnswer, MendedAnswer, Sample
from align.run_folder import files, heartbeats

SAMPLES_SHOWN = 8

Record = dict[str, Any]


def measure(
    bench: Bench,
    probes: Sequence[Probe],
    folder: Path,
    *,
    base: Path | None,
    splits: Collection[Split] = SPLITS,
    only: Collection[str] | None = None,
    tell: Callable[[int, int], None] | None = None,
) -> Record:
    """Run all probes and write `summary.json`, `items.jsonl`, `samples.jsonl` and, against `base`, `broken.jsonl` and
    `mended.jsonl`.

    Args:
        base: the measurement folder of the base model, when this is not the base itself.
        splits: the halves that are measured; answers are written out of the report's.
        only: the names of the probes that are measured, where not all are.
        tell: is told how many rows of how many have been gone through.

    Returns:
        the content of summary.json.
    """
    started, cpu = time.monotonic(), time.process_time()
    probes = [part(probe, splits) for probe in probes if only is None or set(called(probe)) & set(only)]
    if tell is not None:
        bench.share = replace(bench.share, passed=_Progress(tell, _rows(probes)))
    before = _read_lines(base / "items.jsonl") if base is not None and "report" in splits else None
    was_training = bench.model.training
    bench.model.eval()
    try:
        with torch.inference_mode(), heartbeats.during("measuring"):
            _run_all(bench, probes, splits)
            lost = broken(bench, probes, before or [])
    finally:
        bench.model.train(was_training)
    summary: Record = {"probes": _describe(probes), "scores": _scores(bench.items)}
    summary |= {"seconds": time.monotonic() - started, "cpu_seconds": time.process_time() - cpu}
    if base is not None and (base / "items.jsonl").is_file():
        summary["against"] = files.file_sha256(base / "items.jsonl")  # by which answers broke and were mended
    if bench.share.first:
        _write(bench, folder, splits, lost, None if before is None else mended(probes, before, bench.items))
        held = {name: files.file_sha256(folder / name) for name in WRITTEN if (folder / name).is_file()}
        files.write_json(folder / "summary.json", files.sealed({**summary, "files": held}))  # last
    return summary


WRITTEN = ("items.jsonl", "samples.jsonl", "broken.jsonl", "mended.jsonl")


def _write(
    bench: Bench,
    folder: Path,
    splits: Collection[Split],
    lost: Sequence[BrokenAnswer],
    now_right: Sequence[MendedAnswer] | None,
) -> None:
    """The items, and of the report's half the answers that a reader sees."""
    _write_lines(folder / "items.jsonl", bench.items)
    if "report" in splits:
        _write_lines(folder / "samples.jsonl", [sample.written() for sample in bench.samples])
        _write_lines(folder / "broken.jsonl", [answer.written() for answer in lost])
    if now_right is not None:
        _write_lines(folder / "mended.jsonl", [answer.written() for answer in now_right])


def _run_all(bench: Bench, probes: Sequence[Probe], splits: Collection[Split]) -> None:
    """Put the items of all probes on the bench; what needs the same of the model runs in one go."""
    right = _answered(bench, [probe for probe in probes if isinstance(probe, Exact)])
    answered = _battery(bench, [probe for probe in probes if isinstance(probe, Battery)])
    own = own_probes.lines(bench, [probe for probe in probes if isinstance(probe, Own)])
    for probe in probes:
        _run(bench, probe, right, answered, own, splits)


class _Progress:
    """Adds up the rows of batches. What is generated of lost answers comes on top of what was foreseen."""

    def __init__(self, tell: Callable[[int, int], None], total: int) -> None:
        self.tell, self.total, self.done = tell, total, 0

    def __call__(self, rows: int) -> None:
        self.done = min(self.done + rows, self.total)
        self.tell(self.done, self.total)


def _rows(probes: Sequence[Probe]) -> int:
    """How many rows go through the model."""
    found = 0
    for probe in probes:
        if isinstance(probe, Task):
            continue  # of which only the harness knows
        halves: Iterable[Sized] = (probe.texts if isinstance(probe, Texts) else probe.items).values()
        found += sum(len(half) for half in halves)
    return found


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

    def texts(prompts: Sequence[list[int]], limits: Sequence[int]) -> list[str]:
        made = generate_ids(bench, prompts, max(limits))  # all in one go: a step costs little more for more rows
        cut = [ids[:limit] for ids, limit in zip(made, limits, strict=True)]
        return [bench.tokenizer.decode(ids, skip_special_tokens=True) for ids in cut]

    pad = bench.tokenizer.pad_token_id
    for answer in answering.answers(bench.model, asked, texts, pad=pad, autocast=bench.autocast, share=bench.share):
        found[answer.probe].append(answer)
    return found


def _run(
    bench: Bench,
    probe: Probe,
    right: Mapping[tuple[str, str], bool],
    answered: Mapping[str, list[Answer]],
    own: Mapping[str, list[Record]],
    splits: Collection[Split],
) -> None:
    if isinstance(probe, Graded):
        _graded(bench, probe)
        return
    if isinstance(probe, Battery):
        bench.items += [answer.line() for answer in answered[probe.name]]
        return
    if isinstance(probe, Own):
        bench.items += [line for line in own[probe.name] if line["split"] in splits]
        return
    for split in SPLITS:
        if isinstance(probe, Exact):
            for question in probe.items[split]:
                score = int(right[split, question.id])
                bench.items.append({"probe": probe.name, "split": split, "id": question.id, "score": score})
        else:
            for i, (nll, tokens) in enumerate(likelihoods(bench, probe.texts[split])):
                if tokens > 0:  # a text of one token predicts nothing
                    item = {"probe": probe.name, "split": split, "id": f"text-{i}", "nll": nll, "tokens": tokens}
                    bench.items.append(item)


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
        else:
            out[probe.name] = {**accuracy, "kind": probe.kind, "replayed": probe.replayed, "chance": 0.0}
        asked = content.digest(probe)
        for name in called(probe):
            out[name] |= {"sha256": asked}
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
