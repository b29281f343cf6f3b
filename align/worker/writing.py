"""What a policy writes itself before a stage trains: answers in place of the data's, and rows to replay.

All processes share the sampling. The first alone filters, scores and writes into the run folder; then all read it
there, as a resumed stage does.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate import PartialState

from align.data import encode
from align.data.tokenizer import TextTokenizer
from align.errors import AlignError, Exit
from align.forgetting.battery import leaks
from align.forgetting.bench import Bench
from align.forgetting.probes import Battery, Probe
from align.forgetting.share import Share
from align.policy import load as models
from align.policy import stack
from align.run_folder.paths import RunDir
from align.run_folder.records import LOADING, Writing
from align.stage.callbacks import Interrupted
from align.stage.job import Job
from align.stage.rewrite_keys import ByReward, Rewrite
from align.worker import samples_scored
from align.worker.handover import Builder
from align.worker.rows import REWRITE, learnt, read_rows, shelf_of
from align.written import checker, drafting, filters, probed, rewriting, words
from align.written.filters import Draft, Sieve
from align.written.keep import Shelf
from align.written.keys import SelfWritten
from align.written.sample import Sampling, sample

LEAST = 0.25  # of what was written must be left, or the policy cannot write
TOLD_SECONDS = 2.0
_REMEDIES = {
    filters.UNFINISHED: "raise `max_new_tokens`, or write `unfinished: keep`",
    filters.NO_QUESTION: "raise `max_new_tokens`, lower `temperature`, or give `prompts`",
    filters.REPEATS: "raise `temperature` or `max_repetition`, or replay other rows with `data`",
    filters.DUPLICATE: "raise `temperature`, lower `rows`, or give more `prompts`",
    filters.REFUSED: "look at what it refused, or replay other rows with `data`",
    filters.LONG: "lower `max_new_tokens`, or raise `training.max_length`",
    filters.SHORT: "lower `min_new_tokens`, or replay other rows with `data`",
}


def write(
    run: RunDir, job: Job, builder: Builder, probes: Sequence[Probe], world: PartialState, *, mixes: bool
) -> None:
    """Let the policy write what the ticket asks for, and put it among the rows of the job.

    Args:
        mixes: whether the stage mixes replayed rows among its own.
    """
    ticket = job.ticket
    rewrite = getattr(job.keys, REWRITE, None)
    if ticket.writing is None and rewrite is None:
        return
    writer = _Writer(run, job, builder, world)
    task, written = read_rows(run, ticket.train), list[dict[str, Any]]()
    if isinstance(rewrite, Rewrite):
        task, job.data["rewrite"] = _rewritten(writer, rewrite, task)
    if ticket.writing is not None and ticket.replay_ratio > 0:
        written, job.data["self_replay"] = _replayed(writer, SelfWritten.model_validate(ticket.writing.keys), probes)
    writer.done()
    found = learnt(run, ticket, task, mixes=mixes, written=written)
    before = set(_leaks(job, probes))  # of fewer rows
    job.rows, job.groups, job.replay = found.rows, found.groups, found.replay
    job.data |= found.data
    job.warnings[:] = [*(text for text in job.warnings if text not in before), *_leaks(job, probes)]


def _leaks(job: Job, probes: Sequence[Probe]) -> Iterator[str]:
    """What is warned of the rows of a job as they are."""
    battery = [probe for probe in probes if isinstance(probe, Battery)]
    yield from leaks.warnings(battery, [*job.rows, *(row for source in job.replay for row in source.rows)])


class _Writer:
    """The policy that writes, loaded when it is needed, and what it tells."""

    def __init__(self, run: RunDir, job: Job, builder: Builder, world: PartialState) -> None:
        self.run, self.job, self.builder, self.world = run, job, builder, world
        self.first = bool(world.is_main_process)
        self._models: dict[str, Any] = {}
        self._doing, self._done, self._of, self._time = "", 0, 0, 0.0

    @property
    def tokenizer(self) -> TextTokenizer:
        return TextTokenizer.of(self.job.tokenizer)

    def bench(self, by: str, doing: str, rows: int) -> Bench:
        """A policy, in the arithmetic that the stage trains in, shared by all processes.

        Args:
            by: `incoming` or `base`.
            doing: what it does, in words, for so many rows.
        """
        self._doing, self._done, self._of, self._time = doing, 0, rows, time.monotonic()
        if self.first:
            self.job.at(doing)
        ticket = self.job.ticket
        came_in = ticket.policy.adapters or ticket.policy.weights
        by = by if came_in else "base"
        if by not in self._models:
            self._free()  # one policy at a time
            if by == "base":
                self._models[by] = self.builder.pristine()
            else:
                self._models[by] = stack.load_policy(ticket.policy, ticket.model, self.run.root)
        share = Share(self.world.process_index, self.world.num_processes, self._passed)
        autocast = bool(ticket.training.get("bf16", models.native_bf16()))
        return Bench(self._models[by], self.job.tokenizer, autocast=autocast, share=share)

    def done(self) -> None:
        """Let go of the policy; the stage loads its own."""
        self._free()
        if self.first:
            self.job.at(LOADING)

    def _free(self) -> None:
        self._models.clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _passed(self, rows: int) -> None:
        if self.job.interrupted():  # each process by itself: there is no step to agree on
            raise Interrupted
        self._done = min(self._done + rows, self._of)
        if self.first and time.monotonic() - self._time >= TOLD_SECONDS:
            self._time = time.monotonic()
            self.job.at(self._doing, self._done, self._of)


def _replayed(
    writer: _Writer, keys: SelfWritten, probes: Sequence[Probe]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows to replay that the policy wrote, and how many there were of each kind.

    Raises:
        AlignError: too few were left.
    """
    job, writing, begun = writer.job, writer.job.ticket.writing, writer.job.ticket.resume_from is not None
    assert writing is not None
    shelf, key = shelf_of(job, "replay")
    if shelf.kept(key) is None:
        started = time.monotonic()
        prompts = [row["prompt"] for row in read_rows(writer.run, writing.prompts)] if writing.prompts else None
        twice = 2 if prompts is None and writer.tokenizer.template is not None else 1  # questions, and answers
        who = words.writer({"by": keys.by})
        bench = writer.bench(keys.by, f"{who} writes {keys.rows:,} rows to replay", twice * keys.rows)
        found = drafting.drafts(bench, keys, prompts, job.ticket.seed)
        if writer.first:
            kept, rejected = _sifted(found, _sieve(writing, keys, probes))
            told: dict[str, Any] = {
                "by": keys.by,
                "written": len(found),
                "kept": len(kept),
                "rejected": _reasons(rejected),
            }
            _enough(writer, shelf, kept, rejected, told)
            told["seconds"] = round(time.monotonic() - started, 1)
            shelf.put(key, kept, rejected, told, begun=begun)
            job.say(f"{who} wrote {words.replayed(told)}")
        writer.world.wait_for_everyone()
    record = shelf.kept(key)
    assert record is not None
    return shelf.read(), record.figures


