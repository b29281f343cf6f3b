"""Spectrum on a loaded model: measure, choose, and freeze all others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from align.errors import AlignError
from align.spectrum import choose, noise, scan
from align.spectrum.choose import Record

if TYPE_CHECKING:
    import torch
    from torch import nn


class SpectrumAnalyzer:
    """Ranks the weight matrices of a model by signal-to-noise ratio.

    Args:
        model: a language model in a float type, or loaded in 4 bits by bitsandbytes; without adapters.
        estimator: `mp` or `reference`; see noise.py.

    Raises:
        AlignError: there is no such estimator.
    """

    def __init__(self, model: nn.Module, estimator: str = "mp") -> None:
        noise.check_estimator(estimator)
        self.model, self.estimator = model, estimator
        self._records: list[Record] | None = None

    def snr(self) -> list[Record]:
        """The scan, by layer and type; measured once.

        Raises:
            AlignError: a weight is in 8 bits, or holds NaN.
        """
        if self._records is None:
            self._records = scan.scan_tensors(self._weights(), self.estimator)
        return self._records

    def trainable(self, threshold: float) -> list[str]:
        """The names of the best modules of each type; see `choose.by_threshold`.

        Raises:
            AlignError: as `snr`; or the threshold is not within 0...1.
        """
        return choose.by_threshold(self.snr(), threshold).names

    def freeze_others(self, names: Iterable[str]) -> None:
        """Make the weights of these modules trainable and every other parameter of the model frozen.

        Biases stay frozen. Naming one expert of a 3-D tensor makes the whole tensor trainable, because a parameter is
        trained whole or not at all.

        Raises:
            AlignError: a module does not exist, or its weight is quantised; nothing is changed then.
        """
        parameters = dict(self.model.named_parameters())
        chosen = []
        for name in names:
            owner = name.partition("[")[0]
            weight = parameters.get(f"{owner}.weight", parameters.get(owner))
            if weight is None:
                raise AlignError(f"the model has no module '{name}'", "take names of a scan of this model")
            if not weight.is_floating_point():
                raise AlignError(
                    f"the weight of '{name}' is quantised and cannot be trained", "load the model unquantised"
                )
            chosen.append(weight)
        for parameter in parameters.values():
            parameter.requires_grad_(False)
        for weight in chosen:
            weight.requires_grad_(True)

    def _weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every parameter but embeddings; 4-bit weights are turned back into floats one at a time."""
        from torch import nn

        embeddings = {id(m.weight) for m in self.model.modules() if isinstance(m, nn.Embedding)}
        for name, parameter in self.model.named_parameters():
            state = getattr(parameter, "quant_state", None)
            if state is not None:
                from bitsandbytes.functional import dequantize_4bit

                yield name, dequantize_4bit(parameter.data, state)
            elif id(parameter) not in embeddings:
                yield name, parameter
