"""One ticket from beginning to end: load, hand over, train, measure, save, and write the outcome last."""

from __future__ import annotations

import gc
import importlib.metadata
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, set_seed

from align.data import mixing
from align.engines import ddp
from align.errors import AlignError, Exit
from align.forgetting import probes, quantization
from align.forgetting.keys import ForgettingKeys
from align.forgetting.measure import Bench, Encoded, measure
from align.forgetting.measurements import Split
from align.merging import into_base
from align.parameterization import chain
from align.parameterization import method as methods
from align.policy import generation, stack, targets
from align.policy import load as models
from align.recipe import verdicts
from align.run_folder import files
from align.run_folder.paths import RunDir
from align.run_folder.records import LOADING, Adapter, Outcome, Policy, Rows, Ticket
from align.stage import program as programs
from align.stage.job import Job
from align.worker import card
from align.worker.handover import Builder

ONE_THREAD_BYTES = 2**23  # of weights; below, handing work to a second thread costs more than it saves
PACKAGES = ("align-suite", "torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets")


@dataclass(frozen=True)
class Clock:
    """Wall and CPU seconds since it was made."""

    wall: float
    cpu: float

    @classmethod
    def start(cls) -> Clock:
        return cls(time.monotonic(), time.process_time())

    def seconds(self) -> tuple[float, float]:
        return time.monotonic() - self.wall, time.process_time() - self.cpu


def do(run: RunDir, ticket: Ticket, interrupted: Callable[[], bool]) -> Outcome | None:
    """Execute a ticket. Only the first process writes and returns the outcome.

    Raises:
        AlignError: an expected failure.
        Interrupted: the run was asked to stop; a checkpoint was written.
    """
    world = ddp.begin(ticket.processes)
    _limit_threads(ticket)
    gc.collect()  # the model of the stage before is held by cycles
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    here = run.stage(ticket.stage)
    tokenizer = models.load_tokenizer(ticket.policy.base.path, ticket.chat_template, ticket.model)
    job = _job(run, ticket, tokenizer, interrupted)
    bench_probes = _probes(json.dumps(ticket.probes), ticket.replays) if world.is_main_process else []
    program = _program(ticket)
    _assert_device(ticket)
    builder = Builder(run, ticket, tokenizer, list(job.rows[: into_base.ROWS]), program.stage.beneath)
    if ticket.measure_base and world.is_main_process and bench_probes:
        _measure_base(run, job, builder, bench_probes)
    world.wait_for_everyone()
    if ticket.measure_only:
        outcome = _measure_again(run, ticket, job, bench_probes) if world.is_main_process else None
        world.wait_for_everyone()
        return outcome
    clock = Clock.start()
    set_seed(ticket.seed)  # the first draw of a stage is its new weights, whatever was measured before
    job.model, merge = builder.build()
    if ticket.gives == "policy":
        generation.tell(job.model, tokenizer)
    job.warnings += [merge.warning] if merge and merge.warning else []
    parameters, trained = models.counts(job.model), targets.trained(job.model)
    if not parameters["trainable"]:
        what = f"the parameterization of stage '{ticket.stage}' leaves no weight to train"
        raise AlignError(what, f"mend the keys of `{ticket.parameterization['method']}`")
    metrics = program.stage.train(job)
    shutil.rmtree(here.tokens, ignore_errors=True)
    seconds, cpu = clock.seconds()
    gc.collect()  # the trainer, its optimizer and what stood beside the policy are held by cycles
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    outcome = None
    if world.is_main_process:
        measured = _measure(job, run, bench_probes) if ticket.gives == "policy" and bench_probes else None
        policy = _save(job, run)
        outcome = Outcome(
            stage=ticket.stage,
            program=ticket.program,
            fingerprint=ticket.fingerprint,
            seconds=seconds,
            cpu_seconds=cpu,
            measure_seconds=measured["seconds"] if measured else 0.0,
            measure_cpu_seconds=measured["cpu_seconds"] if measured else 0.0,
            measured=ticket.measured,
            world_size=world.num_processes,
            distributed_type=str(world.distributed_type.value),
            global_batch_size=job.global_batch,
            steps=job.steps,
            parameters=parameters,
            parameterization=ticket.parameterization,
            trained=trained,
            metrics=metrics,
            data=job.data,
            policy=policy if ticket.gives == "policy" else None,
            reward=policy if ticket.gives == "reward" else None,
            merge=asdict(merge) if merge else None,
            peak_memory_bytes=_peak_memory(),
            resumed_from=ticket.resume_from,
            warnings=job.warnings,
            versions=_versions(),
            artifacts=files.artifacts(here.model, here.root),
        )
        card.write(here.model, run, ticket, outcome)
        outcome.artifacts = files.artifacts(here.model, here.root)
        files.write_json(here.outcome, outcome.model_dump(mode="json"))
    world.wait_for_everyone()
    return outcome


