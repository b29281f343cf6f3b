"""What the parent decides: skip, resume, measure again, redo, stop, compare. A child in its place trains nothing."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from align import report
from align.errors import AlignError, Exit
from align.forgetting.distances import KlEstimate, TaskKl
from align.forgetting.prompts import shown
from align.forgetting.records import Answer
from align.interpolation import stored
from align.preflight import check
from align.preflight.check import Prepared
from align.recipe.load import load
from align.recipe.plan import Loaded
from align.run_folder import checkpoints, files, reading
from align.run_folder.comparison import ComparisonRequest
from align.run_folder.interpolation import InterpolationRequest, InterpolationResult
from align.run_folder.paths import RunDir
from align.run_folder.records import Outcome, Prompt, Ticket
from align.runner import loop
from align.runner.options import Options
from align.runner.progress import Watcher
from align.stage import program

RECIPE = """\
name: small
model: {base: lab}
parameterization: {method: lora}
forgetting: {probes: none}
stages:
  sft: {data: {source: lab/helpdesk, limit: 16}}
  dpo: {policy: sft, data: {source: lab/helpdesk_preferences, limit: 16}}
"""
SFT = program.load("sft", Path()).stage.description
SUMS = "".join(f'{{"prompt": "Sort: c {x} a", "completion": "a {x} c"}}\n' for x in "bdefgh")


@dataclass
class Runs:
    """Runs of a recipe in one folder, without a process that trains.

    Attributes:
        asked: what the child was asked to do, in order, since it was last looked at.
        raising: what a stage, one attempt at it (`sft 2`) or its interpolation ends with instead of a result.
        warnings: of a stage's outcome.
        alarms: of its metrics.
        right: how many of its 100 questions a stage answers, or one attempt at it (`sft 2`); the base answers 90.
        shares: the same of shares of a stage's update, which has none without them.
        content: of the weights that are trained.
        compares: whether a comparison comes to its end.
        compared: what was to be compared.
        reports: how often the report was written.
    """

    folder: Path
    asked: list[str] = field(default_factory=list)
    raising: dict[str, BaseException] = field(default_factory=dict)
    warnings: dict[str, list[str]] = field(default_factory=dict)
    alarms: list[str] = field(default_factory=list)
    right: dict[str, int] = field(default_factory=dict)
    shares: dict[float, int] = field(default_factory=dict)
    keeps_shares: bool = False
    kl: float | None = None  # that the child measures of every stage
    content: str = "weights"
    compares: bool = True
    compared: list[ComparisonRequest] = field(default_factory=list)
    reports: int = 0
    said: list[str] = field(default_factory=list)

    @property
    def dir(self) -> RunDir:
        return RunDir(self.folder / "run")

    def run(self, *overrides: str, text: str = RECIPE, **options: Any) -> list[str]:
        """Run the recipe with `--set` overrides and other options; returns what the child was asked."""
        path = self.folder / "small.yaml"
        path.write_text(text, encoding="utf-8")
        console = Console(file=io.StringIO(), width=300)
        self.asked.clear()
        try:
            self.code = loop.Run(load(path, overrides), Options(**options), self.dir, Watcher(console)).execute()
        finally:
            self.said = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
        return list(self.asked)

    def statuses(self) -> dict[str, str]:
        return {id: entry["status"] for id, entry in files.read_json(self.dir.record)["stages"].items()}

    def outcome(self, stage: str) -> Outcome:
        return Outcome.model_validate(files.read_json(self.dir.stage(stage).outcome))

    def superseded(self) -> list[str]:
        """What was moved away, without the time."""
        kept = self.dir.root / "superseded"
        return sorted(p.name.rpartition("-")[2] for p in kept.iterdir()) if kept.is_dir() else []


class Child:
    """In place of the process: it leaves what a stage leaves."""

    runs: Runs

    def __init__(self, run: RunDir, watcher: Watcher, meanwhile: object = None, machines: object = None) -> None:
        self.dir = run

    def execute(self, stage: str, launched: object) -> None:
        here = self.dir.stage(stage)
        ticket = Ticket.model_validate(files.read_json(here.ticket))
        again = " asked" if ticket.ask_only else " measured" if ticket.measure_only else ""
        how = again or (f" from {ticket.resume_from}" if ticket.resume_from else "")
        number = f" attempt {ticket.attempt}" if ticket.attempt > 1 else ""
        self.runs.asked.append(
            f"{stage}{number}{how}{', and the base' if ticket.measure_base or ticket.ask_base else ''}"
        )
        for name in (stage, f"{stage} {ticket.attempt}"):
            if name in self.runs.raising:
                raise self.runs.raising.pop(name)
        if not ticket.measure_only:
            files.write_text(here.model / "weights", self.runs.content)
        if ticket.measure_base:
            measured(self.dir.base_measurements, self.runs.right.get("base", 90))
        if ticket.measure_base or ticket.ask_base:
            answered(self.dir.base_answers, ticket.prompts, "nothing")
        if ticket.probes != "none" and not ticket.ask_only:
            right = self.runs.right.get(f"{stage} {ticket.attempt}", self.runs.right.get(stage, 90))
            measured(here.measurements, right, self.dir.base_measurements)
            if self.runs.kl is not None:
                found = KlEstimate(kl=self.runs.kl, ci95=(self.runs.kl - 0.01, self.runs.kl + 0.01), n=64, tokens=900)
                files.write_json(here.task_kl, TaskKl(prompts="64 prompts", own_answers=found).written())
        answered(here.answers, ticket.prompts, f"what {stage} says")
        files.write_json(here.outcome, self.outcome(ticket).model_dump(mode="json"))

    def outcome(self, ticket: Ticket) -> Outcome:
        here = self.dir.stage(ticket.stage)
        costs = dict.fromkeys(("seconds", "cpu_seconds", "measure_seconds", "measure_cpu_seconds"), 1.0)
        return Outcome(
            stage=ticket.stage,
            program=ticket.program,
            fingerprint=ticket.fingerprint,
            probes_sha256=ticket.probes_sha256,
            world_size=1,
            distributed_type="NO",
            global_batch_size=8,
            steps=1,
            parameters={},
            parameterization=ticket.parameterization,
            metrics={"alarms": self.runs.alarms},
            data={},
            policy=ticket.policy.model_copy(update={"weights": f"stages/{ticket.stage}/model"})
            if ticket.gives == "policy"
            else None,
            reward=ticket.policy if ticket.gives == "reward" else None,
            warnings=self.runs.warnings.get(ticket.stage, []) + ticket.warnings,
            artifacts=files.artifacts(here.model, here.root),
            **costs,
        )

    def interpolate(self, request: InterpolationRequest, launched: object) -> InterpolationResult:
        """Every share that was not measured yet is, until one has lost no more than ten questions."""
        here = self.dir.stage(request.stage)
        self.runs.asked.append(f"{request.stage} interpolated")
        if f"{request.stage} interpolated" in self.runs.raising:
            raise self.runs.raising.pop(f"{request.stage} interpolated")
        found = next((share for share in request.shares if self.runs.shares.get(share, 0) >= 80), None)
        if self.runs.keeps_shares:
            of = stored.identity(reading.read(here.ticket, Ticket), reading.read(here.outcome, Outcome))
            for share in request.shares:
                folder = here.of_share(request.shape, share)
                measured(folder, self.runs.shares.get(share, 0))
                key = stored.key_of(of, request.shape, share)
                files.write_json(folder / stored.MEASURED_OF, stored.Of(key=key).written())
        policy = None
        if found is not None:
            trained = reading.outcome(here)
            assert trained is not None and trained.policy is not None
            policy = trained.policy.model_copy(update={"weights": f"stages/{request.stage}/decided/model"})
            files.write_text(here.decided.model / "weights", f"{found:g} of {self.runs.content}")
            measured(here.decided.measurements, self.runs.shares[found])
            artifacts = files.artifacts(here.decided.model, here.decided.root)
            decided = trained.model_copy(update={"policy": policy, "artifacts": artifacts})
            files.write_json(here.decided.outcome, decided.model_dump(mode="json"))
        said = "no share" if found is None else f"a share of {found:g}"
        result = InterpolationResult(
            key=request.key, shape=request.shape, share=found, policy=policy, sentence=f"{said} of the update keeps it",
            made_of=request.made_of if self.runs.keeps_shares else "",
        )  # fmt: skip
        files.write_json(here.interpolation_result, result.written())
        return result

    def compare(self, request: ComparisonRequest) -> bool:
        self.runs.asked.append(f"compare {', '.join(request.policies)}")
        self.runs.compared.append(request)
        if self.runs.compares:
            files.write_json(self.dir.comparison, {"key": request.key, "parent": request.parent})
        return self.runs.compares

    def finish(self) -> None:
        self.runs.asked.append("finish")

    def interrupt(self) -> None:
        self.runs.asked.append("interrupt")

    def end(self) -> None:
        pass


def measured(folder: Path, right: int, base: Path | None = None) -> None:
    """A measurement of 100 questions in each half, of which so many are answered; against that of the base."""
    probes = {"sums": {"metric": "accuracy", "higher_is_better": True, "kind": "skill", "replayed": None}}
    scores = {split: {"sums": {"n": 100, "score": right / 100}} for split in ("gate", "report")}
    lines = [
        json.dumps({"probe": "sums", "split": split, "id": str(i), "score": float(i < right)})
        for split in scores
        for i in range(100)
    ]
    files.write_text(folder / "items.jsonl", "\n".join(lines) + "\n")
    against = {"against": files.file_sha256(base / "items.jsonl")} if base else {}
    files.write_json(folder / "summary.json", {"probes": probes, "scores": scores, **against})


def answered(path: Path, prompts: list[Prompt], answer: str) -> None:
    """The same answer to every prompt."""
    asked = [{"id": one.id, "kind": one.kind, "prompt": shown(one.value), "source": one.source} for one in prompts]
    lines = [Answer.model_validate(one | {"answer": answer}) for one in asked]
    if lines:
        files.write_text(path, "".join(json.dumps(line.written()) + "\n" for line in lines))


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    found = Runs(tmp_path)
    monkeypatch.setattr(Child, "runs", found, raising=False)
    monkeypatch.setattr(loop, "Child", Child)

    def write(folder: Path, *, live: bool = False) -> None:
        found.reports += not live
        (folder / "report.html").touch()

    monkeypatch.setattr(report, "write", write)
    return found


@pytest.fixture
def probes(tmp_path: Path) -> str:
    (tmp_path / "sums.jsonl").write_text(SUMS, encoding="utf-8")
    return "forgetting.probes={sums: {data: sums.jsonl, metric: accuracy}}"


def test_the_stages_are_run_once(runs: Runs) -> None:
    assert runs.run() == ["sft", "dpo", "finish"]
    assert (runs.code, runs.statuses(), runs.reports) == (Exit.DONE, {"sft": "done", "dpo": "done"}, 1)
    assert runs.run() == ["finish"]
    assert runs.said[-2:] == ["sft: done already", "dpo: done already"] and runs.reports == 1


def test_from_redoes_what_follows_and_only_does_not(runs: Runs) -> None:
    runs.run()
    assert runs.run(from_stage="sft") == ["sft", "dpo", "finish"]
    assert "sft: it is to run again; the old one is kept in superseded/" in runs.said
    assert runs.superseded() == ["dpo", "sft"]
    assert runs.run(only="sft") == ["sft", "finish"]
    assert runs.superseded() == ["dpo", "sft", "sft"] and runs.dir.stage("dpo").outcome.is_file()


@pytest.mark.parametrize("torn", ["", "{", "[]", "{}"])
def test_checkpoints_of_which_nobody_knows_what_they_are_of_are_not_used(torn: str, runs: Runs) -> None:
    """As where run.json and the stage's ticket are both lost."""
    runs.run()
    here = runs.dir.stage("dpo")
    here.outcome.unlink()
    (here.checkpoints / "checkpoint-8").mkdir(parents=True)
    runs.dir.record.unlink()
    here.ticket.write_text(torn)
    assert runs.run() == ["dpo", "finish"] and runs.superseded() == ["dpo"]
    assert "dpo: its ticket.json is lost, and with it what it is of; the old one is kept in superseded/" in runs.said


