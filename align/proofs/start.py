"""What is proved before the first update: the loss of one batch, and that the policy begins at its reference.

The first loss is computed by the first process alone, before its model is wrapped or shared, and by every process
through what the launch made of it. It fails a launch that left a process with other weights, with none (a partitioned
layer that was merged or copied empty), with parts of a base, or with a base or an adapter that another start of the
stage did not have. The KL fails a reference that is not the policy that came in: a model that was loaded again from the
path in its configuration, a copied adapter of which tensors were left behind, one copied while it was partitioned.

Both come from one forward pass of one micro-batch; several processes make two. They draw no random number and leave
no trace in the model, the trainer or its figures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from align.errors import AlignError, Exit
from align.proofs.one_pass import Batch, apart, batch_of, is_whole, loss, precision_of, setting_of
from align.proofs.weights import every
from align.run_folder import proofs
from align.run_folder.proofs import FirstLoss, Name, Proofs, StartKl
from align.trainers.held_out import HeldOut
from align.trainers.kept_reference import KeptReference
from align.trainers.online import Online
from align.trainers.rollout_record import RolloutRecord

if TYPE_CHECKING:
    from transformers import Trainer

FIRST_LOSS: Final = {"float32": 1e-5}
FIRST_LOSS_ROUNDED: Final = 1e-2  # in any precision but float32
LEAST_LOSS: Final = 0.1
"""What a difference is a share of at least: a loss near 0 is a difference of larger numbers, rounded as they are."""

START_KL: Final = {"float32": 1e-4}
START_KL_ROUNDED: Final = 1e-3
START_KL_OTHERWISE: Final = 1e-2
"""Nats per token. Measured on CPUs with the lab model: exactly 0 in float32, bfloat16 and 4-bit, where reference and
policy pass through the same kernels. In coarse precisions the third is the limit where they do not: of an engine that
rounds the weights that it shares once more, and of a new DoRA, which divides by a norm and multiplies by it."""

Begins = Literal["equal", "rounded", "changed", "drawn"]

_SAMPLES: Final = "the stage learns from answers that it samples, and has no loss of fixed rows"
_OWN: Final = "the trainer of this stage has no loss of held-out rows"
_COMPILED: Final = "the model is compiled, and a pass outside of training would compile it once more"
_NO_NUMBER: Final = "the loss of the first batch is no number, as where none of its tokens is trained on"
_NO_REFERENCE: Final = "the stage has no reference"
_OLD: Final = "the stage was begun by an align that made no proofs"
_TEACHER: Final = "the teacher reads more than the policy does, and differs from it from the start"
_OF_ROLLOUTS: Final = "no rollout was made"


class Start:
    """The proofs of one stage before its first update; a `Proving`.

    Args:
        path: proofs.json of the stage.
        resumed: whether training goes on from a checkpoint. Then the proofs are those that were made at its start.
        begins: what the policy is beside the one that came in, before it is trained: the same to the last bit, the same
            but for rounding, another, as with a new prompt, or one that draws its update anew in each pass.
        world: accelerate's state of the processes.
    """

    def __init__(self, path: Path, fingerprint: str, world: Any, *, resumed: bool, begins: Begins = "equal") -> None:
        self.path, self.world, self.resumed, self.begins = path, world, resumed, begins
        self.before = proofs.read(path, fingerprint)
        self.made = Proofs(made_for=fingerprint)
        if resumed:
            old: dict[Name, str] = {"first_loss": _OLD, "start_kl": _OLD}
            self.made = self.before or self.made.model_copy(update={"absent": old})

    # ---- the first loss -------------------------------------------------------------------------------------------

    def callback(self, trainer: Trainer) -> TrainerCallback:
        """What proves before the first step. Several processes wait here while the first computes its loss alone."""
        why = None if self.resumed else _unfit(trainer)
        if self.resumed or why:
            if why:
                self._keep(absent={"first_loss": why, "start_kl": _why_not_near(trainer)})
            return TrainerCallback()
        alone = None
        if self.world.num_processes > 1:
            if self.world.is_main_process:
                model: Any = trainer.model
                batch = batch_of(trainer)
                alone = loss(trainer, model, batch, [])
            self.world.wait_for_everyone()
        return _Before(self, trainer, alone)

    def first_loss(self, trainer: Trainer, alone: float | None) -> None:
        """Compare the loss of the first batch, and its policy with its reference.

        Args:
            alone: what the first process computed before; None in others, and of one process.

        Raises:
            AlignError: one of them is beyond its limit; in all processes alike.
        """
        batch, seen = batch_of(trainer), list[tuple[Any, Any]]()
        own = loss(trainer, trainer.model_wrapped, batch, seen)
        kl = apart(trainer, batch, seen) if isinstance(trainer, KeptReference) else None
        each = every((own, alone, kl), self.world)
        values, precision = [value for value, _, _ in each], precision_of(trainer)
        single = each[0][1]
        if any(map(math.isfinite, [*values, *([] if single is None else [single])])):
            self._keep(first_loss=self._compared(values, single, batch, precision))
        else:
            self._keep(absent={"first_loss": _NO_NUMBER})
        if kl is None:
            self._keep(absent={"start_kl": _NO_REFERENCE})
        else:
            furthest = max((found for _, _, found in each if found is not None), key=_far)
            limit = None if self.begins == "drawn" else _kl_limit(precision, is_whole(trainer))
            self._keep(start_kl=near_reference(furthest, precision, "batch", limit))

    def _compared(self, values: Sequence[float], single: float | None, batch: Batch, precision: str) -> FirstLoss:
        """The record of it, where it is within its limit."""
        setting = setting_of(self.world)
        known = self.before.first_loss if self.before else None
        same = known is not None and (known.batch, known.setting, known.precision) == (batch.sha256, setting, precision)
        kept = False
        if single is None and known is not None and same:
            single, kept = known.value if known.single is None else known.single, True
        limit = FIRST_LOSS.get(precision, FIRST_LOSS_ROUNDED)
        value = values[0] if single is None else max(values, key=lambda own: _far(own - single))
        if single is not None and not abs(value - single) <= limit * max(abs(single), LEAST_LOSS):
            raise _other_loss(value, single, limit, precision, kept, self.path)
        return FirstLoss(
            value=value,
            single=single,
            kept=kept,
            limit=limit,
            precision=precision,
            rows=batch.rows,
            batch=batch.sha256,
            setting=setting,
        )

    # ---- the first rollout ----------------------------------------------------------------------------------------

    def rollout(self, trainer: Trainer, kl: torch.Tensor | None, lengths: torch.Tensor) -> None:
        """The KL of the first rollout, before an update is made of it; arguments as of `Proving`.

        Raises:
            AlignError: it is beyond its limit; in all processes alike.
        """
        if self.resumed or self.made.start_kl is not None or trainer.state.global_step:
            return
        if kl is None:
            self._keep(absent={"start_kl": _NO_REFERENCE})
            return
        each = every((float(kl.detach().abs().double().sum()), int(lengths.sum())), self.world)
        value = sum(nats for nats, _ in each) / max(sum(tokens for _, tokens in each), 1)
        precision = precision_of(trainer)
        limit = None if self.begins in ("changed", "drawn") else _kl_limit(precision, self.begins == "equal")
        self._keep(start_kl=near_reference(value, precision, "rollout", limit))

    def _keep(self, absent: dict[Name, str] | None = None, **made: FirstLoss | StartKl) -> None:
        reasons = {name: why for name, why in (self.made.absent | (absent or {})).items() if name not in made}
        self.made = self.made.model_copy(update={**made, "absent": reasons})
        if self.world.is_main_process:
            proofs.write(self.path, self.made)


class _Before(TrainerCallback):
    """Proves when the model is as the launch made it, before the first batch is drawn."""

    def __init__(self, start: Start, trainer: Trainer, alone: float | None) -> None:
        self.start, self.trainer, self.alone = start, trainer, alone

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.start.first_loss(self.trainer, self.alone)


def _far(difference: float) -> float:
    """To sort by: what is no number is the furthest."""
    return math.inf if math.isnan(difference) else abs(difference)


def _unfit(trainer: Any) -> str | None:
    """Why a trainer has no loss of fixed rows that could be computed once more."""
    if not isinstance(trainer, HeldOut):
        return _SAMPLES if isinstance(trainer, RolloutRecord) else _OWN
    return _COMPILED if trainer.args.torch_compile else None


def _why_not_near(trainer: Any) -> str:
    """Why such a trainer's policy is not held against its reference, or not before it has made a rollout."""
    if isinstance(trainer, Online):
        return _OF_ROLLOUTS
    if isinstance(trainer, KeptReference):
        return _COMPILED
    return _TEACHER if isinstance(trainer, RolloutRecord) else _NO_REFERENCE


