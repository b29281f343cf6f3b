"""What goes on from a stage: its measurement against the base's, judged by the limits of the recipe."""

from __future__ import annotations

import math
from collections.abc import Mapping

from align.forgetting import action_keys, budgets
from align.forgetting.action_keys import Chain, First
from align.forgetting.budgets import Costs, Judged
from align.forgetting.distances import KL, TaskKl
from align.forgetting.judgement import Finding, judge
from align.forgetting.keys import ForgettingKeys
from align.forgetting.measurements import Measurement
from align.forgetting.statistics import PerplexityChange
from align.run_folder.decisions import Decision, Violation


def decide(
    stage: str,
    base: Measurement,
    after: Measurement,
    keys: ForgettingKeys,
    costs: Costs | None = None,
    distance: TaskKl | None = None,
) -> Decision:
    """Judge a stage on the gate items, against the base, and by its budgets; depends on nothing but its arguments.

    A limit is broken only where the whole 95 % interval is beyond it.

    Args:
        costs: what the stage took, for its budgets.
        distance: the KL to the base on the prompts of the task, where it was measured.

    Raises:
        AlignError: the two measurements hold different items, or a limit names a probe that is not measured.
    """
    keys.check_names(base.probes)
    findings, unknown = _findings(base, after, keys, distance)
    broken = [finding for finding in findings if finding.verdict == "FORGOT"]
    unclear = [finding for finding in findings if finding.verdict == "UNCLEAR"]
    kept = _budgets(keys, after, costs or Costs())
    reasons = [*(finding.sentence() for finding in broken), *kept.sentences]
    reasons += [finding.sentence() for finding in unclear]
    chains = action_keys.of(keys.on_violation, map(_name, broken))
    chain = action_keys.strictest(chains.values()) if chains else ()
    reasons += _differ(chains, chain) + _continues(keys, chain, bool(kept.crossed))
    reasons += [_counts(len(findings), len(broken), len(unclear)), *kept.open, *unknown]
    return Decision(
        stage=stage,
        action=_action(keys, chain, bool(kept.crossed)),
        reasons=reasons,
        violations=[_violation(finding) for finding in broken],
        budgets=list(kept.crossed),
        unclear=[_name(finding) for finding in unclear],
        thresholds=keys.thresholds(),
    )


def _findings(
    base: Measurement, after: Measurement, keys: ForgettingKeys, distance: TaskKl | None
) -> tuple[list[Finding | TaskKl], list[str]]:
    """What has a limit and is judged, and a sentence on the KL if it has one and cannot be."""
    findings: list[Finding | TaskKl] = list(judge(base, after, "gate", keys).values())
    if keys.max_kl is None:
        return findings, []
    judged = (distance or TaskKl(undefined="it was not measured")).against(keys.max_kl)
    return ([*findings, judged], []) if judged.verdict else (findings, [judged.sentence()])


def _counts(judged: int, broken: int, unclear: int) -> str:
    if not judged:
        return "nothing was judged: no probe with a limit has gate items"
    return f"{judged - broken - unclear} of {judged} limits met, {broken} violated, {unclear} unclear"


def decide_on_costs(stage: str, keys: ForgettingKeys, costs: Costs) -> Decision:
    """Judge a stage without a measurement, as one that trains a reward model, by what it took."""
    kept = _budgets(keys, None, costs)
    crossed = bool(kept.crossed)
    return Decision(
        stage=stage,
        action=_action(keys, (), crossed),
        reasons=[*kept.sentences, *_continues(keys, (), crossed), *kept.open],
        violations=[],
        unclear=[],
        budgets=list(kept.crossed),
        thresholds=keys.thresholds(),
    )


def _budgets(keys: ForgettingKeys, after: Measurement | None, costs: Costs) -> Judged:
    return budgets.judge(keys.budgets, after, costs) if keys.budgets else Judged((), (), ())


def chain(keys: ForgettingKeys, decision: Decision) -> Chain:
    """What is to be tried, in order, where a stage violates limits; empty where it violates none."""
    chains = action_keys.of(keys.on_violation, [violation.probe for violation in decision.violations])
    return action_keys.strictest(chains.values()) if chains else ()


def acts(keys: ForgettingKeys, decision: Decision) -> bool:
    """Whether a limit is violated of which more than a warning follows."""
    return chain(keys, decision) not in ((), ("warn",))


def choice(keys: ForgettingKeys, decision: Decision) -> list[str]:
    """The sentence on which of several chains is taken where a stage violates limits; none where they are the same."""
    chains = action_keys.of(keys.on_violation, [violation.probe for violation in decision.violations])
    return _differ(chains, chain(keys, decision))


def _action(keys: ForgettingKeys, chain: Chain, crossed: bool) -> First:
    """The first that is to be done: a budget that ends the run does so whatever might be tried."""
    if crossed and keys.on_budget == "stop":
        return "stop"
    return "continue" if not chain or chain[0] == "warn" else chain[0]


def _differ(chains: Mapping[str, Chain], taken: Chain) -> list[str]:
    """Which of several chains is taken, and that it is the strictest."""
    if len(set(chains.values())) < 2:
        return []
    named = ", ".join(f"{name}: {', then '.join(chain)}" for name, chain in chains.items())
    return [f"of the actions for what was violated ({named}) the strictest is taken: {', then '.join(taken)}"]


def _continues(keys: ForgettingKeys, chain: Chain, crossed: bool) -> list[str]:
    """Why the run goes on although a limit was broken or a budget crossed; empty where it does not, or neither was."""
    if _action(keys, chain, crossed) == "stop":
        return []
    why = [key for key, found in (("on_violation", chain[:1] == ("warn",)), ("on_budget", crossed)) if found]
    verb = "are" if len(why) > 1 else "is"
    return [f"the run continues anyway, because {' and '.join(why)} {verb} warn"] if why else []


def _name(finding: Finding | TaskKl) -> str:
    return KL if isinstance(finding, TaskKl) else finding.probe


def _violation(finding: Finding | TaskKl) -> Violation:
    if isinstance(finding, TaskKl):
        return _kl_violation(finding)
    ratio = isinstance(finding.change, PerplexityChange)
    return Violation(
        probe=finding.probe,
        metric="perplexity" if ratio else "accuracy",
        before=finite(finding.before),
        after=finite(finding.after),
        delta=finite(finding.after - finding.before),
        low=finite(finding.change.low),
        high=finite(finding.change.high),
        limit=finding.limit,
    )


def _kl_violation(finding: TaskKl) -> Violation:
    found = finding.judged
    assert found is not None and found.ci95 is not None and finding.limit is not None
    low, high = found.ci95
    figures = {"before": 0.0, "after": found.kl, "delta": found.kl, "low": low, "high": high}
    return Violation(probe=KL, metric="kl", limit=finding.limit, **figures)


def finite(value: float) -> float | None:
    """The number, or None for what JSON cannot hold."""
    return value if math.isfinite(value) else None
