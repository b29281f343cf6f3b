"""Measure a model on probes, item by item, and write what was found.

An answer is exactly right under greedy decoding if and only if, with the right answer given, the most probable token
at each of its positions is the right one. That takes one forward pass instead of one a token;
benchmarks/measure.py holds that the two agree.
"""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from align.data import encode
from align.data.tokenizer import TextTokenizer
from align.forgetting.battery import answering
from align.forgetting.battery.answering import Answer
from align.forgetting.battery.likelihoods import Asked
from align.forgetting.measurements import Split
from align.forgetting.probes import SPLITS, Agreement, Battery, Exact, Graded, Probe, Question, Texts
from align.forgetting.records import BrokenAnswer, Sample
from align.policy import generation
from align.policy.unwrapped import unwrapped
from align.run_folder import files

ANSWER_TOKENS = 32  # of a graded answer
AGREEMENT_TOKENS = 24  # of the base's own answer
LOGIT_BUDGET = 2**26  # elements of one batch's logits: 128 MiB in bfloat16
TOKEN_BUDGET = 2**14  # tokens of one batch, padding included
ROWS = 512  # of one batch
BROKEN_SHOWN = 4  # a probe, of the answers that were right before
SAMPLES_SHOWN = 8

Record = dict[str, Any]
Encoded = tuple[list[list[int]], list[list[int]]]  # token ids of prompts, and of their answers


