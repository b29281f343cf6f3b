"""The largest share of a stage's update that keeps every probe within its limit: found, measured and saved."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import set_seed

from align.errors import AlignError, Exit
from align.forgetting import measurements
from align.forgetting.keys import ForgettingKeys
from align.forgetting.measurements import Measurement
from align.interpolation import search, shares, stored, weights
from align.interpolation.weights import Update
from align.parameterization import chain
from align.policy import generation
from align.policy import load as models
from align.run_folder import files, interpolation, reading
from align.run_folder.interpolation import Gain, InterpolationRequest, InterpolationResult, Tried
from align.run_folder.paths import RunDir
from align.run_folder.records import Outcome, Policy, Ticket
from align.run_folder.stage_dir import StageDir
from align.stage.callbacks import Interrupted
from align.worker import card, execute, measuring, saving
from align.worker.execute import Loaded
from align.worker.rows import recall

T = TypeVar("T")
_SHARE = "a share of the update goes on, in place of what was trained"


@dataclass
class Search:
    """A request under way.

    Attributes:
        update: the stage's, in the job's model.
        of: hash of what all shares are measured of.
    """

    at: Loaded
    request: InterpolationRequest
    outcome: Outcome
    update: Update
    base: Measurement
    keys: ForgettingKeys
    of: str

    @property
    def here(self) -> StageDir:
        return self.at.job.dir


def do(run: RunDir, ticket: Ticket, interrupted: Callable[[], bool]) -> InterpolationResult | None:
    """Carry out the request in a stage's folder; only the first process writes and returns the result.

    Raises:
        AlignError: the stage is not done, or has no share of its update.
        Interrupted: the run was asked to stop; the shares that were measured are kept.
    """
    here = run.stage(ticket.stage)
    request, outcome = reading.read(here.interpolation_request, InterpolationRequest), reading.outcome(here)
    if outcome is None or outcome.policy is None:
        what = f"stage '{ticket.stage}' has no policy of which a share could be taken"
        raise AlignError(what, "run it first", exit=Exit.STAGE_FAILED)
    at = execute.load(run, ticket, interrupted)
    recall(at.job)
    known = done(here, request)
    at.world.wait_for_everyone()  # until all have looked
    if known is not None:
        return known
    found = Search(
        at=at,
        request=request,
        outcome=outcome,
        update=updated(at, outcome.policy),
        base=measurements.load(run.base_measurements),
        keys=ForgettingKeys.model_validate(request.limits),
        of=stored.identity(ticket, outcome),
    )
    tried = search.largest(request.shares, lambda share: _tried(found, share))
    share = tried[-1].share if tried[-1].within else None
    kept = agreed(at, stored.kept(at.job.dir, request, share) if share and at.world.is_main_process else None)
    measured = _measured(found, share) if share is not None and kept is None else None
    result = _write(found, tried, measured, kept) if at.world.is_main_process else None
    at.world.wait_for_everyone()
    return result


def done(here: StageDir, request: InterpolationRequest) -> InterpolationResult | None:
    """The result of a request that has been carried out, its files as they were written; None else."""
    known = reading.whole(here.interpolation_result, InterpolationResult)
    return known if known and known.key == request.key and interpolation.is_whole(here, known) else None


def updated(at: Loaded, policy: Policy) -> Update:
    """Give the job the model that its training began with, and the update that it made.

    Raises:
        AlignError: the method has no share of an update.
    """
    ticket, job, builder = at.ticket, at.job, at.builder
    own = chain.Layer(builder.method, builder.keys, ticket.stage)
    why, linear = shares.refusal(builder.layers, own), own.traits.linear
    if why is not None or isinstance(linear, str):
        remedy = f"take `interpolate` out of `on_violation`, or give '{ticket.stage}' another parameterization"
        raise AlignError(str(why), remedy)
    builder.preload = None  # what stood beside the policy while it was trained
    set_seed(ticket.seed)
    job.model, _ = builder.build()
    generation.tell(job.model, job.tokenizer)
    if builder.trains_base:
        assert policy.weights is not None
        whole = models.load_weights(str(at.run.root / policy.weights), ticket.model, builder.dtype, None)
        trained = weights.of_weights(job.model, whole)
    else:
        trained = weights.of_adapter(job.model, at.run.root / policy.adapters[-1].path)
    further = not builder.trains_base and chain.continues(builder.layers, own)
    return Update(job.model, linear, further=further, trained=trained)


def _tried(found: Search, share: float) -> Tried:
    """One share, from its stored measurement or from one made now; the same in all processes."""
    at, folder = found.at, found.here.of_share(found.request.shape, share)
    if agreed(at, at.job.interrupted()):
        raise Interrupted
    key = stored.key_of(found.of, found.request.shape, share)
    if not agreed(at, stored.is_stored(folder, key, found.base, found.keys)):
        _measure(found, share, folder, key)
    at.world.wait_for_everyone()  # the first process writes it
    return agreed(at, stored.judged(share, folder, found.base, found.keys))


def _measure(found: Search, share: float, folder: Path, key: str) -> None:
    at, shape = found.at, found.request.shape
    first = at.world.is_main_process
    if first:
        at.job.at(f"measuring a share of {share:g} of its update ({shape})")
        shutil.rmtree(folder, ignore_errors=True)
    found.update.set(share, shape)
    measuring.measure_gate(at.job, at.run, at.probes, folder, at.world)
    if first:
        if found.keys.max_kl is not None:
            files.write_json(folder / stored.TASK_KL, measuring.measure_kl(at.job, at.builder).written())
        files.write_json(folder / stored.MEASURED_OF, stored.Of(key=key).written())


def _measured(found: Search, share: float) -> dict[str, float]:
    """Set the model to a share and measure it whole, into the folder of what is decided; what that took."""
    at, decided = found.at, found.here.decided
    if at.world.is_main_process:
        found.here.interpolation_result.unlink(missing_ok=True)
        shutil.rmtree(decided.root, ignore_errors=True)
    at.world.wait_for_everyone()
    found.update.set(share, found.request.shape)
    job = replace(at.job, dir=decided)
    return measuring.measure_policy(job, at.run, at.builder, at.probes, at.world)


def _write(
    found: Search, tried: list[Tried], measured: dict[str, float] | None, kept: InterpolationResult | None
) -> InterpolationResult:
    """Write the policy at the last share that was tried, where it was within the limits, and last the result.

    Args:
        measured: what measuring it whole took; None where nothing is within the limits, or the policy is there already.
        kept: the result that it is there by.
    """
    result = stored.told(found.request, tried, found.keys, kept)
    if measured is not None:
        share = tried[-1].share
        policy = _save(found, share, measured)
        result = result.but(share=share, policy=policy, rank=found.update.rank, gains=_gains(found))
    stored.write(found.here, result)
    return result


def _gains(found: Search) -> tuple[Gain, ...]:
    """Nothing where the trained policy itself was not measured on the same items."""
    trained, decided = found.here.measurements, found.here.decided.measurements
    if not (trained / "summary.json").is_file():
        return ()
    return search.gains(found.base, measurements.load(trained), measurements.load(decided))


def _save(found: Search, share: float, measured: dict[str, float]) -> Policy:
    """The model folder, its card, and an outcome: that of the stage with another policy."""
    at, decided, request = found.at, found.here.decided, found.request
    policy = saving.save_policy(replace(at.job, dir=decided), at.run)
    outcome = found.outcome.model_copy(
        update={
            "policy": policy,
            "proofs": found.outcome.proofs.without("saved", _SHARE),
            "measure_seconds": measured["seconds"],
            "measure_cpu_seconds": measured["cpu_seconds"],
            "probes_sha256": at.ticket.probes_sha256,
        }
    )
    note = f"a share of {share:g} of the update of the stage `{at.ticket.stage}` ({request.shape})"
    rank = found.update.rank
    card.write(decided.model, at.run, at.ticket, outcome, [f"{note}, of rank {rank}" if rank else note])
    outcome.artifacts = files.artifacts(decided.model, decided.root)
    files.write_json(decided.outcome, files.sealed(outcome.model_dump(mode="json")))
    return policy


def agreed(at: Loaded, value: T) -> T:
    """What the first process has found, in all of them. A collective call where there are several."""
    if at.world.num_processes == 1:
        return value
    shared: list[Any] = [value]
    torch.distributed.broadcast_object_list(shared, src=0)
    found: T = shared[0]
    return found