def _assert_device(ticket: Ticket) -> None:
    """The trainer would tell it once the model was loaded."""
    given = ticket.training
    asked = {name: given.get(name) for name in verdicts.NEED_A_GPU}
    for name in ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"):
        asked[f"{name}.offload"] = (given.get(name) or {}).get("offload")
    asked["cache_implementation"] = str(given.get("cache_implementation")).startswith("offloaded")
    wanted = next((name for name, value in asked.items() if value), None)
    if wanted and not torch.cuda.is_available():
        what = f"'stages.{ticket.stage}.training.{wanted}' needs a GPU, and there is none"
        raise AlignError(what, "take it out", exit=Exit.MACHINE)


def _limit_threads(ticket: Ticket) -> None:
    """One thread for a very small model, unless the user has chosen. Its figures are then those of any machine."""
    if not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ:
        size = sum(file.stat().st_size for file in Path(ticket.policy.base.path).glob("*.safetensors"))
        if size < ONE_THREAD_BYTES:
            torch.set_num_threads(1)


def _job(run: RunDir, ticket: Ticket, tokenizer: PreTrainedTokenizerBase, interrupted: Callable[[], bool]) -> Job:
    program = _program(ticket)
    rows = read_rows(run, ticket.train)
    groups = [0] * len(rows)
    count = 0
    if ticket.replay is not None and ticket.replay_ratio > 0:
        count = mixing.replay_rows(len(rows), ticket.replay_ratio)
        rows = rows + mixing.draw(read_rows(run, ticket.replay), count, ticket.seed)
        groups += [1] * count
    evaluation = read_rows(run, ticket.evaluation) if ticket.evaluation else []
    data = {
        "rows": ticket.train.count,
        "replay_rows": count,
        "replay_ratio": count / len(rows),
        "eval_rows": len(evaluation),
    }
    return Job(
        ticket=ticket,
        keys=program.stage.keys.model_validate(ticket.keys),
        run=run,
        dir=run.stage(ticket.stage),
        model=None,
        tokenizer=tokenizer,
        rows=rows,
        groups=groups,
        evaluation=evaluation,
        interrupted=interrupted,
        data=data,
        warnings=[*ticket.warnings],
    )


def _program(ticket: Ticket) -> programs.Program:
    """The stage's program, if it is still the one that the ticket was written for."""
    program = programs.load(ticket.program_path if ticket.program.endswith(".py") else ticket.program, Path.cwd())
    if program.sha256 != ticket.program_sha256:
        what = f"the stage file '{ticket.program}' was changed while the run was under way"
        raise AlignError(what, "run the same command again: it runs the new one", exit=Exit.STAGE_FAILED)
    return program


def read_rows(run: RunDir, rows: Rows) -> list[dict[str, Any]]:
    """The canonical rows that the parent checked."""
    with (run.root / rows.path).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@lru_cache(maxsize=1)
def _probes(keys: str, replays: bool) -> list[probes.Probe]:
    """The probes of a recipe; all tickets of a run have the same."""
    return probes.load(ForgettingKeys(probes=json.loads(keys)), Path.cwd(), replays=replays)


