"""Thousands of damaged recipes, data files, models and runs: is each met with a sentence, or does the command break?

    python -m benchmarks.fuzz recipes --count 3000           # `align check` of damaged recipes
    python -m benchmarks.fuzz data --count 1000              # the same of good recipes with damaged data
    python -m benchmarks.fuzz models --count 300             # the same with a damaged model
    python -m benchmarks.fuzz runs --count 100               # every command that reads a run folder, `align run` too
    options: --seed S, --first N, --only N (shows it whole), --seconds S,
             --runs FOLDER (keeps the two runs that are damaged), --keep FOLDER (the mutants' files stay there)

A mutant is determined by the seed and its number. The command itself runs, from its arguments to what it prints; all
in one process, which is forked for every batch and, where a mutant ends or stops it, for the next one. In `align run`
what a stage leaves is copied in place of training it. A mutant FAILED if an exception would have shown a traceback,
a command took 5 CPU seconds or a minute or 1 GB more than before, wrote outside of its folder, started a process or
used the network. A sentence is doubtful if it has a word of Python's or a control character.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.metadata
import io
import json
import math
import os
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import typer

from align.cli import commands, guard
from align.errors import Exit
from benchmarks import clock
from benchmarks.fuzzing.data import Data
from benchmarks.fuzzing.models import Models
from benchmarks.fuzzing.recipes import Case, Maker, Recipes
from benchmarks.fuzzing.runs import Runs

MAKERS: dict[str, type[Maker]] = {"recipes": Recipes, "data": Data, "models": Models, "runs": Runs}
CPU = 5.0  # seconds of one command
WALL = 60.0
MEMORY = 2**30  # bytes
DOUBTFUL = re.compile(
    r"Traceback|pydantic|NoneType|object at 0x|<class |instance of|unhashable|\[Errno|subscriptable|CommentedMap"
    r"|CommentedSeq|dtype=|\bOrderedDict|PosixPath|[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]"
)
EFFECTS = {  # what Python tells of before it happens, and which of its arguments are paths that are written
    **dict.fromkeys(("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "shutil.rmtree"), (0,)),
    "os.rename": (0, 1), "os.link": (1,), "os.symlink": (1,), "open": (0,),
    **dict.fromkeys(("subprocess.Popen", "os.posix_spawn", "os.system", "os.exec", "socket.connect"), ()),
}  # fmt: skip
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class TooSlowError(BaseException):
    """A command took more CPU time than it may; nothing but this program catches it."""


@dataclass
class Found:
    """What one mutant led to.

    Attributes:
        codes: the exit code of each command, by its first word.
        failed: what went wrong: the command, the exception, and the innermost place in align.
        tail: the last lines of the traceback.
        doubtful: a sentence that a user may not understand.
        shown: the mutant, for whoever looks at it.
    """

    index: int
    codes: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    failed: str = ""
    tail: str = ""
    doubtful: str = ""
    shown: str = ""
    said: str = ""


class Watch:
    """Notes what a command does outside of its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seen = f"{folder}{os.sep}", list[str]()
        sys.addaudithook(self.heard)

    def heard(self, event: str, given: tuple[Any, ...]) -> None:
        paths = EFFECTS.get(event)
        if paths is None or (event == "open" and not given[2] & WRITES):
            return
        where = [given[place] for place in paths]
        if not paths or any(self._outside(path) for path in where):
            self.seen.append(f"{event} {[str(one)[:200] for one in where or given[:2]]}")

    def _outside(self, path: Any) -> bool:
        if isinstance(path, int) or path is None:
            return False
        above, name = os.path.split(os.path.abspath(os.fsdecode(path)))  # noqa: PTH100 - may be no path at all
        whole = f"{os.path.realpath(above)}{os.sep}{name}{os.sep}"  # links followed, but not the last
        return not whole.startswith((self.folder, "/dev/null", "/proc/self/"))


