"""Runs that are killed at moments drawn by a seed, and end with the bits of a run that nothing happened to.

    python -m benchmarks.kills --seeds 0 200 --runs FOLDER   # about 20 s each; what FOLDER holds is not run again
    python -m benchmarks.kills --write --runs FOLDER         # put what it holds into docs/operations.md

Two chains of real trainers on the lab model: SFT -> DPO, and SFT -> reward -> PPO. Killed is the command, the process
that trains, or both: while a stage starts, in a step, while a checkpoint is written, or between the last step and the
outcome. Every fifth run is killed again while it recovers; every tenth on a disk of its own that was filled just before
(which takes the right to mount one). The training processes are forked from one that has imported what they need.

A run counts as identical if the hashes of all weights are those of an undisturbed run, of every file of every
checkpoint that it went on from too (weights, moments of the optimizer, schedule, random state, answers of a rollout),
and the loss of each step, which no row that is left out or seen twice could have.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from align.runner import processes
from benchmarks import clock, page
from benchmarks.small_runs import CHAINS, SAVE_STEPS, STEPS, Run, recipe, warm

PAGE = Path(__file__).parents[1] / "docs" / "operations.md"
MARK = "<!-- table: kills -->"
VICTIMS = ("the command", "the training process", "both")
MOMENTS = ("starting", "step", "saving", "closing")
PATIENCE = 300.0


@dataclass(frozen=True)
class Trial:
    """What a seed draws.

    Attributes:
        stage, moment, step: where the run is killed: after so many steps, or in the checkpoint of that step.
        delay: seconds from there.
        again: seconds into the recovery at which it is killed once more; None where it is not.
        full: whether its disk is full then.
    """

    seed: int
    chain: str
    victim: str
    stage: str
    moment: str
    step: int
    delay: float
    again: float | None
    full: bool

    @classmethod
    def of(cls, seed: int) -> Trial:
        drawn = random.Random(seed)
        chain, victim = drawn.choice(list(CHAINS)), drawn.choice(VICTIMS)
        stage, moment = drawn.choice(CHAINS[chain]), drawn.choice(MOMENTS)
        step = drawn.randrange(1, STEPS[stage])
        step = -(-step // SAVE_STEPS) * SAVE_STEPS if moment == "saving" else step
        step = {"starting": 0, "closing": STEPS[stage]}.get(moment, step)
        delay, again = drawn.uniform(0, 0.1), drawn.uniform(0, 3)
        return cls(seed, chain, victim, stage, moment, step, delay, again if seed % 5 == 0 else None, seed % 10 == 0)


@dataclass(frozen=True)
class Found:
    """What became of it.

    Attributes:
        ended: exit codes of commands that were to be killed and ended before: on a full disk 4.
        lost: the most steps that were made again after a kill.
        differs: the first thing that was not as in the undisturbed run; empty where nothing was.
    """

    trial: dict[str, Any]
    kills: int
    ended: list[int | None]
    lost: int
    differs: str


@dataclass(frozen=True)
class Whole:
    """What a run leaves that nothing happens to."""

    weights: dict[str, str]
    losses: dict[str, dict[int, float]]
    checkpoints: dict[str, dict[str, str]]


def undisturbed(folder: Path, chain: str) -> Whole:
    """Run it; its checkpoints are looked at before the stage takes them away.

    Raises:
        SystemExit: it failed.
    """
    name = folder / hashlib.sha256(recipe(chain).encode()).hexdigest()[:12]
    shutil.rmtree(name, ignore_errors=True)
    run, seen, over = Run(name, name, chain), dict[str, dict[str, str]](), threading.Event()

    def look() -> None:
        while not over.is_set():
            seen.update(run.checkpoints())
            time.sleep(0.005)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        code = run.start().wait()
    finally:
        over.set()
        thread.join()
    if code:
        raise SystemExit((name / "said.txt").read_text())
    return Whole(run.weights(), run.losses(), seen)


@contextmanager
def disk_of(folder: Path, own: bool) -> Iterator[Path]:
    """The folder, or a disk of its own in it."""
    disk = folder / "disk"
    disk.mkdir(parents=True, exist_ok=True)
    if not own:
        yield disk
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def fill(disk: Path) -> Path:
    """Take all the room that is left."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    return filler


