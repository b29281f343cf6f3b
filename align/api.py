"""What `import align` offers to Python programs: check and run recipes, open finished runs, load their policies.

What only a run needs is imported there: `align check` is done in less than a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from align import user_paths
from align.errors import AlignError, Exit
from align.preflight.check import prepare
from align.recipe import load as recipes
from align.run_folder import handed_on, reading
from align.run_folder.decisions import Decision
from align.run_folder.paths import RunDir
from align.run_folder.records import Outcome, Policy
from align.run_folder.run_record import RunRecord

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from align.forgetting.table import Cell
    from align.report.schema import Report


@dataclass(frozen=True)
class PlannedStage:
    """One stage of a checked recipe; as text, the line that `align check` prints."""

    id: str
    program: str
    policy: str  # the stage whose policy it takes, or `base`
    method: str
    rows: int  # 0 where they were not looked up
    held_out: int
    replay: float | None  # replayed rows for each row of the task

    def __str__(self) -> str:
        parts = [f"{self.program} from {self.policy}", self.method]
        parts.append(f"{self.rows:,} rows" if self.rows else "rows not looked up")
        parts += [f"{self.held_out:,} held out"] if self.held_out else []
        parts += [f"replay {self.replay:.0%}"] if self.replay is not None else []
        return f"{self.id}: {', '.join(parts)}"


@dataclass(frozen=True)
class Checked:
    """What checking a recipe found: what `align check` prints."""

    notes: tuple[str, ...]
    warnings: Mapping[str, tuple[str, ...]]  # by stage
    stages: tuple[PlannedStage, ...]  # in the order in which they run


def check(recipe: str | Path, overrides: Sequence[str] = (), *, offline: bool = False) -> Checked:
    """Check a recipe, its data row by row and its model's files, without loading a model.

    Args:
        recipe: a file, or the name of a recipe that ships with align.
        overrides: each as given to `--set`: `stages.dpo.beta=0.2`.
        offline: take names on the Hugging Face Hub on trust.

    Raises:
        AlignError: all faults at once.
    """
    loaded = recipes.load(recipes.locate(str(recipe)), overrides)
    found = prepare(loaded, offline=offline, weights=False)
    planned = tuple(
        PlannedStage(
            id=plan.id,
            program=plan.program.name,
            policy=plan.policy,
            method=plan.method_keys.method,
            rows=len(found.rows[plan.id].train),
            held_out=len(found.rows[plan.id].evaluation),
            replay=plan.replay.ratio if plan.replay else None,
        )
        for plan in loaded.stages
    )
    return Checked(tuple(found.notes), {id: tuple(texts) for id, texts in found.warnings.items()}, planned)


@dataclass(frozen=True)
class StageResult:
    """A finished stage of a run.

    Attributes:
        outcome: the record of what it did: steps, seconds, metrics, the files it wrote.
        decision: what the gate decided; None where nothing was measured.
        policy: what goes on from the stage: what it trained or, as was decided, a share of that or the policy
            before it; None for one that gave a reward model.
        report: each capability after this stage, by probe, as forgetting.json has it; empty where none was measured.
        model: the folder with its adapter or weights, or those of the share that goes on.
    """

    outcome: Outcome
    report: Mapping[str, Cell]
    model: Path
    policy: Policy | None = None
    decision: Decision | None = None


@dataclass(frozen=True)
class Run:
    """A run folder. Files are read when asked for, so that it may still be at work."""

    folder: Path

    @property
    def report(self) -> Report:
        """All that report.html is drawn from."""
        from align.report import records as reports

        return reports.load(self.folder)

    def stage(self, id: str) -> StageResult:
        """A finished stage.

        Raises:
            AlignError: there is no such stage, or it is not done.
        """
        here, report = RunDir(self.folder).stage(id), self.report
        outcome = reading.outcome(here)
        if outcome is None or id not in report.run.order:
            done = [one.id for one in report.stages if one.outcome is not None]
            remedy = f"choose one of: {', '.join(done)}" if done else "run it first: align run"
            raise AlignError(f"'{self.folder}' has no finished stage '{id}'", remedy)
        cells = report.forgetting.matrix.get(id, {}) if report.forgetting else {}
        decision = reading.optional(here.decision, Decision)
        policy = handed_on.policy(RunDir(self.folder), id)
        return StageResult(outcome, cells, handed_on.folder(here).model, policy, decision)


def open_run(run_dir: str | Path) -> Run:
    """A run folder that `align run` or `align.run` wrote.

    Raises:
        AlignError: the folder is none.
    """
    from align.report import records as reports

    reports.load(run_dir)
    return Run(Path(run_dir).absolute())


def run(
    recipe: str | Path,
    *,
    overrides: Sequence[str] = (),
    run_dir: str | Path | None = None,
    from_stage: str | None = None,
    only: str | None = None,
    fresh: bool = False,
) -> Run:
    """Run a recipe, or go on with it, as the command `align run` does; it trains in a child process.

    Args:
        recipe, overrides: as in `check`.
        run_dir: the run folder; runs/<name> by default.
        from_stage, only, fresh: as `--from`, `--only` and `--fresh`.

    Raises:
        AlignError: a fault of the input, a stage that failed (`exit` is 1), or a gate that stopped the run (3). What
            was done before stays in the folder, and the same call goes on from there.
        KeyboardInterrupt: after a checkpoint was saved.
    """
    from rich.console import Console

    from align.runner import loop
    from align.runner.options import Options
    from align.runner.progress import Watcher

    options = Options(from_stage, only, fresh)
    loaded = recipes.load(recipes.locate(str(recipe)), overrides)
    folder = folder_of(loaded.recipe.name, run_dir)
    with Watcher(Console(stderr=True)) as watcher:
        code = loop.Run(loaded, options, folder, watcher).execute()
    if code == Exit.GATE:
        raise _stopped(folder)
    return Run(folder.root)


def folder_of(name: str, run_dir: str | Path | None) -> RunDir:
    """Where a recipe of this name runs.

    Raises:
        AlignError: a file is in the way.
    """
    folder = RunDir(Path(run_dir or Path("runs") / name).absolute())
    if user_paths.there(folder.root) and not folder.root.is_dir():
        raise AlignError(f"'{folder.root}' is a file, not a run folder", "give another --run-dir")
    return folder


def _stopped(folder: RunDir) -> AlignError:
    """A run that the gate stopped, with the gate's reasons."""
    stages = reading.read(folder.record, RunRecord).stages
    id = next(id for id, entry in stages.items() if entry.status == "stopped")
    decision = reading.read(folder.stage(id).decision, Decision)
    reasons = "; ".join(decision.alarming)
    remedy = "change the recipe (forgetting limits, replay, learning rate) and run it again"
    return AlignError(f"the gate stopped the run after '{id}': {reasons}", remedy, exit=Exit.GATE)


def load_policy(
    run: Run | str | Path, stage: str | None = None
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    """The policy after a stage and its tokenizer, ready to generate; the model is in evaluation mode.

    Args:
        run: a run, or its folder.
        stage: the last one that gave a policy by default.

    Raises:
        AlignError: the stage is not done, or gave a reward model.
    """
    from align.policy import generation, stack
    from align.policy import load as models
    from align.results import find

    folder = run.folder if isinstance(run, Run) else Path(run).absolute()
    ticket, outcome = find.find(folder, stage)
    assert outcome.policy is not None
    tokenizer = models.load_tokenizer(ticket.policy.base.path, ticket.chat_template, ticket.model)
    model: PreTrainedModel | PeftModel = stack.load_policy(outcome.policy, ticket.model, folder)
    config = model.generation_config
    config.eos_token_id, config.pad_token_id = generation.ends(model, tokenizer), tokenizer.pad_token_id
    return model, tokenizer
