"""What a merge of adapters into base weights cost, and whether that is too much. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

NEGLIGIBLE = 1e-5  # nats a token: well below what bfloat16 costs a model, and above what float32 does
NOTICEABLE = 0.01  # nats of loss: one per cent of perplexity
TIMES = 2.0  # of what the precision itself costs the base
LOST = 0.1  # of what the adapters changed: a merge at half their strength loses about a quarter
LOST_LOSS = 0.25  # of how far they changed the loss

Verdict = Literal["fine", "worse", "broken"]


@dataclass(frozen=True)
class Merge:
    """A merged model beside the adapted one, on the same tokens and both computed in float32.

    Of reward models a divergence is half the squared difference of two scores, which is the KL divergence of two
    normal distributions of variance 1 around them.

    Attributes:
        adapters: that were merged, in order.
        dtype: of the merged weights.
        rows, positions: that were compared.
        kl: KL(adapted || merged) in nats, mean over positions.
        precision_kl, precision_loss: what the precision itself costs the base, in weights and arithmetic: KL(float32 ||
            `dtype`), and how far its loss changes.
        moved_kl: KL(adapted || base), which is what the adapters changed.
        loss, merged_loss, base_loss: mean negative log-likelihood of the next token in nats, of the adapted model, the
            merged one and the base; None for reward models.
        agreement: share of positions at which both find the same token most probable; None for reward models.
    """

    adapters: list[str]
    dtype: str
    rows: int
    positions: int
    kl: float
    precision_kl: float
    precision_loss: float | None
    moved_kl: float
    loss: float | None
    merged_loss: float | None
    base_loss: float | None
    agreement: float | None

    @property
    def verdict(self) -> Verdict:
        """`broken`, where more than rounding is lost: a wrong scale, a wrong base, weights beyond the precision."""
        if self.kl <= max(TIMES * self.precision_kl, NEGLIGIBLE):
            return "worse" if self._loss_is_lost() else "fine"
        return "worse" if self.kl <= LOST * self.moved_kl else "broken"

    def _loss_is_lost(self) -> bool:
        """Whether rounding takes back much of what was learnt: updates below half a step of the precision vanish."""
        if self.loss is None or self.merged_loss is None or self.base_loss is None or self.precision_loss is None:
            return False
        learnt = abs(self.base_loss - self.loss)
        return self.merged_loss - self.loss > max(TIMES * self.precision_loss, LOST_LOSS * learnt, NOTICEABLE)

    @property
    def figures(self) -> str:
        """The comparison in one line."""
        if self.loss is None:
            off, own = (_number(math.sqrt(2 * value)) for value in (self.kl, self.precision_kl))
            cost = f", where {self.dtype} itself costs {own}" if self.precision_kl else ""
            return f"scores differ from the adapted model's by {off} (root mean square{cost})"
        cost = f" ({self.dtype} itself costs the base {_number(self.precision_kl)})" if self.precision_kl else ""
        change = f"loss {self.loss:.4f} -> {self.merged_loss:.4f}, of the base {self.base_loss:.4f}"
        return f"KL {_number(self.kl)} nats per token from the adapted model{cost}, {change}"

    @property
    def warning(self) -> str | None:
        """What to say of a merge that loses more than its precision explains; None where it does not."""
        if self.verdict == "fine":
            return None
        names = ", ".join(self.adapters)
        return f"merging {names} into {self.dtype} weights lost more than the dtype explains: {self.figures}"


def _number(value: float) -> str:
    return f"{value:.2g}"
