"""Which modules are trained: the best of each type by signal-to-noise ratio, or whole layers by number. No torch.

A module is `(stack, layer, type)`: `model.layers.11.mlp.gate_proj` is the type `mlp.gate_proj` in layer 11 of the stack
`model.layers`. Types are compared whole, so `mlp.gate` is never `mlp.gate_proj`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple, TypeVar

from align.errors import AlignError

PACKED = (".qweight", ".weight_packed", "_blocks")  # ends of names in GPTQ and AWQ, compressed-tensors, MXFP4
_NO_EXPERTS = ("bias", "_scales", "_scale", "_scale_inv")  # ends of names beside the experts
_ROUTERS = ("gate", "wg")
_FUSED = ("gate_proj", "up_proj", "w1", "w3")  # of an expert, in files; in memory one tensor, gate_up_proj
_EXPERT = re.compile(r"^(.*)\[(\d+)\]$")


@dataclass(frozen=True)
class Matrix:
    """A weight matrix of a transformer layer.

    Attributes:
        name: the module's name; of one expert of a 3-D tensor the tensor's name with `[number]`.
        type: the name after the layer number; experts of one projection share it.
        layer: the number of the layer, from 0.
        shape: rows and columns as stored.
    """

    name: str
    type: str
    layer: int
    shape: tuple[int, int]


@dataclass(frozen=True)
class Record(Matrix):
    """A matrix and what was measured of it; see `noise.Measure`."""

    snr: float
    threshold: float
    degenerate: bool


@dataclass(frozen=True)
class Choice:
    """The modules to train, and those that could not be ranked, both in the model's order."""

    names: list[str]
    degenerate: list[str]


class Location(NamedTuple):
    """Where a module stands: the name before the layer number, the number, the name after it, and the expert."""

    stack: str
    layer: int
    type: str
    expert: int


M = TypeVar("M", bound=Matrix)


def locate(name: str) -> Location | None:
    """Where a module stands; None outside layers. `expert` is -1 where there is none."""
    expert, within = -1, _EXPERT.match(name)
    if within:
        name, expert = within[1], int(within[2])
    parts = name.split(".")
    at = next((number for number, part in enumerate(parts) if part.isdigit()), None)
    if at is None or at + 1 == len(parts):
        return None
    rest = parts[at + 1 :]
    for number in range(1, len(rest)):
        if rest[number].isdigit() and rest[number - 1] == "experts":
            expert = int(rest.pop(number))
            break
    return Location(".".join(parts[:at]), int(parts[at]), ".".join(rest), expert)


def is_router(name: str) -> bool:
    """Whether a module chooses among experts: `gate` of Mixtral, Qwen, DeepSeek and OLMoE, `router` of Llama 4,
    GPT-OSS, Switch, Granite and JetMoE, with what lies inside it. A `gate_proj` is none."""
    parts = name.split(".")
    return any(part in _ROUTERS or "router" in part or "gating" in part for part in parts)


