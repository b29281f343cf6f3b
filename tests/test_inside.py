"""Measuring inside a stage: it leaves no trace in what is trained, and ends what has surely forgotten."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import TrainerControl, TrainerState

import models
import runs
from align.forgetting import inside, pace, probes
from align.forgetting.bench import Bench
from align.forgetting.inside import Judge, Measured, Point
from align.forgetting.judgement import MEAN
from align.forgetting.keys import ForgettingKeys
from align.forgetting.pace import Pace, Schedule
from align.forgetting.share import Share
from align.lab import probes as lab
from align.report import inside_plots
from align.report.chart import Curve, Dots, Rule
from align.report.inside_page import inside_page
from align.report.schema import StageRecord
from align.run_folder import files
from align.run_folder.paths import RunDir
from align.run_folder.records import Inside, Reward, Ticket
from align.run_folder.run_record import StageEntry
from align.run_folder.stage_dir import StageDir
from align.runner import processes
from align.stage.callbacks import Interrupted, Watch
from align.stage.inside import Watching
from align.worker import execute as work
from align.worker import measuring as worker_measuring
from models import BASE, Stages

LOOSE = {"max_drop": 1.0, "max_mean_drop": 1.0, "max_perplexity_ratio": 1e9}
REWARDS = Path(__file__).parent / "rewards_for_tests.py"
DROPPED = models.settings("lora", lora={"r": 8, "alpha": 16, "dropout": 0.1})
ONLINE = {
    "per_device_train_batch_size": 4,
    "steps_per_generation": 2,
    "num_iterations": 2,
    "max_completion_length": 8,
    "warmup_steps": 0,
}


# ---- how often -------------------------------------------------------------------------------------------------------


def due(schedule: Schedule) -> list[int]:
    return [step for step in range(1, schedule.last + 1) if schedule.due(step)]


def test_every_so_many_steps_and_the_last_only_where_it_may_end_the_stage() -> None:
    assert due(Schedule(4, 12, ends=False)) == [4, 8]
    assert due(Schedule(5, 12, ends=True)) == [5, 10, 12]
    assert due(Schedule(20, 12, ends=False)) == []


@pytest.mark.parametrize("measurement", [0.01, 0.3, 1.0, 7.0])
@pytest.mark.parametrize("foreseen", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("last", [40, 400, 4000])
def test_auto_stays_within_its_share(measurement: float, foreseen: float, last: int) -> None:
    """Also where the first measurement costs more than was foreseen: from the second one on it is made up for."""
    step_cost, schedule = 0.02, Schedule("auto", last, ends=False)
    assert due(schedule) == [], "nothing is known yet"
    schedule.pace = schedule.begin(schedule.waits, foreseen * measurement, step_cost)
    spent = count = 0.0
    for step in range(schedule.waits, last + 1):
        if schedule.due(step):
            spent, count = spent + measurement, count + 1
            if count == 1:
                schedule.pace = schedule.settle(schedule.pace, measurement, step_cost)
                assert step == schedule.pace.first
            if count > 1 or foreseen >= 1:
                assert spent / (spent + step * step_cost) <= pace.SHARE + 1e-9
    if foreseen == 1 and schedule.pace.first * 4 < last:
        assert spent / (spent + last * step_cost) > pace.SHARE / 2, "and makes use of it"


def test_auto_measures_nothing_where_one_would_cost_too_much() -> None:
    schedule = Schedule("auto", 50, ends=False)
    schedule.pace = schedule.begin(2, 100.0, 1.0)
    assert schedule.pace == Pace(first=900, step_cpu_seconds=1.0, measurement_cpu_seconds=100.0)
    assert due(schedule) == []


# ---- judging ---------------------------------------------------------------------------------------------------------


def measured(folder: Path, right: dict[str, int], items: int = 100, text: float = 1.0) -> Path:
    """A measurement in which so many of the first items are right."""
    kinds: dict[str, Any] = {
        name: {"metric": "accuracy", "higher_is_better": True, "kind": "skill", "replayed": None} for name in right
    }
    kinds["text"] = {"metric": "perplexity", "higher_is_better": False, "kind": "text", "replayed": None}
    lines: list[dict[str, Any]] = [
        {"probe": name, "split": "gate", "id": n, "score": int(n < count)}
        for name, count in right.items()
        for n in range(items)
    ]
    lines += [{"probe": "text", "split": "gate", "id": n, "nll": text * (9 + n % 3), "tokens": 5} for n in range(items)]
    scores = {name: {"score": 0.0, "n": items} for name in kinds}
    files.write_json(folder / "summary.json", {"probes": kinds, "scores": {"gate": scores}, "cpu_seconds": 2.0})
    files.write_text(folder / "items.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    return folder


def settings(**changed: Any) -> Inside:
    return Inside(every=2, early_stop=True, limits={"max_drop": 0.1, "max_mean_drop": 0.05}).model_copy(update=changed)


def test_a_line_says_what_the_gate_would_say(tmp_path: Path) -> None:
    base = measured(tmp_path / "base", {"facts": 95, "sort": 90})
    judge = Judge.of(base, settings())
    line = judge.stored(4, "after", measured(tmp_path / "later", {"facts": 40, "sort": 90}, text=1.1))
    assert line is not None
    assert (line.step, line.origin, list(line.points)) == (4, "after", ["facts", "sort", "text", MEAN])
    facts = line.points["facts"]
    assert (facts.before, facts.score, facts.limit, facts.verdict) == (0.95, 0.4, 0.1, "FORGOT")
    assert line.points["sort"].verdict == "OK"
    assert line.points["text"].change == pytest.approx(2.718281828 ** (1000 * 0.1 / 500 * 0.999), rel=0.01)
    assert [text.partition(":")[0] for text in line.broken] == ["facts", MEAN]
    assert line.short() == f"{MEAN} -0.275, facts -0.550"
    gone = judge.judged(5, judge_of(tmp_path, {"facts": 95, "sort": 90}, text=float("nan")))
    assert gone.points["text"].change is None and gone.broken[0].startswith("text: ")
    assert gone.short() == f"{MEAN} +0.000, text diverged"


def judge_of(folder: Path, right: dict[str, int], **more: Any) -> Any:
    from align.forgetting import measurements

    return measurements.load(measured(folder / "one", right, **more))


def test_the_mean_is_that_of_all_skills_or_none(tmp_path: Path) -> None:
    base = measured(tmp_path / "base", {"facts": 95, "sort": 90})
    after = measured(tmp_path / "later", {"facts": 60, "sort": 90})
    of_one = Judge.of(base, settings(watch=["facts"])).stored(2, "after", after)
    assert of_one is not None and list(of_one.points) == ["facts"]
    of_all = Judge.of(base, settings(watch=["facts", "sort"])).stored(2, "after", after)
    assert of_all is not None and list(of_all.points) == ["facts", "sort", MEAN]
    assert Judge.of(base, settings()).stored(0, "before", tmp_path / "none") is None
    other = measured(tmp_path / "fewer", {"facts": 60, "sort": 90}, items=50)
    assert Judge.of(base, settings()).stored(0, "before", other) is None, "other items"


def test_what_ended_a_stage_and_what_it_hands_on(tmp_path: Path) -> None:
    stage = StageDir(tmp_path)
    lines = [Measured(step=0, origin="before", broken=("sort: low",)), Measured(step=2, seconds=1.0, cpu_seconds=0.5)]
    lines += [Measured(step=4, seconds=1.0, cpu_seconds=0.5, broken=("facts: a -> b", "sort: c -> d"))]
    inside.write(stage, lines)
    assert inside.read(stage, 2) == lines[:2]
    assert inside.ended(stage, settings(), 3) is None
    assert inside.ended(stage, settings(early_stop=False), 4) is None
    told = inside.insight(stage, settings(), 4, 2)
    assert (told.measurements, told.seconds, told.cpu_seconds, told.every) == (2, 2.0, 1.0, 2)
    assert (told.stopped, told.kept, told.reasons) == (4, 2, ["facts: a -> b", "sort: c -> d"])
    assert inside.sentence(stage, told, 9) == (
        "stopped at step 4 of 9; the weights of step 2 are kept, because facts: a -> b (and 1 more)"
    )
    inside.write(stage, [lines[0], lines[2]])
    assert inside.sentence(stage, inside.insight(stage, settings(), 4, 2), 9) == (
        "stopped at step 4 of 9; the weights of step 0, those that came in, are kept, which were beyond a limit "
        "already, because facts: a -> b (and 1 more)"
    )


def test_a_point_tells_how_near_its_limit_is() -> None:
    assert Point(change=-0.05, limit=0.1).share == pytest.approx(0.5)
    assert Point(metric="perplexity", change=1.25, limit=1.5).share == pytest.approx(0.5)
    assert Point(change=None, limit=0.1).share == float("inf")


@pytest.mark.parametrize("kind", ["lab", "general", "auto"])
def test_the_names_of_probes_are_known_without_their_items(kind: str) -> None:
    keys = ForgettingKeys(probes=kind, items=10)
    loaded = probes.load(keys, Path())
    assert probes.names(keys) == [name for probe in loaded for name in probes.called(probe)]
    for probe in loaded:
        halved = probes.part(probe, ("gate",))
        whole = getattr(probe, "texts", None) or getattr(probe, "items", None)
        left = getattr(halved, "texts", None) or getattr(halved, "items", None)
        assert left == {"gate": whole["gate"], "report": type(whole["report"])()}


# ---- the page --------------------------------------------------------------------------------------------------------


def test_the_page_shows_curves_and_the_same_as_a_table() -> None:
    def line(step: int, score: float | None, verdict: str | None = None) -> Measured:
        point = Point(before=0.9, score=score, change=score and score - 0.9, limit=0.1, verdict=verdict)
        text = Point(metric="perplexity", before=2.0, score=2.0 + step, limit=1.5)
        return Measured(
            step=step, points={"a <b>": point, MEAN: Point(before=0.05, score=0.05, limit=0.1), "text": text}
        )

    lines = tuple(line(step, None if step == 4 else 0.9, "FORGOT" if step == 9 else "OK") for step in range(10))
    page = inside_page(StageRecord(id="sft", entry=StageEntry(stage="sft"), inside=lines))
    assert page is not None
    assert (page.told, page.end) == ("10 so far, on the gate's half of the items.", "")
    assert [row.name for row in page.table.rows] == [MEAN, "a <b>", "text"]
    assert page.table.steps == tuple(map(str, range(10)))
    assert [cell.score for cell in page.table.rows[1].cells][3:5] == ["0.900", "n/a"]
    assert [cell.verdict for cell in page.table.rows[1].cells][8:] == ["OK", "FORGOT"]
    assert page.brief.steps == ("0", "2", "4", "6", "8", "9")
    charts = list(inside_plots.draw(StageRecord(id="sft", entry=StageEntry(stage="sft"), inside=lines)))
    assert [chart.heads[0][0] for chart in charts] == [MEAN, "a <b>", "text"]
    pieces = [[len(mark.points) for mark in chart.marks if isinstance(mark, Curve)] for chart in charts]
    assert pieces == [[10], [4, 5], [10]], "a gap where it diverged"
    limits = [[mark.at for mark in chart.marks if isinstance(mark, Rule)] for chart in charts]
    assert limits == [[], [pytest.approx(0.8)], [3.0]], "below nothing there is nothing to lose"
    broken = [mark.points for mark in charts[1].marks if isinstance(mark, Dots)]
    assert broken == [((9.0, 0.9),)]
    assert [len(chart.table().rows) for chart in charts] == [10, 9, 10]
    assert inside_page(StageRecord(id="sft", entry=StageEntry(stage="sft"))) is None


# ---- real stages -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Probes of one's own: what the lab model knows, and text."""
    folder, found = tmp_path_factory.mktemp("probes"), {}
    for skill in ("facts", "sort"):
        rows = [{"prompt": i.prompt, "completion": i.answer} for i in lab.items(skill, "report")[:50]]
        path = folder / f"{skill}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        found[f"inside {skill}"] = {"data": str(path), "metric": "accuracy"}
    path = folder / "stories.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in lab.stories("report")[:24]), encoding="utf-8")
    return {**found, "inside text": {"data": str(path), "metric": "perplexity"}}


