"""What a run shows, gathered for advice: one reading of the folder for the page's next steps and `align advise`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align.advice.facts import LAB_RATES, Family, Losses, Lost, RunFacts, StageFacts
from align.errors import AlignError
from align.forgetting.judgement import MEAN
from align.forgetting.table import ALL, Cell, Forgetting
from align.parameterization import method as methods
from align.report import curves, findings
from align.report.alarms import words
from align.report.recipe_view import whole
from align.report.schema import Report, StageRecord
from align.report.sentence import join
from align.run_folder.decisions import Attempt, Decision
from align.stage import program
from align.stage.declaration import Stage

LAB = "lab"
LAB_ROWS = "lab/general"
ENDED = ("done", "stopped")


def facts(report: Report) -> RunFacts:
    """Of a run that has ended."""
    recipe = whole(report.recipe)
    forgetting = report.forgetting or Forgetting()
    done = [stage for stage in report.stages if stage.outcome and stage.entry.status in ENDED]
    base = mapping(recipe.get("model")).get("base")
    doubtful = {c.name: c for stage in findings.ends(forgetting) for c in findings.unclear(forgetting, stage)}
    return RunFacts(
        name=report.run.name,
        base=base if isinstance(base, str) else "",
        forgetting=mapping(recipe.get("forgetting")),
        stages=tuple(_stage(stage, report, recipe) for stage in done if stage.outcome and stage.outcome.policy),
        ended_by=next((stage.id for stage in report.stages if stage.entry.status == "stopped"), None),
        failed=next((stage.id for stage in report.stages if stage.entry.status == "failed"), None),
        unfinished=tuple(stage.id for stage in report.stages if stage.entry.status not in ENDED),
        measured=any(stage != findings.BASE for stage in forgetting.matrix),
        undecided=tuple((name, change.cell.items_to_decide) for name, change in doubtful.items()),
    )


def mapping(value: Any) -> Mapping[str, Any]:
    """A mapping of the recipe; an empty one where something else stands."""
    return value if isinstance(value, dict) else {}


def _stage(stage: StageRecord, report: Report, recipe: Mapping[str, Any]) -> StageFacts:
    outcome = stage.outcome
    assert outcome is not None
    forgetting, written = report.forgetting or Forgetting(), mapping(mapping(recipe.get("stages")).get(stage.id))
    stands = _stands(stage.decision)
    entry, changed = _of_attempt(written, stands)
    family, declared = _family(outcome.parameterization), _declared(outcome.program)
    ratio = outcome.data.get("replay_ratio") if outcome.data.get("replay_rows") else 0.0
    accuracy = curves.ends(stage.series("rewards/accuracies"))
    evaluation = curves.finite(curves.eval_loss(stage))
    lowest = min(evaluation, key=lambda point: point[1], default=(0.0, 0.0))
    return StageFacts(
        id=stage.id,
        program=outcome.program,
        family=family,
        entry=entry,
        changed=changed,
        acted=_acted(stage, stands),
        usual_rate=_usual_rate(declared, family, recipe),
        default_beta=_default_beta(declared),
        replays=bool(declared.replays) if declared else "replay" in entry,
        replayed=float(ratio or 0.0),
        steps=outcome.steps,
        epochs=_epochs(outcome.steps * outcome.global_batch_size, outcome.data),
        train=curves.ends(curves.train_loss(stage)),
        points=len(curves.train_loss(stage)),
        evaluation=Losses(evaluation[0][1], lowest[1], int(lowest[0]), evaluation[-1][1]) if evaluation else None,
        overfitted=curves.overfitting(curves.train_loss(stage), evaluation).tone == "bad",
        accuracy=accuracy[1] if accuracy else None,
        masked=_masked(outcome.data),
        held=_held(outcome.metrics),
        alarms=tuple((words(alarm.name), alarm.remedy) for one in stage.rollouts for alarm in one.alarms),
        warnings=tuple(text.rstrip(".") for text in outcome.warnings),
        **(
            _of_whole(stage.decision, stands, forgetting, entry)
            if stage.decision and stands and stands.share is not None
            else _measured(stage.id, forgetting, entry)
        ),
    )


def _usual_rate(declared: Stage | None, family: Family, recipe: Mapping[str, Any]) -> float | None:
    """The learning rate that a stage has where the recipe names none, and that suits the lab model where it is one."""
    default = {**declared.defaults.get("all", {}), **declared.defaults.get(family, {})} if declared else {}
    rate, factor = default.get("learning_rate"), LAB_RATES if mapping(recipe.get("model")).get("base") == LAB else 1
    return rate * factor if rate else None


def _default_beta(declared: Stage | None) -> float | None:
    beta = declared.keys.model_fields.get("beta") if declared else None
    return beta.default if beta and isinstance(beta.default, float) else None


def _masked(data: Mapping[str, Any]) -> float:
    found = mapping(data.get("masked"))
    tokens = found.get("answer_tokens")
    return found.get("masked_tokens", 0) / tokens if tokens else 0.0


def _held(metrics: Mapping[str, Any]) -> dict[str, float]:
    ratios = {name: metrics.get(f"gradient_ratio/{name}") for name in ("ewc", "l2_sp")}
    return {name: float(ratio) for name, ratio in ratios.items() if isinstance(ratio, int | float)}


def _stands(decision: Decision | None) -> Attempt | None:
    """The attempt, or the share of its update, that the figures of a stage are of; None of the recipe's own."""
    tried = decision.attempts if decision else []
    stands = [one for one in tried if decision and (one.number, one.share) == (decision.attempt, decision.share)]
    return stands[0] if stands and (stands[0].number > 1 or stands[0].share is not None) else None