def is_weight(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is the weight of a linear layer, or of experts, inside a transformer layer; packed or not.

    Embeddings, head, norms, biases, convolutions, routers and gates of a single output are not. A Conv1D of GPT-2 is:
    its transposed weight has the same singular values.
    """
    place = locate(name)
    if not place or "embed" in place.type or is_router(place.type):
        return False
    if name.endswith(PACKED):
        return True
    if len(shape) == 3:
        return ("expert" in place.type or "moe" in place.type) and not name.endswith(_NO_EXPERTS)
    return len(shape) == 2 and shape[0] > 1 and name.endswith(".weight")


def weight_matrices(name: str, shape: tuple[int, ...]) -> list[Matrix]:
    """The matrices of a tensor: one of a 2-D weight, one an expert of (experts, rows, columns), none of others."""
    module = name.removesuffix(".weight")
    place = locate(module)
    if place is None or not is_weight(name, shape):
        return []
    names = [module] if len(shape) == 2 else [f"{module}[{number}]" for number in range(shape[0])]
    return [Matrix(each, place.type, place.layer, (shape[-2], shape[-1])) for each in names]


def in_largest_stack(matrices: Iterable[M]) -> list[M]:
    """Those of the stack of layers with most weights, by layer, type and expert.

    A model that also sees or hears has other stacks, with layer numbers of their own; the language model is the
    largest one.
    """
    found: dict[str, list[tuple[Location, M]]] = {}
    for matrix in matrices:
        place = locate(matrix.name)
        if place:
            found.setdefault(place.stack, []).append((place, matrix))
    if not found:
        return []
    largest = max(found.values(), key=lambda stack: sum(prod(matrix.shape) for _, matrix in stack))
    return [matrix for _, matrix in sorted(largest, key=lambda pair: pair[0][1:])]


def by_threshold(records: Sequence[Record], threshold: float) -> Choice:
    """A quantile cut per type: of L modules, the max(1, round((1 - threshold) L)) first by (-SNR, layer).

    What is chosen is what trains. The experts of a layer are one tensor in memory, which trains whole: they are one
    module here, whose ratio is their mean. Degenerate ones are ranked behind all others and reported.

    Args:
        records: a scan.
        threshold: `snr_threshold`, 0...1; 0 takes all, 0.75 a quarter, 1 one of each type.

    Raises:
        AlignError: the threshold is not within 0...1.
    """
    if not 0 <= threshold <= 1:
        raise AlignError(f"snr_threshold is {threshold:g}, which is not between 0 and 1", "0.75 trains a quarter")
    taken = set[str]()
    for units in _units(records).values():
        ranked = sorted(units.items(), key=lambda unit: (*_rank(unit[1]), unit[0]))
        for _, chosen in ranked[: max(1, round((1 - threshold) * len(units)))]:
            taken |= {record.name for record in chosen}
    names = [record.name for record in records if record.name in taken]
    return Choice(names, [record.name for record in records if record.degenerate])


def by_layers(matrices: Sequence[Matrix], layers: Sequence[int]) -> Choice:
    """All projections of some layers, without a scan.

    Args:
        matrices: the modules there are, as `scan.matrices` lists them.
        layers: `layers_to_finetune`, numbers from 0.

    Raises:
        AlignError: a number is not one of a layer, or none is given.
    """
    if not layers:
        raise AlignError("layers_to_finetune is empty", "name at least one layer, or write auto")
    there = {matrix.layer for matrix in matrices}
    wrong = [str(layer) for layer in layers if layer not in there]
    if wrong:
        what = f"layers_to_finetune names layer {', '.join(wrong)}, but the model has layers {_ranges(there)}"
        raise AlignError(what, "name layers that exist")
    return Choice([matrix.name for matrix in matrices if matrix.layer in layers], [])


def by_type(matrices: Iterable[M]) -> dict[str, list[M]]:
    """The modules of each type, types in order of appearance."""
    groups: dict[str, list[M]] = {}
    for matrix in matrices:
        groups.setdefault(matrix.type, []).append(matrix)
    return groups


def _units(records: Iterable[Record]) -> dict[str, dict[int, list[Record]]]:
    """What trains whole, by type and layer: one matrix, or the experts of a layer."""
    found: dict[str, dict[int, list[Record]]] = {}
    for record in records:
        place, kind = locate(record.name), record.type
        before, _, last = kind.rpartition(".")
        if place is not None and place.expert >= 0 and last in _FUSED:
            kind = f"{before}.gate_up_proj"
        found.setdefault(kind, {}).setdefault(record.layer, []).append(record)
    return found


def _rank(unit: Sequence[Record]) -> tuple[bool, float]:
    """The best first: those with a ratio, by its mean."""
    ratios = [record.snr for record in unit if not record.degenerate] or [record.snr for record in unit]
    return all(record.degenerate for record in unit), -sum(ratios) / len(ratios)


def _ranges(numbers: Iterable[int]) -> str:
    """`0 to 23`, and what is missing in between left out: `0 to 3, 5 to 7`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][-1] + 1 == number:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
