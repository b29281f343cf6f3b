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
COMPILED: tuple[Phase, ...] = ("step", "rollout", "evaluation")  # phases that torch.compile compiles in
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

    Attributes:
        compiles: whether the stage compiles its model, which it does again for each new shape.
    """

    floor: float = FLOOR
    usual: dict[tuple[str, Phase], Usual] = field(default_factory=dict)
    heard: dict[int, Beat] = field(default_factory=dict)
    since: dict[int, float] = field(default_factory=dict)  # seconds of watching at each rank's last sign
    told: dict[int, float] = field(default_factory=dict)  # the same of what it told itself
    watched: float = 0.0
    last: float | None = None
    compiles: bool = False

    def reset(self, *, compiles: bool = False) -> None:
        """Begin to watch: another ticket is handed over."""
        self.last, self.compiles = None, compiles
        self.since = dict.fromkeys(self.since, self.watched)

    def hear(
        self, beats: Mapping[int, Beat], now: float, working: Set[int] = frozenset(), moving: Set[int] = frozenset()
    ) -> Silence | None:
        """What is told now; whether that is too little.

        Args:
            working: ranks that have computed since. While it is not known what is usual, that is a sign too: a stage of
                the user's own may train in a loop of its own, which tells nothing.
            moving: ranks that have read or written much since; always a sign: a disk may be slow.
        """
        self.watched += min(now - self.last, APART) if self.last is not None else 0.0
        self.last = now
        for rank, beat in beats.items():
            before = self.heard.get(rank)
            if before is None or before.count != beat.count:
                if before is not None:
                    self._learn(before, beat)
                self.heard[rank], self.since[rank], self.told[rank] = beat, self.watched, self.watched
        for rank in (working | moving) & self.heard.keys():
            if rank in moving or not self._known(self.heard[rank]):
                self.since[rank] = self.watched
        present = [beat for beat in self.heard.values() if beat.left is None and beat.phase != "waiting"]
        if not present:
            return None
        seconds = self.watched - max(self.since.values())
        limits = {beat.rank: self._limit(beat) for beat in present}
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

    def _known(self, beat: Beat) -> bool:
        """Whether the run has shown what is usual where a process is."""
        return self._usual(beat).known(beat.phase) and not (self.compiles and beat.phase in COMPILED)

    def _limit(self, beat: Beat) -> float:
        """Seconds without a sign that are too many."""
        return max(self.floor, USUAL * self._usual(beat).longest if self._known(beat) else UNKNOWN)

    def _learn(self, before: Beat, beat: Beat) -> None:
        """By the clock of the process itself, which tells how long it took and not when it was heard; without the time
        in which the parent stood still, and the process with it."""
        heard = self.watched - self.told[beat.rank] + APART
        usual, apart = self._usual(before), min(max(0.0, beat.seconds - before.seconds), heard)
        usual.longest, usual.count = max(usual.longest, apart), usual.count + beat.signs - before.signs
        usual.whole = usual.whole or (beat.phase, beat.stage) != (before.phase, before.stage)
        for phase, longest in beat.passed.items():  # between two looks
            usual = self._usual(beat.but(phase=phase))
            if not usual.whole:
                usual.longest, usual.whole = max(usual.longest, min(longest, heard)), True
