"""All of it in order, and the last line."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from align.doctor import hub, machine, packages, steps
from align.doctor.finding import Finding


def look(*, hub_too: bool, steps_too: bool) -> Iterator[Finding]:
    """What was found, as it is found.

    Args:
        hub_too: ask the Hub.
        steps_too: make a step of the lab in each way to train, if nothing is at fault before.
    """
    found: list[Finding] = []
    for one in (*packages.look(), *machine.look(Path.cwd())):
        found.append(one)
        yield one
    if hub_too:
        yield hub.look()
    if not steps_too:
        return
    if any(one.state == "fault" for one in found):
        yield Finding("training", "note", "no step was tried: mend the faults first")
        return
    with tempfile.TemporaryDirectory(prefix="align-doctor-") as folder:
        yield from steps.look(Path(folder), sum(one.about == "GPU" and one.state == "ok" for one in found))


def verdict(found: Sequence[Finding]) -> str:
    """Whether `make demo` will run."""
    faults = [one for one in found if one.state == "fault"]
    needed = [one for one in faults if "," not in one.about]  # engines of several processes are not in the demo
    if needed:
        named = ", ".join(dict.fromkeys(one.about for one in needed))
        return f"`make demo` will not run here before this is mended: {named}"
    if any(one.about == "4-bit" and one.state == "ok" for one in found):
        return "`make demo` will run here: a step of each kind that it makes was just made"
    return "`make demo` will run here, as far as one can tell without a step of the lab"