def run_of(tmp_path: Path, name: str, own: dict[str, Any], make: Callable[[Stages], Ticket], **told: Any) -> Stages:
    """A stage executed in this process; measured inside where something is told."""
    stages = Stages(RunDir(tmp_path / name))
    stages.execute(prepared(stages, own, make, **told))
    return stages


def prepared(stages: Stages, own: dict[str, Any], make: Callable[[Stages], Ticket], **told: Any) -> Ticket:
    ticket = make(stages)
    ticket.probes, ticket.measure_base = own, True
    ticket.inside = Inside(**{"every": 2, "limits": LOOSE, **told}) if told else None
    return ticket


def sft(method: dict[str, Any], **training: Any) -> Callable[[Stages], Ticket]:
    given = {"max_steps": 7, "dtype": "float32", **training}
    return lambda stages: stages.ticket("it", "sft", BASE, method, held=models.data.rows("lab/helpdesk", n=4), **given)


def dpo(stages: Stages) -> Ticket:
    return stages.ticket("it", "dpo", BASE, DROPPED, max_steps=7, learning_rate=1e-3)


def kto(stages: Stages) -> Ticket:
    return stages.ticket("it", "kto", BASE, models.LORA, rows=models.preferences(16), max_steps=7)


def online(program: str, method: dict[str, Any] = DROPPED, **more: Any) -> Callable[[Stages], Ticket]:
    reward = Reward(name="varied", kind="function", weight=1.0, path=str(REWARDS), function="varied")
    given = {**ONLINE, "max_steps": 8, "dtype": "float32", **more}
    return lambda stages: stages.ticket("it", program, BASE, method, rewards=[reward], **given)


