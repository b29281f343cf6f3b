"""Run folders for the tests of the report: what real runs wrote, with figures of our own where the test needs them.

Every change goes through the record that the run's own code writes, or keeps to the keys of the real lines, so that no
key can be invented here.
"""

import json
import math
import random
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import runs
from align.forgetting.records import BrokenAnswer, Sample
from align.forgetting.statistics import Verdict
from align.forgetting.table import Cell, Effect, Forgetting, NoValue, ProbeEntry
from align.rl import rollouts
from align.rl.rollouts import Alarm, Rollout, Sampled
from align.run_folder import files, reading
from align.run_folder.comparison import Compared, ComparisonResult, Prompts
from align.run_folder.decisions import Decision, Violation
from align.run_folder.paths import RunDir
from align.run_folder.records import Failure, Outcome, Record
from align.run_folder.reward_figures import CalibrationBin, ScoreHistogram
from align.run_folder.run_record import RunRecord
from align.run_folder.stage_dir import StageDir

R = TypeVar("R", bound=Record)

INJECTION = "<script>alert('owned')</script><img src=x onerror=alert(1)>"

# probe -> kind, replayed, scores after base, sft, dpo
SCORES: dict[str, tuple[str, bool | None, tuple[float, float, float]]] = {
    "helpdesk correct": ("task", None, (0.015, 0.93, 0.88)),
    "helpdesk polite": ("task", None, (0.21, 0.55, 0.98)),
    "copy": ("skill", True, (0.85, 0.835, 0.81)),
    "reverse": ("skill", True, (0.995, 0.985, 0.96)),
    "sort": ("skill", True, (0.99, 0.99, 0.975)),
    "facts": ("skill", True, (1.0, 0.92, 0.765)),
    "sentiment": ("skill", False, (1.0, 0.99, 0.985)),
    "add": ("skill", False, (0.375, 0.14, 0.05)),
    "larger": ("skill", False, (0.75, 0.66, 0.595)),
    "größer_als_$x$": ("skill", False, (0.61, 0.63, 0.64)),
}
N = 200
PERPLEXITY = (1.75, 3.12, 4.06)
STAGES = ("base", "sft", "dpo")
STARTED = "2026-09-22T13:33:20+00:00"
CALIBRATION = [
    CalibrationBin(predicted=0.62, observed=0.55, count=20),
    CalibrationBin(predicted=0.97, observed=0.9625, count=80),
]
HISTOGRAM = ScoreHistogram(edges=(-2.0, -1.0, 0.0, 1.0, 2.0), chosen=(0, 3, 0, 97), rejected=(88, 12, 0, 0))
ALARM = Alarm(
    name="reward_hacking",
    rollout=13,
    figure="KL 6.4 nats, more than 2 times the target 3, for 3 rollouts while the score rose from 0.25 to 1.45",
    remedy="read the samples: if the score praises what you would not, mend `reward`; raise `kl.coef`",
)


def change(path: Path, kind: type[R], **changed: Any) -> R:
    """Change some keys of a record in its file; what it holds then."""
    record = reading.read(path, kind).but(**changed)
    files.write_json(path, record.written())
    return record


def change_stage(run_dir: Path, id: str, **changed: Any) -> None:
    """Change the entry of a stage in run.json."""
    stages = reading.read(run_dir / "run.json", RunRecord).stages
    change(run_dir / "run.json", RunRecord, stages={**stages, id: stages[id].but(**changed)})


def change_outcome(run_dir: Path, stage: str, **changed: Any) -> None:
    """Change keys of an outcome; those of `metrics` and `data` one by one, and only such as there are."""
    path = RunDir(run_dir).stage(stage).outcome
    outcome = reading.read(path, Outcome)
    assert changed.keys() <= Outcome.model_fields.keys(), changed.keys()
    for name in ("metrics", "data"):
        known, new = getattr(outcome, name), changed.get(name, {})
        assert new.keys() <= known.keys(), new.keys() - known.keys()
        changed[name] = known | new
    files.write_json(path, outcome.model_copy(update=changed).model_dump(mode="json"))


def change_matrix(run_dir: Path, stage: str, probe: str, **changed: Any) -> None:
    """Change one cell of forgetting.json."""
    path = run_dir / "forgetting.json"
    matrix = reading.read(path, Forgetting).matrix
    row = {**matrix[stage], probe: matrix[stage][probe].but(**changed)}
    change(path, Forgetting, matrix={**matrix, stage: row})


