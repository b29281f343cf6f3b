"""What each method takes of a device with one model and one file of rows, traced as `align plan` does. No torch."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from align.errors import AlignError, Faults
from align.guidance import recipe, rules
from align.guidance.situation import Needs
from align.planning import formula, longest, memory, questions, tracing
from align.planning.records import Asked, Memory
from align.planning.target import Target
from align.policy.base import heads
from align.preflight import rows_that_fit
from align.preflight.check import Prepared, prepare
from align.run_folder.paths import RunDir

_BY_ROW = ("activations", "logits")  # what grows with the rows of a batch


@dataclass(frozen=True)
class Measured:
    """Of a base with some data.

    Attributes:
        parameters: of the base, by its files, or else by its config; 0 where neither tells.
        needs: by method.
        rows: that are trained on.
        notes: what `align check` says of them.
    """

    parameters: int
    needs: dict[str, Needs]
    rows: int
    notes: tuple[str, ...]


def measure(base: str, data: str, stage: str, methods: tuple[str, ...], target: Target) -> Measured:
    """Trace one update of each method with the longest row.

    Raises:
        AlignError: the model or the data cannot be used: all that `align check` finds.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        count = rules.least(stage)
        loaded = {method: recipe.tried(base, data, stage, method, count, folder) for method in methods}
        first = loaded[methods[0]]
        try:
            prepared = prepare(first, weights=False, here=False)
        except AlignError as error:
            faults = error.faults if isinstance(error, Faults) else [error]
            own = [fault for fault in faults if fault.place is None or not fault.place.file.startswith(temporary)]
            if own:
                raise
            raise AlignError(faults[0].what, faults[0].remedy) from None  # nobody wrote that file
        lengths = questions.lengths_of(first, prepared)
        asked: dict[str, Asked] = {}
        for method, one in loaded.items():
            run = RunDir(folder / "run")
            for each in questions.every(one, prepared, one.stages, run, target, lengths).values():
                ticket = each.ticket.model_copy(update={"stage": method})
                asked[method] = each.model_copy(update={"ticket": ticket})
        traced = tracing.trace(folder / "run", list(asked.values()))
        needs = {}
        for method, one in loaded.items():
            plan = one.stages[0]
            took, exact = None, True
            if method in traced and traced[method].failed is None:
                took = memory.of_whole(traced[method], asked[method].layers)
            else:
                limit = rows_that_fit.max_length(plan)
                most = longest.longest(prepared.rows[plan.id].train, lengths, 1, limit)[1]
                took, exact = formula.memory(plan, prepared.base, most, target), False
            if took is not None:
                row = _of_a_row(took) // count
                needs[method] = Needs(target.taken(took.peak) - (count - 1) * row, row, exact)
        return Measured(_parameters(prepared), needs, len(prepared.rows[stage].train), tuple(prepared.notes))


def _of_a_row(took: Memory) -> int:
    return sum(size for part, size in took.parts.items() if part in _BY_ROW)


def _parameters(prepared: Prepared) -> int:
    """By the shapes in the files; where they are not here, by the usual shape of a gated transformer."""
    base = prepared.base
    if base.path is not None:
        try:
            found = int(sum(prod(entry["shape"]) for name, entry in heads(base.path) if name != "__metadata__"))
        except AlignError:
            found = 0
        if found:
            return found
    config: dict[str, Any] = base.config.get("text_config") or base.config

    def of(*names: str) -> int:
        return next((int(config[name]) for name in names if isinstance(config.get(name), int)), 0)

    width, heads_ = of("hidden_size"), of("num_attention_heads")
    shared = of("num_key_value_heads", "num_attention_heads") / heads_ if heads_ else 1.0
    layer = width * width * (2 + 2 * shared) + 3 * width * of("intermediate_size")
    ends = 1 if config.get("tie_word_embeddings") else 2
    return round(of("num_hidden_layers") * layer + ends * of("vocab_size") * width)