def test_a_record_that_names_another_folder_is_refused(runs: Runs) -> None:
    runs.run()
    victim = runs.folder / "victim"
    victim.mkdir()
    record = files.read_json(runs.dir.record)
    for name in ("../../victim", str(victim)):
        files.write_json(runs.dir.record, record | {"stages": record["stages"] | {name: record["stages"]["sft"]}})
        with pytest.raises(AlignError, match="is no name of a stage"):
            runs.run()
    assert victim.is_dir()


@pytest.mark.parametrize("own", ["recipe.yaml", "report.md", "base", "stages"])
def test_a_folder_of_the_user_is_refused(own: str, runs: Runs) -> None:
    """As with `--run-dir .`: it would replace his recipe, and `--fresh` would move his folders."""
    runs.dir.root.mkdir()
    (runs.dir.root / own).write_text("mine")
    with pytest.raises(AlignError) as error:
        runs.run(fresh=True)
    assert str(error.value) == (
        f"'{runs.dir.root}' has a '{own}' that is not of a run, and a run would replace it\n"
        "  -> give a --run-dir that is empty, or not there yet"
    )
    assert [path.name for path in runs.dir.root.iterdir()] == [own]


def test_only_leaves_the_stages_of_another_recipe_alone(runs: Runs) -> None:
    """All others are as they were, those too that the recipe no longer has."""
    runs.run()
    alone = RECIPE.partition("  dpo:")[0]
    assert runs.run(text=alone, only="sft") == ["sft", "finish"]
    assert runs.superseded() == ["sft"] and set(runs.statuses()) == {"sft", "dpo"}
    assert runs.run(text=alone) == ["finish"]
    assert runs.superseded() == ["dpo", "sft"] and set(runs.statuses()) == {"sft"}


