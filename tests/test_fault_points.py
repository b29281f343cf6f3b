"""A kill and an error at every file operation of a run: the same command then ends as if nothing had happened.

The parent is the real one, with every file that it writes; the child leaves what a stage leaves, and trains nothing.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align import report
from align.errors import of_the_machine
from align.run_folder import files
from align.runner import loop
from fault_points import Ended, Points, apart
from test_loop import SUMS, Child, Runs

PROBES = "forgetting.probes={sums: {data: sums.jsonl, metric: accuracy}}"
CHANGED = "stages.dpo.training.learning_rate=3.0e-3"
ERRORS = {errno.ENOSPC: 1, errno.EIO: 4, errno.EACCES: 4}  # at each point, or at every fourth
EVERY = 17  # in the fast tests


def work(folder: Path, *overrides: str) -> Callable[[], Any]:
    """A run in a folder, with a child that trains nothing."""

    def run() -> Any:
        found = Runs(folder)
        Child.runs, loop.Child = found, Child  # type: ignore[misc, assignment]
        report.write = lambda run, **_: (run / "report.html").touch()  # type: ignore[assignment]
        found.run(PROBES, *overrides)
        return found.code.name, found.asked

    return run


def state(folder: Path) -> dict[str, Any]:
    """What a run has come to: its status, and every file that a stage or a measurement has left, hidden ones too."""
    run = folder / "run"
    record = files.read_json(run / "run.json")["stages"]
    left = [path for name in ("base/measurements", "stages") for path in sorted((run / name).rglob("*"))]
    kinds = ("model", "measurements")
    hashes = {str(p.relative_to(run)): files.file_sha256(p) for p in left if p.is_file() and p.parent.name in kinds}
    hidden = [str(path.relative_to(run)) for path in sorted(run.rglob(".*")) if path.name != ".lock"]
    return {"status": {id: one["status"] for id, one in record.items()}, "files": hashes, "hidden": hidden}


class Bench:
    """A run that nothing happens to, and the same with a fault.

    Args:
        changed: whether a finished run is run again, with another rate for its second stage.
    """

    def __init__(self, root: Path, changed: bool) -> None:
        self.root, self.overrides = root, (CHANGED,) if changed else ()
        (root / "before").mkdir()
        (root / "before/sums.jsonl").write_text(SUMS, encoding="utf-8")
        if changed:
            assert apart(work(root / "before"), Points(root / "before/run")).result[0] == "DONE"
        ended = self.run("whole", Points(root / "whole/run"))
        assert ended.result == ("DONE", ["dpo", "finish"] if changed else ["sft, and the base", "dpo", "finish"])
        self.points, self.whole = len(ended.seen), state(root / "whole")

    def run(self, name: str, points: Points) -> Ended:
        if not (self.root / name).exists():
            shutil.copytree(self.root / "before", self.root / name)
        return apart(work(self.root / name, *self.overrides), points)

    def fault(self, at: int, number: int = 0, once: bool = True) -> None:
        """One fault, then the same command."""
        name = f"{at}"
        ended = self.run(name, Points(self.root / name / "run", at, number, once))
        if number:
            assert len(ended.seen) >= at, "the point was not reached"
            assert ended.kind in ("", "AlignError") or said(ended.error_itself), (at, ended.trace)
        else:
            assert ended.signal, at
        again = self.run(name, Points(self.root / name / "run"))
        assert not again.error, (at, again.trace)
        assert state(self.root / name) == self.whole, at
        shutil.rmtree(self.root / name)


def said(error: BaseException | None) -> bool:
    """Whether the command line has a sentence for it."""
    return isinstance(error, OSError) and of_the_machine(error) is not None


@pytest.fixture(scope="module", params=[False, True], ids=["fresh", "changed"])
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"), request.param)


def test_some_of_the_points(bench: Bench) -> None:
    for at in range(3, bench.points + 1, EVERY):
        bench.fault(at)
    for at in range(9, bench.points + 1, EVERY):
        bench.fault(at, errno.ENOSPC, once=False)


@pytest.mark.slow
def test_a_kill_at_each_point(bench: Bench) -> None:
    for at in range(1, bench.points + 1):
        bench.fault(at)


@pytest.mark.slow
@pytest.mark.parametrize("once", [True, False], ids=["once", "from_then_on"])
@pytest.mark.parametrize("number", ERRORS, ids=[errno.errorcode[number] for number in ERRORS])
def test_an_error_at_each_point(number: int, once: bool, bench: Bench) -> None:
    for at in range(1, bench.points + 1, ERRORS[number]):
        bench.fault(at, number, once)
