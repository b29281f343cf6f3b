"""The run folders of `benchmarks.fuzz`: one of a finished run or of an interrupted one, with files of it damaged."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from align.errors import AlignError, Exit
from align.run_folder import files
from align.run_folder.comparison import ComparisonRequest
from align.run_folder.interpolation import InterpolationRequest
from align.run_folder.paths import RunDir
from align.runner import loop
from benchmarks import clock
from benchmarks.fuzzing import mutations, odd_values
from benchmarks.fuzzing.mutations import Words
from benchmarks.fuzzing.recipes import ROOT, Case, Maker

RECIPE = """\
name: small
seed: 3
model: {base: lab, dtype: bfloat16}
pipeline: sft_dpo
parameterization: {method: lora}
forgetting: {probes: {sums: {data: sums.jsonl, metric: accuracy}}}
stages:
  sft:
    data: {source: lab/helpdesk, limit: 32}
    training: {learning_rate: 1.0e-3, max_steps: 4, per_device_train_batch_size: 4, save_steps: 2, logging_steps: 1}
  dpo:
    data: {source: lab/helpdesk_preferences, limit: 32}
    training: {learning_rate: 2.0e-4, max_steps: 30, per_device_train_batch_size: 4, save_steps: 2, logging_steps: 1}
"""
SUMS = "".join(f'{{"prompt": "Sort: c {x} a", "completion": "a {x} c"}}\n' for x in "bdefgh")
SMALL = 100_000  # bytes: larger files are linked, not copied
JSON = (".json", ".jsonl")
LOOKS = (
    *(["status", "run"], ["report", "run"], ["report", "run", "--json"], ["advise", "run"]),
    *(["check", "run/recipe.yaml"], ["compare", "run", "other"]),
)
RUNS = (["run", "small.yaml", "--run-dir", "run"], ["status", "run"], ["report", "run"])


class Child:
    """In place of the process that trains: it leaves what the undamaged run has."""

    whole: ClassVar[RunDir]

    def __init__(self, run: RunDir, *_: object) -> None:
        self.dir = run

    def execute(self, stage: str, launched: object) -> None:
        here, there = self.dir.stage(stage), self.whole.stage(stage)
        ticket = files.read_object(here.ticket)
        for name in ("model", "measurements", "metrics.jsonl", "proofs.json", "precision.json"):
            _over(there.root / name, here.root / name)
        if ticket.get("measure_base"):
            _over(self.whole.base_measurements, self.dir.base_measurements)
        outcome = files.read_object(there.outcome)
        outcome["fingerprint"] = ticket.get("fingerprint")
        files.write_json(here.outcome, outcome)

    def interpolate(self, request: InterpolationRequest, launched: object) -> object:
        raise AlignError("a share would be looked for", exit=Exit.STAGE_FAILED)

    def compare(self, request: ComparisonRequest) -> bool:
        return False

    def finish(self) -> None:
        pass

    interrupt = end = finish


def _over(source: Path, target: Path) -> None:
    """Put a copy of a file or a folder in place of another."""
    _gone(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    elif source.exists():
        shutil.copy2(source, target)


def _gone(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class Runs(Maker):
    """Damaged run folders: what looks at one, and `align run`, which decides what of it can stay."""

    colour, batch = False, 10

    @cached_property
    def folders(self) -> list[Path]:
        """The finished run and the interrupted one; made where they are not there yet."""
        done, interrupted = self.runs / "done", self.runs / "interrupted"
        if not (done / "report.html").is_file():
            make(self.runs)
        setattr(loop, "Child", Child)  # noqa: B010 - mypy would have one of its own kind
        Child.whole = RunDir(done)
        return [done, interrupted]

    @cached_property
    def paths(self) -> list[list[Path]]:
        """The files and folders of each, by name."""
        return [sorted(path.relative_to(folder) for path in folder.rglob("*")) for folder in self.folders]

    def make(self, index: int, folder: Path) -> Case:
        chance = self.chance(index)
        number = chance.randrange(2)
        run = self._laid(number, folder)
        shown = [self.folders[number].name]
        for _ in range(chance.choice((1, 1, 1, 2))):
            paths = self.paths[number]
            records = [path for path in paths if path.suffix in JSON and "tokenizer" not in path.name]
            path = chance.choice(records if chance.random() < 0.7 else paths)
            shown.append(f"{path}: {damage(run / path, folder / 'other' / path, chance)}")
        return Case("\n".join(shown), [*chance.choice((LOOKS, RUNS))], folder)

    def _laid(self, number: int, folder: Path) -> Path:
        """A copy of a run, with its recipe and the other run beside it."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "small.yaml").write_text(RECIPE, encoding="utf-8")
        (folder / "sums.jsonl").write_text(SUMS, encoding="utf-8")
        for name, source in (("run", self.folders[number]), ("other", self.folders[1 - number])):
            shutil.copytree(source, folder / name, copy_function=near)
        return folder / "run"

    def good(self, folder: Path) -> Iterator[Case]:
        for number in (0, 1):
            for words in (LOOKS, RUNS):
                here = folder / f"{number}{len(words)}"
                self._laid(number, here)
                yield Case(self.folders[number].name, [*words], here)


