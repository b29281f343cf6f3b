"""What the command does where a file of its run folder is missing, empty, cut, altered in a bit, or another run's.

    python -m benchmarks.damage --runs FOLDER            # both states; what FOLDER holds is not run again
    python -m benchmarks.damage --write --runs FOLDER    # put the table into docs/operations.md
    options: --states over midway, --harms NAME...

`over` is a finished run of SFT -> DPO with probes; `midway` is one that was interrupted in DPO, with checkpoints. After
the damage the command is run again. It is `whole` where it ends with the weights of a run that nothing happened to,
`refused` where it says in a sentence why it does not; and FAILED where it ends with other weights or a traceback.
A file that is damaged in a finished run and keeps its size and time may be believed: nothing is trained from it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import clock, page
from benchmarks.small_runs import Run, warm

PAGE = Path(__file__).parents[1] / "docs" / "operations.md"
MARK = "<!-- table: damage -->"
CHAIN, PROBES = "SFT -> DPO", True
STATES = ("over", "midway")
LEFT_OUT = re.compile(r"(^|/)(\.lock|\.holder|\.stop)$|^\.queue/|^heartbeats/")


@dataclass(frozen=True)
class Found:
    """What the command did.

    Attributes:
        came: `whole`, `refused`, or what FAILED.
        said: the first line that speaks of the damage, or the error.
    """

    state: str
    file: str
    harm: str
    came: str
    said: str


def missing(path: Path, other: Path) -> None:
    path.unlink()


def empty(path: Path, other: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path, other: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def flipped(path: Path, other: Path) -> None:
    """One bit in the middle, under the old time."""
    stat, content = path.stat(), bytearray(path.read_bytes())
    if not content:
        content = bytearray(1)
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def foreign(path: Path, other: Path) -> None:
    """That of a run with another seed."""
    path.write_bytes(other.read_bytes())


HARMS: dict[str, Callable[[Path, Path], None]] = {
    "missing": missing,
    "empty": empty,
    "cut": cut,
    "one bit": flipped,
    "another run's": foreign,
}


def states(root: Path, seed: int) -> dict[str, Path]:
    """A run of that seed, finished and interrupted; made where it is not there.

    Raises:
        SystemExit: it failed.
    """
    found = {state: root / f"{state}-{seed}" for state in STATES}
    if not (found["over"] / "run/report.html").is_file():
        folder = found["over"]
        shutil.rmtree(folder, ignore_errors=True)
        run = Run(folder, folder, CHAIN, seed=seed, probes=PROBES)
        process = run.start()
        while not run.is_at("dpo", "step", 5):
            if process.poll() is not None:
                raise SystemExit((folder / "said.txt").read_text())
            time.sleep(0.002)
        run.dir.stop.touch()
        process.wait()
        shutil.rmtree(found["midway"], ignore_errors=True)
        shutil.copytree(folder, found["midway"])
        if run.start().wait():
            raise SystemExit((folder / "said.txt").read_text())
    return found


def names(run: Path) -> list[str]:
    """The files of a run that it keeps, by their paths."""
    every = (path.relative_to(run).as_posix() for path in sorted(run.rglob("*")) if path.is_file())
    return [name for name in every if not LEFT_OUT.search(name)]


def measure(folder: Path, own: Path, other: Path, state: str, file: str, harm: str, whole: dict[str, str]) -> Found:
    """Damage one file of a copy, and run the command."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(own, folder)
    (folder / "said.txt").unlink(missing_ok=True)
    HARMS[harm](folder / "run" / file, other / "run" / file)
    run = Run(folder, folder, CHAIN, seed=3, probes=PROBES)
    code = run.start().wait()
    said = (folder / "said.txt").read_text(encoding="utf-8", errors="replace")
    lines = [line for line in said.splitlines() if "error" in line or "superseded" in line or "damaged" in line]
    lines += [line for line in said.splitlines() if "measured again" in line]
    if "Traceback" in said:
        came = "FAILED with a traceback"
    elif code:
        came = "refused" if "error " in said else f"FAILED with code {code}"
    else:
        came = "whole" if run.weights() == whole else "FAILED: other weights"
    return Found(state, file, harm, came, (lines or [""])[0].replace(str(folder), "…")[:200])


def kind(file: str) -> str:
    """Files that are alike: of any stage, step or content."""
    name = re.sub(r"^data/.*", "data/*.jsonl", file)
    name = re.sub(r"stages/\w+/", "stages/ID/", name)
    name = re.sub(r"checkpoint-\d+", "checkpoint-N", name)
    name = re.sub(r"(base|ID)/measurements/.*", r"\1/measurements/*", name)
    return re.sub(r"launch/.*", "launch/*", name)


def table(found: list[Found]) -> str:
    """The Markdown table: a row for each kind of file, with how often each came about."""
    lines = ["| file | " + " | ".join(HARMS) + " |", "|---|" + "---|" * len(HARMS)]
    for name in dict.fromkeys(kind(one.file) for one in found):
        cells = []
        for harm in HARMS:
            counts = Counter(one.came for one in found if (kind(one.file), one.harm) == (name, harm))
            cells.append(", ".join(f"{count} {came}" for came, count in counts.most_common()))
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    counts = Counter(one.came for one in found)
    lines.append(f"| all {len(found)} | {', '.join(f'{n} {came}' for came, n in counts.most_common())} | | | | |")
    return "\n".join(lines)


def held(root: Path) -> Iterator[Found]:
    """All that a folder holds."""
    path = root / "found.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        yield Found(**json.loads(line))


def main() -> None:
    """Every file, in every way, in both states."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--states", nargs="+", choices=STATES, default=[])
    parser.add_argument("--harms", nargs="+", choices=list(HARMS), default=list(HARMS))
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--write", action="store_true", help="put the table into docs/operations.md")
    asked = parser.parse_args()
    clock.heading("damage: each file of a run folder, harmed")
    os.environ.update(clock.ONE_THREAD)
    with tempfile.TemporaryDirectory() as temporary:
        root = (asked.runs or Path(temporary)).resolve()
        root.mkdir(parents=True, exist_ok=True)
        done = {(one.state, one.file, one.harm) for one in held(root)}
        for state in asked.states:
            own, other = states(root, 3)[state], states(root, 4)[state]
            whole = Run(own, states(root, 3)["over"], CHAIN, seed=3, probes=PROBES).weights()
            for file in names(own / "run"):
                for harm in asked.harms:
                    is_there = harm != "another run's" or (other / "run" / file).is_file()
                    if (state, file, harm) in done or not is_there:
                        continue
                    one = measure(root / "harmed", own, other, state, file, harm, whole)
                    with (root / "found.jsonl").open("a", encoding="utf-8") as kept:
                        kept.write(json.dumps(asdict(one)) + "\n")
                    if one.came != "whole":
                        print(f"{state} {file}, {harm}: {one.came}: {one.said}", flush=True)
        every = list(held(root))
    warm.end()
    print(table(every))
    if asked.write:
        page.fill(PAGE, MARK, table(every))


if __name__ == "__main__":
    main()
