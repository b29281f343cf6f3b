"""What the machines of a run tell each other in its folder, which all of them see: machines/call.json, machines/N.json.

The first machine runs the recipe. It calls for the others where a stage is launched on several; they answer, start
their part of its processes, and end it when the first does. Each tells again and again that it is there.
"""

from __future__ import annotations

from typing import Literal

from align.run_folder.launch import Launch
from align.run_folder.records import Record

SILENT = 60.0  # seconds without a sign after which a machine is lost; a shared disk may show a file late


class Call(Record):
    """What the first machine wants of the others.

    Attributes:
        id: of one start of processes; another one for each.
        state: `gather`: answer; `start` the processes; `end` them; `over`: the run has ended.
        recipe: a hash of the recipe with all that was set on the command line.
        folder: that the processes start in.
        needs: paths that each machine has to find.
        address, port: where the processes meet.
        signs: of life, counted.
        code, why: how the run has ended.
    """

    id: str
    state: Literal["gather", "start", "end", "over"]
    recipe: str
    folder: str = ""
    needs: tuple[str, ...] = ()
    launch: Launch = Launch()
    address: str = ""
    port: int = 0
    signs: int = 0
    code: int = 0
    why: str = ""


class Answer(Record):
    """What another machine says to that.

    Attributes:
        id: of the call.
        state: `ready` to start; `refused`, since it lacks something; `running`; `ended`.
        what, remedy: why it refuses or has ended.
        code: that its processes have ended with.
    """

    machine: int
    host: str
    id: str
    state: Literal["ready", "refused", "running", "ended"]
    what: str = ""
    remedy: str = ""
    code: int = 0
    signs: int = 0
