"""One ticket from beginning to end: load, hand over, train, measure, save, and write the outcome last."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import PreTrainedTokenizerBase, set_seed

from align.engines import choose
from align.errors import AlignError, Exit
from align.forgetting.battery import leaks
from align.forgetting.probes import Battery, Probe
from align.merging import into_base
from align.merging.verdict import Merge
from align.penalties import prepare
from align.penalties.keys import active
from align.policy import generation, targets
from align.policy import load as models
from align.policy.switchboard import only
from align.recipe import verdicts
from align.rl import shared_base
from align.run_folder import files, heartbeats
from align.run_folder.paths import RunDir
from align.run_folder.records import LOADING, Outcome, Policy, Ticket
from align.stage import program as programs
from align.stage.job import Job
from align.worker import card, measuring, memory, saving, usage, writing
from align.worker.handover import Builder
from align.worker.proofs import Proving
from align.worker.rows import learnt, read_rows, recall
from align.worker.usage import Clock

ONE_THREAD_BYTES = 2**23  # of weights; below, handing work to a second thread costs more than it saves


@dataclass
class Loaded:
    """A ticket with all that is read before a weight is.

    Attributes:
        job: what the stage's program gets; its model comes with `build`.
        builder: makes the model.
        probes: what is measured.
        proofs: what the launch proves of itself.
    """

    run: RunDir
    ticket: Ticket
    world: PartialState
    program: programs.Program
    job: Job
    builder: Builder
    probes: list[Probe]
    proofs: Proving


@dataclass(frozen=True)
class Built:
    """What is told of a model before it is trained."""

    parameters: dict[str, int]
    trained: list[str]  # the modules that hold trainable weights
    merge: Merge | None


def do(run: RunDir, ticket: Ticket, interrupted: Callable[[], bool]) -> Outcome | None:
    """Execute a ticket: load, build, train, measure, save. Only the first process writes and returns the outcome.

    Raises:
        AlignError: an expected failure.
        Interrupted: the run was asked to stop; a checkpoint was written.
    """
    at = load(run, ticket, interrupted)
    if ticket.measure_base and at.probes:
        measuring.measure_base(run, at.job, at.builder, at.probes, at.world)
    elif ticket.ask_base and at.world.is_main_process:
        measuring.ask_base(run, at.job, at.builder)
    at.world.wait_for_everyone()
    if ticket.measure_only:
        recall(at.job)
        outcome = measuring.measure_again(run, ticket, at.job, at.builder, at.probes, at.world)
    else:
        clock = Clock.start()
        writing.write(run, at.job, at.builder, at.probes, at.world, mixes=at.program.stage.replays is True)
        built = build(at)
        metrics = train(at)
        spent = clock.seconds()
        measured = measure(at)
        at.proofs.ended(at.job.model)
        outcome = save(at, built, metrics, spent, measured) if at.world.is_main_process else None
    at.world.wait_for_everyone()
    return outcome


def load(run: RunDir, ticket: Ticket, interrupted: Callable[[], bool]) -> Loaded:
    """The tokenizer, the rows, the probes and the program of a ticket; no weights, but where the base's speed decides
    how many items a probe has.

    Raises:
        AlignError: another number of processes came up, the program was changed, an argument needs a GPU.
    """
    world = choose.of(ticket.launch).begin(ticket.launch)
    limit_threads(ticket)
    _free()  # the model of the stage before is held by cycles
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    tokenizer = models.load_tokenizer(ticket.policy.base.path, ticket.chat_template, ticket.model)
    job = _job(run, ticket, tokenizer, interrupted)
    program = _program(ticket)
    _assert_device(ticket)
    builder = Builder(run, ticket, tokenizer, list(job.rows[: into_base.ROWS]), program.stage.preload)
    found = measuring.probes_of(run, job, builder, world)
    job.inside = measuring.inside(job, run, found, world)
    battery = [probe for probe in found if isinstance(probe, Battery)]
    trained = [*job.rows, *(row for source in job.replay for row in source.rows)]
    job.warnings += [] if ticket.measure_only else leaks.warnings(battery, trained)
    return Loaded(run, ticket, world, program, job, builder, found, Proving(job.dir, ticket, world))


def build(at: Loaded) -> Built:
    """Give the job its model: the policy that came in, with this stage's weights trainable.

    Raises:
        AlignError: a merge failed, or nothing is left to train.
    """
    ticket, job = at.ticket, at.job
    set_seed(ticket.seed)  # the first draw of a stage is its new weights, whatever was measured before
    job.model, merge = at.builder.build()
    if ticket.gives == "policy":
        generation.tell(job.model, job.tokenizer)
    job.warnings += [merge.warning] if merge and merge.warning else []
    parameters = models.counts(job.model)
    if not parameters["trainable"]:
        what = f"the parameterization of stage '{ticket.stage}' leaves no weight to train"
        raise AlignError(what, f"fix the keys of `{ticket.parameterization['method']}`")
    return Built(parameters, targets.trained(job.model), merge)


def train(at: Loaded) -> dict[str, Any]:
    """Train the job's model in place; its final metrics.

    Raises:
        OutOfMemory: fewer rows at a time may fit.
    """
    keep_near(at.job)
    at.proofs.begin(at.job)
    try:
        metrics = at.program.stage.train(at.job)
    except Exception as error:
        if memory.ran_out(error):
            raise memory.failure(at.ticket, heartbeats.where()) from error
        raise
    shutil.rmtree(at.job.dir.tokens, ignore_errors=True)
    _free()  # the trainer, its optimizer and what stood beside the policy are held by cycles
    return metrics


def keep_near(job: Job) -> None:
    """Give the job what keeps its weights near where they are now."""
    ticket = job.ticket

    def rows() -> list[dict[str, Any]]:
        return read_rows(job.run, ticket.fisher) if ticket.fisher else []

    def tell(doing: str) -> measuring.Telling:
        return measuring.Telling(job, doing)

    sets = shared_base.plan(ticket, job.run.root) if active(ticket.keys) else None
    with only(job.model, sets.policy) if sets else nullcontext():  # not what samples are compared with and scored by
        found = prepare.penalties(job.model, job.dir, ticket, job.tokenizer, rows, tell)
    if found.fisher and PartialState().is_main_process:
        job.at(LOADING)
    job.penalties, job.fisher = found.penalties, found.fisher
    job.weights = {penalty.name: penalty.weight for penalty in found.penalties}


def measure(at: Loaded) -> dict[str, Any] | None:
    """Measure the probes on the trained policy; what that took. None for a reward model, and without probes."""
    if at.ticket.gives != "policy" or not at.probes:
        return None
    measured = measuring.measure_policy(at.job, at.run, at.builder, at.probes, at.world)
    if at.job.inside is not None and at.world.is_main_process:
        at.job.inside.last(at.job.steps)
    return measured


def save(
    at: Loaded, built: Built, metrics: dict[str, Any], spent: tuple[float, float], measured: dict[str, Any] | None
) -> Outcome:
    """Write the model folder, its card, and last the outcome.

    Args:
        spent: wall and CPU seconds of building and training.
        measured: what measuring took.
    """
    here = at.job.dir
    policy = saving.save_policy(at.job, at.run)
    at.proofs.saved(here.model, at.job.model)
    outcome = _outcome(at, built, metrics, spent, measured, policy)
    card.write(here.model, at.run, at.ticket, outcome)
    outcome.artifacts = files.artifacts(here.model, here.root)
    files.write_json(here.outcome, files.sealed(outcome.model_dump(mode="json")))
    return outcome


def _outcome(
    at: Loaded,
    built: Built,
    metrics: dict[str, Any],
    spent: tuple[float, float],
    measured: dict[str, Any] | None,
    policy: Policy,
) -> Outcome:
    """What is told of a stage whose model is saved."""
    ticket, job = at.ticket, at.job
    return Outcome(
        stage=ticket.stage,
        program=ticket.program,
        fingerprint=ticket.fingerprint,
        seconds=spent[0],
        cpu_seconds=spent[1],
        measure_seconds=measured["seconds"] if measured else 0.0,
        measure_cpu_seconds=measured["cpu_seconds"] if measured else 0.0,
        probes_sha256=ticket.probes_sha256,
        world_size=at.world.num_processes,
        distributed_type=job.distributed_type or str(at.world.distributed_type.value),
        global_batch_size=job.global_batch,
        steps=job.steps,
        parameters=built.parameters,
        parameterization=ticket.parameterization,
        dtype=str(at.builder.dtype).removeprefix("torch."),
        trained=built.trained,
        metrics=metrics,
        data=job.data,
        policy=policy if ticket.gives == "policy" else None,
        reward=policy if ticket.gives == "reward" else None,
        merge=asdict(built.merge) if built.merge else None,
        penalties=job.weights,
        fisher=job.fisher,
        inside=job.inside.insight(job.steps) if job.inside else None,
        proofs=at.proofs.made,
        peak_memory_bytes=usage.peak_memory(),
        resumed_from=ticket.resume_from,
        warnings=job.warnings,
        versions=usage.versions(),
        artifacts=files.artifacts(job.dir.model, job.dir.root),
    )


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _assert_device(ticket: Ticket) -> None:
    """The trainer would tell it once the model was loaded."""
    given = ticket.training
    asked = {name: given.get(name) for name in verdicts.NEED_A_GPU}
    for name in ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"):
        asked[f"{name}.offload"] = (given.get(name) or {}).get("offload")
    asked["cache_implementation"] = str(given.get("cache_implementation")).startswith("offloaded")
    wanted = next((name for name, value in asked.items() if value), None)
    if wanted and not torch.cuda.is_available():
        what = f"'stages.{ticket.stage}.training.{wanted}' needs a GPU, and this machine has none"
        raise AlignError(what, "leave it out", exit=Exit.MACHINE)


def limit_threads(ticket: Ticket) -> None:
    """One thread for a very small model, unless the user has chosen. Its figures are then those of any machine."""
    if not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ:
        size = sum(file.stat().st_size for file in Path(ticket.policy.base.path).glob("*.safetensors"))
        if size < ONE_THREAD_BYTES:
            torch.set_num_threads(1)


def _job(run: RunDir, ticket: Ticket, tokenizer: PreTrainedTokenizerBase, interrupted: Callable[[], bool]) -> Job:
    program = _program(ticket)
    found = learnt(run, ticket, read_rows(run, ticket.train), mixes=program.stage.replays is True)
    evaluation = read_rows(run, ticket.evaluation) if ticket.evaluation else []
    return Job(
        ticket=ticket,
        keys=program.stage.keys.model_validate(ticket.keys),
        run=run,
        dir=run.stage(ticket.stage),
        model=None,
        tokenizer=tokenizer,
        rows=found.rows,
        groups=found.groups,
        evaluation=evaluation,
        interrupted=interrupted,
        data={**found.data, "eval_rows": len(evaluation)},
        warnings=[*ticket.warnings],
        replay=found.replay,
    )


def _program(ticket: Ticket) -> programs.Program:
    """The stage's program, if it is still the one that the ticket was written for."""
    program = programs.load(ticket.program_path if ticket.program.endswith(".py") else ticket.program, Path.cwd())
    if program.sha256 != ticket.program_sha256:
        what = f"the stage file '{ticket.program}' was changed while the run was under way"
        raise AlignError(what, "run the same command again: it runs the new one", exit=Exit.STAGE_FAILED)
    return program