_ENCODED: dict[tuple[str, Split], Encoded] = {}  # of this process's one tokenizer and one set of probes


def _bench(model: Any, tokenizer: PreTrainedTokenizerBase, ticket: Ticket) -> Bench:
    """In the arithmetic that the stage trains in."""
    autocast = bool(ticket.training.get("bf16", models.native_bf16()))
    return Bench(model, tokenizer, autocast=autocast, encoded=_ENCODED)


def _measure_base(run: RunDir, job: Job, builder: Builder, bench_probes: list[probes.Probe]) -> None:
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
        files.write_json(run.quantization, found)
        text = quantization.warning(found)
        if text:
            job.warn(text)
    job.at(LOADING)


def _measure(job: Job, run: RunDir, bench_probes: list[probes.Probe]) -> dict[str, Any]:
    base = run.base_measurements if (run.base_measurements / "items.jsonl").is_file() else None
    bench = _bench(job.model, job.tokenizer, job.ticket)
    return measure(bench, bench_probes, job.dir.measurements, base=base)


def _measure_again(run: RunDir, ticket: Ticket, job: Job, bench_probes: list[probes.Probe]) -> Outcome:
    """Other probes on a stage that is trained: its policy is loaded, its outcome keeps all else."""
    outcome = Outcome.model_validate(files.read_json(job.dir.trained))
    if outcome.policy is not None and bench_probes:
        job.model = stack.load_policy(outcome.policy, ticket.model, run.root)
        measured = _measure(job, run, bench_probes)
        outcome.measure_seconds, outcome.measure_cpu_seconds = measured["seconds"], measured["cpu_seconds"]
    outcome.measured = ticket.measured
    outcome.warnings += [text for text in job.warnings if text not in outcome.warnings]
    card.write(job.dir.model, run, ticket, outcome)  # it shows what was measured
    outcome.artifacts = files.artifacts(job.dir.model, job.dir.root)
    files.write_json(job.dir.outcome, outcome.model_dump(mode="json"))
    return outcome


def _save(job: Job, run: RunDir) -> Policy:
    """Write the model folder and describe the policy that goes on."""
    ticket, folder = job.ticket, job.dir.model
    shutil.rmtree(folder, ignore_errors=True)
    method = methods.load(ticket.parameterization["method"])
    keys, came_in = method.Keys.model_validate(ticket.parameterization), ticket.policy
    kept = chain.after(chain.layers(came_in.adapters), chain.Layer(method, keys, ticket.stage))
    stages = {layer.stage for layer in kept}
    adapters_kept = [adapter for adapter in came_in.adapters if adapter.name in stages]
    if method.traits(keys).trains_base:
        job.model.save_pretrained(folder, state_dict=stack.base_weights(job.model) if kept else None)
        policy = Policy(base=came_in.base, weights=run.relative(folder), adapters=adapters_kept)
    else:
        job.model.save_pretrained(folder, selected_adapters=[stack.TRAINED])
        if came_in.base.revision and came_in.weights is None:  # loads anywhere, not only where the cache has it
            config = files.read_json(folder / "adapter_config.json")
            config |= {"base_model_name_or_path": came_in.base.name, "revision": came_in.base.revision}
            files.write_json(folder / "adapter_config.json", config)
        own = Adapter(
            name=ticket.stage,
            path=run.relative(folder),
            method=ticket.parameterization["method"],
            settings=ticket.parameterization,
        )
        policy = Policy(
            base=came_in.base,
            weights=came_in.weights,
            quantization=method.quantization(keys),
            adapters=[*adapters_kept, own],
        )
    job.tokenizer.save_pretrained(folder)
    if ticket.gives == "policy":
        job.model.generation_config.save_pretrained(folder)  # with every token that ends an answer
    return policy


def _peak_memory() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage * 1024


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found | {"python": ".".join(str(part) for part in sys.version_info[:3])}
