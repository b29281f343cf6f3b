"""Whether the advice of `align advise` mends runs that went wrong, each in another way.

    python -m benchmarks.advice                  # ten CPU minutes
    python -m benchmarks.advice --all --write    # every change that a cause asks for; also writes docs/remedies.md
    options: --runs FOLDER, --only TEXT (cases whose name holds it), --seed N

Each case is a short run of the lab model. `align advise` has to name its cause; then the run's own recipe with the
lines of the advice is run into another folder, and has to be mended: the cause is not named any more, and what it had
spoilt is better. FILE in a line stands for rows that a user knows and align does not; here they are rows of the skills
that were lost, from the training split of the lab. A run that --runs holds already is not repeated.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from align.advice.advise import advise
from align.advice.causes import Cause, causes
from align.advice.changes import FILE, Change, make
from align.advice.evidence import Figures, Mended
from align.advice.facts import RunFacts, StageFacts
from align.advice.lines import Line, written
from align.lab import skills, world
from align.report import records, shown
from align.report.schema import Report
from benchmarks import clock, written_tables

SEED = 7
BATCH = 16
TASK, POLITE = "helpdesk correct", "helpdesk polite"
REPLAY = {"data": "lab/general", "ratio": 0.2}
NARROW, LOST_ROWS = "copy_rows.jsonl", "lost_rows.jsonl"


@dataclass(frozen=True)
class Case:
    """A run that goes wrong.

    Attributes:
        name: as the table calls it.
        cause: what the advice has to name.
        stage: in which it goes wrong.
        task: the figure of the task that the stage is to improve.
        recipe: what it adds to the common keys.
    """

    name: str
    cause: str
    stage: str
    task: str
    recipe: dict[str, Any]


def _sft(rate: float, steps: int = 240, **more: Any) -> dict[str, Any]:
    training = {"learning_rate": rate, "max_steps": steps, "per_device_train_batch_size": BATCH}
    return {"data": "lab/helpdesk", "training": training} | more


def _overfitted() -> dict[str, Any]:
    stage = _sft(5e-3, data={"source": "lab/helpdesk", "limit": 96}, eval_data=32)
    stage["training"] |= {"eval_strategy": "steps", "eval_steps": 20}
    return stage


def _drifting() -> dict[str, Any]:
    training = {"learning_rate": 4e-3, "max_steps": 40, "per_device_train_batch_size": 8}
    dpo = {"policy": "sft", "data": "lab/helpdesk_preferences", "beta": 0.01, "training": training}
    return {"sft": _sft(5e-3), "dpo": dpo}


CASES = (
    Case("learning rate ten times too high", "rate_too_high", "sft", TASK,
         {"replay": REPLAY, "stages": {"sft": _sft(5e-2)}}),
    Case("nothing replayed", "nothing_replayed", "sft", TASK, {"stages": {"sft": _sft(5e-3)}}),
    Case("60 epochs of 64 rows", "overfitted", "sft", TASK, {"replay": REPLAY, "stages": {"sft": _overfitted()}}),
    Case("DPO with a beta of 0.01 at a high rate", "drifted", "dpo", POLITE,
         {"replay": REPLAY, "stages": _drifting()}),
    Case("replay that covers one skill", "not_covered", "sft", TASK,
         {"replay": {"data": NARROW, "ratio": 0.2}, "stages": {"sft": _sft(5e-3)}}),
    Case("learning rate a hundred times too low", "rate_too_low", "sft", TASK,
         {"replay": REPLAY, "stages": {"sft": _sft(5e-5)}}),
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A finished run as the advice sees it."""

    folder: Path
    report: Report
    facts: RunFacts

    def stage(self, id: str) -> StageFacts:
        return next(stage for stage in self.facts.stages if stage.id == id)

    def figures(self, id: str, task: str) -> Figures:
        """Report items after a stage."""
        forgetting = self.report.forgetting
        assert forgetting is not None
        row, mean = forgetting.matrix[id], forgetting.mean[id]["all"]
        losses = self.stage(id).evaluation
        return Figures(
            task=row[task].score or 0.0,
            skills=mean.score or 0.0,
            perplexity=row["stories"].score or float("inf"),
            evaluation=losses.last if losses else None,
        )


