"""The probes on the base, on what a stage trained, and on a stage that is measured again."""

from __future__ import annotations

import gc
import json
import time
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from align.forgetting import answers, latency, probes, quantization
from align.forgetting.battery.likelihoods import Asked
from align.forgetting.bench import Bench, Encoded
from align.forgetting.distances import TaskKl
from align.forgetting.inside import GATE
from align.forgetting.keys import ForgettingKeys
from align.forgetting.measure import measure
from align.forgetting.measurements import Split
from align.forgetting.own import measuring as own_probes
from align.forgetting.own.kinds import Own
from align.forgetting.records import BatterySize
from align.forgetting.share import Share
from align.forgetting.table import BASE
from align.policy import load as models
from align.policy import stack
from align.run_folder import checkpoints, files, handed_on, reading
from align.run_folder.paths import RunDir
from align.run_folder.records import LOADING, Outcome, Ticket
from align.stage.callbacks import Interrupted
from align.stage.inside import Measuring
from align.stage.job import Job
from align.worker import battery_size, card, distance
from align.worker.handover import Builder

TOLD_SECONDS = 2.0  # between two words on how much has been measured


@lru_cache(maxsize=1)
def _probes(keys: str, replays: bool, items: int | None) -> list[probes.Probe]:
    """The probes of a recipe, with what scores them; all tickets of a run have the same."""
    found = probes.load(ForgettingKeys(probes=json.loads(keys)), Path.cwd(), replays=replays, items=items)
    own_probes.prepare([probe for probe in found if isinstance(probe, Own)])
    return found


def probes_of(run: RunDir, job: Job, builder: Builder, world: PartialState) -> list[probes.Probe]:
    """The probes of a run, with as many items as it has chosen, or chooses now."""
    ticket = job.ticket

    def load(items: int | None) -> list[probes.Probe]:
        return _probes(json.dumps(ticket.probes), ticket.replays, items)

    if ticket.probe_items != "auto":
        return load(ticket.probe_items)
    if ticket.probes != "general" and not (isinstance(ticket.probes, dict) and "general" in ticket.probes):
        return load(None)
    if world.is_main_process and reading.whole(run.battery_size, BatterySize) is None:
        job.at("choosing how many items to measure, by the speed of the base")
        size = battery_size.choose(_bench(builder.pristine(), job), load, ticket, job.rows)
        files.write_json(run.battery_size, size.written())
        text = battery_size.warning(size)
        if text:
            job.warn(text)
    world.wait_for_everyone()
    chosen = reading.whole(run.battery_size, BatterySize)
    assert chosen is not None
    return load(chosen.items)


_ENCODED: dict[tuple[str, Split], Encoded] = {}  # of this process's one tokenizer and one set of probes
_ASKED: dict[str, list[Asked]] = {}  # the same, of the general battery


_ENCODED_INSIDE: dict[tuple[str, Split], Encoded] = {}  # the same of the halves that are measured inside a stage
_ASKED_INSIDE: dict[str, list[Asked]] = {}


def _bench(model: Any, job: Job, share: Share | None = None) -> Bench:
    """In the arithmetic that the stage trains in; of this process alone, where it has no share in a measurement."""
    autocast = bool(job.ticket.training.get("bf16", models.native_bf16()))
    return Bench(model, job.tokenizer, autocast=autocast, encoded=_ENCODED, asked=_ASKED, share=share or Share())


def measure_base(
    run: RunDir, job: Job, builder: Builder, bench_probes: list[probes.Probe], world: PartialState
) -> None:
    """Run the probes on the base as the stage loads it, and where that quantises it, see what that alone costs.

    All processes share the probes; the first alone looks at what quantising costs.
    """
    ticket, texts, own = job.ticket, quantization.texts(bench_probes), None
    count = len(bench_probes)
    doing = f"measuring the base on {count} probe{'s' if count > 1 else ''}, before anything is trained"
    first, share = world.is_main_process, Share(world.process_index, world.num_processes)
    tell = Telling(job, doing, first=first)
    if first and builder.quantization and texts and quantization.has_room(Path(ticket.policy.base.path)):
        whole = models.load_weights(ticket.policy.base.path, ticket.model, builder.dtype, None)
        own = quantization.measured(_bench(whole, job), texts)
        del whole
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    base = builder.pristine()
    measure(_bench(base, job, share), bench_probes, run.base_measurements, base=None, tell=tell)
    if first:
        answers.write(_bench(base, job), ticket.prompts, run.base_answers)
    if own:
        found = quantization.compare(own, quantization.measured(_bench(base, job), texts))
        files.write_json(run.quantization, found.written())
        text = quantization.warning(found)
        if text:
            job.warn(text)
    if first:
        job.at(LOADING)


def ask_base(run: RunDir, job: Job, builder: Builder) -> None:
    """Ask the base the prompts of the run, where its probes are measured already."""
    job.at("asking the base, before anything is trained")
    answers.write(_bench(builder.pristine(), job), job.ticket.prompts, run.base_answers)
    job.at(LOADING)


