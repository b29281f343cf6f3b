"""A plan in words, for the terminal. No torch."""

from __future__ import annotations

from collections.abc import Iterator

from align.planning.records import PARTS, Forecast, Memory, StageForecast

_UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
SHOWN = 0.002  # of the peak; smaller parts are not worth a word
_PHASES = {
    "sampling": "while answers are sampled",
    "forward": "in the forward pass",
    "updating": "in the update",
    "a step": "in a step",
}
COLUMNS = ("stage", "trains", "rows", "steps", "tokens", "longest", "memory", "disk", "plan")


def size(number: float | None) -> str:
    """Bytes, to three digits."""
    if number is None:
        return "?"
    unit, one = next(((unit, one) for unit, one in _UNITS if number >= one), ("B", 1.0))
    return f"{number / one:.3g} {unit}"


def row(stage: StageForecast) -> tuple[str, ...]:
    """The cells of a stage, as `COLUMNS` names them."""
    replayed = f" + {stage.replayed:,}" if stage.replayed else ""
    peak = size(stage.memory.peak) if stage.memory else "?"
    return (
        stage.id,
        stage.parameterization,
        f"{stage.rows:,}{replayed}",
        "?" if stage.steps is None else f"{stage.steps:,} of {stage.global_batch}",
        "?" if stage.tokens is None else count(stage.tokens),
        "?" if not stage.longest else f"{stage.longest:,}",
        f"~{peak}" if stage.method == "formula" else peak,
        size(stage.disk),
        stage.standing.action,
    )


def count(number: int) -> str:
    """A number of tokens."""
    for unit, one in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= one:
            return f"{number / one:.3g} {unit}"
    return str(number)


def duration(seconds: float) -> str:
    """Hours and minutes, or seconds."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def details(stage: StageForecast) -> Iterator[str]:
    """What the table has no room for: why it runs, what its memory is made of, what it has from elsewhere."""
    yield f"{stage.program} from {stage.policy}; {stage.standing.action}: {stage.standing.why}"
    if stage.seconds_per_step is not None:
        whole = "" if stage.seconds is None else f"about {duration(stage.seconds)}, "
        yield f"time: {whole}{stage.seconds_per_step:.3g} s an update here; start-up, measuring and saving come on top"
    if stage.memory is not None:
        yield f"memory: {composition(stage.memory)}"
        yield from (f"not in it: {one}" for one in stage.memory.left_out)
    if stage.method != "trace":
        kind = "counted by a formula, which is never exact" if stage.memory else "not known"
        yield f"its memory is {kind}: it could not be traced ({stage.why})"
    if stage.standing.peak is not None:
        yield f"it took {size(stage.standing.peak)} when it ran, the process and its libraries included"
    inherited = [f"{one.key} {one.value} ({one.source})" for one in stage.inherited]
    if inherited:
        yield f"inherited: {', '.join(inherited)}"


def composition(memory: Memory) -> str:
    """What is alive when most is, the greatest part first."""
    known = {part: memory.parts.get(part, 0) for part in PARTS}
    shown = {part: held for part, held in known.items() if held >= SHOWN * memory.peak}
    parts = [f"{part} {size(held)}" for part, held in sorted(shown.items(), key=lambda one: -one[1])]
    return f"{size(memory.peak)} {_phase(memory.phase)}: {', '.join(parts)}"


def _phase(phase: str) -> str:
    return _PHASES.get(phase, "in the backward pass, with the logits" if "logits" in phase else "in the backward pass")


def verdict(forecast: Forecast, stage: StageForecast, taken: int) -> str | None:
    """Whether the device holds a stage; None where that is not known."""
    if stage.fits is None or forecast.memory is None:
        return None
    room = f"{size(taken)} of {size(forecast.memory)}"
    return f"{stage.id}: fits, {room}" if stage.fits else f"{stage.id}: does not fit, {room}"