def _sieve(writing: Writing, keys: SelfWritten, probes: Sequence[Probe]) -> Sieve:
    """What a row has to pass to be kept."""
    check = checker.load(writing.check) if writing.check else None
    return Sieve(
        min_tokens=keys.min_new_tokens,
        max_repetition=keys.max_repetition,
        max_length=writing.max_length,
        keep_unfinished=keys.unfinished == "keep",
        probed=probed.asked(probes),
        check=(lambda one: check({"prompt": one.prompt, "completion": one.answer})) if check else None,
    )


def _sifted(found: Sequence[Draft], sieve: Sieve) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    kept, rejected = [], []
    for draft in found:
        why = sieve.why(draft)
        if why is None:
            kept.append(draft.row())
        else:
            rejected.append({**draft.row(), "why": why})
    return kept, rejected


def _reasons(rejected: Sequence[dict[str, Any]]) -> dict[str, int]:
    return filters.counted([row["why"] for row in rejected])


def _enough(
    writer: _Writer,
    shelf: Shelf,
    kept: Sequence[dict[str, Any]],
    rejected: Sequence[dict[str, Any]],
    told: dict[str, Any],
) -> None:
    """Raises AlignError where a policy cannot write; what it wrote stays to be read."""
    if len(kept) >= LEAST * told["written"]:
        return
    shelf.reject(rejected)
    main = next(iter(told["rejected"]))
    who = "the base" if told["by"] == "base" else "the policy that comes in"
    stage = writer.job.ticket.stage
    what = f"{who} cannot write the rows that stage '{stage}' replays: it wrote {words.replayed(told)}"
    where = f"all of them are in {shelf.rejected}"
    raise AlignError(what, f"{_REMEDIES.get(main, 'replay other rows with `data`')}; {where}", exit=Exit.STAGE_FAILED)


