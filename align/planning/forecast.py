"""The plan of a recipe: what would run, and what each stage would take. No torch."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from align.data.lengths import Lengths
from align.planning import formula, longest, memory, questions, standing, tracing
from align.planning.records import Asked, Forecast, Inherited, Memory, Method, StageForecast, Standing, Traced
from align.planning.target import Target
from align.preflight import rows_that_fit
from align.preflight.check import Prepared, StageRows
from align.preflight.machine import disk_of
from align.recipe import run_length
from align.recipe.plan import Loaded, StagePlan
from align.run_folder.paths import RunDir


def make(loaded: Loaded, prepared: Prepared, run: RunDir, target: Target) -> Forecast:
    """Look at a checked recipe; stages are traced in a process of their own, unless it was done before.

    Args:
        run: the folder that the recipe would be run in; nothing in it is changed.
    """
    lengths = questions.lengths_of(loaded, prepared)
    with tempfile.TemporaryDirectory() as temporary:
        folder = RunDir(Path(temporary))
        stands = standing.of(loaded, prepared, run, folder)
        asked = questions.every(loaded, prepared, loaded.stages, folder, target, lengths)
        traced = tracing.trace(folder.root, list(asked.values()))
    stages = tuple(
        _stage(loaded, prepared, plan, target, lengths, stands[plan.id], asked.get(plan.id), traced.get(plan.id))
        for plan in loaded.stages
    )
    return Forecast(
        name=loaded.recipe.name,
        run_dir=str(run.root),
        device=target.name,
        memory=target.memory,
        stages=stages,
        notes=tuple(prepared.notes),
        warnings={id: tuple(texts) for id, texts in prepared.warnings.items()},
    )


def _stage(
    loaded: Loaded,
    prepared: Prepared,
    plan: StagePlan,
    target: Target,
    lengths: Lengths | None,
    stands: Standing,
    asked: Asked | None,
    traced: Traced | None,
) -> StageForecast:
    rows = prepared.rows[plan.id]
    trained = rows.trained if questions.mixes(plan) else rows.train
    limit = rows_that_fit.max_length(plan)
    _, most = longest.longest(trained, lengths, 1, limit)
    per_device, accumulation = plan.global_batch
    batch = per_device * accumulation * plan.launch.processes
    steps = run_length.steps(plan, rows_that_fit.of_an_epoch(plan, rows), plan.launch.processes)
    mean = _mean_tokens(plan, rows, lengths, limit)
    found, method, why = _memory(prepared, plan, target, most, asked, traced)
    return StageForecast(
        id=plan.id,
        program=plan.program.name,
        policy=plan.policy,
        parameterization=plan.method_keys.method,
        standing=stands,
        rows=len(rows.train),
        held_out=len(rows.evaluation),
        replayed=len(rows.replayed),
        global_batch=batch,
        steps=steps,
        longest=most,
        tokens=None if mean is None or steps is None else round(mean * steps * batch),
        memory=found,
        method=method,
        why=why,
        fits=target.fits(found.peak) if found else None,
        disk=disk_of(loaded, plan, prepared.base),
        inherited=tuple(_inherited(loaded, plan)),
    )


def _mean_tokens(plan: StagePlan, rows: StageRows, lengths: Lengths | None, limit: int | None) -> float | None:
    """Of a row of an update; None where none can be told."""
    if plan.program.stage.samples or plan.training.get("packing"):
        return None
    own, ratio = longest.mean_tokens(rows.train, lengths, limit), plan.replay.ratio if plan.replay else 0.0
    replayed = longest.mean_tokens(rows.replayed, lengths, limit) if questions.mixes(plan) else None
    return own if own is None or replayed is None else (1 - ratio) * own + ratio * replayed


def _memory(
    prepared: Prepared, plan: StagePlan, target: Target, most: int, asked: Asked | None, traced: Traced | None
) -> tuple[Memory | None, Method, str | None]:
    """What it takes, how that is known, and why not by a trace."""
    if asked is not None and traced is not None and traced.failed is None:
        found = memory.of_whole(traced, asked.layers)
        return found.but(left_out=tuple(_left_out(plan))), "trace", None
    why = traced.failed if traced else "the config of the base does not say how many layers it has"
    by_formula = formula.memory(plan, prepared.base, most, target)
    return by_formula, "formula" if by_formula else "unknown", why


def _left_out(plan: StagePlan) -> Iterator[str]:
    """What a trace of one process does not see."""
    if plan.launch.processes > 1:
        yield f"how {plan.launch} shares it out: these are the bytes of one process that holds everything"
    for name in ("ewc", "l2_sp"):
        found = getattr(plan.keys, name, None)
        if found is not None and getattr(found, "weight", found):
            yield f"what `{name}` keeps of each weight that is trained"
    if plan.training.get("use_vllm"):
        yield "vLLM"
    if plan.training.get("use_liger_kernel") or plan.training.get("torch_compile"):
        yield "what `use_liger_kernel` and `torch_compile` save"


def _inherited(loaded: Loaded, plan: StagePlan) -> Iterator[Inherited]:
    """The values that do not stand in the stage's own entry."""
    data = loaded.document.data  # with all that the command line sets

    def own(*path: str) -> bool:
        node: Any = data["stages"][plan.id]
        for part in path:
            node = node.get(part) if isinstance(node, dict) else None
        return node is not None

    if not own("parameterization"):
        source: Literal["recipe", "default"] = "recipe" if data.get("parameterization") else "default"
        given = plan.method_keys.model_dump(mode="json", exclude_unset=True, exclude_defaults=True)
        for name, value in _flat({"method": plan.method_keys.method, **given}, "parameterization"):
            yield Inherited(key=name, value=value, source=source)
    if plan.replay is not None and not own("replay"):
        yield Inherited(key="replay.ratio", value=plan.replay.ratio, source="recipe")
    if not own("launch") and data.get("launch"):
        yield Inherited(key="launch", value=str(plan.launch), source="recipe")
    for name, value in plan.training.items():
        if not own("training", name):
            yield Inherited(key=f"training.{name}", value=value, source="default")


def _flat(value: dict[str, Any], at: str) -> Iterator[tuple[str, Any]]:
    """The values of nested keys by their dotted names."""
    for name, inner in value.items():
        if isinstance(inner, dict) and inner:
            yield from _flat(inner, f"{at}.{name}")
        else:
            yield f"{at}.{name}", inner