# ---- what is said where a proof fails -------------------------------------------------------------------------------


def _kl_limit(precision: str, same_kernels: bool) -> float:
    return START_KL.get(precision, START_KL_ROUNDED if same_kernels else START_KL_OTHERWISE)


def near_reference(value: float, precision: str, of: Literal["batch", "rollout"], limit: float | None) -> StartKl:
    """The record of it.

    Raises:
        AlignError: it is beyond its limit, or no number.
    """
    if limit is None or value <= limit:
        return StartKl(value=value, limit=limit, precision=precision, of=of)
    what = f"before the first update the policy is {value:.3g} nats per token from its reference, in the first {of}"
    what += f"; they are the same policy, so it should be 0, and {limit:g} at most in {precision}"
    remedy = "the reference is another policy than the one that came in: look at what the stage loads or copies as "
    remedy += "reference, and whether its base or adapter was changed since; nothing was trained"
    raise AlignError(what, remedy, exit=Exit.STAGE_FAILED)


def _other_loss(value: float, single: float, limit: float, precision: str, kept: bool, path: Path) -> AlignError:
    other = "an earlier launch of the same stage had" if kept else "one process alone computes"
    what = f"before the first step the loss of the first batch is {value:.7g} in this launch, but {other} {single:.7g}"
    what += f"; in {precision} they may differ by {limit:g} of it"
    if kept:
        remedy = "see whether the base, the incoming adapter or the packages were changed since; if that is meant, "
        remedy += f"remove {path}; nothing was trained"
    else:
        remedy = "a process holds other weights than the first, or only parts of them: look at how the engine of this "
        remedy += "launch wraps and shares the model, and run with one process meanwhile; nothing was trained"
    return AlignError(what, remedy, exit=Exit.STAGE_FAILED)