def until(run: Run, process: warm.Forked, condition: Callable[[], bool]) -> bool:
    """Wait; False where the run ended first."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if process.poll() is not None:
            return False
        if time.monotonic() > end:
            raise SystemExit(f"it does not come there: {(run.folder / 'said.txt').read_text()[-2000:]}")
        time.sleep(0.002)
    return True


def kill(run: Run, process: warm.Forked, victim: str) -> None:
    """SIGKILL, and wait until both are gone."""
    trained = run.trained_by()
    pids = {"the command": [process.pid], "the training process": trained, "both": [process.pid, *trained]}[victim]
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    end = time.monotonic() + 30
    while any(not processes.is_gone(pid) for pid in trained):
        if time.monotonic() > end:
            raise SystemExit("the training process outlived its parent")
        time.sleep(0.01)


def measure(folder: Path, trial: Trial, whole: Whole) -> Found:
    """Kill a run, and have it go on to its end."""
    kills, lost, differs = 0, 0, ""
    with disk_of(folder, trial.full) as disk:
        run = Run(folder, disk, trial.chain)

        ended: list[int | None] = []

        def strike(process: warm.Forked, delay: float) -> None:
            nonlocal kills, differs
            time.sleep(delay)
            filler = fill(disk) if trial.full and not kills else None
            if filler is not None:
                time.sleep(delay * 5)
            if process.poll() is None:
                kill(run, process, trial.victim)
                kills += 1
            else:
                ended.append(process.returncode)
            if filler is not None:
                filler.unlink()
            for name, hashes in run.checkpoints().items():
                # one that is written as its command has died is none of an undisturbed run: what follows it tells
                same = whole.checkpoints.get(name, hashes)
                other = next((file for file in hashes if hashes[file] != same.get(file)), None)
                differs = differs or (f"{other} of {name}" if other else "")

        process = run.start()
        if until(run, process, lambda: run.is_at(trial.stage, trial.moment, trial.step)):
            strike(process, trial.delay)
        made = max(0, run.last_step(trial.stage))
        if trial.again is not None:
            strike(run.start(), trial.again)
        began = len((folder / "said.txt").read_bytes())
        code = run.start().wait()
        said = (folder / "said.txt").read_bytes()[began:].decode()
        if code:
            return Found(asdict(trial), kills, ended, lost, f"exit code {code}: {said[-600:]}")
        if trial.again is None and (
            resumed := re.search(rf"^{trial.stage}: .*resuming from checkpoint-(\d+)", said, re.M)
        ):
            lost = max(0, made - int(resumed[1]))
        if run.weights() != whole.weights:
            differs = differs or "the weights at the end"
        if run.losses() != whole.losses:
            differs = differs or "the loss of a step"
    if not differs:
        shutil.rmtree(folder)
    return Found(asdict(trial), kills, ended, lost, differs)


def table(found: list[Found]) -> str:
    """The Markdown table."""
    lines = ["| killed | where | runs | kills | steps made again, at most | identical |", "|---|---|---|---|---|---|"]
    for victim in VICTIMS:
        for moment in MOMENTS:
            ones = [one for one in found if (one.trial["victim"], one.trial["moment"]) == (victim, moment)]
            if ones:
                same = sum(not one.differs for one in ones)
                lost, kills = max(one.lost for one in ones), sum(one.kills for one in ones)
                lines.append(f"| {victim} | {moment} | {len(ones)} | {kills} | {lost} | {same} of {len(ones)} |")
    twice, full = (sum(bool(one.trial[name]) for one in found) for name in ("again", "full"))
    same, kills = sum(not one.differs for one in found), sum(one.kills for one in found)
    lines.append(f"| all | {twice} twice, {full} on a full disk | {len(found)} | {kills} | | {same} of {len(found)} |")
    return "\n".join(lines)


def held(root: Path) -> list[Found]:
    """All that a folder holds, by seed."""
    found = [Found(**json.loads(path.read_text(encoding="utf-8"))) for path in root.glob("seed-*.json")]
    return sorted(found, key=lambda one: int(one.trial["seed"]))


def main() -> None:
    """Try the seeds that are asked for and that the folder does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs=2, type=int, default=[0, 0], metavar=("FIRST", "END"))
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--write", action="store_true", help="put the table into docs/operations.md")
    asked = parser.parse_args()
    clock.heading("kills: a run that is killed ends as one that is not")
    os.environ.update(clock.ONE_THREAD)
    with tempfile.TemporaryDirectory() as temporary:
        root = (asked.runs or Path(temporary)).resolve()
        root.mkdir(parents=True, exist_ok=True)
        wholes: dict[str, Whole] = {}
        for seed in range(*asked.seeds):
            kept, trial = root / f"seed-{seed}.json", Trial.of(seed)
            if kept.is_file():
                continue
            if trial.chain not in wholes:
                wholes[trial.chain] = undisturbed(root / "whole", trial.chain)
            found = measure(root / f"seed-{seed}", trial, wholes[trial.chain])
            kept.write_text(json.dumps(asdict(found)), encoding="utf-8")
            where = f"{trial.chain}: {trial.victim}, {trial.stage} {trial.moment} {trial.step}"
            print(f"{seed} {where}: {found.kills} kills, {found.ended}, {found.differs or 'identical'}", flush=True)
        every = held(root)
    warm.end()
    print(table(every))
    if asked.write:
        page.fill(PAGE, MARK, table(every))


if __name__ == "__main__":
    main()
