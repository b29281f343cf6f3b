"""The probes on the base, on what a stage trained, and on a stage that is measured again."""

from __future__ import annotations

import gc
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from align.forgetting import probes, quantization
from align.forgetting.battery.likelihoods import Asked
from align.forgetting.bench import Bench, Encoded
from align.forgetting.keys import ForgettingKeys
from align.forgetting.measure import measure
from align.forgetting.measurements import Split
from align.forgetting.own import measuring as own_probes
from align.forgetting.own.kinds import Own
from align.policy import load as models
from align.policy import stack
from align.run_folder import files, reading
from align.run_folder.paths import RunDir
from align.run_folder.records import LOADING, Outcome, Ticket
from align.stage.job import Job
from align.worker import card
from align.worker.handover import Builder


@lru_cache(maxsize=1)
def probes_of(keys: str, items: int, replays: bool) -> list[probes.Probe]:
    """The probes of a recipe, with what scores them; all tickets of a run have the same."""
    found = probes.load(ForgettingKeys(probes=json.loads(keys), items=items), Path.cwd(), replays=replays)
    own_probes.prepare([probe for probe in found if isinstance(probe, Own)])
    return found


_ENCODED: dict[tuple[str, Split], Encoded] = {}  # of this process's one tokenizer and one set of probes
_ASKED: dict[str, list[Asked]] = {}  # the same, of the general battery


def _bench(model: Any, tokenizer: PreTrainedTokenizerBase, ticket: Ticket) -> Bench:
    """In the arithmetic that the stage trains in."""
    autocast = bool(ticket.training.get("bf16", models.native_bf16()))
    return Bench(model, tokenizer, autocast=autocast, encoded=_ENCODED, asked=_ASKED)


def measure_base(run: RunDir, job: Job, builder: Builder, bench_probes: list[probes.Probe]) -> None:
    """Run the probes on the base as the stage loads it, and where that quantises it, see what that alone costs."""
    ticket, texts, own = job.ticket, quantization.texts(bench_probes), None
    count = len(bench_probes)
    job.at(f"measuring the base on {count} probe{'s' if count > 1 else ''}, before anything is trained")
    if builder.quantization and texts and quantization.has_room(Path(ticket.policy.base.path)):
        whole = models.load_weights(ticket.policy.base.path, ticket.model, builder.dtype, None)
        own = quantization.measured(_bench(whole, job.tokenizer, ticket), texts)
        del whole
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    bench = _bench(builder.pristine(), job.tokenizer, ticket)
    measure(bench, bench_probes, run.base_measurements, base=None)
    if own:
        found = quantization.compare(own, quantization.measured(bench, texts))
        files.write_json(run.quantization, found.written())
        text = quantization.warning(found)
        if text:
            job.warn(text)
    job.at(LOADING)


def measure_policy(job: Job, run: RunDir, bench_probes: list[probes.Probe]) -> dict[str, Any]:
    base = run.base_measurements if (run.base_measurements / "items.jsonl").is_file() else None
    bench = _bench(job.model, job.tokenizer, job.ticket)
    return measure(bench, bench_probes, job.dir.measurements, base=base)


def measure_again(run: RunDir, ticket: Ticket, job: Job, bench_probes: list[probes.Probe]) -> Outcome:
    """Other probes on a stage that is trained: its policy is loaded, its outcome keeps all else."""
    outcome = reading.outcome_in(job.dir.remeasuring)
    assert outcome is not None
    if outcome.policy is not None and bench_probes:
        job.model = stack.load_policy(outcome.policy, ticket.model, run.root)
        measured = measure_policy(job, run, bench_probes)
        outcome.measure_seconds, outcome.measure_cpu_seconds = measured["seconds"], measured["cpu_seconds"]
    outcome.probes_sha256 = ticket.probes_sha256
    outcome.warnings += [text for text in job.warnings if text not in outcome.warnings]
    card.write(job.dir.model, run, ticket, outcome)  # it shows what was measured
    outcome.artifacts = files.artifacts(job.dir.model, job.dir.root)
    files.write_json(job.dir.outcome, outcome.model_dump(mode="json"))
    return outcome