def hashes(stages: Stages) -> dict[str, str]:
    """Of the policy, and of a critic."""
    here = stages.run.stage("it")
    found = [path for folder in (here.model, here.critic) for path in sorted(folder.glob("*.safetensors"))]
    assert found
    return {path.name: files.file_sha256(path) for path in found}


def gate_half(folder: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "items.jsonl").read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line["split"] == "gate"]


def slow(value: Any, id: str) -> Any:
    return pytest.param(value, id=id, marks=pytest.mark.slow)


SPECTRUM = models.settings("spectrum")
STAGES = [
    pytest.param(sft(DROPPED, gradient_checkpointing=True), id="sft-lora"),
    slow(dpo, "dpo-lora"),
    slow(sft(models.FULL, bf16=True), "sft-full"),
    slow(sft(models.settings("qlora", lora={"r": 8, "alpha": 16, "dropout": 0.1}), dtype="auto"), "sft-qlora"),
    slow(sft(SPECTRUM), "sft-spectrum"),
    slow(kto, "kto-lora"),
    slow(online("ppo", num_generations=1), "ppo-lora"),
    slow(online("ppo", num_generations=1, method=models.FULL), "ppo-full"),
    slow(online("rloo", num_generations=2), "rloo-lora"),
    slow(online("grpo", num_generations=2), "grpo-lora"),
]