def change_probe(run_dir: Path, probe: str, **changed: Any) -> None:
    """Change what forgetting.json says of a probe."""
    path = run_dir / "forgetting.json"
    probes = reading.read(path, Forgetting).probes
    change(path, Forgetting, probes={**probes, probe: probes[probe].but(**changed)})


def rename_probe(run_dir: Path, old: str, new: str) -> None:
    """Call a probe of forgetting.json by another name."""
    path = run_dir / "forgetting.json"
    table = reading.read(path, Forgetting)

    def renamed(cells: Mapping[str, Any]) -> dict[str, Any]:
        return {new if name == old else name: cell for name, cell in cells.items()}

    matrix = {stage: renamed(row) for stage, row in table.matrix.items()}
    change(path, Forgetting, probes=renamed(table.probes), matrix=matrix)


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    files.write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def write_metrics(path: Path, lines: list[dict[str, Any]]) -> None:
    """Lines of our own over those of a run, with no key that they do not have."""
    known = {key for line in reading.lines(path) for key in line}
    assert {key for line in lines for key in line} <= known
    write_lines(path, lines)


def write_rollouts(run_dir: Path, made: Iterable[Rollout]) -> None:
    path = RunDir(run_dir).stage("ppo").rollouts
    path.unlink(missing_ok=True)
    for one in made:
        rollouts.append(path, one)


def effect(before: float, after: float, lost_share: float = 0.05) -> Effect:
    """The change between two accuracies over N items, with a normal interval and a p-value of about the right size."""
    delta = after - before
    spread = math.sqrt(max(abs(delta) + 2 * lost_share - delta**2, 1e-4) / N)
    p = math.erfc(abs(delta) / spread / math.sqrt(2))
    return Effect(delta=delta, ci95=(delta - 1.96 * spread, delta + 1.96 * spread), p_value=p)


def cell(scores: tuple[float, ...], at: int, max_drop: float = 0.2) -> Cell:
    """One entry of the matrix."""
    if not at:
        return Cell(score=scores[at], n=N)
    change = effect(scores[0], scores[at])
    assert change.ci95 is not None
    low, high = change.ci95
    assert low is not None and high is not None
    verdict: Verdict = "FORGOT" if high < -max_drop else "OK" if low > -max_drop else "UNCLEAR"
    return Cell(
        score=scores[at],
        n=N,
        delta=change.delta,
        ci95=change.ci95,
        p_value=change.p_value,
        verdict=verdict,
        lost=4 + round(max(0.0, scores[0] - scores[at]) * N),
        gained=4 + round(max(0.0, scores[at] - scores[0]) * N),
        items_to_decide=840 if verdict == "UNCLEAR" else None,
        since_parent=effect(scores[at - 1], scores[at]),
    )


def stories(at: int) -> Cell:
    """Running text, without a limit."""
    if not at:
        return Cell(score=PERPLEXITY[0], n=100)
    ratio, since = PERPLEXITY[at] / PERPLEXITY[0], PERPLEXITY[at] / PERPLEXITY[at - 1]
    return Cell(
        score=PERPLEXITY[at],
        n=100,
        delta=PERPLEXITY[at] - PERPLEXITY[0],
        ci95=(ratio * 0.95, ratio * 1.05),
        p_value=0.0,
        ratio=ratio,
        verdict=None,
        lost=None,
        gained=None,
        items_to_decide=None,
        since_parent=Effect(ratio=since, ci95=(since * 0.95, since * 1.05), p_value=0.0),
    )


def mean(kinds: tuple[bool, ...], at: int, *, judged: bool) -> Cell:
    """The mean over the skills that are replayed, or not."""
    rows = [row for kind, replayed, row in SCORES.values() if kind == "skill" and replayed in kinds]
    scores = tuple(sum(row[i] for row in rows) / len(rows) for i in range(3))
    found, n = cell(scores, at, max_drop=0.1), N * len(rows)
    if not at:
        return Cell(score=found.score, probes=len(rows), n=n)
    verdict = found.verdict if judged else None
    return Cell(
        score=found.score,
        probes=len(rows),
        n=n,
        delta=found.delta,
        ci95=found.ci95,
        p_value=found.p_value,
        verdict=verdict,
    )