class Telling:
    """Tells that measuring begins, and now and then how much has been measured; where the run is to stop, leaves.

    Args:
        first: whether this is the process that tells.
        leaves: whether nothing is lost by it but what has been measured so far.
    """

    def __init__(self, job: Job, doing: str, *, first: bool = True, leaves: bool = True) -> None:
        self.job, self.doing, self.first, self.leaves, self.time = job, doing, first, leaves, time.monotonic()
        if first:
            job.at(doing)

    def __call__(self, done: int, of: int) -> None:
        if self.leaves and self.job.interrupted():  # each process by itself: there is no step to agree on
            raise Interrupted
        now = time.monotonic()
        if self.first and now - self.time >= TOLD_SECONDS:
            self.time = now
            self.job.at(self.doing, done, of)


def _is_kept(job: Job) -> bool:
    """Whether the policy that is measured can be measured another time: it is trained already, or its last step is in a
    checkpoint."""
    return job.ticket.measure_only or (job.dir.checkpoints / f"checkpoint-{job.steps}" / checkpoints.COMPLETE).is_file()


def inside(job: Job, run: RunDir, bench_probes: list[probes.Probe], world: PartialState) -> Measuring | None:
    """How a ticket's policy is measured while it is trained, by all processes; None where it is not."""
    settings = job.ticket.inside
    if settings is None:
        return None

    def measured(model: Any, folder: Path) -> None:
        share = Share(world.process_index, world.num_processes)
        bench = replace(_bench(model, job, share), encoded=_ENCODED_INSIDE, asked=_ASKED_INSIDE)
        measure(bench, bench_probes, folder, base=run.base_measurements, splits=GATE, only=settings.watch)

    incoming = run.base_measurements
    if settings.incoming != BASE:
        incoming = handed_on.folder(run.stage(settings.incoming)).measurements
    return Measuring(settings, job.dir, run.base_measurements, incoming, measured)


def measure_gate(job: Job, run: RunDir, bench_probes: list[probes.Probe], folder: Path, world: PartialState) -> None:
    """The gate's half of the probes on the job's model as it is now; all processes share them."""
    bench = _bench(job.model, job, Share(world.process_index, world.num_processes))
    bench = replace(bench, encoded=_ENCODED_INSIDE, asked=_ASKED_INSIDE)
    measure(bench, bench_probes, folder, base=run.base_measurements, splits=GATE)


def measure_kl(job: Job, builder: Builder) -> TaskKl:
    """The KL of the job's model as it is now to the base, on the prompts of the task. Of the first process."""
    return distance.task_kl(_bench(job.model, job), job, builder)


def measure_policy(
    job: Job, run: RunDir, builder: Builder, bench_probes: list[probes.Probe], world: PartialState
) -> dict[str, float]:
    """The probes on what a stage trained, its answers, and its distance from the base; what that took in this process.

    All processes share the probes; the first alone does the rest.
    """
    wall, cpu = time.monotonic(), time.process_time()
    base = run.base_measurements if (run.base_measurements / "items.jsonl").is_file() else None
    first, share = world.is_main_process, Share(world.process_index, world.num_processes)
    tell = Telling(job, "measuring the policy", first=first, leaves=_is_kept(job))
    measure(_bench(job.model, job, share), bench_probes, job.dir.measurements, base=base, tell=tell)
    if first:
        alone = _bench(job.model, job)
        answers.write(alone, job.ticket.prompts, job.dir.answers)
        distance.measure(alone, job, builder)
        if job.ticket.latency:
            files.write_json(job.dir.latency, latency.measured(alone, bench_probes).written())
    return {"seconds": time.monotonic() - wall, "cpu_seconds": time.process_time() - cpu}


def measure_again(
    run: RunDir, ticket: Ticket, job: Job, builder: Builder, bench_probes: list[probes.Probe], world: PartialState
) -> Outcome | None:
    """Other probes, or other prompts alone, on a stage that is trained: its outcome keeps all else. The first process
    writes the outcome and returns it."""
    outcome = reading.outcome_in(job.dir.remeasuring)
    assert outcome is not None
    measured = None
    if outcome.policy is not None and bench_probes:
        job.model = stack.load_policy(outcome.policy, ticket.model, run.root)
        if not ticket.ask_only:
            measured = measure_policy(job, run, builder, bench_probes, world)
        elif world.is_main_process:
            answers.write(_bench(job.model, job), ticket.prompts, job.dir.answers)
    if not world.is_main_process:
        return None
    if measured is not None:
        outcome.measure_seconds, outcome.measure_cpu_seconds = measured["seconds"], measured["cpu_seconds"]
    outcome.probes_sha256 = ticket.probes_sha256
    outcome.warnings += [text for text in job.warnings if text not in outcome.warnings]
    card.write(job.dir.model, run, ticket, outcome)  # it shows what was measured
    outcome.artifacts = files.artifacts(job.dir.model, job.dir.root)
    files.write_json(job.dir.outcome, files.sealed(outcome.model_dump(mode="json")))
    return outcome
