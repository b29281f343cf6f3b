"""The rollouts of a run as they go by: begun, completed, judged, written; and taken up again where a run resumes.
No torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from align.errors import AlignError, Exit
from align.rl import rollouts
from align.rl.health import Health
from align.rl.rollouts import Alarm, Rollout

if TYPE_CHECKING:
    from align.stage.job import Job

_MEANS = ("policy_loss", "value_loss", "entropy", "clip_fraction", "stopped")  # over the updates of a rollout

WITHOUT_A_CRITIC: Final = MappingProxyType(
    {
        "not_finite": "lower `training.learning_rate`; if it is the score, fix `reward`",
        "kl_explosion": "lower `training.learning_rate` or `training.num_iterations`, or raise `beta`; if the KL is "
        "negative, leave out `training.top_k` and `training.top_p`",
        "reward_hacking": "read the samples: if the score rewards what you would not, fix `reward` or add another; "
        "raise `beta`; if answers only grow longer, lower `training.max_completion_length`",
        "mode_collapse": "raise `beta`, lower `training.learning_rate`, raise `training.temperature`; see whether "
        "`reward` favours one answer for every prompt",
        "clipped": "lower `training.learning_rate` or `training.num_iterations`",
        "missing_eos": "if good answers need more room, raise `training.max_completion_length`; else add a `reward` "
        "for answers that end",
    }
)
"""What to try in stages whose only key beside `reward` is `beta`, by the name of the alarm."""


class Recorder:
    """The rollouts of one run.

    Args:
        job: the stage at work, to whose folder and warnings they go.
        health: judges each that is done.
        stops: whether an alarm ends the stage; otherwise it is a warning.
        remedies: what to try, by the name of the alarm, where it is not what PPO would.

    Attributes:
        number: rollouts that were begun.
        open: the one under way.
        sums: what its updates measured so far, by name.
        history: those that are done.
    """

    def __init__(
        self, job: Job, health: Health, *, stops: bool = False, remedies: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self.job, self.health, self.stops, self.remedies = job, health, stops, remedies
        self.number = 0
        self.open: Rollout | None = None
        self.sums: dict[str, list[float]] = defaultdict(list)
        self.history: list[Rollout] = []

    def begin(self, **figures: Any) -> Rollout:
        """Begin a rollout with what is known of it before its updates."""
        self.number += 1
        self.sums = defaultdict(list)
        self.open = Rollout(number=self.number, **figures)
        return self.open

    def close(self, step: int, *, write: bool) -> Rollout:
        """The last update of a rollout is made: complete its record and judge it.

        Args:
            step: of the optimizer, now.
            write: whether this process is the one that writes.

        Raises:
            AlignError: it raised an alarm, and alarms end the stage.
        """
        done, sums = self.open, self.sums
        assert done is not None
        for name in _MEANS:
            setattr(done, name, sum(sums[name]) / len(sums[name]) if sums[name] else None)
        done.approx_kl = sums["approx_kl"][-1] if sums["approx_kl"] else None
        done.ratio_max = max(sums["ratio_max"], default=None)
        alarms = self.health.judge(self.history, done)
        done.alarms = [replace(alarm, remedy=self.remedies.get(alarm.name, alarm.remedy)) for alarm in alarms]
        self.history.append(done)
        self.open = None
        if write:
            if done.number == 1:  # what an attempt without a checkpoint left
                rollouts.keep(self.job.dir.rollouts, 0)
            rollouts.append(self.job.dir.rollouts, done)
        for alarm in done.alarms:
            if write:
                self.job.alarm(step, f"{_told(alarm)}; {alarm.remedy}")
            if self.stops:
                what = f"stage '{self.job.ticket.stage}': {_told(alarm)}"
                raise AlignError(what, alarm.remedy, exit=Exit.STAGE_FAILED)
        return done

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it; JSON."""
        found: dict[str, Any] = {"rollouts": self.number}
        if self.open is not None:
            found |= {"open": asdict(self.open), "sums": dict(self.sums)}
        return found

    def load(self, state: dict[str, Any]) -> None:
        """Put it back; what was written after the checkpoint is dropped."""
        self.number = state["rollouts"]
        if "open" in state:
            self.open, self.sums = rollouts.from_json(state["open"]), defaultdict(list, state["sums"])
        self.history = rollouts.keep(self.job.dir.rollouts, self.number - (1 if self.open is not None else 0))
        self.job.warnings += [f"{_told(alarm)}; {alarm.remedy}" for one in self.history for alarm in one.alarms]


def _told(alarm: Alarm) -> str:
    return f"{alarm.name.replace('_', ' ')} in rollout {alarm.rollout}: {alarm.figure}"


def late(history: list[Rollout]) -> list[Rollout]:
    """The last third of the rollouts."""
    return history[-max(1, len(history) // 3) :]


def figures(history: list[Rollout], **more: Any) -> dict[str, Any]:
    """What the outcome says of a run: `score_first`, `score_last` and `kl` (means over the last third of the rollouts,
    the KL in nats an answer), `more`, and `alarms` (their names); nothing of a run that ended within its first rollout,
    and no scores where nothing scores answers."""
    if not history:
        return {"rollouts": 0, "alarms": []}
    last = late(history)
    kls = [one.kl for one in last if one.kl is not None]
    scores = [one.score for one in last if one.score is not None]
    scored = {"score_first": history[0].score, "score_last": sum(scores) / len(scores)} if scores else {}
    return {
        "rollouts": len(history),
        **scored,
        "kl": sum(kls) / len(kls) if kls else None,
        **more,
        "alarms": [alarm.name for one in history for alarm in one.alarms],
    }