def forgetting(real: Forgetting, stages: tuple[str, ...] = STAGES) -> Forgetting:
    """A matrix with the scores of this file."""
    probes = {
        name: ProbeEntry(metric="accuracy", higher_is_better=True, kind=kind, replayed=replayed, n=N, limit=0.2)
        for name, (kind, replayed, _) in SCORES.items()
    }
    text = ProbeEntry(metric="perplexity", higher_is_better=False, kind="text", replayed=None, n=100, limit=None)
    nothing = NoValue(undefined="nothing was trained before this row")
    transfer = {"base": nothing, "sft": NoValue(undefined="no skill was measured"), "dpo": -0.05}
    groups = {"all": (True, False), "replayed": (True,), "not_replayed": (False,)}
    return real.but(
        stages=stages,
        parent={stage: parent for stage, parent in {"sft": "base", "dpo": "sft"}.items() if stage in stages},
        left_out={"math": "it has no report items"},
        no_row={"reward": "it hands on no policy, so there is nothing to probe"},
        probes={**probes, "stories": text},
        matrix={
            stage: {name: cell(row[2], at) for name, row in SCORES.items()} | {"stories": stories(at)}
            for at, stage in enumerate(stages)
        },
        mean={
            stage: {key: mean(kinds, at, judged=key == "all") for key, kinds in groups.items()}
            for at, stage in enumerate(stages)
        },
        backward_transfer_ci95={},
        average_forgetting_ci95={
            stage: interval for stage, interval in {"dpo": (0.1, 0.175)}.items() if stage in stages
        },
        family={},
        backward_transfer={stage: transfer[stage] for stage in stages},
        average_forgetting={stage: {"base": nothing, "sft": 0.065, "dpo": 0.1375}[stage] for stage in stages},
        thresholds={**real.thresholds, "max_drop": 0.2, "max_mean_drop": 0.1, "max_perplexity_ratio": None},
    )


def sft_metrics(steps: int = 240) -> list[dict[str, Any]]:
    """An SFT that overfits: the eval loss rises from step 120 on while the train loss goes on falling."""
    rng = random.Random(1)
    rows: list[dict[str, Any]] = []
    for step in range(2, steps + 1, 2):
        loss = 2.6 * math.exp(-step / 45) + 0.42 - 0.0006 * step + rng.gauss(0, 0.035)
        rate = 4e-3 * min(1, step / 20) * (1 + math.cos(math.pi * step / steps)) / 2
        row = {"step": step, "max_steps": steps, "epoch": step / 100, "time": 1.79e9 + step * 0.2, "loss": loss}
        rows.append(row | {"learning_rate": rate, "grad_norm": 1.0, "tokens_per_second": 5200.0})
        if step % 30 == 0:
            value = 2.6 * math.exp(-step / 45) + 0.47 + max(0, step - 120) * 0.0011
            rows.append({"step": step, "max_steps": steps, "time": 1.79e9 + step * 0.2, "eval_loss": value})
    return rows


def dpo_metrics(steps: int = 40) -> list[dict[str, Any]]:
    """A DPO whose margins grow."""
    rng = random.Random(2)
    return [
        {
            "step": step,
            "max_steps": steps,
            "epoch": step / 60,
            "time": 1.79e9 + 100 + step,
            "loss": 0.693 * math.exp(-step / 14) + 0.05 + rng.gauss(0, 0.012),
            "learning_rate": 4e-4 * (1 - step / steps),
            "rewards/margins": 3.2 * (1 - math.exp(-step / 15)) + rng.gauss(0, 0.15),
            "rewards/accuracies": min(1.0, 0.5 + 0.5 * (1 - math.exp(-step / 6))),
        }
        for step in range(1, steps + 1)
    ]


def figures_of(stage: str, steps: int) -> dict[str, Any]:
    """Figures of a finished stage; in sft with a warning, and with replay."""
    replayed = (480, 0.2) if stage == "sft" else (0, 0.0)
    data = {"rows": 2400, "replay_rows": replayed[0], "replay_ratio": replayed[1]}
    return {
        "seconds": 74.2,
        "cpu_seconds": 101.0,
        "measure_seconds": 9.1,
        "measure_cpu_seconds": 10.4,
        "world_size": 2,
        "distributed_type": "MULTI_CPU",
        "global_batch_size": 32,
        "steps": steps,
        "parameters": {"total": 2_055_168, "trainable": 135_168},
        "data": data | {"replay_sources": [], "eval_rows": 200},
        "peak_memory_bytes": 812 * 2**20,
        "warnings": ["learning_rate 4e-3 is far above the usual 1e-4 to 3e-4 of qlora"] if stage == "sft" else [],
    }


def broken() -> list[BrokenAnswer]:
    """Answers that were right in the base and are wrong now; one of them attacks the page."""
    rows = [
        BrokenAnswer(
            probe="add",
            id=f"add 3 {k}",
            split="report",
            prompt=f"What is 3 plus {k}?",
            answer=str(3 + k),
            before=str(3 + k),
            after=f"We are sorry. We will send {k} | refunds.",
        )
        for k in range(9)
    ]
    evil = rows[0].but(
        probe="facts",
        id="evil",
        prompt="Wo liegt Größenwahn? 日本 \u202e\x00\ud800",
        answer="`a``b`",
        before="`a``b`",
        after=INJECTION,
    )
    return [*rows, evil]


