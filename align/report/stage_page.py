"""What the report says about one stage of a run."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from pydantic import JsonValue

from align.forgetting.table import Forgetting
from align.report import curves, findings, masked, near, numbers, proofs
from align.report.change_line import Line, line
from align.report.curves import Judgement
from align.report.inside_page import InsidePage, inside_page
from align.report.reward_page import CALIBRATION, HISTOGRAM, INTERVAL, RewardPage, reward_page
from align.report.rollout_page import RolloutsPage, rollouts_page
from align.report.schema import StageRecord
from align.report.written_page import WrittenPage, written_page
from align.run_folder.proofs import Proofs
from align.run_folder.records import Outcome

DEVICES: Final = {"MULTI_CPU": " on CPUs", "MULTI_GPU": " on GPUs"}
"""What accelerate calls the ways in which several processes train together, in words."""

TONES: Final = {"done": "good", "failed": "bad"}


@dataclass(frozen=True)
class Fact:
    """A label and what stands beside it."""

    label: str
    value: str


@dataclass(frozen=True)
class StagePage:
    """The section of one stage. `settings` and `metrics` are long and go behind a fold; `alone` is what this stage
    surely changed against the policy that it was given; `rollouts`, `reward`,
    `inside` and `written` are None where it has none; `proofs` has the figures behind those among the facts."""

    id: str
    program: str
    about: str
    status: str
    tone: str
    facts: tuple[Fact, ...]
    judgements: tuple[tuple[str, Judgement], ...]
    settings: tuple[Fact, ...]
    metrics: tuple[Fact, ...]
    warnings: tuple[str, ...]
    failure: str
    alone: tuple[Line, ...]
    rollouts: RolloutsPage | None
    reward: RewardPage | None
    inside: InsidePage | None
    written: WrittenPage | None
    proofs: Proofs | None
    log_tail: tuple[str, ...]


def stage_page(stage: StageRecord, forgetting: Forgetting | None) -> StagePage:
    """The section of one stage; of a stage that has not run, little more than its name and status."""
    outcome = stage.outcome
    judgements: list[tuple[str, Judgement]] = []
    if stage.steps:
        judgements.append(("Converged", curves.judge(stage)))
        if curves.eval_loss(stage) or not stage.rollouts:  # what learns from its own answers evaluates no loss
            judgements.append(("Overfits", curves.overfitting(curves.train_loss(stage), curves.eval_loss(stage))))
    return StagePage(
        id=stage.id,
        program=stage.entry.stage,
        about=stage.entry.about or f"the stage program {stage.entry.stage}",
        status=stage.entry.status,
        tone=TONES.get(stage.entry.status, "open"),
        facts=tuple(_facts(stage)),
        judgements=tuple(judgements),
        settings=tuple(flat(outcome.parameterization)) if outcome else (),
        metrics=(*flat(_untold(stage, outcome)), *flat(outcome.merge or {}, "merge.")) if outcome else (),
        warnings=tuple(outcome.warnings) if outcome else (),
        failure="; ".join(part for part in (stage.failure.what, stage.failure.remedy) if part) if stage.failure else "",
        alone=tuple(line(c, forgetting) for c in findings.since_parent(forgetting, stage.id)) if forgetting else (),
        rollouts=rollouts_page(stage),
        reward=reward_page(stage),
        inside=inside_page(stage),
        written=written_page(stage),
        proofs=outcome.proofs if outcome else None,
        log_tail=stage.log_tail,
    )


def _untold(stage: StageRecord, outcome: Outcome) -> dict[str, JsonValue]:
    """The metrics that no table or figure of the section shows."""
    page = reward_page(stage)
    told = {
        HISTOGRAM: page is not None and page.histogram is not None,
        CALIBRATION: page is not None and bool(page.calibration),
        INTERVAL: page is not None,
        "alarms": bool(stage.rollouts),
    }
    return {name: value for name, value in outcome.metrics.items() if not told.get(name)}


def _facts(stage: StageRecord) -> Iterable[Fact]:
    inputs = [f"{name} {_named(source)}" for name, source in stage.entry.inputs.items()]
    yield Fact("Goes on from", ", ".join(inputs) or "base")
    if stage.outcome:
        yield from _outcome_facts(stage.outcome)
    if stage.entry.resumed_from:
        yield Fact("Resumed from", stage.entry.resumed_from)
    train, evaluation = curves.train_loss(stage), curves.finite(curves.eval_loss(stage))
    span = curves.ends(train)
    if span:
        yield Fact("Train loss", f"{span[0]:.4g} to {span[1]:.4g} (first and last tenth)")
    if evaluation:
        yield Fact("Eval loss", " to ".join(f"{value:.4g}" for _, value in [*evaluation[:1], *evaluation[1:][-1:]]))


def _outcome_facts(outcome: Outcome) -> Iterable[Fact]:
    method = outcome.parameterization.get("method")
    if method:
        yield Fact("Method", str(method))
    if {"total", "trainable"} <= outcome.parameters.keys():
        total, trainable = outcome.parameters["total"], outcome.parameters["trainable"]
        share = f" ({trainable / total:.2%})" if total else ""
        yield Fact("Trains", f"{trainable:,} of {total:,} weights{share}")
    given = outcome.policy or outcome.reward
    if given and (given.adapters or given.weights):
        below = "full weights" if given.weights else "base"
        yield Fact("Hands on", " + ".join([below, *(adapter.name for adapter in given.adapters)]))
    data = outcome.data
    if data.get("rows") is not None:
        replay = ""
        if data.get("replay_rows"):
            ratio = "" if data.get("replay_ratio") is None else f", ratio {data['replay_ratio']:.3g}"
            replay = f"; {data['replay_rows']:,} replay rows{ratio}"
        held = f"; {data['eval_rows']:,} eval rows" if data.get("eval_rows") else ""
        yield Fact("Data", f"{data['rows']:,} rows{replay}{held}")
    yield from (Fact(label, value) for label, value in near.facts(outcome))
    if untrained := masked.words(data):
        yield Fact("Masked", untrained)
    yield Fact("Steps", f"{outcome.steps:,}, batches of {outcome.global_batch_size:,}")
    where = DEVICES.get(outcome.distributed_type, "") if outcome.world_size > 1 else ""
    yield Fact("Processes", f"{outcome.world_size}{where}")
    yield Fact("Training time", _time(outcome.seconds, outcome.cpu_seconds))
    if outcome.measure_seconds:
        yield Fact("Measuring time", _time(outcome.measure_seconds, outcome.measure_cpu_seconds))
    if outcome.peak_memory_bytes is not None:
        yield Fact("Peak memory", numbers.memory(outcome.peak_memory_bytes))
    yield from (Fact(label, value) for label, value in proofs.facts(outcome.proofs))


def _named(source: str | list[str]) -> str:
    """The stage that an input comes from, or the stages."""
    return " and ".join(source) if isinstance(source, list) else source


def _time(wall: float, cpu: float) -> str:
    return f"{numbers.seconds(wall)} (CPU {numbers.seconds(cpu)})"


def flat(values: Mapping[str, JsonValue], prefix: str = "") -> Iterable[Fact]:
    """Nested settings as `lora.r`, `lora.alpha`; what is not set is left out."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        elif value is not None:
            text = ", ".join(str(part) for part in value) if isinstance(value, list) else numbers.plain(value)
            yield Fact(f"{prefix}{key}", text)