def _of_attempt(
    entry: Mapping[str, Any], attempt: Attempt | None
) -> tuple[Mapping[str, Any], dict[tuple[str, ...], float]]:
    """A stage's entry with an attempt's values, and the recipe's own values of these by their paths."""
    values, own = dict(entry), dict[tuple[str, ...], float]()
    for name, (before, after) in (attempt.changed if attempt else {}).items():
        head, key = ("replay", "ratio") if name == "replay" else ("training", name)
        values[head] = {**mapping(values.get(head)), key: after}
        own[head, key] = before
    return values, own


def _acted(stage: StageRecord, attempt: Attempt | None) -> str:
    if attempt is None:
        return ""
    changed = [f"{name} {after:g} instead of {before:g}" for name, (before, after) in attempt.changed.items()]
    of = f"attempt {attempt.number}" + (f", with {join(changed)}" if changed else "")
    if attempt.share is None:
        return f"What is said of {stage.id} is of {of}"
    whole = "its whole update" + (f" ({of})" if attempt.number > 1 else "")
    return f"Of {stage.id} a share of {attempt.share:g} goes on; what is said of it is of {whole}"


def _of_whole(decision: Decision, share: Attempt, forgetting: Forgetting, entry: Mapping[str, Any]) -> dict[str, Any]:
    """What was lost by the whole update of a stage, for which the share that goes on was the remedy. The matrix is of
    the share, so there are no figures of it."""
    tried = [one for one in decision.attempts if (one.number, one.share) == (share.number, None)]
    names = [name for one in tried for name in one.violated]
    probes = {name: forgetting.probes[name] for name in names if name in forgetting.probes}
    lost = [Lost(name, None, None, _covered(p.replayed, entry), p.metric == "perplexity") for name, p in probes.items()]
    skills = {name for name, p in forgetting.probes.items() if p.kind == "skill" and p.limit is not None}
    gains = [one.gain for one in tried if one.gain and one.gain.name in forgetting.probes]
    rose = tuple(gain.name for gain in gains if (gain.after or 0.0) > (gain.before or 0.0))
    return {
        "lost": tuple(lost),
        "everything_lost": bool(skills) and skills <= set(names),
        "mean_fell": MEAN in names,
        "gained": rose or None,
    }


def _measured(id: str, forgetting: Forgetting, entry: Mapping[str, Any]) -> dict[str, Any]:
    """What was lost and gained in a stage; nothing where it was not measured."""
    if id not in forgetting.matrix:
        return {}
    before = forgetting.parent.get(id, findings.BASE)
    changes = findings.changes(forgetting, id)
    known = {name for name, cell in forgetting.matrix.get(before, {}).items() if cell.verdict == "FORGOT"}
    lost = sorted((c for c in changes if c.cell.verdict == "FORGOT" and c.name not in known), key=lambda c: -c.size)
    mean, earlier = (forgetting.mean.get(one, {}).get(ALL) for one in (id, before))
    fell = _forgot(mean) and not _forgot(earlier)
    tasks = [c for c in changes if c.probe.kind == "task"]
    better = {
        c.name for c in findings.since_parent(forgetting, id) if findings.direction(c.effect, c.probe) == "better"
    }
    skills = [c for c in changes if c.probe.kind == "skill" and c.cell.verdict is not None]
    return {
        "lost": tuple(
            Lost(c.name, c.before, c.after, _covered(c.probe.replayed, entry), c.probe.metric == "perplexity")
            for c in lost
        ),
        "everything_lost": bool(skills) and not any(c.cell.verdict == "OK" for c in skills),
        "mean": _both(earlier, mean),
        "mean_fell": fell and not known,
        "gained": tuple(c.name for c in tasks if c.name in better) if tasks else None,
        "kl": _kl(forgetting, id),
        "kl_before": _kl(forgetting, before),
    }


def _both(before: Cell | None, after: Cell | None) -> tuple[float, float] | None:
    if before is None or after is None or before.score is None or after.score is None:
        return None
    return before.score, after.score


def _covered(replayed: bool | None, entry: Mapping[str, Any]) -> bool | None:
    """Whether rows of its kind are replayed. What the lab's probes say of it holds for the lab's own rows alone."""
    data = mapping(entry.get("replay")).get("data")
    sources = [mapping(one).get("source", one) for one in (data if isinstance(data, list) else [data])]
    return replayed if sources == [LAB_ROWS] else None


def _forgot(cell: Cell | None) -> bool:
    return cell is not None and cell.verdict == "FORGOT"


def _kl(forgetting: Forgetting, id: str) -> float | None:
    found = forgetting.task_kl.get(id)
    return found.judged.kl if found and found.judged else None


def _epochs(rows: int, data: Mapping[str, Any]) -> float | None:
    count = data.get("rows")
    return rows / count if isinstance(count, int) and count else None


def _family(parameterization: Mapping[str, Any]) -> Family:
    """Whether it trains base weights; an adapter where the method is not known to this align."""
    try:
        method = methods.load(str(parameterization.get("method")))
        trains_base = method.traits(method.Keys.model_validate(parameterization)).trains_base
    except (AlignError, ValueError):
        return "adapter"
    return "full" if trains_base else "adapter"


def _declared(name: str) -> Stage | None:
    """What a shipped stage declares; a user's own file is not read again."""
    if name.endswith(".py") or "/" in name:
        return None
    try:
        return program.load(name, Path()).stage
    except AlignError:
        return None
