"""Adapters written into the weights of their base, and the weights put back bit for bit."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from align.adapters.placement import Member
from align.errors import AlignError


class Written:
    """Adapters that are in the base's weights, or none.

    Every weight that is touched is kept as it was: subtracting an update again would leave rounding errors behind.
    """

    def __init__(self) -> None:
        self._members: dict[str, Member] = {}
        self._originals: list[tuple[nn.Parameter, torch.Tensor]] = []

    @property
    def names(self) -> tuple[str, ...]:
        """In the order in which they were written."""
        return tuple(self._members)

    def write(self, chosen: Mapping[str, Member]) -> None:
        """Write adapters, whose layers lie in the base, into its weights, one over the other in this order.

        Raises:
            AlignError: one refuses. Those before it are written; see `restore`.
        """
        self._members = dict(chosen)
        touched = {key: p for member in chosen.values() for key, p in member.weights_beneath().items()}
        self._originals = [(parameter, parameter.data) for parameter in touched.values()]
        for parameter in touched.values():
            parameter.data = parameter.data.clone()
        for name, member in chosen.items():
            try:
                for layer in member.layers():
                    layer.merge(safe_merge=True, adapter_names=[member.called])
            except (ValueError, NotImplementedError) as error:
                reason = " ".join(str(error).split()).rstrip(".")
                raise AlignError(f"'{name}' cannot be merged: {reason}", "keep it as an adapter") from error

    def restore(self) -> None:
        """The weights as they were before `write`, bit for bit; nothing where none is written."""
        for member in reversed(self._members.values()):
            for layer in reversed(member.layers()):
                if layer.merged:
                    layer.unmerge()
                layer.merged_adapters = []  # OSF cannot unmerge, and would stay silent
        for parameter, original in self._originals:
            parameter.data = original
        self._members, self._originals = {}, []


def check(chosen: Mapping[str, Member], bits: int | None) -> None:
    """Raises AlignError where adapters cannot be written into weights, of `bits` where the base is quantised."""
    if bits:
        what = "adapters cannot be merged onto weights in 4 or 8 bits, which would lose most of the update"
        raise AlignError(what, "merge through export, which dequantises the base first")
    for name, member in chosen.items():
        if not member.merges:
            what = f"'{name}' cannot be merged: what {member.method} learns is not a change of weights"
            raise AlignError(what, "keep it as an adapter")
