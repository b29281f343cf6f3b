"""The facts at the head of the report: the base, what the run took, when it began."""

from collections.abc import Iterable, Mapping

from align.forgetting.table import Effect
from align.report import numbers
from align.report.schema import Report
from align.report.stage_page import Fact
from align.run_folder.records import Outcome, Policy


def facts(report: Report) -> Iterable[Fact]:
    outcomes = [stage.outcome for stage in report.stages if stage.outcome]
    done = sum(stage.entry.status == "done" for stage in report.stages)
    base = described({stage.id: stage.outcome for stage in report.stages if stage.outcome})
    if base:
        yield Fact("Base", base)
    cost = report.quantization
    if cost and cost.ratio is not None:
        effect = Effect(ratio=cost.ratio, ci95=cost.ci95)
        yield Fact("Cost of quantising", f"perplexity {numbers.change(effect)} {numbers.interval(effect)}")
    if report.run.pipeline:
        yield Fact("Pipeline", report.run.pipeline)
    yield Fact("Stages done", f"{done} of {len(report.stages)}")
    if outcomes:
        spent = sum(outcome.seconds + outcome.measure_seconds for outcome in outcomes) + (report.base_seconds or 0.0)
        tried = sum(stage.tried_seconds for stage in report.stages)
        yield Fact("Training and measuring", numbers.seconds(spent + tried))
        if tried:
            yield Fact("Of that, other attempts and shares of updates", numbers.seconds(tried))
    if report.base_seconds is not None:
        yield Fact(
            "Of that, measuring the base" if outcomes else "Measuring the base", numbers.seconds(report.base_seconds)
        )
    yield Fact("Started", numbers.moment(report.run.created))


def described(outcomes: Mapping[str, Outcome]) -> str:
    """The base by its name, its revision of the Hub, and the precision in which the stages loaded it."""
    policies = {id: policy for id, outcome in outcomes.items() if (policy := outcome.policy or outcome.reward)}
    if not policies:
        return ""
    base = next(iter(policies.values())).base
    loaded: dict[str, list[str]] = {}
    for id, policy in policies.items():
        loaded.setdefault(", ".join(_precision(policy, outcomes[id].dtype)), []).append(id)
    if len(loaded) > 1:
        precisions = [f"{precision or 'unknown'} in {' and '.join(ids)}" for precision, ids in loaded.items()]
    else:
        precisions = list(loaded)
    return ", ".join(filter(None, [base.name, base.revision and f"revision {base.revision}", *precisions]))


def _precision(policy: Policy, dtype: str | None) -> Iterable[str]:
    """`4-bit nf4` and what the rest is in, `bfloat16`, or nothing where an older run does not say."""
    settings = policy.quantization or {}
    if settings.get("load_in_4bit"):
        yield f"4-bit {settings.get('bnb_4bit_quant_type', '')}".rstrip()
    elif settings.get("load_in_8bit"):
        yield "8-bit"
    elif dtype:
        yield dtype
        return
    if settings and dtype:
        yield f"the rest {dtype}"
