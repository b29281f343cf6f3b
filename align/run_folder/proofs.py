"""What a launch has proved of itself: proofs.json, written before the first step, and a part of each outcome."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from align.run_folder import files

Name = Literal["first_loss", "start_kl", "saved", "ranks_agree"]


class _Proof(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class FirstLoss(_Proof):
    """The loss of the first micro-batch of the first process before the first step, without dropout.

    Attributes:
        value: as this launch computes it; of several processes, the one furthest from `single`.
        single: as one process computes it alone, before the model is wrapped or shared; or as an earlier launch of the
            same stage, of one process, kept it. None where there is nothing else to compare with: then `value` is kept.
        kept: whether `single` is of an earlier launch.
        limit: of the difference, as a share of `single`, or of 0.1 where that is less.
        precision: `float32`, `bfloat16`, `float16`; `4-bit` or `8-bit` where the base is quantised.
        batch: hash of its token ids.
        setting: what a kept figure depends on besides: the processor, its threads, the packages, how many processes.
    """

    value: float
    single: float | None
    kept: bool = False
    limit: float
    precision: str
    rows: int
    batch: str
    setting: str


class StartKl(_Proof):
    """How far the policy is from its reference before the first update.

    Attributes:
        value: mean absolute difference of an answer's log-probabilities under the two, in nats per token.
        limit: None where a method need not begin at 0, and the figure is told alone.
        of: the first batch of pairs or answers, or the first rollout.
    """

    value: float
    limit: float | None
    precision: str
    of: Literal["batch", "rollout"]


class Saved(_Proof):
    """What was read back from the files of weights, and found to be what was trained.

    Attributes:
        trained: tensors that were trained; each is in the files, with its shape, its type and its bytes.
        tensors, numbers, bytes: what the files hold, in all.
        sha256: over the names, shapes, types and hashes of the tensors in the files.
    """

    trained: int
    tensors: int
    numbers: int
    bytes: int
    sha256: str


class RanksAgree(_Proof):
    """That every process ended with the same trained weights.

    Attributes:
        sha256: over the names and hashes of all of them.
    """

    processes: int
    tensors: int
    sha256: str


class Proofs(_Proof):
    """All of a stage. A stage of an older align has none.

    Attributes:
        made_for: fingerprint of the stage.
        absent: why a proof was not made, by its name.
    """

    made_for: str = ""
    first_loss: FirstLoss | None = None
    start_kl: StartKl | None = None
    saved: Saved | None = None
    ranks_agree: RanksAgree | None = None
    absent: dict[Name, str] = {}

    def without(self, name: Name, why: str) -> Proofs:
        """All but one, and why that does not apply."""
        return self.model_copy(update={name: None, "absent": {**self.absent, name: why}})


def read(path: Path, fingerprint: str) -> Proofs | None:
    """Those that a launch of the same stage has kept; None where there are none."""
    try:
        found = Proofs.model_validate(files.read_json(path))
    except ValidationError:
        return None
    return found if found.made_for == fingerprint else None


def write(path: Path, proofs: Proofs) -> None:
    """Keep them in the folder of the stage."""
    files.write_json(path, proofs.model_dump(mode="json"))