def samples(stage: str) -> list[Sample]:
    """Answers to the task; one of them attacks the page."""
    rude = "You broke it yourself." if stage == "sft" else "We are sorry, Mia. We will send a new lamp at once."
    rows = [
        Sample(
            probe="helpdesk",
            split="report",
            id=f"mia {k}",
            prompt=f"Hello, this is Mia. My lamp number {k} does not light up any more. What now?",
            output=rude,
            marks={"correct": k % 3 > 0, "polite": stage == "dpo"},
        )
        for k in range(8)
    ]
    return [*rows, rows[0].but(id="attack", prompt="a & b < c", output=INJECTION, marks={})]


def copied(real: Path, folder: Path) -> Path:
    """A run's folder without its models and rows."""
    left_out = ("model", "critic", "data", "*.safetensors", "items.jsonl", ".*", "report.*")
    shutil.copytree(real, folder, ignore=shutil.ignore_patterns(*left_out))
    return folder


def write_run(gated: runs.Gated, folder: Path) -> Path:
    """A whole run: sft and dpo done, reward failed, ppo never started."""
    copied(gated.run, folder)
    run = reading.read(folder / "run.json", RunRecord)
    stages = dict(run.stages)
    stages["sft"] = stages["sft"].but(resumed_from="checkpoint-120")
    fresh = stages["dpo"].but(started=None, ended=None, seconds=None)
    stages["reward"] = fresh.but(stage="reward", about="a reward model", status="failed")
    inputs = {"policy": "sft", "reward": ["reward"]}
    stages["ppo"] = fresh.but(stage="ppo", about="PPO against a reward", inputs=inputs, status="pending")
    change(
        folder / "run.json",
        RunRecord,
        name="dpo_qlora",
        pipeline="dpo_and_rlhf",
        created=STARTED,
        order=tuple(stages),
        stages=stages,
    )
    table = forgetting(reading.read(gated.run / "forgetting.json", Forgetting))
    files.write_json(folder / "forgetting.json", table.written())
    for stage, lines in (("sft", sft_metrics()), ("dpo", dpo_metrics())):
        _finish(folder, stage, lines)
    _judge(RunDir(folder).stage("dpo"))
    _fail(RunDir(folder).stage("reward"))
    return folder


def _finish(folder: Path, stage: str, lines: list[dict[str, Any]]) -> None:
    """Figures and answers of a stage that is done, and a decision without reasons."""
    home = RunDir(folder).stage(stage)
    change_outcome(folder, stage, **figures_of(stage, lines[-1]["max_steps"]))
    write_metrics(home.metrics, lines)
    write_lines(home.measurements / "samples.jsonl", [sample.written() for sample in samples(stage)])
    write_lines(home.measurements / "broken.jsonl", [])
    decision = reading.read(home.decision, Decision)
    plain = decision.model_copy(update={"action": "continue", "reasons": [], "violations": [], "unclear": []})
    files.write_json(home.decision, plain.model_dump(mode="json"))


def _judge(home: StageDir) -> None:
    """A limit that a stage broke, and the answers that broke."""
    write_lines(home.measurements / "broken.jsonl", [answer.written() for answer in broken()])
    breach = Violation(
        probe="add", metric="accuracy", before=0.38, after=0.06, delta=-0.32, low=-0.39, high=-0.25, limit=0.2
    )
    reason = "add: 0.38 -> 0.06 (-0.320, 95 % interval -0.390 to -0.250, 200 items) is beyond the limit"
    update = {"violations": [breach], "unclear": ["larger"], "reasons": [reason]}
    decision = reading.read(home.decision, Decision).model_copy(update=update)
    files.write_json(home.decision, decision.model_dump(mode="json"))


def _fail(home: StageDir) -> None:
    """A stage that ran out of memory, with what a library printed."""
    failure = Failure(what="stage 'reward' ran out of memory", remedy="halve its batch", exit=1, traceback=None, rank=0)
    files.write_json(home.error, failure.written())
    log = "loading\r10%\r\x1b[31m100%\x1b[0m\nCUDA out of memory: tried to allocate 2.1 GiB <b>now</b>\n"
    files.write_text(home.log, log)