@dataclass(frozen=True)
class Bench:
    """Makes runs in folders of their own."""

    root: Path
    seed: int

    def run(self, recipe: Mapping[str, Any], name: str, begun: Path | None = None) -> Run:
        """Run a recipe unless its run is finished; `begun` has stages that it may share."""
        here = self.root / name
        folder = here / "run"
        if not (folder / "report.html").is_file():
            here.mkdir(parents=True, exist_ok=True)
            if begun is not None and not folder.exists():
                shutil.copytree(begun, folder, ignore=shutil.ignore_patterns("report.*", ".lock"))
            (here / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
            command = [sys.executable, "-m", "align", "run", "recipe.yaml", "--run-dir", "run"]
            spent = clock.cpu_seconds(command, here, {"PYTHONPATH": str(Path(__file__).parents[1])})
            print(f"{name}: {spent:.0f} CPU s", file=sys.stderr, flush=True)
        found = records.load(folder)
        return Run(folder, found, shown.facts(found))

    def wrong(self, case: Case) -> Run:
        """The run of a case."""
        whole = {
            "name": "advice",
            "seed": self.seed,
            "model": {"base": "lab", "dtype": "auto", "attn_implementation": "eager"},
            "parameterization": {"method": "lora", "lora": {"r": 16, "alpha": 32}},
            "forgetting": {"probes": "lab", "answers": False},
        } | case.recipe
        here = self.root / case.cause
        here.mkdir(parents=True, exist_ok=True)
        write_rows(here / NARROW, ["copy"])
        return self.run(whole, case.cause)

    def changed(self, case: Case, wrong: Run, change: Change) -> Run:
        """The run's own recipe with the lines of a change."""
        recipe = YAML(typ="safe").load(wrong.report.recipe)
        rows = self.root / case.cause / LOST_ROWS
        write_rows(rows, list(wrong.stage(case.stage).missed))
        for line in change.lines:
            put(recipe, line, str(rows))
        return self.run(recipe, f"{case.cause}-{change.key}", wrong.folder)


def put(recipe: dict[str, Any], line: Line, file: str) -> None:
    """Write a line into a recipe, with a file in place of FILE."""
    inner = recipe
    for key in line.path[:-1]:
        inner[key] = inner.get(key) or {}
        inner = inner[key]
    inner[line.path[-1]] = json.loads(json.dumps(line.new).replace(f'"{FILE}"', json.dumps(file)))


def write_rows(path: Path, kinds: list[str], each: int = 200) -> None:
    """Rows of the lab's training split: questions of skills, and running text for a name that is none."""
    rng = random.Random(0)
    rows: list[dict[str, Any]] = []
    for kind in kinds:
        for _ in range(each):
            if kind in skills.SKILLS:
                example = skills.draw(kind, rng, "train")
                talk = [{"role": "user", "content": example.prompt}, {"role": "assistant", "content": example.answer}]
                rows.append({"messages": talk})
            else:
                rows.append({"text": world.story(rng, "train")})
    unique = {json.dumps(row): None for row in rows}
    path.write_text("".join(f"{row}\n" for row in unique), encoding="utf-8")


def mended(case: Case, before: Run, after: Run) -> str:
    """Empty where a change mended a run; else what it did not."""
    named = [cause.key for cause in causes(after.stage(case.stage))]
    old, new = (run.figures(case.stage, case.task) for run in (before, after))
    if case.cause in named:
        return f"{case.cause} is named again"
    if case.cause == "rate_too_low":
        return "" if after.stage(case.stage).learnt else "nothing was learnt"
    if new.skills <= old.skills:
        return f"the mean of the skills went from {old.skills:.3f} to {new.skills:.3f}"
    return "" if after.stage(case.stage).learnt else "it forgets less, but learns nothing"


def made(change: Change) -> str:
    """A change in a cell of the table; of a file its name."""
    return ", ".join(f"`{line.path[-1]}: {written(_named(line.new))}`" for line in change.lines)


def _named(value: Any) -> Any:
    if isinstance(value, list):
        return [_named(one) for one in value]
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value


def diagnosed(case: Case, run: Run) -> Cause:
    """What the advice names first; it has to be the cause of the case.

    Raises:
        SystemExit: it is another one.
    """
    advice = advise(run.facts)
    if not advice.causes or (advice.causes[0].key, advice.causes[0].stage) != (case.cause, case.stage):
        raise SystemExit(f"{case.name}: {case.cause} is not named, but: {advice.verdict}")
    return advice.causes[0]


def rows(bench: Bench, case: Case, *, every: bool) -> Iterator[tuple[Mended, str]]:
    """Each change that was run, and what it did not mend; of the first change that has to be nothing."""
    wrong = bench.wrong(case)
    cause = diagnosed(case, wrong)
    changes = list(make(cause.changes, wrong.stage(case.stage), wrong.facts))
    print(f"\n{case.name}\n{cause.sentence}", flush=True)
    for change in changes if every else changes[:1]:
        after = bench.changed(case, wrong, change)
        row = Mended(
            case=case.name, cause=case.cause, change=change.key, made=made(change), task=case.task, seed=bench.seed,
            before=wrong.figures(case.stage, case.task), after=after.figures(case.stage, case.task),
        )  # fmt: skip
        yield row, mended(case, wrong, after)


def main() -> None:
    """Run the cases, print the table, and end with 1 where a first change did not mend its run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="run every change that a cause asks for")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--runs", type=Path, help="keep the run folders here")
    parser.add_argument("--write", action="store_true", help="write the rows into align/advice and docs/remedies.md")
    asked = parser.parse_args()
    clock.heading("advice: runs of the lab model that went wrong, and what the advice made of them")
    found: list[tuple[Mended, str]] = []
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench((asked.runs or Path(temporary)).resolve(), asked.seed)
        for case in CASES:
            if asked.only in case.name:
                found += rows(bench, case, every=asked.all)
    print("\n" + written_tables.mended([row for row, _ in found], dict(found)))
    if asked.write:
        written_tables.write_mended([row for row, _ in found])
    first = {row.case: why for row, why in reversed(found)}
    if any(first.values()):
        raise SystemExit("; ".join(f"{case}: {why}" for case, why in first.items() if why))


if __name__ == "__main__":
    main()
