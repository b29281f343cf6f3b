"""Keeps the report of a run up to date while the run is at work: now and then, and never at the expense of the run."""

from __future__ import annotations

import time
from collections.abc import Callable

from align import report
from align.run_folder.paths import RunDir

EVERY_SECONDS = 30.0
SHARE = 0.01  # of one core's time that writing may take


class LivePage:
    """Writes the report of a run that is under way.

    Args:
        run: its folder.
        tabulate: rewrites forgetting.json from what has been measured so far.
        say: tells the user a line.
    """

    def __init__(self, run: RunDir, tabulate: Callable[[], None], say: Callable[[str], None]) -> None:
        self.dir, self._tabulate, self._say = run, tabulate, say
        self._due = 0.0
        self._base_was_there = self._base_is_there()
        self._told = ""

    def write(self, *, measured: bool = False) -> None:
        """Write it now; `measured`: there are new measurements. A failure is told, and ends nothing."""
        began = time.process_time()
        try:
            if measured:
                self._tabulate()
            report.write(self.dir.root, live=True)
        except Exception as error:  # whatever it is, the stage at work goes on; a fault of the last page is raised
            if str(error) != self._told:  # once, not every half minute
                self._told = str(error)
                self._say(f"the report could not be brought up to date: {error}")
        self._due = time.monotonic() + max(EVERY_SECONDS, (time.process_time() - began) / SHARE)

    def tick(self) -> None:
        """Write it if that is due, or if the base has just been measured; called while the run waits."""
        base = self._base_is_there()
        measured, self._base_was_there = base and not self._base_was_there, base
        if measured or time.monotonic() >= self._due:
            self.write(measured=measured)

    def _base_is_there(self) -> bool:
        return (self.dir.base_measurements / "summary.json").is_file()