@dataclass
class Bench:
    """A model on the bench.

    Attributes:
        autocast: arithmetic precision of training, so that the same model is measured that was trained.
        encoded: token ids of (probe, split); share it between benches of one tokenizer, since rendering and
            tokenising the questions costs as much as answering them.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    autocast: bool
    items: list[Record] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    own_answers: dict[str, list[int]] = field(default_factory=dict)
    encoded: dict[tuple[str, Split], Encoded] = field(default_factory=dict)
    asked: dict[str, list[Asked]] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        found = next(self.model.parameters()).device
        assert isinstance(found, torch.device)
        return found

    def logits(self, ids: torch.Tensor, mask: torch.Tensor, first: int = 0) -> torch.Tensor:
        """Those of position `first` and after: (batch, tokens - first, vocabulary)."""
        # as positions rather than a number: of a slice the head's product is twice as slow
        keep = {"logits_to_keep": torch.arange(first, ids.shape[1], device=ids.device)} if self._keeps() else {}
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            found: torch.Tensor = self.model(input_ids=ids, attention_mask=mask, use_cache=False, **keep).logits
        return found if keep else found[:, first:]

    def _keeps(self) -> bool:
        """Whether the model can apply its head to the last positions alone, as most can."""
        return "logits_to_keep" in inspect.signature(unwrapped(self.model).forward).parameters


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
        for probe in probes:
            _run(bench, probe, right, answered)
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
    bench: Bench, probe: Probe, right: Mapping[tuple[str, str], bool], answered: Mapping[str, list[Answer]]
) -> None:
    if isinstance(probe, Graded):
        _graded(bench, probe)
        return
    if isinstance(probe, Battery):
        bench.items += [answer.line() for answer in answered[probe.name]]
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


def encode_questions(tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question]) -> Encoded:
    """Token ids of questions and their right answers, each answer through its end token."""
    asked, right = [question.prompt for question in questions], [question.answer for question in questions]
    return encode.question_ids(asked, right, TextTokenizer.of(tokenizer))


def exact(bench: Bench, questions: Encoded) -> list[bool]:
    """Whether greedy decoding would give exactly the right answer and end there, for each question."""
    return [all(hits) for hits in hits_of(bench, *questions)]


def hits_of(bench: Bench, prompts: Sequence[list[int]], answers: Sequence[list[int]]) -> list[list[bool]]:
    """For each answer token: whether it is the most probable one, given all before it."""
    out: list[list[bool]] = [[] for _ in prompts]
    rows = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    starts = [max(len(prompt) - 1, 0) for prompt in prompts]  # a token is predicted one position before it
    for batch, ids, mask in _batches(bench, rows, starts):
        where = [(k, starts[i] + t) for k, i in enumerate(batch) for t in range(len(answers[i]))]
        row, position = torch.tensor(where, dtype=torch.long, device=ids.device).reshape(-1, 2).unbind(1)
        first = min(starts[i] for i in batch)
        best = bench.logits(ids, mask, first)[row, position - first].argmax(-1)
        hits = iter((best == ids[row, position + 1]).tolist())
        for i in batch:
            out[i] = [next(hits) for _ in answers[i]]
    return out


def likelihoods(bench: Bench, texts: Sequence[str]) -> list[tuple[float, int]]:
    """Negative log-likelihood in nats and number of predicted tokens of each text: of the text alone.

    No end is appended, which a model may come to expect better or worse than the text goes on. What the tokenizer puts
    before a text is context, and does not count.
    """
    limit = getattr(bench.model.config, "max_position_embeddings", None)
    rows, firsts = text_ids(bench.tokenizer, texts)
    rows = [row[:limit] for row in rows]
    out: list[tuple[float, int]] = [(0.0, 0)] * len(rows)
    for batch, ids, mask in _batches(bench, rows, [0] * len(rows)):
        logits = bench.logits(ids, mask)[:, :-1].float()
        nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        for k, i in enumerate(batch):
            mask[k, : firsts[i]] = 0
        sums = (nll * mask[:, 1:]).sum(1).tolist()
        for k, i in enumerate(batch):
            out[i] = (sums[k], max(len(rows[i]) - firsts[i], 0))
    return out


def text_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> tuple[list[list[int]], list[int]]:
    """Token ids of texts, with what the tokenizer puts before a text and without what it puts after one; and the
    position of the first token of each that is predicted."""
    rows: list[list[int]] = []
    firsts: list[int] = []
    for text in texts:
        bare = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        whole = list(tokenizer(text)["input_ids"])
        lead = next((at for at in range(len(whole)) if whole[at : at + len(bare)] == bare), 0)
        if bare[:1] == [tokenizer.bos_token_id]:  # the text begins with the mark already
            lead = 0
        rows.append(whole[:lead] + bare)
        firsts.append(max(lead, 1))  # nothing stands before the very first
    return rows, firsts


def generate(bench: Bench, prompts: Sequence[str], tokens: int) -> list[list[int]]:
    """Greedy answers as token ids, without the end token, which follows where the answer ended by itself."""
    return generate_ids(bench, encode.prompt_ids(prompts, TextTokenizer.of(bench.tokenizer)), tokens)


def generate_ids(bench: Bench, rows: Sequence[list[int]], tokens: int) -> list[list[int]]:
    """The same, of prompts as token ids."""
    out: list[list[int]] = [[] for _ in rows]
    stop = generation.ends(bench.model, bench.tokenizer)
    greedy = generation.plain(stop, bench.tokenizer.pad_token_id, tokens)
    for batch, ids, mask in _batches(bench, rows, [len(row) for row in rows], left=True, extra=tokens):
        with (
            generation.settings(bench.model, greedy),
            torch.autocast(bench.device.type, dtype=torch.bfloat16, enabled=bench.autocast),
        ):
            made = bench.model.generate(input_ids=ids, attention_mask=mask)[:, ids.shape[1] :].tolist()
        for k, i in enumerate(batch):
            out[i] = generation.cut(made[k], stop)
    return out


def _batches(
    bench: Bench, rows: Sequence[list[int]], starts: Sequence[int], *, left: bool = False, extra: int = 0
) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
    """Rows of similar length together: their indices, ids and mask, both (batch, tokens).

    Args:
        starts: the first position of each row whose logits are wanted.
        left: pad on the left.
        extra: tokens that each row will grow by.
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    while order:
        batch = _fill(bench, rows, starts, order, extra)
        longest = max(len(rows[i]) for i in batch)
        pad = bench.tokenizer.pad_token_id
        ids = torch.full((len(batch), longest), pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for k, i in enumerate(batch):
            where = slice(longest - len(rows[i]), None) if left else slice(0, len(rows[i]))
            ids[k, where] = torch.tensor(rows[i], dtype=torch.long)
            mask[k, where] = 1
        yield batch, ids.to(bench.device), mask.to(bench.device)


def _fill(bench: Bench, rows: Sequence[list[int]], starts: Sequence[int], order: list[int], extra: int) -> list[int]:
    """Take as many of the longest rows left in `order` as the budgets allow, and at least one."""
    vocabulary = bench.model.config.get_text_config().vocab_size
    width = len(rows[order[-1]]) + extra
    first = width
    batch: list[int] = []
    while order and len(batch) < ROWS:
        first = min(first, starts[order[-1]])
        count = len(batch) + 1
        if batch and (count * width > TOKEN_BUDGET or count * vocabulary * (width - first) > LOGIT_BUDGET):
            break
        batch.append(order.pop())
    return batch


def _broken(bench: Bench, probes: Sequence[Probe], base: Path) -> list[BrokenAnswer]:
    """Answers of skills that the base had right and this model has wrong, written out."""
    before = {(r["probe"], r["split"], r["id"]): r for r in _read_lines(base / "items.jsonl")}
    now = {(r["probe"], r["split"], r["id"]): r for r in bench.items}
    out: list[BrokenAnswer] = []
    for probe in probes:
        if isinstance(probe, Exact | Battery):
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
    probe: Battery, lost: Sequence[Key], before: Mapping[Key, Record], now: Mapping[Key, Record]
) -> list[BrokenAnswer]:
    """What both said, as measured."""
    found = []
    for key in lost:
        item = probe.items["report"][key[2]]
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
        else:
            kind = probe.kind if isinstance(probe, Exact) else "agreement"
            replayed = probe.replayed if isinstance(probe, Exact) else None
            out[probe.name] = {**accuracy, "kind": kind, "replayed": replayed}
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