@pytest.mark.parametrize("make", STAGES)
def test_what_is_trained_does_not_depend_on_being_measured(
    make: Callable[[Stages], Ticket], own: dict[str, Any], tmp_path: Path
) -> None:
    plain = run_of(tmp_path, "plain", own, make)
    watched = run_of(tmp_path, "watched", own, make, early_stop=True)
    assert hashes(plain) == hashes(watched)
    here = watched.run.stage("it")
    lines, last = inside.read(here), watched.outcomes["it"].steps
    assert [(line.step, line.origin) for line in lines] == [
        (0, "before"),
        *((step, "inside") for step in [*range(2, last, 2), last]),
    ]
    assert len({line.points["inside text"].score for line in lines}) == len(lines), "each is of other weights"
    assert gate_half(here.inside / f"step-{last}") == gate_half(here.measurements), "as measured at rest"
    told = watched.outcomes["it"].inside
    assert told is not None and (told.measurements, told.stopped, told.kept) == (len(lines) - 1, None, None)
    assert 0 < told.cpu_seconds < watched.outcomes["it"].cpu_seconds
    assert plain.outcomes["it"].inside is None and not plain.run.stage("it").inside.exists()


def test_the_loss_before_the_first_step_is_no_part_of_the_training(tmp_path: Path) -> None:
    with_it, without = Stages(RunDir(tmp_path / "with")), Stages(RunDir(tmp_path / "without"))
    with_it.execute(sft(DROPPED)(with_it))
    without.execute(sft(DROPPED, eval_on_start=False)(without))
    assert hashes(with_it) == hashes(without)
    first, later = with_it.logged("it", "eval_loss"), without.logged("it", "eval_loss")
    assert first[1:] == later and first[0] > first[1]
    entries = map(json.loads, with_it.run.stage("it").metrics.read_text(encoding="utf-8").splitlines())
    assert next(entry["step"] for entry in entries if "eval_loss" in entry) == 0