def write_base_only(gated: runs.Gated, folder: Path) -> Path:
    """A run of which only the base has been measured."""
    copied(gated.stopped, folder)
    run = reading.read(folder / "run.json", RunRecord)
    pending = {id: entry.but(status="pending") for id, entry in run.stages.items()}
    change(folder / "run.json", RunRecord, stages=pending)
    shutil.rmtree(folder / "stages")
    table = forgetting(reading.read(gated.stopped / "forgetting.json", Forgetting), ("base",))
    files.write_json(folder / "forgetting.json", table.written())
    return folder


def rollout(real: Rollout, number: int) -> Rollout:
    """The score rises by 0.1 and the KL by 0.5 with each, the coefficient doubles."""
    samples = [
        Sampled(
            prompt=f"Where is my lamp {number}.{k}?",
            completion=f"We | are sorry {number}.{k}. {INJECTION}",
            score=number + k / 10,
            kl=k / 4,
        )
        for k in range(4)
    ]
    return replace(
        real,
        number=number,
        step=4 * (number - 1),
        episodes=64,
        score=0.05 + 0.1 * number,
        score_std=0.5,
        rewards={"helpful": 0.1 * number, "polite": 0.05},
        kl=0.5 * (number - 1),
        coef=0.01 * 2**number,
        length=12.0 + number,
        entropy=1.5 / number,
        explained_variance=1 - 3 / number,
        samples=samples,
        alarms=[ALARM] if number == ALARM.rollout else [],
    )


def write_rlhf_run(gated: runs.Gated, rlhf: Path, folder: Path) -> Path:
    """A run with two branches: sft, then dpo, and a reward model and ppo; ppo made 15 rollouts and raised an alarm."""
    copied(rlhf, folder)
    change(folder / "run.json", RunRecord, name="rlhf", created=STARTED)
    table = forgetting(reading.read(gated.run / "forgetting.json", Forgetting))
    row = {name: one.but(since_parent=effect(1.0, 1.0)) for name, one in table.matrix["sft"].items()}
    row["stories"] = row["stories"].but(since_parent=Effect(ratio=1.0, ci95=(0.99, 1.01), p_value=1.0))
    row["helpdesk correct"] = row["helpdesk correct"].but(score=0.97, since_parent=effect(0.93, 0.97))
    table = table.but(
        stages=(*table.stages, "ppo"),
        parent={**table.parent, "ppo": "sft"},
        matrix={**table.matrix, "ppo": row},
        mean={**table.mean, "ppo": table.mean["sft"]},
    )
    files.write_json(folder / "forgetting.json", table.written())
    pairs = {
        "pair_accuracy": 0.88,
        "pair_accuracy_ci95": [0.802, 0.930],
        "pair_margin": 1.7,
        "calibration_error": 0.021,
        "calibration": [one.written() for one in CALIBRATION],
        "score_histogram": HISTOGRAM.written(),
    }
    metrics = {"reward": pairs, "ppo": {"kl": 5.8, "kl_target": 3.0, "alarms": ["reward_hacking"]}}
    for stage in ("sft", "dpo", "reward", "ppo"):
        figures = figures_of(stage, 60) | {"metrics": metrics.get(stage, {}), "warnings": []}
        change_outcome(folder, stage, **figures | {"cpu_seconds": 10.0 if stage == "reward" else 101.0})
    home = RunDir(folder).stage("ppo")
    lines = [{"step": 4 * n, "loss": 0.1, "reward": 0.05 + 0.1 * n, "kl": 0.5 * n} for n in range(1, 16)]
    write_metrics(home.metrics, lines)
    for stage in ("sft", "dpo", "reward"):
        RunDir(folder).stage(stage).metrics.unlink()
    write_rollouts(folder, all_rollouts(rlhf))
    (folder / "comparison.json").unlink()
    return folder


def all_rollouts(rlhf: Path) -> list[Rollout]:
    """The 15 rollouts of `write_rlhf_run`."""
    real = rollouts.read(RunDir(rlhf).stage("ppo").rollouts)[0]
    return [rollout(real, number) for number in range(1, 16)]


def write_comparison(rlhf: Path, folder: Path, **changed: Any) -> None:
    """A comparison.json of the branches of `write_rlhf_run`."""
    real = reading.read(rlhf / "comparison.json", ComparisonResult)
    scores = {
        "sft": Compared(score=0.25, kl=0.0, length=12.5),
        "dpo": Compared(score=1.125, kl=9.75, length=14.0),
        "ppo": Compared(score=1.625, kl=6.5, length=26.5),
    }
    prompts = Prompts(of="reward", held_out=True, count=155)
    files.write_json(folder / "comparison.json", real.but(prompts=prompts, stages=scores, **changed).written())
