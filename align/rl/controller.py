"""The controller of the KL penalty (Ziegler et al. 2019, arXiv 1909.08593, section 2.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass

_ERROR_LIMIT = 0.2  # of the relative error, as in the paper


@dataclass
class Controller:
    """The coefficient of the KL penalty, and what moves it towards a KL that is wanted.

    Attributes:
        coef: score per nat.
        target: the KL wanted, nats per answer.
        horizon: episodes (answers) over which a lasting error of 20 % or more moves the coefficient by about 20 %.
        adaptive: False leaves the coefficient as it is, whatever target and horizon are.
        last: the KL of the rollout before; None before the first.

    Raises:
        ValueError: adaptive, and target or horizon is not positive.
    """

    coef: float
    target: float
    horizon: float
    adaptive: bool
    last: float | None = None

    def __post_init__(self) -> None:
        if self.adaptive and not (self.target > 0 and self.horizon > 0):
            raise ValueError(f"target and horizon must be positive, not {self.target} and {self.horizon}")

    def update(self, kl: float, episodes: int) -> None:
        """coef *= 1 + clip(kl / target - 1, -0.2, 0.2) min(1, episodes / horizon), after a rollout.

        Ziegler et al. 2019 (arXiv 1909.08593, section 2.2) have a constant for the last factor, their program
        episodes / horizon. The cap is ours: beyond it a rollout would change the coefficient by more than 20 %.

        Ours too: the coefficient stays as it is while the KL comes nearer to its target by itself. A policy follows the
        coefficient only after some rollouts. From the KL of 0 that every run begins with, the published rule takes the
        coefficient down at each of them, and the KL then runs far past the target (docs/ppo.md has the figures).

        Args:
            kl: mean of the rollout, nats per answer.
            episodes: answers of the rollout, of all processes.

        Raises:
            ValueError: adaptive, and the KL is nan, which says nothing about where to go.
        """
        if not self.adaptive:
            return
        if math.isnan(kl):
            raise ValueError("the KL is not a number")
        last, self.last = self.last, kl
        if last is not None and self._nears(last, kl):
            return
        error = min(max(kl / self.target - 1, -_ERROR_LIMIT), _ERROR_LIMIT)
        self.coef *= 1 + error * self._share(episodes)

    def _nears(self, last: float, kl: float) -> bool:
        """Whether the KL came nearer to its target, and did not pass it."""
        before, now = last - self.target, kl - self.target
        return before * now > 0 and abs(now) < abs(before)

    def reach(self, episodes: int, rollouts: int) -> tuple[float, float]:
        """The lowest and the highest factor by which the coefficient can still change.

        Args:
            episodes: answers left in all.
            rollouts: updates left, each of episodes / rollouts answers.
        """
        if not self.adaptive or rollouts < 1:
            return 1.0, 1.0
        change = _ERROR_LIMIT * self._share(episodes / rollouts)
        return (1 - change) ** rollouts, (1 + change) ** rollouts

    def _share(self, episodes: float) -> float:
        return min(1.0, episodes / self.horizon)

    def state(self) -> dict[str, float]:
        """What changes in training, for a checkpoint."""
        return {"coef": self.coef} | ({} if self.last is None else {"last": self.last})

    def load(self, state: dict[str, float]) -> None:
        """Go on from what `state` gave."""
        self.coef, self.last = state["coef"], state.get("last")


def auto_horizon(episodes_per_rollout: int, rollouts: int) -> float:
    """The horizon, in episodes, with which the coefficient can change tenfold within a third of the run.

    A first coefficient is a guess that may well be wrong by ten; it should be right for the greater part of the run,
    and no livelier than that needs. Over k = rollouts // 3 updates of n episodes, the KL being always 20 % or more
    above the target, the coefficient grows by (1 + 0.2 n / horizon)^k. That is 10 at horizon = 0.2 n / (10^(1/k) - 1);
    down it goes faster still. With k < 13 no horizon does it, as the controller's step is capped: it is n then, which
    gives the capped step, and `Controller.reach` says how far that leads.
    """
    updates = max(1, rollouts // 3)
    return max(float(episodes_per_rollout), _ERROR_LIMIT * episodes_per_rollout / math.expm1(math.log(10) / updates))