def test_only_is_refused_where_an_ancestor_has_changed(runs: Runs) -> None:
    three = RECIPE + "  again: {stage: dpo, policy: dpo, data: {source: lab/helpdesk_preferences, limit: 16}}\n"
    runs.run(text=three)
    with pytest.raises(AlignError) as error:
        runs.run("stages.sft.training.learning_rate=3.0e-3", text=three, only="again")
    assert str(error.value) == (
        "--only again: the recipe of 'dpo', which it starts from, has changed too\n"
        "  -> run without --only, or with --from dpo"
    )
    assert runs.superseded() == []


def test_an_interrupted_stage_is_told_from_those_that_wait(runs: Runs) -> None:
    runs.raising["sft"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        runs.run()
    assert runs.statuses() == {"sft": "interrupted", "dpo": "pending"}


def test_only_is_refused_before_anything_is_moved(runs: Runs) -> None:
    runs.run()
    runs.dir.stage("sft").outcome.unlink()
    with pytest.raises(AlignError) as error:
        runs.run(only="dpo")
    assert str(error.value) == (
        f"stage 'dpo' starts from 'sft', which has not run in '{runs.dir.root}'\n"
        "  -> run without --only, or `--only sft` first"
    )
    assert runs.superseded() == [] and runs.dir.stage("dpo").outcome.is_file()


def test_a_redo_that_was_interrupted_goes_on_and_a_finished_one_begins_anew(runs: Runs) -> None:
    runs.run()
    runs.raising["dpo"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        runs.run(fresh=True)
    assert runs.asked == ["sft", "dpo", "interrupt"] and runs.statuses() == {"sft": "done", "dpo": "interrupted"}
    assert runs.run(fresh=True) == ["dpo", "finish"]
    assert runs.run(fresh=True) == ["sft", "dpo", "finish"]
    assert runs.run(from_stage="dpo") == ["dpo", "finish"], "another redo is asked for anew"


def test_fresh_begins_with_an_empty_folder(runs: Runs) -> None:
    runs.run()
    created = files.read_json(runs.dir.record) | {"mark": 1}
    files.write_json(runs.dir.record, created)
    runs.run(fresh=True)
    assert "mark" not in files.read_json(runs.dir.record)
    kept = (runs.dir.root / "superseded").iterdir()
    assert {"run.json", "stages", "recipe.yaml", "base", "report.html"} <= {p.name.split("-", 3)[-1] for p in kept}


def test_a_run_stays_with_the_commit_that_it_began_with(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []

    def prepare(loaded: Loaded, commit: str | None) -> Prepared:
        asked.append(commit)
        return check.prepare(loaded)

    monkeypatch.setattr(loop, "prepare", prepare)
    runs.run()
    for base in (["lab", None], ["lab", "v2"], ["another", None]):
        hub = {"hub": {"base": base, "commit": "abc"}}
        files.write_json(runs.dir.record, files.read_json(runs.dir.record) | hub)
        runs.run()
    files.write_json(
        runs.dir.record, files.read_json(runs.dir.record) | {"hub": {"base": ["lab", None], "commit": "abc"}}
    )
    runs.run(fresh=True)
    assert asked == [None, "abc", None, None, None]


def test_a_folder_of_another_recipe_is_refused(runs: Runs) -> None:
    runs.run()
    with pytest.raises(AlignError) as error:
        runs.run(text=RECIPE.replace("name: small", "name: other"))
    assert str(error.value) == (
        f"the run folder '{runs.dir.root}' belongs to the recipe 'small', not 'other'\n"
        "  -> give another --run-dir, or name the recipe as before"
    )


def test_a_stage_goes_on_from_its_last_whole_checkpoint(runs: Runs) -> None:
    runs.raising["sft"] = AlignError("the card burns", "put it out", exit=Exit.STAGE_FAILED)
    with pytest.raises(AlignError, match="the card burns"):
        runs.run()
    assert runs.statuses() == {"sft": "failed", "dpo": "pending"}
    here = runs.dir.stage("sft")
    for step in (2, 4):
        files.write_text(here.checkpoints / f"checkpoint-{step}" / "weights", "x")
    checkpoints.seal(here.checkpoints / "checkpoint-2")
    files.write_json(here.error, {"what": "of an earlier attempt"})
    files.write_text(here.progress, "of an earlier attempt\n")
    assert runs.run() == ["sft from checkpoints/checkpoint-2", "dpo", "finish"]
    assert f"sft: {SFT} (resuming from checkpoint-2)" in runs.said
    assert not here.error.exists() and not here.progress.exists() and not here.checkpoints.exists()


def test_a_checkpoint_is_left_behind_where_the_stage_starts_from_something_else(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stage before it was decided on anew in this very run."""
    runs.raising["dpo"] = AlignError("the card burns", "put it out", exit=Exit.STAGE_FAILED)
    with pytest.raises(AlignError, match="the card burns"):
        runs.run()
    here = runs.dir.stage("dpo")
    files.write_text(here.checkpoints / "checkpoint-2" / "weights", "x")
    checkpoints.seal(here.checkpoints / "checkpoint-2")
    decided = iter(["as_trained"])
    monkeypatch.setattr(reading, "goes_on", lambda stage: next(decided, "another"))
    assert runs.run() == ["dpo", "finish"]
    assert "dpo: it starts from something else now; the old one is kept in superseded/" in runs.said
    assert runs.superseded() == ["dpo"]


def test_a_damaged_result_runs_again(runs: Runs) -> None:
    runs.run()
    files.write_text(runs.dir.stage("dpo").model / "weights", "x")
    assert runs.run() == ["dpo", "finish"]
    what = "dpo: its result has a damaged file, model/weights; it runs again, the old one is kept in superseded/"
    assert what in runs.said and runs.superseded() == ["dpo"]


def test_a_result_of_another_recipe_runs_again(runs: Runs) -> None:
    """One that the record of the run does not speak of, as where run.json was lost."""
    runs.run()
    files.write_json(runs.dir.record, files.read_json(runs.dir.record) | {"stages": {}})
    assert runs.run("stages.dpo.beta=0.3") == ["dpo", "finish"]
    what = "dpo: its result belongs to another recipe; it runs again, the old one is kept in superseded/"
    assert what in runs.said and runs.superseded() == ["dpo"]


def test_what_was_not_measured_is_measured_again(runs: Runs, probes: str) -> None:
    assert runs.run(probes) == ["sft, and the base", "dpo", "finish"]
    weights = runs.dir.stage("sft").model / "weights"
    time = weights.stat().st_mtime_ns
    (runs.dir.stage("sft").measurements / "summary.json").unlink()
    assert runs.run(probes) == ["sft measured", "finish"]
    assert "sft: trained already; measured again" in runs.said
    for lost in (runs.dir.base_measurements / "summary.json", runs.dir.stage("dpo").measurements / "summary.json"):
        lost.unlink()
    assert runs.run(probes) == ["sft measured, and the base", "dpo measured", "finish"]
    assert weights.stat().st_mtime_ns == time
    assert runs.run(probes) == ["finish"]


def test_a_measurement_that_was_interrupted_is_measured_and_not_trained(runs: Runs, probes: str) -> None:
    runs.run()
    runs.raising["sft"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        runs.run(probes)
    here = runs.dir.stage("sft")
    assert here.remeasuring.is_file() and not here.outcome.exists()
    assert runs.run(probes) == ["sft measured, and the base", "dpo measured", "finish"]
    assert not here.remeasuring.exists() and runs.superseded() == []


def test_a_stage_measured_again_whose_run_ended_before_the_outcome_is_not_lost(runs: Runs, probes: str) -> None:
    """All that is looked for is there, but neither its last files nor its outcome."""
    runs.run(probes)
    here = runs.dir.stage("sft")
    weights = (here.model / "weights").stat().st_mtime_ns
    for only, doing in ((False, "measured"), (True, "asked")):
        here.outcome.replace(here.remeasuring)
        files.write_json(here.ticket, files.read_json(here.ticket) | {"measure_only": True, "ask_only": only})
        assert runs.run(probes) == [f"sft {doing}", "finish"]
        assert here.outcome.is_file() and not here.remeasuring.exists()
        assert (here.model / "weights").stat().st_mtime_ns == weights
    assert runs.run(probes) == ["finish"]


def test_a_stage_measured_again_whose_run_ended_after_its_card_is_not_trained_again(runs: Runs, probes: str) -> None:
    """The card shows what was measured, so that it is no longer the one of the outcome that was kept aside."""
    runs.run(probes)
    here = runs.dir.stage("sft")
    here.card.write_text("before")
    outcome = files.read_json(here.outcome) | {"artifacts": files.artifacts(here.model, here.root)}
    assert "model/README.md" in outcome["artifacts"]
    files.write_json(here.remeasuring, outcome)
    here.outcome.unlink()
    here.card.write_text("measured again")
    assert runs.run(probes) == ["sft measured", "finish"]
    assert runs.superseded() == ["measurements"]


def test_other_questions_and_another_base_are_another_base_row(runs: Runs, probes: str) -> None:
    runs.run(probes)
    assert runs.run(probes, "stages.sft.training.logging_steps=7") == ["finish"]
    quantised = (probes, "parameterization.method=qlora")
    assert runs.run(*quantised) == ["sft, and the base", "dpo", "finish"]
    assert "measurements" in runs.superseded()
    assert runs.run(*quantised, "model.dtype=float32") == ["sft, and the base", "dpo", "finish"]
    (runs.folder / "sums.jsonl").write_text(SUMS.replace("Sort", "Order"), encoding="utf-8")
    assert runs.run(*quantised, "model.dtype=float32") == ["sft measured, and the base", "dpo measured", "finish"]


def test_a_branch_from_the_base_is_held_against_the_base_as_it_is_measured_now(runs: Runs, probes: str) -> None:
    """The answers that broke are those of the base before, which the first stage loaded in another way."""
    apart = (probes, "stages.dpo.policy=base")
    assert runs.run(*apart) == ["sft, and the base", "dpo", "finish"]
    runs.right["base"] = 80
    other = (*apart, "stages.sft.parameterization={method: qlora}", "stages.dpo.parameterization={method: lora}")
    same = (*apart, "stages.dpo.parameterization={method: lora}")
    assert runs.run(*same) == ["finish"]
    assert runs.run(*other) == ["sft, and the base", "dpo measured", "finish"]
    assert files.read_json(runs.dir.forgetting)["matrix"]["dpo"]["sums"]["delta"] == 0.1
    assert runs.run(*other) == ["finish"]
    summary = runs.dir.stage("dpo").measurements / "summary.json"
    files.write_json(summary, {**files.read_json(summary), "against": None})
    assert runs.run(*other) == ["finish"], "an older run does not say"


def test_the_base_is_measured_again_where_only_a_branch_has_measured_it_in_its_way(runs: Runs, probes: str) -> None:
    apart = (probes, "stages.dpo.policy=base", "stages.dpo.parameterization={method: qlora}")
    assert runs.run(*apart, only="dpo") == ["dpo, and the base", "finish"]
    assert runs.run(*apart, only="dpo") == ["dpo", "finish"], "it has measured the base in its way"
    assert runs.run(*apart) == ["sft, and the base", "finish"]
    assert runs.superseded() == ["dpo", "measurements"]
    assert runs.run(*apart, only="dpo") == ["dpo", "finish"] and runs.run(*apart) == ["finish"]


def test_other_prompts_are_asked_without_training_or_measuring(runs: Runs, probes: str) -> None:
    runs.run(probes)
    items = runs.dir.stage("sft").measurements / "items.jsonl"
    time = items.stat().st_mtime_ns
    weights = (runs.dir.stage("sft").model / "weights").stat().st_mtime_ns
    more = (probes, "stages.dpo.data.limit=17")  # which has the first stage asked other prompts too
    assert runs.run(*more) == ["sft asked, and the base", "dpo", "finish"]
    assert "sft: trained already; only its answers are written again" in runs.said
    assert runs.superseded() == ["answers.jsonl", "answers.jsonl", "dpo"]
    assert (runs.dir.stage("sft").model / "weights").stat().st_mtime_ns == weights
    assert items.stat().st_mtime_ns == time
    assert runs.run(*more) == ["finish"]


def test_an_older_run_is_asked_once_and_a_recipe_without_answers_never(runs: Runs, probes: str) -> None:
    none = (probes, "forgetting.answers=false")
    assert runs.run(*none) == ["sft, and the base", "dpo", "finish"]
    assert not runs.dir.base_answers.exists() and not runs.dir.stage("sft").answers.exists()
    runs.raising["dpo"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        runs.run(probes)
    assert runs.asked == ["sft asked, and the base", "dpo asked", "interrupt"]
    assert runs.run(probes) == ["dpo asked", "finish"]
    assert runs.run(probes) == ["finish"] and runs.run(*none) == ["finish"]


def test_two_answers_are_shown_after_each_stage(runs: Runs, probes: str) -> None:
    runs.run(probes)
    at = runs.said.index("    sft  what sft says")
    (asked, base), (general, again) = runs.said[at - 2 : at], runs.said[at + 1 : at + 3]
    assert asked.startswith("  asked  ") and asked.endswith("(a training row of sft)")
    assert base == again == "   base  nothing"
    assert general == "  asked  Which item? Ben ordered a chair but it is the wrong size."
    assert runs.said.count("    dpo  what dpo says") == 2


def test_the_gate_stops_and_judges_again_when_its_limits_change(runs: Runs, probes: str) -> None:
    runs.right["sft"] = 30
    stop = (probes, "forgetting.on_violation=stop")
    assert runs.run(*stop) == ["sft, and the base"]
    assert (runs.code, runs.statuses()) == (Exit.GATE, {"sft": "stopped", "dpo": "pending"})
    assert next(line for line in runs.said if line.startswith("gate ")).startswith("gate sft: sums: 0.9 -> 0.3 (")
    assert runs.run(*stop) == [] and runs.code == Exit.GATE
    assert not [line for line in runs.said if line.startswith("gate ")], "it was said when it was judged"
    assert runs.run(*stop, "forgetting.max_drop=0.9", "forgetting.max_mean_drop=0.9") == ["dpo", "finish"]
    assert (runs.code, runs.statuses()) == (Exit.DONE, {"sft": "done", "dpo": "done"})
    matrix = files.read_json(runs.dir.forgetting)
    assert matrix["stages"] == ["base", "sft", "dpo"] and matrix["parent"] == {"sft": "base", "dpo": "sft"}


def test_a_limit_for_the_kl_is_held_against_what_was_stored(runs: Runs, probes: str) -> None:
    runs.kl = 0.4
    assert runs.run(probes) == ["sft, and the base", "dpo", "finish"]
    strict = (probes, "forgetting.max_kl=0.3", "forgetting.on_violation=stop")
    assert runs.run(*strict) == [] and runs.code == Exit.GATE
    assert runs.said[-1] == (
        "gate sft: KL to the base: 0.4 nats per token (95 % interval 0.39 to 0.41, 64 prompts) is beyond the limit, 0.3"
    )
    assert files.read_json(runs.dir.forgetting)["task_kl"]["sft"]["verdict"] == "FORGOT"
    assert runs.run(probes, "forgetting.max_kl=0.5", "forgetting.on_violation=stop") == ["finish"]
    assert runs.code == Exit.DONE
    assert {kl["verdict"] for kl in files.read_json(runs.dir.forgetting)["task_kl"].values()} == {"OK"}


def test_a_kl_that_an_older_run_lacks_is_measured_once_it_has_a_limit(runs: Runs, probes: str) -> None:
    runs.run(probes)
    assert "task_kl" not in files.read_json(runs.dir.forgetting) or not files.read_json(runs.dir.forgetting)["task_kl"]
    assert runs.run(probes) == ["finish"], "without one it is not missed"
    runs.kl = 0.2
    assert runs.run(probes, "forgetting.max_kl=0.3") == ["sft measured", "dpo measured", "finish"]
    assert runs.run(probes, "forgetting.max_kl=0.3") == ["finish"]


def test_a_row_that_was_asked_otherwise_is_not_in_the_matrix(runs: Runs, probes: str) -> None:
    """After --only one stage has answered the new questions, and the others the old ones."""
    runs.run(probes)
    (runs.folder / "sums.jsonl").write_text(SUMS.replace("Sort", "Order"), encoding="utf-8")
    assert runs.run(probes, only="sft") == ["sft, and the base", "finish"]
    assert files.read_json(runs.dir.forgetting)["stages"] == ["base", "sft"]
    assert runs.run() == ["sft measured", "dpo measured", "finish"]
    assert not runs.dir.forgetting.exists(), "nothing is asked any more"


def test_a_lost_matrix_is_made_again(runs: Runs, probes: str) -> None:
    runs.run(probes)
    written = runs.reports
    runs.dir.forgetting.write_text('{"format": 1, "sta', encoding="utf-8")
    assert runs.run(probes) == ["finish"]
    assert files.read_json(runs.dir.forgetting)["stages"] == ["base", "sft", "dpo"] and runs.reports == written + 1
    (runs.dir.root / "report.html").unlink()
    runs.run(probes)
    assert runs.reports == written + 2


def test_a_warning_is_said_once(runs: Runs) -> None:
    """An alarm was told when it was raised; what the rows gave was told before."""
    runs.alarms = ["reward_level"]
    runs.warnings["sft"] = ["reward level 3 times in a row", "no warm-up"]
    runs.run("stages.sft.training.per_device_train_batch_size=64")
    rows = "stage sft: a batch of 64 holds each of 16 rows more than once"
    said = [line.removeprefix("warning ") for line in runs.said if line.startswith("warning ")]
    assert said.count("sft: no warm-up") == 1 and not any("reward level" in line for line in said), said
    assert len(set(said)) == len(said), rows


# ---- branches --------------------------------------------------------------------------------------------------------

BRANCHES = """\
name: small
model: {base: lab}
pipeline: dpo_and_rlhf
parameterization: {method: lora}
forgetting: {probes: none}
stages:
  sft: {data: {source: lab/helpdesk, limit: 16}}
  dpo: {data: {source: lab/helpdesk_preferences, limit: 16}}
  reward: {data: {source: lab/helpdesk_preferences, limit: 32}, eval_data: 8}
  ppo: {data: {source: lab/helpdesk, limit: 16}, training: {max_steps: 2}}
"""


def test_branches_are_compared_once_for_each_state_of_them(runs: Runs) -> None:
    assert runs.run(text=BRANCHES) == ["sft", "dpo", "reward", "ppo", "compare sft, dpo, ppo", "finish"]
    assert "comparing dpo, ppo" in runs.said
    assert runs.run(text=BRANCHES) == ["finish"]
    assert runs.run(text=BRANCHES, from_stage="dpo") == ["dpo", "finish"], "the same weights again"
    runs.content = "other weights"
    assert runs.run(text=BRANCHES, from_stage="dpo") == ["dpo", "compare sft, dpo, ppo", "finish"]


def test_branches_answer_the_rows_held_out_of_their_judge(runs: Runs) -> None:
    """Else those that the scored stage asks."""
    runs.run(text=BRANCHES)
    runs.run("stages.reward.eval_data=null", text=BRANCHES)
    held_out, asked = runs.compared
    tickets = {id: Ticket.model_validate(files.read_json(runs.dir.stage(id).ticket)) for id in ("reward", "ppo")}
    assert (held_out.parent, held_out.of, held_out.held_out, held_out.prompts.count) == ("sft", "reward", True, 8)
    assert (asked.of, asked.held_out, asked.prompts) == ("ppo", False, tickets["ppo"].train)
    assert asked.reward.model == runs.outcome("reward").reward


def test_branches_that_are_not_all_there_are_not_compared(runs: Runs) -> None:
    for only in ("sft", "dpo", "reward"):
        assert runs.run(text=BRANCHES, only=only) == [only, "finish"]
    assert runs.run(text=BRANCHES, only="ppo") == ["ppo", "compare sft, dpo, ppo", "finish"]
    runs.dir.comparison.unlink()
    for lost in ("dpo", "reward"):
        outcome = runs.dir.stage(lost).outcome
        text = outcome.read_text(encoding="utf-8")
        outcome.unlink()
        assert runs.run(text=BRANCHES, only="sft") == ["sft", "finish"], f"without {lost}"
        outcome.write_text(text, encoding="utf-8")


def test_stages_of_the_base_are_no_branches(runs: Runs) -> None:
    runs.run(text=BRANCHES)
    apart = ("stages.dpo.policy=base", "stages.ppo.policy=base", "stages.reward.policy=base")
    assert runs.run(*apart, text=BRANCHES, only="sft") == ["sft", "finish"]
    assert runs.dir.comparison.is_file(), "--only leaves what is beside it"
    assert "finish" in runs.run(*apart, text=BRANCHES) and len(runs.compared) == 1
    assert not runs.dir.comparison.exists()


def test_branches_beside_two_stages_of_the_base_are_compared(runs: Runs) -> None:
    text = BRANCHES.replace("pipeline: dpo_and_rlhf\n", "").replace("dpo: {", "dpo: {policy: sft, ")
    text = text.replace("ppo: {", "ppo: {policy: sft, reward: reward, ").replace(
        "reward: {data", "reward: {policy: sft, data"
    )
    text = text.replace("  dpo:", "  other: {stage: sft, data: {source: lab/helpdesk, limit: 16}}\n  dpo:")
    assert runs.run(text=text) == ["sft", "other", "dpo", "reward", "ppo", "compare sft, dpo, ppo", "finish"]


def test_a_comparison_that_fails_ends_no_run(runs: Runs) -> None:
    runs.compares = False
    runs.run(text=BRANCHES)
    said = f"the branches were not compared; see {runs.dir.child_log} and the last stage's log"
    assert runs.code == Exit.DONE and runs.said[-1] == said
