"""When a process that has told nothing for a while hangs: limits by phase, learnt from the run."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field

from align.run_folder.heartbeats import Beat, Phase

FLOOR = 60.0  # seconds; nothing is taken for hanging before
USUAL = 10  # times what was usual
UNKNOWN = 1800.0  # seconds, where nothing is usual yet: loading and compiling take their time
APART = 5.0  # seconds; the parent itself stood still for the rest, with the machine or by a scheduler
STEPS = 3  # that tell what is usual
LEARNT: tuple[Phase, ...] = ("step", "rollout", "evaluation", "measuring", "saving")


@dataclass
class Usual:
    """How long the signs of one phase are apart.

    Attributes:
        count: of the signs; several may have been made between two that were written.
        whole: whether the phase was gone through once: its parts may differ among each other.
    """

    longest: float = 0.0
    count: int = 0
    whole: bool = False

    def known(self, phase: Phase) -> bool:
        """Whether the run has shown what is usual."""
        return phase in LEARNT and (self.count >= STEPS if phase == "step" else self.whole)

    def limit(self, phase: Phase, floor: float) -> float:
        """Seconds without a sign that are too many."""
        return max(floor, USUAL * self.longest if self.known(phase) else UNKNOWN)


@dataclass(frozen=True)
class Silence:
    """No process has told anything for too long.

    Attributes:
        ranks: all that are there, by what was last heard of them, the furthest behind first.
        seconds: for how long.
        limit: that it broke.
    """

    ranks: tuple[Beat, ...]
    seconds: float
    limit: float


@dataclass
class Listener:
    """Hears the signs of all processes. Times are seconds on the parent's clock, read often.

    One that waits for the others tells nothing either, so only when all are silent does one of them hang.
    """

    floor: float = FLOOR
    usual: dict[tuple[str, Phase], Usual] = field(default_factory=dict)
    heard: dict[int, Beat] = field(default_factory=dict)
    since: dict[int, float] = field(default_factory=dict)  # seconds of watching at each rank's last sign
    watched: float = 0.0
    last: float | None = None

    def reset(self) -> None:
        """Begin to watch: another ticket is handed over."""
        self.last = None
        self.since = dict.fromkeys(self.since, self.watched)

    def hear(self, beats: Mapping[int, Beat], now: float, working: Set[int] = frozenset()) -> Silence | None:
        """What is told now; whether that is too little.

        Args:
            working: ranks that have computed since. While it is not known what is usual, that is a sign too: a stage of
                the user's own may train in a loop of its own, which tells nothing.
        """
        self.watched += min(now - self.last, APART) if self.last is not None else 0.0
        self.last = now
        for rank, beat in beats.items():
            before = self.heard.get(rank)
            if before is None or before.count != beat.count:
                if before is not None:
                    self._learn(before, beat)
                self.heard[rank], self.since[rank] = beat, self.watched
        for rank in working & self.heard.keys():
            if not self._usual(self.heard[rank]).known(self.heard[rank].phase):
                self.since[rank] = self.watched
        present = [beat for beat in self.heard.values() if beat.left is None and beat.phase != "waiting"]
        if not present:
            return None
        seconds = self.watched - max(self.since.values())
        limits = {beat.rank: self._usual(beat).limit(beat.phase, self.floor) for beat in present}
        limit = max(limits.values())
        if seconds <= limit:
            return None
        behind = sorted(present, key=lambda beat: (beat.step, self.since[beat.rank]))
        return Silence(tuple(behind), seconds, limit)

    def silent(self, rank: int) -> float:
        """Seconds since a process told anything."""
        return self.watched - self.since.get(rank, self.watched)

    def _usual(self, beat: Beat) -> Usual:
        """All stages of a run are measured alike; they train each in their own way."""
        stage = "" if beat.phase == "measuring" else beat.stage
        return self.usual.setdefault((stage, beat.phase), Usual())

    def _learn(self, before: Beat, beat: Beat) -> None:
        """By the clock of the process itself, which tells how long it took and not when it was heard."""
        usual, apart = self._usual(before), max(0.0, beat.seconds - before.seconds)
        usual.longest, usual.count = max(usual.longest, apart), usual.count + beat.signs - before.signs
        usual.whole = usual.whole or (beat.phase, beat.stage) != (before.phase, before.stage)