def command(words: Sequence[str]) -> tuple[int, str]:
    """Exit code and output of `align` with these arguments."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = guard.guarded(lambda: _align()(list(words), prog_name="align"))
    gc.enable()  # `align check` does without
    return code, out.buffer.getvalue().decode()


@cache
def _align() -> Callable[..., Any]:
    return typer.main.get_command(commands.app)


def tried(case: Case, found: Found, watch: Watch) -> None:
    """Give a mutant to its commands; the first that breaks ends it."""
    for words in case.commands:
        name, began = " ".join(words[:1]), time.process_time()
        signal.setitimer(signal.ITIMER_PROF, CPU, CPU)
        try:
            code, said = command(words)
        except (Exception, TooSlowError) as error:
            signal.setitimer(signal.ITIMER_PROF, 0)
            found.failed = f"{name}: {type(error).__name__} at {_place(error)}"
            found.tail = "".join(traceback.format_exception(error, limit=-4))[-1500:]
            return
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            found.seconds = max(found.seconds, time.process_time() - began)
        found.codes[name], found.said = code, f"{found.said}$ align {' '.join(words)}\n{said}"
        if watch.seen:
            found.failed, found.tail = f"{name}: {re.sub(r'[0-9]+', '', watch.seen[0])}", "\n".join(watch.seen)
            return
        if code not in (Exit.DONE, Exit.GATE) and not re.search(r"\S{3}", said):
            found.failed = f"{name}: exit code {code} and not a word"
            return
        if not os.environ.get("FORCE_COLOR") and (odd := DOUBTFUL.search(said)):
            found.doubtful = f"{name}: {said[max(0, odd.start() - 200) : odd.end() + 100]!r}"


def _place(error: BaseException) -> str:
    """The innermost line of align that an exception came through."""
    package = Path(guard.__file__).parents[1]
    frames = [one for one in traceback.extract_tb(error.__traceback__) if Path(one.filename).is_relative_to(package)]
    if not frames:
        return "no line of align"
    return f"{Path(frames[-1].filename).relative_to(package.parent)}:{frames[-1].lineno}"


def _too_slow(*_: object) -> NoReturn:
    raise TooSlowError(f"{CPU:.0f} CPU seconds")


def _work(maker: Maker, indices: Sequence[int], folder: Path, pipe: int) -> NoReturn:
    """The forked process: one line before each mutant, and one after it."""
    signal.signal(signal.SIGPROF, _too_slow)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    watch = Watch(folder)
    with os.fdopen(pipe, "w") as out:
        for index in indices:
            here = folder / str(index)
            here.mkdir(parents=True, exist_ok=True)
            os.chdir(here)
            case = maker.make(index, here)
            print(json.dumps({"begins": index, "shown": case.shown}), file=out, flush=True)
            os.environ.update({"FORCE_COLOR": "1"} if index % 2 and maker.colour else {})
            found = Found(index, shown=case.shown)
            watch.seen.clear()
            tried(case, found, watch)
            os.environ.pop("FORCE_COLOR", None)
            os.chdir(folder)
            if not maker.keep:
                shutil.rmtree(here, ignore_errors=True)
            print(json.dumps(asdict(found)), file=out, flush=True)
    os._exit(0)


def batch(maker: Maker, indices: list[int], folder: Path) -> Iterator[Found]:
    """What became of these mutants, up to the one that ended its process or stopped it."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        try:
            _work(maker, indices, folder, write)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    os.close(write)
    begun: dict[str, Any] = {}
    rest = b""
    while True:
        stuck = not select.select([read], [], [], WALL)[0]
        if stuck:
            os.kill(child, signal.SIGKILL)
            break
        piece = os.read(read, 2**16)
        if not piece:
            break
        *lines, rest = (rest + piece).split(b"\n")
        for told in map(json.loads, lines):
            begun = told if "begins" in told else {}
            if "index" in told:
                yield Found(**told)
    os.close(read)
    _, status = os.waitpid(child, 0)
    if begun:
        why = (
            f"nothing for {WALL:.0f} seconds"
            if stuck
            else f"its process ended with {os.waitstatus_to_exitcode(status)}"
        )
        yield Found(begun["begins"], failed=why, shown=begun["shown"])
    elif status:
        raise SystemExit("the process that tries the mutants broke before it had one")


