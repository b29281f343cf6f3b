"""What the machines of a run tell each other in its folder, which all of them see: machines/call.json, machines/N.json.

The first machine runs the recipe. It calls for the others where a stage is launched on several; they answer, start
their part of its processes, and end it when the first does. Each tells again and again that it is there.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Generic, Literal, TypeVar

from align.errors import AlignError
from align.run_folder import files, reading
from align.run_folder.launch import Launch
from align.run_folder.records import Record

SILENT = 60.0  # seconds without a sign after which a machine is lost; a shared disk may show a file late
EVERY = 1.0  # seconds between two signs of life


class Call(Record):
    """What the first machine wants of the others.

    Attributes:
        run: the command that calls; another one each time that it is given.
        state: `busy` with what needs no other machine; `gather`: answer; `start` the processes; `end` them; `over`: the
            command has ended.
        id: of one start of processes; another one for each.
        recipe: a hash of the recipe with all that was set on the command line.
        folder: that the processes start in.
        needs: paths that each machine has to find.
        members: the number of each that takes part, and who it is, from `start` on.
        address, port: where the processes meet.
        signs: of life, counted.
        code, why, remedy: how the command has ended.
    """

    run: str
    state: Literal["busy", "gather", "start", "end", "over"]
    id: str = ""
    recipe: str = ""
    folder: str = ""
    needs: tuple[str, ...] = ()
    members: tuple[tuple[int, str], ...] = ()
    launch: Launch = Launch()
    address: str = ""
    port: int = 0
    signs: int = 0
    code: int = 0
    why: str = ""
    remedy: str = ""


class Answer(Record):
    """What another machine says to that.

    Attributes:
        who: one command on one machine; another that was given the same number has another.
        run, id: of the call.
        state: `here`; `ready` to start; `refused`, since it lacks something; `running`; `ended`; `interrupted`: it was
            asked to leave, and asks the first machine to end the run.
        what, remedy: why it refuses or has ended.
        code: that its processes have ended with.
    """

    machine: int
    host: str
    who: str
    run: str
    id: str = ""
    state: Literal["here", "ready", "refused", "running", "ended", "interrupted"] = "here"
    what: str = ""
    remedy: str = ""
    code: int = 0
    signs: int = 0


R = TypeVar("R", Call, Answer)


def read(path: Path, kind: type[R]) -> R | None:
    """A record as it stands; None where there is none, or it cannot be read just now, as from a disk of a network."""
    try:
        return reading.whole(path, kind)
    except (OSError, AlignError):
        return None


class Told(Generic[R]):
    """A record that is told again and again from now on, whatever the thread that made it is at.

    Args:
        path: of its file.
    """

    def __init__(self, path: Path, record: R) -> None:
        self.path = path
        self.now: R = record
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._write()
        threading.Thread(target=self._live, daemon=True).start()

    def change(self, **changed: object) -> None:
        """Tell something else."""
        with self._lock:
            self.now = self.now.but(**changed, signs=self.now.signs + 1)
            self._write()

    def end(self, **changed: object) -> None:
        """Tell it for the last time."""
        self._ended.set()
        self.change(**changed)

    def _live(self) -> None:
        while not self._ended.wait(EVERY):
            with self._lock:
                if not self._ended.is_set():
                    self.now = self.now.but(signs=self.now.signs + 1)
                    self._write()

    def _write(self) -> None:
        try:
            files.write_json(self.path, self.now.model_dump(mode="json"))
        except OSError:  # the folder is gone, or the disk full; the run itself says so
            return
