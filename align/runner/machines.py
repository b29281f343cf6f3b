"""The first of several machines: it calls for the others, starts with them, and sees when one is lost."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from align.errors import AlignError, Exit
from align.run_folder import files, reading
from align.run_folder.launch import Launch, Place
from align.run_folder.machines import SILENT, Answer, Call
from align.run_folder.paths import RunDir

EVERY = 1.0  # seconds between two signs of life
GATHERING = 1800.0  # seconds for all machines to answer: a scheduler starts them one after the other
POLL = 0.1
BROKEN = 4.0  # seconds without a sign that are enough once a connection has broken
AGAIN = "run the same command on every machine again; it resumes"


@dataclass(frozen=True)
class Lost:
    """Why another machine does no more."""

    what: str
    remedy: str = AGAIN
    interrupted: bool = False


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
        what = (
            f"--machine-rank {place.machine}: there {'is 1 machine' if most == 1 else f'are {most} machines'}, from 0"
        )
        raise AlignError(what, "give each machine its own number")


class Machines:
    """The others, as the first machine sees them. A context; at its end the others are told how the run has ended.

    Args:
        place: of this machine.
        recipe: a hash of the recipe with all that was set.
        say: prints a line that stays.
    """

    def __init__(self, run: RunDir, place: Place, recipe: str, say: Callable[[str], None]) -> None:
        self.run, self.place, self.recipe, self.say = run, place, recipe, say
        self.call: Call | None = None  # the last one
        self.heard: dict[int, tuple[int, float]] = {}  # signs of each, and when the last of them came
        self.lock, self.ended = threading.Lock(), threading.Event()
        self.code = Exit.DONE

    # ---- starting -------------------------------------------------------------------------------------------------

    def gather(self, launch: Launch, needs: Sequence[str]) -> Place:
        """Call for the machines of a launch, wait until all are ready, and say where their processes meet.

        Args:
            needs: paths that each of them has to find.

        Raises:
            AlignError: one of them refuses, or does not answer.
        """
        port = self.place.port or _free_port()
        given = {"folder": str(Path.cwd()), "needs": tuple(needs), "launch": launch}
        self._tell(
            Call(
                id=str(time.time_ns()),
                state="gather",
                recipe=self.recipe,
                address=self.place.address,
                port=port,
                **given,
            )
        )
        began, told = time.monotonic(), False
        while missing := [number for number in range(1, launch.machines) if not self._is_ready(number)]:
            if not told and time.monotonic() - began > 2 * EVERY:
                told = True
                self.say(f"waiting for machine {_listed(missing)}: start the same command there, with --machine-rank")
            if time.monotonic() - began > GATHERING:
                what = f"machine {_listed(missing)} did not answer within {GATHERING / 60:.0f} minutes"
                raise AlignError(what, "start the same command there, with its --machine-rank and the same run folder")
            time.sleep(POLL)
        self._change(state="start")
        return Place(0, self.place.address, port)

    def _is_ready(self, number: int) -> bool:
        """Raises AlignError where it refuses."""
        found = self._answer(number)
        if found is not None and found.state == "refused":
            raise AlignError(f"machine {number} ({found.host}) cannot take part: {found.what}", found.remedy)
        return found is not None and found.state == "ready"

    # ---- watching -------------------------------------------------------------------------------------------------

    def lost(self, silent: float | None = None) -> Lost | None:
        """A machine that has ended its part, or of which nothing was heard for too long.

        Args:
            silent: seconds that are too long; by default those of a shared disk that shows a file late.
        """
        silent = SILENT if silent is None else silent
        if self.call is None or self.call.state != "start":
            return None
        now = time.monotonic()
        for number in range(1, self.call.launch.machines):
            found = self._answer(number)
            signs, since = self.heard.get(number, (-1, now))
            if found is None or found.signs == signs:
                self.heard[number] = (signs, since)
                if now - since > silent:
                    who = f"machine {number}" + (f" ({found.host})" if found is not None else "")
                    return Lost(f"nothing was heard of {who} for {now - since:.0f} s: it was ended, or is cut off")
                continue
            self.heard[number] = (found.signs, now)
            if found.state == "ended" and found.code != Exit.DONE:
                what = f"machine {number} ({found.host}): {found.what}"
                return Lost(what, found.remedy or AGAIN, interrupted=found.code == Exit.INTERRUPTED)
        return None

    def lost_soon(self) -> Lost | None:
        """The same, where a connection to another machine has broken: it may say why in a moment."""
        if self.call is None:
            return None
        until = time.monotonic() + BROKEN
        while (found := self.lost(BROKEN - 1.0)) is None and time.monotonic() < until:
            time.sleep(POLL)
        return found

    def _answer(self, number: int) -> Answer | None:
        """What a machine says to the last call."""
        found = reading.whole(self.run.answer(number), Answer)
        return found if found is not None and self.call is not None and found.id == self.call.id else None

    # ---- telling --------------------------------------------------------------------------------------------------

    def end(self) -> None:
        """Have all machines end their processes."""
        if self.call is not None and self.call.state in ("gather", "start"):
            self._change(state="end")

    def __enter__(self) -> Machines:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.ended.set()
        if self.call is None:
            return
        code, why = self.code, ""
        if isinstance(error, AlignError):
            code, why = error.exit, error.what
        elif isinstance(error, KeyboardInterrupt):
            code, why = Exit.INTERRUPTED, "it was interrupted"
        elif error is not None:
            code, why = Exit.STAGE_FAILED, f"{type(error).__name__}: {error}"
        self._change(state="over", code=int(code), why=why)

    def _tell(self, call: Call) -> None:
        begins = self.call is None
        with self.lock:
            self.call = call
            self.heard.clear()
            self._write()
        if begins:
            threading.Thread(target=self._live, daemon=True).start()

    def _change(self, **changed: object) -> None:
        assert self.call is not None
        with self.lock:
            self.call = self.call.but(**changed)
            self._write()

    def _live(self) -> None:
        """Tell again and again that this machine is there, whatever its main thread is at."""
        while not self.ended.wait(EVERY):
            assert self.call is not None
            with self.lock:
                if not self.ended.is_set():
                    self.call = self.call.but(signs=self.call.signs + 1)
                    self._write()

    def _write(self) -> None:
        assert self.call is not None
        try:
            files.write_json(self.run.call, self.call.model_dump(mode="json"))
        except OSError:  # the folder is gone, or the disk full; the run itself says so
            return


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("", 0))
        return int(one.getsockname()[1])


def _listed(numbers: Sequence[int]) -> str:
    return " and ".join(map(str, numbers))