def all_of(maker: Maker, indices: Sequence[int], folder: Path, seconds: float) -> Iterator[Found]:
    """The same, with another process after each that ended; for so many seconds."""
    left, end = list(indices), time.monotonic() + seconds
    while left and time.monotonic() < end:
        for found in batch(maker, left[: maker.batch], folder):
            left.remove(found.index)
            yield found


def warm(maker: Maker, folder: Path) -> None:
    """Have what every mutant needs imported and remembered before the forks: what is installed, and a good case."""
    importlib.metadata.version = cache(importlib.metadata.version)
    sys.dont_write_bytecode = True
    for number, case in enumerate(maker.good(folder)):
        os.chdir(case.folder)
        for words in case.commands:
            code, said = command(words)
            if code != Exit.DONE:
                raise SystemExit(f"good case {number} is refused: align {' '.join(words)}\n{said}\n{case.shown}")
    gc.collect()
    gc.freeze()


def told(found: list[Found], seconds: float) -> str:
    """Counts, each way to fail with its shortest mutant, doubtful sentences, and the slowest mutants."""
    counts = Counter(_outcome(one) for one in found)
    shares = ", ".join(f"{count:,} {name}" for name, count in counts.most_common())
    lines = [f"{len(found):,} mutants in {seconds:.0f} CPU seconds ({len(found) / seconds:.1f} a second): {shares}"]
    for title, groups in (("FAILED", _groups(found, "failed")), ("doubtful", _groups(found, "doubtful"))):
        for name, ones in groups.items():
            one = min(ones, key=lambda one: len(one.shown))
            lines += [f"\n{title} x {len(ones)}: {name}", f"  --only {one.index}", _indented(_shortened(one.shown))]
            lines += [_indented(one.tail)] if one.tail and title == "FAILED" else []
    slow = sorted(found, key=lambda one: -one.seconds)[:5]
    lines.append("\nslowest: " + ", ".join(f"{one.index} ({one.seconds:.2f} s)" for one in slow))
    return "\n".join(lines)


def _outcome(one: Found) -> str:
    if one.failed:
        return "FAILED"
    return "succeeded" if not any(one.codes.values()) else "sentence"


def _groups(found: list[Found], by: str) -> dict[str, list[Found]]:
    groups: dict[str, list[Found]] = {}
    for one in found:
        if name := getattr(one, by):
            alike = re.sub(r"/\d+/|line \d+|:\d+:\d+", "/N/", name)[-160:] if by == "doubtful" else name
            groups.setdefault(alike, []).append(one)
    return groups


def _shortened(text: str) -> str:
    short = re.sub(r"(.)\1{60,}", r"\1\1\1…", text)
    return short if len(short) < 1500 else f"{short[:1000]}\n… {len(short) - 1400:,} characters …\n{short[-400:]}"


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.encode("utf-8", "backslashreplace").decode().splitlines())


def main() -> None:
    """Try the mutants that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=list(MAKERS))
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int)
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no batch after so many")
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--keep", type=Path)
    asked = parser.parse_args()
    os.environ.update({**clock.ONE_THREAD, **clock.OFFLINE, "COLUMNS": "100"})
    indices = range(asked.first, asked.first + asked.count) if asked.only is None else [asked.only]
    keep, runs = (path.resolve() if path else None for path in (asked.keep, asked.runs))
    with tempfile.TemporaryDirectory() as temporary:
        folder = (keep or Path(temporary)).resolve()
        maker = MAKERS[asked.kind](asked.seed, runs or folder / "runs", keep is not None)
        warm(maker, folder / "good")
        began = resource.getrusage(resource.RUSAGE_CHILDREN)
        found = list(all_of(maker, indices, folder / "mutants", asked.seconds))
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        os.chdir("/")
    if asked.only is not None:
        print(found[0].shown.encode("utf-8", "backslashreplace").decode(), found[0].said, sep="\n")
    spent = ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime
    print(told(found, max(spent, 0.01)))
    sys.exit(any(one.failed for one in found))


if __name__ == "__main__":
    main()