FORGETS = {"learning_rate": 8e-3, "lr_scheduler_type": "constant", "warmup_steps": 0}
LIMITS = {"max_drop": 0.15, "max_mean_drop": 0.15, "max_perplexity_ratio": 1.3}


@pytest.fixture(scope="module")
def stopped(own: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Stages:
    """A stage that forgets, ended by its first limit."""
    make = sft(models.LORA, **FORGETS, max_steps=20, save_strategy="steps", save_steps=1, logging_steps=50)
    return run_of(tmp_path_factory.mktemp("stopped"), "it", own, make, every=1, early_stop=True, limits=LIMITS)


def test_a_stage_that_forgets_is_ended_with_the_last_weights_within_its_limits(stopped: Stages) -> None:
    here, outcome = stopped.run.stage("it"), stopped.outcomes["it"]
    told = outcome.inside
    assert told is not None and told.stopped is not None and told.kept is not None
    assert 1 <= told.kept == told.stopped - 1 and outcome.steps == told.stopped < 20
    assert outcome.warnings[-1] == (
        f"stopped at step {told.stopped} of 20; the weights of step {told.kept} are kept, because {told.reasons[0]}"
        + (f" (and {len(told.reasons) - 1} more)" if len(told.reasons) > 1 else "")
    )
    entries = map(json.loads, here.metrics.read_text(encoding="utf-8").splitlines())
    assert [entry["step"] for entry in entries if "loss" in entry] == [told.stopped], "the last loss is logged"
    judge = Judge.of(stopped.run.base_measurements, Inside(every=1, limits=LIMITS))
    delivered = judge.stored(told.kept, "after", here.measurements)
    assert delivered is not None and not delivered.broken
    assert gate_half(here.measurements) == gate_half(here.inside / f"step-{told.kept}")


@pytest.mark.slow
def test_the_weights_are_those_of_training_just_so_far(stopped: Stages, own: dict[str, Any], tmp_path: Path) -> None:
    told = stopped.outcomes["it"].inside
    assert told is not None and told.kept is not None
    as_far = run_of(tmp_path, "as far", own, sft(models.LORA, **FORGETS, max_steps=told.kept))
    assert hashes(as_far) == hashes(stopped)


def test_a_stage_killed_after_its_end_is_not_trained_on(stopped: Stages, tmp_path: Path) -> None:
    """The checkpoint of the step that ended it was written, the outcome was not."""
    here, before = stopped.run.stage("it"), hashes(stopped)
    told = stopped.outcomes["it"].inside
    assert told is not None
    ticket = Ticket.model_validate(files.read_json(here.ticket) or stopped.jobs["it"].ticket.model_dump(mode="json"))
    ticket.measure_base, ticket.resume_from = False, f"checkpoints/checkpoint-{told.stopped}"
    assert (here.root / ticket.resume_from / "complete.json").is_file()
    here.outcome.unlink()
    stopped.execute(ticket)
    assert hashes(stopped) == before
    again = stopped.outcomes["it"].inside
    assert again == told and stopped.outcomes["it"].steps == told.stopped


def test_where_even_the_first_is_beyond_the_policy_that_came_in_is_handed_on(
    own: dict[str, Any], tmp_path: Path
) -> None:
    make = sft(models.LORA, **(FORGETS | {"learning_rate": 0.5}), max_steps=6)
    stages = run_of(tmp_path, "it", own, make, every=3, early_stop=True, limits=LIMITS)
    told = stages.outcomes["it"].inside
    assert told is not None and (told.stopped, told.kept) == (3, 0)
    assert "; the weights of step 0, those that came in, are kept, because " in stages.outcomes["it"].warnings[-1]
    tensors = load_file(stages.run.stage("it").model / "adapter_model.safetensors")
    assert all(float(tensor.abs().max()) == 0 for name, tensor in tensors.items() if "lora_B" in name), "a no-op"


def test_resumed_it_has_the_same_weights_curve_and_kept_weights(own: dict[str, Any], tmp_path: Path) -> None:
    make = sft(DROPPED, save_strategy="steps", save_steps=3, max_steps=9)
    whole = run_of(tmp_path, "whole", own, make, early_stop=True)
    stages = Stages(RunDir(tmp_path / "halved"))
    ticket = prepared(stages, own, make, every=2, early_stop=True)
    here = stages.run.stage("it")
    with pytest.raises(Interrupted):
        work.do(stages.run, ticket, lambda: (here.inside / "step-4/summary.json").is_file())
    # as a kill -9 leaves it: beyond the last whole checkpoint, with weights kept that are of a later step
    files.write_text(here.curve, here.curve.read_text() + Measured(step=8, broken=("torn",)).model_dump_json() + "\n")
    (here.inside / "step-8").mkdir()
    with safe_open(here.kept, framework="pt") as kept:
        assert kept.metadata() == {"step": "4"}
    ticket.measure_base, ticket.resume_from = False, "checkpoints/checkpoint-3"
    stages.execute(ticket)
    assert hashes(stages) == hashes(whole)
    assert untimed(stages) == untimed(whole)
    assert files.file_sha256(here.kept) == files.file_sha256(whole.run.stage("it").kept)
    with safe_open(here.kept, framework="pt") as kept:
        assert kept.metadata() == {"step": "9"}


def untimed(stages: Stages) -> list[Measured]:
    return [line.but(seconds=0.0, cpu_seconds=0.0) for line in inside.read(stages.run.stage("it"))]


@pytest.mark.slow
def test_auto_is_chosen_once_and_written_down(own: dict[str, Any], tmp_path: Path) -> None:
    stages = run_of(tmp_path, "it", own, sft(models.LORA, max_steps=60), every="auto")
    here, told = stages.run.stage("it"), stages.outcomes["it"].inside
    chosen = pace.read(here.pace)
    assert chosen is not None and told is not None
    assert chosen.step_cpu_seconds and chosen.measurement_cpu_seconds
    made = [line.step for line in inside.read(here) if line.origin == "inside"]
    every = chosen.every
    later = [] if every is None else [n for n in range(2 * every, 60, every) if n > chosen.first]
    assert made == ([chosen.first] if chosen.first < 60 else []) + later
    assert told.every == (every or chosen.first)


@pytest.mark.parametrize("rank", [0, 1])
def test_every_process_measures_its_share_and_the_first_alone_judges_and_writes(
    rank: int, stopped: Stages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is asked after a step, without the other; what is measured was measured before."""
    measured: list[Share] = []
    ticket = stopped.jobs["it"].ticket.model_copy(update={"inside": Inside(every=1, limits=LIMITS, early_stop=True)})
    job = replace(stopped.jobs["it"], ticket=ticket, dir=StageDir(tmp_path))
    source = stopped.run.stage("it").inside / "step-1"

    def measure(bench: Bench, probes: object, folder: Path, **_: object) -> None:
        measured.append(bench.share)
        if bench.share.first:
            shutil.copytree(source, folder)

    monkeypatch.setattr(worker_measuring, "measure", measure)
    world: Any = SimpleNamespace(process_index=rank, num_processes=2)
    told = worker_measuring.inside(job, stopped.run, [], world)
    assert told is not None
    model = models.tiny_llama()
    watching = Watching(told, model, Watch(tmp_path / "progress.jsonl", resumed=False), None)
    args: Any = SimpleNamespace(world_size=1, output_dir=None)
    state, control = TrainerState(global_step=0, max_steps=3, is_world_process_zero=rank == 0), TrainerControl()
    watching.on_train_begin(args, state, control)
    state.global_step = 1
    watching.on_step_end(args, state, control)
    assert [(share.rank, share.world) for share in measured] == [(rank, 2)]
    assert [(line.step, line.origin) for line in inside.read(job.dir)] == (
        [(0, "before"), (1, "inside")] if rank == 0 else []
    )
    assert job.dir.kept.is_file() is (rank == 0)
    assert model.training


# ---- through the command ---------------------------------------------------------------------------------------------

RECIPE = """\
name: inside
seed: 3
model: {base: lab, dtype: float32}
parameterization: {method: lora, lora: {r: 8, dropout: 0.1}}
forgetting: {probes: lab, every: 2, watch: [facts, sentiment, stories, extract], max_drop: 0.3}
stages:
  sft:
    data: {source: lab/helpdesk, limit: 256}
    training: {bf16: false, learning_rate: 5.0e-3, max_steps: 24, per_device_train_batch_size: 8, save_steps: 3}
"""
EARLY = ("--set", "forgetting.early_stop=true")


@pytest.fixture(scope="module")
def early(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("early")
    runs.run(runs.write(folder, RECIPE), folder / "run", *EARLY)
    return folder / "run"


@pytest.mark.slow
def test_early_stopping_ends_within_the_limits_and_the_same_run_without_does_not(early: Path, tmp_path: Path) -> None:
    runs.run(runs.write(tmp_path, RECIPE), tmp_path / "run")
    assert files.read_json(tmp_path / "run/stages/sft/decision.json")["violations"]
    watched = [v["probe"] for v in files.read_json(early / "stages/sft/decision.json")["violations"]]
    assert not set(watched) & {"facts", "sentiment", "stories", "extract"}
    told = runs.outcome(early, "sft")["inside"]
    assert 0 < told["kept"] < told["stopped"] < 24
    for page in ("report.html", "report.md"):
        text = (early / page).read_text(encoding="utf-8")
        assert "Inside the stage" in text and "Ended early" in text
        assert f"stopped at step {told['stopped']} of 24; the weights of step {told['kept']} are kept" in text


@pytest.mark.slow
def test_a_limit_retrains_only_what_it_may_end(early: Path, tmp_path: Path) -> None:
    recipe, folder = runs.write(tmp_path, RECIPE), tmp_path / "run"
    runs.run(recipe, folder)
    again = runs.run(recipe, folder, "--set", "forgetting.max_drop=0.2", "--set", "forgetting.every=6")
    assert "sft: done already" in again.stderr
    assert "its recipe changed" in runs.run(recipe, folder, *EARLY).stderr
    assert runs.weights(folder) == runs.weights(early)


def killed_and_resumed(whole: Path, folder: Path, *options: str) -> None:
    """Kill a run between two of its measurements and run it again: the weights and curves of one left alone."""
    recipe = runs.write(folder.parent, RECIPE)
    process = runs.started(recipe, folder, *options)
    stage = StageDir(folder / "stages/sft")
    runs.wait_for(process, lambda: bool(stage.curve.is_file() and [x for x in inside.read(stage) if x.step == 4]))
    for pid in processes.tree(runs.children(process.pid)):  # a launcher's processes outlive it by a moment
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate()
    assert "(resuming from checkpoint-3)" in runs.run(recipe, folder, *options).stderr
    assert runs.weights(folder) == runs.weights(whole)
    one, other = (
        [line.but(seconds=0.0, cpu_seconds=0.0) for line in inside.read(StageDir(run / "stages/sft"))]
        for run in (whole, folder)
    )
    assert one == other


@pytest.mark.slow
def test_killed_between_two_measurements_it_ends_alike(early: Path, tmp_path: Path) -> None:
    killed_and_resumed(early, tmp_path / "run", *EARLY)


STILL = (*EARLY, "--set", "parameterization={method: lora, lora: {r: 8}}")
HALVED = (*STILL, "--processes", "2", "--set", "stages.sft.training.per_device_train_batch_size=4")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    runs.run(runs.write(folder, RECIPE), folder / "two", *HALVED)
    return folder / "two"


@pytest.mark.slow
def test_two_processes_killed_between_two_measurements_end_alike(two: Path, tmp_path: Path) -> None:
    killed_and_resumed(two, tmp_path / "run", *HALVED)


@pytest.mark.slow
def test_two_processes_measure_and_stop_as_one_does(two: Path, tmp_path: Path) -> None:
    recipe = runs.write(tmp_path, RECIPE)
    runs.run(recipe, tmp_path / "one", *STILL)
    shutil.copytree(two, tmp_path / "two")
    told = [runs.outcome(tmp_path / name, "sft")["inside"] for name in ("one", "two")]
    assert [told[0][key] for key in ("stopped", "kept")] == [told[1][key] for key in ("stopped", "kept")]
    one, two = (inside.read(StageDir(tmp_path / name / "stages/sft")) for name in ("one", "two"))
    for first, second in zip(one, two, strict=True):
        for name, point in first.points.items():
            if point.metric == "accuracy":
                assert second.points[name] == point
            else:  # gradients are added up in another order, which moves the weights in their last digits
                assert second.points[name].score == pytest.approx(point.score, rel=1e-5)
    stage = StageDir(tmp_path / "two/stages/sft")
    kept = gate_half(stage.inside / f"step-{told[1]['kept']}")
    at_rest = {(line["probe"], line["id"]): line for line in gate_half(stage.measurements)}
    assert kept and all(at_rest[line["probe"], line["id"]] == line for line in kept), "to the last digit"