def _rewritten(
    writer: _Writer, keys: Rewrite, task: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The task's rows with the policy's answers where they were accepted, and how many those are.

    Raises:
        AlignError: no row is left.
    """
    job, begun = writer.job, writer.job.ticket.resume_from is not None
    shelf, key = shelf_of(job, REWRITE)
    if shelf.kept(key) is None:
        started = time.monotonic()
        asks = {number: ask for number, row in enumerate(task) if (ask := rewriting.asked(row)) is not None}
        found = _samples(writer, keys, list(asks.values()))
        if writer.first:
            chosen = _choose(writer, keys, list(asks.values()), found)
            rows, refused = [], []
            for (number, ask), samples, one in zip(asks.items(), found, chosen, strict=True):
                if isinstance(one, str):
                    shown = next((text for text in samples if text is not None), None)
                    line = {"row": number, "prompt": ask.prompt, "was": ask.answer, "sample": shown}
                    refused.append({**line, "why": one})
                else:
                    rows.append(rewriting.line(number, ask, one))
            told = _figures(keys, task, rows, refused)
            told["seconds"] = round(time.monotonic() - started, 1)
            shelf.put(key, rows, refused, told, begun=begun)
            job.say(words.rewritten(told))
        writer.world.wait_for_everyone()
    record = shelf.kept(key)
    assert record is not None
    rows = rewriting.apply(task, shelf.read(), drop=keys.otherwise == "drop")
    if not rows:
        what = f"`rewrite` leaves stage '{job.ticket.stage}' no row: no answer of the policy was accepted"
        raise AlignError(what, "write `otherwise: keep`, or accept more", exit=Exit.STAGE_FAILED)
    return rows, record.figures


def _samples(writer: _Writer, keys: Rewrite, asks: Sequence[rewriting.Ask]) -> list[list[str | None]]:
    """Answers to each prompt, none where it leaves no room for one; None for one that was cut off or is empty."""
    count = len(asks) * keys.samples
    often = {1: "once", 2: "twice"}.get(keys.samples, f"{keys.samples:,} times")
    bench = writer.bench("incoming", f"the policy answers {len(asks):,} prompts, each {often}", count)
    how = Sampling(keys.max_new_tokens, keys.temperature, keys.top_p, f"rewritten {writer.job.ticket.seed}")
    ids = [row.ids for row in encode.encoded([ask.value() for ask in asks], writer.tokenizer)]
    fits = [drafting.has_room(bench, row, keys.max_new_tokens) for row in ids]
    found = iter(
        sample(bench, [row for row, fit in zip(ids, fits, strict=True) if fit for _ in range(keys.samples)], how)
    )
    texts: list[list[str | None]] = []
    for ask, row, fit in zip(asks, ids, fits, strict=True):
        said = [next(found) for _ in range(keys.samples)] if fit else []
        words = [drafting.decoded(bench, one, ask.prompt, row) if one.ended else "" for one in said]
        texts.append([text if text.strip() else None for text in words])
    return texts


def _choose(
    writer: _Writer, keys: Rewrite, asks: Sequence[rewriting.Ask], found: Sequence[Sequence[str | None]]
) -> list[rewriting.Chosen | str]:
    """The accepted sample of each prompt, or why there is none."""
    ticket = writer.job.ticket
    if not isinstance(keys.accept, ByReward):
        assert ticket.rewrite_check is not None
        check = checker.load(ticket.rewrite_check)

        def first(ask: rewriting.Ask, samples: Sequence[str | None]) -> rewriting.Chosen | str:
            given = {"prompt": ask.prompt, "answer": ask.answer}
            return rewriting.first(samples, lambda text: check({**given, "completion": text}))

        return [first(ask, samples) for ask, samples in zip(asks, found, strict=True)]
    scored = samples_scored.score(writer.run, writer.job, asks, found, own=keys.accept.min is None)
    return [
        rewriting.best(samples, scores, keys.accept.min, own)
        for samples, (scores, own) in zip(found, scored, strict=True)
    ]


def _figures(
    keys: Rewrite, task: Sequence[Any], rows: Sequence[dict[str, Any]], refused: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    others = len(task) - len(rows) - len(refused)
    reasons = _reasons(refused) | ({rewriting.NOT_PLAIN: others} if others else {})
    return {
        "rows": len(task),
        "samples": keys.samples,
        "rewritten": len(rows),
        "same": sum(rewriting.same(row["answer"], row["was"]) for row in rows),
        "dropped": len(refused) if keys.otherwise == "drop" else 0,
        "not_rewritten": reasons,
    }
