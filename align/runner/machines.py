"""The first of several machines: it calls for the others, starts with them, and sees when one is lost."""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from align.errors import AlignError, Exit, of_the_machine
from align.run_folder.launch import Launch, Place
from align.run_folder.machines import SILENT, Answer, Call, Told, read
from align.run_folder.paths import RunDir

GATHERING = 1800.0  # seconds for all machines to answer: a scheduler starts them one after the other
PATIENCE = 2.0  # seconds before it is said that one is waited for
POLL = 0.1
BROKEN = 10.0  # seconds without a sign that are enough once a connection has broken
AGAIN = "run the same command on every machine again; it resumes"


@dataclass(frozen=True)
class Lost:
    """Why another machine does no more."""

    what: str
    remedy: str = AGAIN


def check(launches: Iterable[Launch], place: Place) -> None:
    """Raises AlignError where the command line lacks what a run on several machines needs, or says it in vain."""
    most = max(launch.machines for launch in launches)
    if most > 1 and not place.address:
        what = f"a stage is launched on {most} machines, and the command does not say where they meet"
        remedy = f"on each of them give --machines {most} --machine-rank N --main-address HOST"
        raise AlignError(what, f"{remedy}; the first is machine 0, and HOST is its address")
    if most == 1 and place.address:
        what = "--main-address says where several machines meet, and no stage is launched on several"
        raise AlignError(what, "give --machines too, or leave it out")
    if place.machine >= most:
        machines = "there is 1 machine" if most == 1 else f"there are {most} machines"
        raise AlignError(f"--machine-rank {place.machine}: {machines}, from 0", "give each machine its own number")


class Machines:
    """The others, as the first machine sees them. A context, begun before anything else: the others hear that this one
    is there, and at its end how the run has ended. Where there are no others it does nothing.

    Args:
        place: of this machine.
        recipe: a hash of the recipe with all that was set.
        say: prints a line that stays.
    """

    def __init__(self, run: RunDir, place: Place, recipe: str, say: Callable[[str], None]) -> None:
        self.run, self.place, self.recipe, self.say = run, place, recipe, say
        self.told: Told[Call] | None = None
        self.heard: dict[int, tuple[int, float]] = {}  # signs of each, and when the last of them came
        self.code = Exit.DONE

    @property
    def call(self) -> Call | None:
        """What is called now."""
        return self.told.now if self.told is not None else None

    def __enter__(self) -> Machines:
        if self.place.address:
            call = Call(run=secrets.token_hex(8), state="busy", recipe=self.recipe, address=self.place.address)
            self.told = Told(self.run.call, call)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self.told is None:
            return
        code, why, remedy = self.code, "", ""
        if isinstance(error, OSError):
            error = of_the_machine(error) or error
        if isinstance(error, AlignError):
            code, why, remedy = error.exit, error.what, error.remedy or ""
        elif isinstance(error, KeyboardInterrupt):
            code, why = Exit.INTERRUPTED, "it was interrupted"
        elif error is not None:
            code, why = Exit.STAGE_FAILED, f"{type(error).__name__}: {error}"
        self.told.end(state="over", code=int(code), why=why, remedy=remedy)

    # ---- starting -------------------------------------------------------------------------------------------------

    def gather(self, launch: Launch, needs: Sequence[str]) -> Place:
        """Call for the machines of a launch, wait until all are ready, and say where their processes meet.

        Args:
            needs: paths that each of them has to find.

        Raises:
            AlignError: one of them refuses, or does not answer.
            KeyboardInterrupt: one of them was asked to leave.
        """
        assert self.told is not None
        given = {"folder": str(Path.cwd()), "needs": tuple(needs), "launch": launch}
        self.told.change(state="gather", id=secrets.token_hex(8), members=(), **given)
        began, said = time.monotonic(), False
        while missing := [number for number in range(1, launch.machines) if not self._is_ready(number)]:
            waited = time.monotonic() - began
            if not said and waited > PATIENCE:
                said = True
                self.say(f"waiting for machine {_listed(missing)} in the run folder {self.run.root}")
            if waited > GATHERING:
                what = f"machine {_listed(missing)} did not answer within {GATHERING / 60:.0f} minutes"
                remedy = f"start the same command there, with its --machine-rank and the run folder {self.run.root}"
                raise AlignError(what, remedy, exit=Exit.STAGE_FAILED)
            time.sleep(POLL)
        members = tuple((number, one.who) for number in range(1, launch.machines) if (one := self._answer(number)))
        port = self.place.port or _free_port()
        now = time.monotonic()
        self.heard = {number: (-1, now) for number, _ in members}
        self.told.change(state="start", members=members, port=port)
        return Place(0, self.place.address, port)

    def _is_ready(self, number: int) -> bool:
        """Raises AlignError where it refuses, KeyboardInterrupt where it was asked to leave."""
        if self.asked():
            raise KeyboardInterrupt
        found = self._answer(number)
        if found is not None and found.state == "refused":
            what = f"machine {number} ({found.host}) cannot take part: {found.what}"
            raise AlignError(what, found.remedy, exit=Exit.MACHINE)
        return found is not None and found.state == "ready"

    # ---- watching -------------------------------------------------------------------------------------------------

    def asked(self) -> bool:
        """Whether another machine was asked to leave, and asks this one to end the run."""
        if self.told is None:
            return False
        answers = [read(path, Answer) for path in self.run.machines.glob("[0-9]*.json")]
        return any(one and (one.run, one.state) == (self.told.now.run, "interrupted") for one in answers)

    def lost(self, silent: float | None = None) -> Lost | None:
        """A machine that has ended its part, or of which nothing was heard for too long.

        Args:
            silent: seconds that are too long; by default those of a shared disk that shows a file late.
        """
        if self.told is None or self.told.now.state != "start":
            return None
        silent, now = SILENT if silent is None else silent, time.monotonic()
        for number, who in self.told.now.members:
            found = self._answer(number)
            signs, since = self.heard[number]
            if found is not None and found.who == who and found.signs != signs:
                self.heard[number] = (found.signs, now)
                if found.state == "ended" and found.code != Exit.DONE:
                    return Lost(f"machine {number} ({found.host}): {found.what}", found.remedy or AGAIN)
            elif now - since > silent:
                name = f"machine {number}" + (f" ({found.host})" if found is not None else "")
                return Lost(f"nothing was heard of {name} for {now - since:.0f} s: it was ended, or is cut off")
        return None

    def lost_soon(self) -> Lost | None:
        """The same, where a connection to another machine has broken: it may say why in a moment."""
        if self.told is None or self.told.now.state != "start":
            return None
        until = time.monotonic() + BROKEN
        while (found := self.lost(BROKEN / 2)) is None and time.monotonic() < until:
            time.sleep(POLL)
        return found

    def _answer(self, number: int) -> Answer | None:
        """What a machine says to the last call."""
        found, call = read(self.run.answer(number), Answer), self.call
        return found if found and call and (found.run, found.id) == (call.run, call.id) else None

    def end(self) -> None:
        """Have all machines end their processes."""
        if self.told is not None and self.told.now.state in ("gather", "start"):
            self.told.change(state="end")


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("", 0))
        return int(one.getsockname()[1])


def _listed(numbers: Sequence[int]) -> str:
    return " and ".join(map(str, numbers))