def damage(path: Path, other: Path, chance: random.Random) -> str:
    """Change one file or folder, at times to another one; says how."""
    if not path.parent.is_dir() or not path.exists() or path.is_symlink():
        return "gone already"
    if path.is_file() and path.suffix in JSON and chance.random() < 0.75:
        return _changed(path, chance)
    return chance.choice(_DAMAGES)(path, other, chance)


def near(source: str, target: str) -> str:
    """A copy of a small file; a large one is linked: what damages it writes another in its place."""
    if Path(source).stat().st_size > SMALL:
        os.link(source, target)
        return target
    return str(shutil.copy2(source, target))


def _changed(path: Path, chance: random.Random) -> str:
    """A JSON file, or one of its lines, with something changed in its tree; at times without the hash that tells."""
    try:
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines() if path.suffix == ".jsonl" else [text]
        at = chance.randrange(len(lines)) if lines else 0
        value = json.loads(lines[at]) if lines else {}
        old = mutations.text(mutations.planted(value))
    except (ValueError, RecursionError):
        return "no JSON any more, or too deep"
    sealed = isinstance(value, dict) and "seal" in value and chance.random() < 0.5
    if sealed:
        del value["seal"]
    odd = (*odd_values.NOT_FINITE, *odd_values.LARGE, *odd_values.DEEP)
    new = mutations.text(mutations.damaged(mutations.planted(value), Words({}, {}, odd, ("", "a/b", "é")), chance))
    lines[at : at + 1] = [new]
    path.unlink()
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogatepass")
    same = next((place for place, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), len(new))
    cut = slice(max(0, same - 60), same + 100)
    return f"{'unsealed, ' * sealed}line {at + 1}: {old[cut]!r} became {new[cut]!r}"


def _remove(path: Path, other: Path, chance: random.Random) -> str:
    _gone(path)
    return "gone"


def _spoil(path: Path, other: Path, chance: random.Random) -> str:
    if not path.is_file():
        return _remove(path, other, chance)
    content = mutations.spoilt(path.read_bytes(), chance)
    path.unlink()
    path.write_bytes(content)
    return "spoilt"


def _empty(path: Path, other: Path, chance: random.Random) -> str:
    _gone(path)
    path.write_bytes(b"")
    return "an empty file"


def _other(path: Path, other: Path, chance: random.Random) -> str:
    _over(other, path)
    return "that of the other run"


def _elsewhere(path: Path, other: Path, chance: random.Random) -> str:
    beside = sorted(one for one in path.parent.rglob("*") if one.is_file() and one != path)
    if not beside:
        return "alone"
    found = chance.choice(beside)
    content = found.read_bytes()
    _gone(path)
    path.write_bytes(content)
    return f"what {found.name} has"


def _folder(path: Path, other: Path, chance: random.Random) -> str:
    _gone(path)
    path.mkdir()
    return "an empty folder"


def _link(path: Path, other: Path, chance: random.Random) -> str:
    target = chance.choice(("nowhere", path.name, "..", "/dev/null", "/proc/self/mem", str(other)))
    _gone(path)
    path.symlink_to(target)
    return f"a link to {target}"


def _text(path: Path, other: Path, chance: random.Random) -> str:
    content = chance.choice(
        (b"null", b"[]", b"{}", b"0", b'"x"', b"NaN", b"[" * 5000, b"\xff\xfe", b"\x00" * 100, b"{}\n{}\n")
    )
    _gone(path)
    path.write_bytes(content)
    return f"{content[:20]!r}"


_DAMAGES: tuple[Callable[[Path, Path, random.Random], str], ...] = (
    *(_remove, _spoil, _spoil, _empty, _other, _elsewhere, _folder, _link, _text),
)


def make(folder: Path) -> None:
    """Run the recipe: once until its second stage has a checkpoint, and a copy of that to its end.

    Raises:
        SystemExit: it failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "small.yaml").write_text(RECIPE, encoding="utf-8")
    (folder / "sums.jsonl").write_text(SUMS, encoding="utf-8")
    settings = {**os.environ, **clock.ONE_THREAD, **clock.OFFLINE, "PYTHONPATH": str(ROOT)}
    for name in ("interrupted", "done"):
        words = [sys.executable, "-P", "-m", "align", "run", "small.yaml", "--run-dir", name]
        with (folder / f"{name}.log").open("w") as log:
            process = subprocess.Popen(words, cwd=folder, env=settings, stdout=log, stderr=log)
            saved = folder / "interrupted/stages/dpo/checkpoints/checkpoint-2/complete.json"
            while name == "interrupted" and process.poll() is None and not saved.is_file():
                time.sleep(0.02)
            if name == "interrupted":
                process.send_signal(signal.SIGINT)
            code = process.wait()
        if code != (Exit.INTERRUPTED if name == "interrupted" else Exit.DONE):
            raise SystemExit((folder / f"{name}.log").read_text())
        if name == "interrupted":
            shutil.copytree(folder / name, folder / "done")
