"""What is stored of the shares of a stage's update, and the result that follows from it without a model. No torch."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from align.errors import AlignError
from align.forgetting import measurements
from align.forgetting.distances import TaskKl
from align.forgetting.keys import ForgettingKeys
from align.forgetting.measurements import Measurement
from align.interpolation import search
from align.run_folder import files, interpolation, reading
from align.run_folder.interpolation import InterpolationRequest, InterpolationResult, Shape, Tried
from align.run_folder.paths import RunDir
from align.run_folder.records import Outcome, Record, Ticket
from align.run_folder.stage_dir import StageDir

MEASURED_OF: Final = "of.json"  # beside the measurement of a share; written last: where it is, the others are whole
TASK_KL: Final = "task_kl.json"


class Of(Record):
    """What a share was measured of, so that another one is not taken for it."""

    key: str


def identity(ticket: Ticket, outcome: Outcome) -> str:
    """Hash of what the figures of a share depend on; the card of the trained policy is not part of it."""
    trained = {name: record for name, record in outcome.artifacts.items() if not name.endswith("README.md")}
    return files.digest([trained, ticket.probes_sha256, ticket.training.get("bf16")])


def key_of(identity: str, shape: Shape, share: float) -> str:
    """Of the measurement of a share."""
    return files.digest([identity, shape, share])


def is_stored(folder: Path, key: str, base: Measurement, keys: ForgettingKeys) -> bool:
    """Whether a share's measurement is whole, of these weights, and of the items that the base was measured on."""
    known = reading.whole(folder / MEASURED_OF, Of)
    if known is None or known.key != key or (keys.max_kl is not None and not (folder / TASK_KL).is_file()):
        return False
    try:
        stored = measurements.load(folder)
    except AlignError:
        return False
    wanted = {probe: items.keys() for (split, probe), items in base.items.items() if split == "gate"}
    return all(stored.items.get(("gate", probe), {}).keys() == ids for probe, ids in wanted.items())


def judged(share: float, folder: Path, base: Measurement, keys: ForgettingKeys) -> Tried:
    """A share whose measurement is stored, held against the limits."""
    kl = reading.optional(folder / TASK_KL, TaskKl)
    return search.judged(share, base, measurements.load(folder), keys, kl)


def kept(here: StageDir, request: InterpolationRequest, share: float) -> InterpolationResult | None:
    """The result of a request with other limits that came to the same share, its files as they were written; None
    else."""
    known = reading.whole(here.interpolation_result, InterpolationResult)
    if known is None or (known.made_of, known.shape, known.share) != (request.made_of, request.shape, share):
        return None
    return known if known.made_of and interpolation.is_whole(here, known) else None


def told(
    request: InterpolationRequest, tried: list[Tried], keys: ForgettingKeys, known: InterpolationResult | None
) -> InterpolationResult:
    """The result of a request, without the policy at a share where none is known."""
    sentence = search.sentence(tried, request.shape, keys)
    if known is not None:
        return known.but(key=request.key, tried=tuple(tried), sentence=sentence)
    return InterpolationResult(
        key=request.key,
        made_of=request.made_of,
        shape=request.shape,
        share=None,
        policy=None,
        rank=None,
        tried=tuple(tried),
        gains=(),
        sentence=sentence,
    )


def again(run: RunDir, here: StageDir, ticket: Ticket, request: InterpolationRequest) -> InterpolationResult | None:
    """The result of a request, where all that it needs is stored: each share that is tried, and the policy at the one
    that is taken. None where a model is needed.

    Raises:
        AlignError: the base's measurement is damaged.
    """
    outcome, keys = reading.outcome(here), ForgettingKeys.model_validate(request.limits)
    assert outcome is not None
    base, of = measurements.load(run.base_measurements), identity(ticket, outcome)
    tried = list[Tried]()
    for share in request.shares:
        folder = here.of_share(request.shape, share)
        if not is_stored(folder, key_of(of, request.shape, share), base, keys):
            return None
        tried.append(judged(share, folder, base, keys))
        if tried[-1].within:
            known = kept(here, request, share)
            return None if known is None else told(request, tried, keys, known)
    return told(request, tried, keys, None)


def write(here: StageDir, result: InterpolationResult) -> None:
    """Put a result into the folder of its stage; where no share is taken, no policy stays there."""
    if result.policy is None:
        here.interpolation_result.unlink(missing_ok=True)
        shutil.rmtree(here.decided.root, ignore_errors=True)
    files.write_json(here.interpolation_result, result.written())
