"""What TRL's trainers log, as means over all the tokens, pairs or answers that a figure speaks of.

TRL logs the mean of the batches' means, in which a token of a batch with few of them counts for more than another: the
figures change with the size of a batch and with accumulation. Here the mean of each batch has the weight of what it is
a mean over.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import torch

if TYPE_CHECKING:
    from transformers import Trainer
else:
    Trainer = object

LEAST, GREATEST = "least", "greatest"  # in place of what a figure is a mean over
_CHOICE = {LEAST: min, GREATEST: max}


class Tally:
    """Figures of several batches, each with its weight, as one.

    Args:
        units: by the name of a figure, what it is a mean over; or LEAST, GREATEST.
    """

    def __init__(self, units: Mapping[str, str]) -> None:
        self.units = units
        self.totals: dict[str, float] = {}
        self.weights: dict[str, float] = {}

    def add(self, name: str, value: float, weight: float) -> None:
        """A batch's figure; of no weight it counts for nothing, whatever it is."""
        if weight <= 0:
            return
        choose = _CHOICE.get(self.units[name])
        if choose:
            self.totals[name], self.weights[name] = choose(self.totals.get(name, value), value), 1.0
            return
        self.totals[name] = self.totals.get(name, 0.0) + value * weight
        self.weights[name] = self.weights.get(name, 0.0) + weight

    def values(self) -> dict[str, float]:
        """The figures that any batch had."""
        return {name: total / self.weights[name] for name, total in self.totals.items()}

    def over_processes(self, accelerator: Any) -> Tally:
        """One tally of those that all processes have; they may have other figures, or none."""
        if accelerator.num_processes == 1:
            return self
        names = list(self.units)
        own = [[self.totals.get(name, 0.0), self.weights.get(name, 0.0)] for name in names]
        rows = torch.tensor(own, dtype=torch.float64, device=accelerator.device).unsqueeze(0)
        out = Tally(self.units)
        for process in accelerator.gather(rows).tolist():
            for name, (total, weight) in zip(names, process, strict=True):
                if weight:
                    out.add(name, total / weight, weight)
        return out


class Seen:
    """Stands for a model in a loss, and keeps what the model gave."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.outputs: list[Any] = []

    def __call__(self, **inputs: Any) -> Any:
        found = self.model(**inputs)
        self.outputs.append(found)
        return found


class Means(Trainer):
    """Mixed in before a TRL trainer.

    Attributes:
        units: by TRL's name of a figure, the count that it is a mean over.
    """

    units: ClassVar[Mapping[str, str]] = {}

    def __init__(self, **arguments: Any) -> None:
        self.tallies: dict[str, Tally] = defaultdict(lambda: Tally(self.units))  # by `train`, `eval`
        self.counted: dict[str, float] = {}  # of the last batch
        super().__init__(**arguments)

    def counts(self, inputs: Mapping[str, torch.Tensor], outputs: Any) -> dict[str, torch.Tensor]:
        """How many a collated batch of this process has of everything that `units` names, each a number."""
        return {}

    def derived(self, values: dict[str, float]) -> dict[str, float]:
        """Figures that are made of other figures, and are no means themselves."""
        return {}

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's, with a note of how many its figures speak of."""
        mode = "train" if self.model.training else "eval"
        before = {name: len(values) for name, values in self._metrics[mode].items()}
        seen = Seen(model)
        found = super().compute_loss(seen, inputs, return_outputs, num_items_in_batch)
        self.counted = self._of_all(self.counts(inputs, seen.outputs[-1]), mode)
        for name, unit in self.units.items():
            values = self._metrics[mode].get(name, [])
            if len(values) > before.get(name, 0):
                self.tallies[mode].add(name, values[-1], self.counted.get(unit, 1.0))
        return found

    def _of_all(self, counts: dict[str, torch.Tensor], mode: str) -> dict[str, float]:
        """Counts over all processes, as TRL's figures are in training; in an evaluation each process is by itself."""
        numbers = torch.stack([count.detach().float() for count in counts.values()])
        if mode == "train" and self.accelerator.num_processes > 1:
            numbers = self.accelerator.reduce(numbers.to(self.accelerator.device), "sum")
        return dict(zip(counts, numbers.tolist(), strict=True))

    @contextmanager
    def unrecorded(self) -> Iterator[None]:
        """Within, a loss leaves no figure behind."""
        counted, tally, kept = self.counted, self.tallies.pop("eval", None), self._metrics["eval"]
        self._metrics["eval"] = defaultdict(list)
        try:
            yield
        finally:
            self.counted, self._metrics["eval"] = counted, kept
            self.tallies.pop("eval", None)
            if tally is not None:
                self.tallies["eval"] = tally

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's, which takes the mean of what is here: one value a figure."""
        mode = "train" if self.model.training else "eval"
        tally = self.tallies.pop(mode, None)
        if tally is not None:
            values = tally.values()
            for name in self.units:
                self._metrics[mode].pop(name, None)
            for name, value in {**values, **self.derived(values)}.items():
                self._metrics[mode][name] = [value]
        super().log(logs, start_time)
