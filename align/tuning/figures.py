"""What a trial is judged by: what the task gained, and what the skills lost, on the gate's items alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final

from align.errors import AlignError, did_you_mean
from align.forgetting import inside, probes
from align.forgetting.inside import Measured
from align.forgetting.keys import ForgettingKeys
from align.recipe.plan import StagePlan
from align.run_folder import reading
from align.run_folder.records import Record
from align.run_folder.stage_dir import StageDir

HELD_OUT: Final = {
    "SFTConfig": "eval_mean_token_accuracy",
    "DPOConfig": "eval_rewards/accuracies",
    "RewardConfig": "eval_accuracy",
}
"""The share of held-out tokens, or of pairs, that come out right, as the trainer with these arguments logs it."""
LAB_TASK: Final = tuple(f"helpdesk {measure}" for measure in probes.HELPDESK)
"""The probes of what the lab is taught; a user's own are skills, unless --gain names them."""


class Figures(Record):
    """One step of a trial.

    Attributes:
        gain: the score of the task on the gate's items, or the share of the held-out rows, from 0 to 1.
        forgotten: by how much the mean of the skills is below the base's; None where no skill is measured.
    """

    step: int
    gain: float
    forgotten: float | None = None

    @property
    def value(self) -> float:
        """What is looked for: a point that the skills lose weighs as much as one that the task gains."""
        return self.gain - (self.forgotten or 0.0)


@dataclass(frozen=True)
class Measure:
    """Where the figures are taken from.

    Attributes:
        gain: probes whose mean is the gain; empty where the held-out rows tell it.
        skills: probes whose mean must not fall.
    """

    gain: tuple[str, ...]
    skills: tuple[str, ...]

    @classmethod
    def of(cls, asked: Sequence[str], plan: StagePlan, keys: ForgettingKeys) -> Measure:
        """By the probes that the user names; else by the held-out rows, which tell two rates apart long before answers
        are right, or those of the lab's task.

        Raises:
            AlignError: there is no such probe, or nothing that tells what the stage gains.
        """
        policy = plan.program.stage.gives == "policy"
        texts = probes.texts(keys) if policy else {}
        known = [name for name in probes.names(keys) if not texts.get(name)] if policy else []
        for name in asked:
            if name not in known:
                remedy = did_you_mean(name, known) if known else "name a probe under `forgetting.probes`"
                raise AlignError(f"--gain '{name}' is no probe with right and wrong answers", remedy)
        lab = tuple(name for name in known if name in LAB_TASK)
        held_out = plan.program.stage.arguments in HELD_OUT and plan.keys.eval_data is not None
        gain = tuple(dict.fromkeys(asked)) or (() if held_out else lab)
        if not gain and not held_out:
            what = f"nothing tells what the stage '{plan.id}' gains"
            remedy = "name a probe of its task with --gain"
            if plan.program.stage.arguments in HELD_OUT:
                remedy += ", or give the stage `eval_data: 0.05`"
            raise AlignError(what, remedy)
        return cls(gain, tuple(name for name in known if name not in (*gain, *LAB_TASK)))

    def read(self, stage: StageDir) -> list[Figures]:
        """What has been measured of a trial so far, by steps; a line that is still being written comes later."""
        if not self.gain:
            return list(self._with_held_out(stage))
        return [self._of_probes(line) for line in inside.read(stage) if line.step > 0]

    def _of_probes(self, line: Measured) -> Figures:
        gain = fmean(_score(line, name) for name in self.gain)
        return Figures(step=line.step, gain=gain, forgotten=self._forgotten(line))

    def _with_held_out(self, stage: StageDir) -> Iterator[Figures]:
        shares = dict(_held_out(stage))
        if not self.skills:
            yield from (Figures(step=step, gain=share) for step, share in sorted(shares.items()))
            return
        for line in inside.read(stage):
            if line.step in shares:
                yield Figures(step=line.step, gain=shares[line.step], forgotten=self._forgotten(line))

    def _forgotten(self, line: Measured) -> float | None:
        """Positive where the skills fell. A score that is not finite is lost whole; a skill at which the base guesses,
        or that has no limit, is left out, as the gate leaves it."""
        points = [line.points[name] for name in self.skills if line.points[name].metric == "accuracy"]
        judged = [one for one in points if one.limit is not None] or points
        return fmean((one.before or 0.0) - (one.score or 0.0) for one in judged) if judged else None


def _score(line: Measured, name: str) -> float:
    return line.points[name].score or 0.0


def _held_out(stage: StageDir) -> Iterator[tuple[int, float]]:
    for row in reading.lines(stage.metrics):
        for name in HELD_OUT.values():
            share = row.get(name)
            if isinstance(share, int | float) and isinstance(row.get("step"), int):
                yield row["step"], float(share) if math.isfinite(share) else 0.0


def front(found: Sequence[Figures]) -> list[int]:
    """The numbers, from 0, of those that no other beats in one figure without falling behind in the other (Pareto)."""

    def beats(one: Figures, other: Figures) -> bool:
        lost, less = one.forgotten or 0.0, other.forgotten or 0.0
        return one.gain >= other.gain and lost <= less and (one.gain, -lost) != (other.gain, -less)

    return [n for n, one in enumerate(found) if not any(beats(other, one) for other in found)]
