"""What Optuna decides: the values of the next trial, and whether a trial is worth the rest of its steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from align.errors import AlignError, Exit
from align.tuning.figures import Figures
from align.tuning.space import Dimension

if TYPE_CHECKING:
    from optuna.trial import Trial

ETA: Final = 3
"""A trial goes on after a third of its steps where it is among the best third of all that came so far, or the best."""
SPREAD: Final = 4
"""So many trials are spread over the ranges, the recipe's own values first; from the next on the sampler learns."""
EXTRA: Final = "pip install 'align-suite[tune]'"

Places = Mapping[str, float]
"""Where values lie between the ends of their ranges, 0 to 1, by dimension."""


def check_package() -> None:
    """Refuse to tune without Optuna.

    Raises:
        AlignError: it is missing.
    """
    from importlib.util import find_spec

    if find_spec("optuna") is None:
        what = "align tune needs the package 'optuna', which is not installed"
        raise AlignError(what, EXTRA, exit=Exit.MACHINE)


class Chooser:
    """A study of Optuna in memory: Bergstra et al. 2011 (TPE) for the values, Li et al. 2020 (asynchronous successive
    halving, arXiv 1810.05934) for what ends early. Told of the same trials in the same order it chooses the same.

    Args:
        steps: of a trial that comes to its end.
        every: of them lie between two measurements.
    """

    def __init__(self, over: Sequence[Dimension], steps: int, every: int, seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.over, self.steps, self.seed = over, steps, seed
        pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=every, reduction_factor=ETA)
        self._study = optuna.create_study(direction="maximize", pruner=pruner)
        self._trial: Trial | None = None
        self._reported = set[int]()

    def begin(self, number: int, begun: Places | None = None) -> Places:
        """The places of a trial: those it was begun with, spread over the ranges, or the sampler's."""
        from optuna.distributions import FloatDistribution
        from optuna.samplers import TPESampler

        # one for each trial: what was drawn for those before must not matter
        self._study.sampler = TPESampler(n_startup_trials=SPREAD, multivariate=True, seed=self.seed + number)
        if begun is not None:
            self._study.enqueue_trial(dict(begun))
        elif number <= SPREAD:
            self._study.enqueue_trial(self._spread(number))
        self._trial = self._study.ask({one.name: FloatDistribution(0.0, 1.0) for one in self.over})
        self._reported = set()
        return {one.name: float(self._trial.params[one.name]) for one in self.over}

    def beaten(self, curve: Sequence[Figures]) -> bool:
        """Whether the trial is not worth the rest of its steps, from all that has been measured of it so far."""
        assert self._trial is not None
        for figures in curve:
            if figures.step in self._reported or figures.step >= self.steps:
                continue
            self._reported.add(figures.step)
            self._trial.report(figures.value, figures.step)
            if self._trial.should_prune():
                return True
        return False

    def end(self, value: float | None) -> None:
        """The trial is over.

        Args:
            value: of its last step; None of one that ended early or failed, from which the sampler keeps away.
        """
        from optuna.trial import TrialState

        assert self._trial is not None
        if value is not None:
            self._study.tell(self._trial, value)
        else:  # one that is told as failed would not count
            self._study.tell(self._trial, state=TrialState.PRUNED)

    def _spread(self, number: int) -> dict[str, float]:
        """The recipe's own values, then points of Halton's sequence."""
        from scipy.stats import qmc

        if number == 1:
            return {one.name: one.place(one.own) for one in self.over}
        points = qmc.Halton(len(self.over), scramble=False).random(SPREAD + 1)[2:]  # not 0, nor the middle
        return {one.name: float(at) for one, at in zip(self.over, points[number - 2], strict=True)}
