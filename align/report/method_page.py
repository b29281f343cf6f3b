"""How the figures of the report were measured, in sentences."""

from collections.abc import Iterable
from typing import Final

from align.forgetting.table import Forgetting
from align.report import curves
from align.report.findings import BASE
from align.report.recipe_view import view
from align.report.schema import Report

VIOLATION: Final = "on_violation"
ACTIONS: Final = (VIOLATION, "on_budget", "retry", "interpolate")
"""Stand among the limits in forgetting.json, and are none."""

VIOLATIONS: Final = {
    "warn": "is told, and the run goes on",
    "stop": "ends the run",
    "rollback": "has the run go on from the policy before the stage",
    "retry": "has the stage trained again",
    "interpolate": "has the run go on from a share of the stage's update",
}


def measured(forgetting: Forgetting, report: Report) -> Iterable[str]:
    if forgetting.matrix:
        yield from _verdicts(forgetting)
        yield from _tasks(report.recipe)
        yield from _violations(forgetting.thresholds.get(VIOLATION))
    if report.quantization:
        yield (
            "The cost of quantising is the perplexity of the probes' running text under the quantised base, over that "
            "under the base in its own precision, before anything is trained."
        )
    yield f"Converged: {curves.CONVERGED_HOW}."
    yield f"Overfits: {curves.OVERFIT_HOW}."
    if any(stage.rollouts for stage in report.stages):
        yield (
            "A rollout is one batch of sampled answers and the updates made from it. Its score is the mean of the "
            "weighted rewards without the KL penalty; its KL the mean over its answers of log pi(y|x) - log ref(y|x), "
            "in nats. An alarm is raised once a run, by the first rollout that meets its condition."
        )


def _verdicts(forgetting: Forgetting) -> Iterable[str]:
    """What a change is of, how sure it is, and what a verdict means."""
    counts = sorted({probe.n for probe in forgetting.probes.values() if probe.n})
    items = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}" if counts else "the same"
    split = f" of the split `{forgetting.split}`" if forgetting.split else ""
    yield (
        f"Each capability is asked {items} held-out items{split}, the same before and after, so every change is "
        f"a paired one."
        + (" A gate decides on other items, which this page does not show." if forgetting.split == "report" else "")
    )
    yield (
        f"The column `{BASE}` is the base model as it was loaded for training (quantised, if the recipe says so), "
        f"before anything was trained. Every change is counted from it, unless the table says otherwise."
    )
    yield (
        "Intervals are paired 95 % intervals: of the difference of the means (right or wrong answers: Bonett and "
        "Price 2012, and p by the exact McNemar test on the answers lost and gained; marks in between: Student's "
        "t); of a perplexity, of the ratio after / before (jackknife over the texts)."
    )
    yield (
        "FORGOT: the whole interval lies past the limit of its capability, a drop or a perplexity ratio. OK: the "
        "whole interval lies within it. UNCLEAR: neither; the number of items that would decide it stands beside "
        "it. What has no verdict has no limit, and no gate looks at it."
    )


def _violations(action: object) -> Iterable[str]:
    """What is done about a broken limit."""
    if isinstance(action, str) and action in VIOLATIONS:
        yield f"A limit that a gate finds broken {VIOLATIONS[action]} (`on_violation: {action}`)."
    elif isinstance(action, list):
        tried = "; if that does not help, ".join(VIOLATIONS.get(str(one), str(one)) for one in action)
        yield f"A limit that a gate finds broken {tried} (`on_violation: [{', '.join(map(str, action))}]`)."
    elif isinstance(action, dict):
        told = {name: ", then ".join(map(str, one)) if isinstance(one, list) else one for name, one in action.items()}
        named = "; ".join(f"{name}: {one}" for name, one in told.items())
        yield f"What is done about a limit that a gate finds broken depends on the probe (`on_violation`): {named}."


def _tasks(recipe: str) -> Iterable[str]:
    """What an item of a task of lm-evaluation-harness is, and what its score."""
    for name, (task, limit, field) in view(recipe).tasks.items():
        documents = f"one of the first {limit:,} documents" if limit else "a document"
        score = f"the metric `{field}`" if field else "the task's first metric"
        yield (
            f"`{name}` is the task `{task}` of lm-evaluation-harness, measured by the harness itself. An item is "
            f"{documents} of it, by its number, and its score is {score}. Documents with even numbers are the gate's, "
            "the others the report's."
        )
