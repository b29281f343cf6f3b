"""The modules of a base by their names in its files, what each is, and which of them a recipe means. No torch.

PEFT matches in three ways: an entry of a list is a module's whole name or an end of it after a dot; a text alone is a
regular expression for the whole name; a key of `rank_pattern` is one for such an end.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from align.parameterization.methods.lora import HEADS
from align.policy.base import Base, heads, quantization
from align.spectrum.choose import is_router

Kind = Literal["linear", "embedding", "vector", "convolution", "block"]
_EMBEDDING = re.compile(r"embed|^wte$|^wpe$")
_PACKED = re.compile(r"\.(weight\..+|SCB|weight_format)$")  # what bitsandbytes saves beside a weight
_ROOTS = ("model", "transformer")  # in memory before the names that some files have without them


@dataclass(frozen=True)
class Modules:
    """What a base is made of.

    Attributes:
        kinds: every module by name, containers too; `linear` is also what GPT-2 calls Conv1D.
        gates: linear layers of a single output.
        tensors: the names of the weights.
        experts: whether it has experts, whose modules have other names in memory than in files.
    """

    kinds: dict[str, Kind]
    gates: frozenset[str]
    tensors: frozenset[str]
    experts: bool

    @classmethod
    def of(cls, base: Base) -> Modules:
        """Read from the heads of the files; empty for a base that was not looked up."""
        listed = heads(base.path) if base.path else ()
        shapes = {name: entry["shape"] for name, entry in listed if name != "__metadata__" and not _PACKED.search(name)}
        kinds: dict[str, Kind] = {}
        for name in shapes:
            parts = name.split(".")[:-1]
            for end in range(1, len(parts) + 1):
                kinds.setdefault(".".join(parts[:end]), "block")
        packed = quantization(base.config) is not None
        weights = {name.removesuffix(".weight"): shape for name, shape in shapes.items() if name.endswith(".weight")}
        kinds |= {name: _kind(name, shape, packed=packed) for name, shape in weights.items()}
        if kinds and not any(name.rpartition(".")[2] in HEADS for name in kinds):
            kinds["lm_head"] = "linear"  # the embedding once more
        if base.config.get("model_type") == "gpt_neox" and kinds.pop("embed_out", None):
            kinds["lm_head"] = "linear"  # its files are older than transformers' name
        gates = frozenset(name for name, shape in weights.items() if len(shape) == 2 and shape[0] == 1 and not packed)
        experts = any(".experts." in name for name in shapes) or _counts_experts(base.config)
        return cls(kinds, gates, frozenset(shapes), experts)

    @property
    def layers(self) -> set[int]:
        """The numbers of the layers."""
        numbers = ([part for part in name.split(".") if part.isdigit()] for name in self.kinds)
        return {int(found[0]) for found in numbers if found}

    @property
    def projections(self) -> list[str]:
        """The linear layers inside the transformer layers: what `target_modules: auto` means."""
        return [
            name
            for name, kind in self.kinds.items()
            if kind == "linear" and layer_of(name) is not None and name not in self.gates and not is_router(name)
        ]

    def named(self, entry: str) -> list[str]:
        """Those that an entry of a list means."""
        return [name for name in self.kinds if _ends(name, entry)]

    def parameters(self, entry: str) -> list[str]:
        """The weights that an entry of a list means."""
        return [name for name in self.tensors if _ends(name, entry)]

    def whole(self, pattern: str) -> list[str]:
        """Those whose whole name a regular expression matches; in memory it may begin with another part."""
        found = re.compile(pattern)
        return [
            name
            for name in self.kinds
            if found.fullmatch(name) or any(found.fullmatch(f"{root}.{name}") for root in _ROOTS)
        ]


def ending(names: Iterable[str], pattern: str) -> list[str]:
    """Those of which a key of `rank_pattern` matches an end."""
    found = re.compile(rf"(.*\.)?({pattern})$")
    return [name for name in names if found.match(name)]


def layer_of(name: str) -> int | None:
    """The number of the layer that a module is in."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def last_parts(names: Iterable[str]) -> list[str]:
    """The ends of names, each once, in order."""
    return list(dict.fromkeys(name.rpartition(".")[2] for name in names))


def _ends(name: str, entry: str) -> bool:
    if name == entry or name.endswith(f".{entry}"):
        return True
    return layer_of(name) is not None and any(f"{root}.{name}" == entry for root in _ROOTS)


def _kind(name: str, shape: list[int], *, packed: bool) -> Kind:
    if _EMBEDDING.search(name.rpartition(".")[2]):
        return "embedding"
    if len(shape) == 2 or (packed and len(shape) == 1 and not _is_norm(name)):
        return "linear"
    return "vector" if len(shape) < 2 else "convolution"


def _is_norm(name: str) -> bool:
    return "norm" in name.rpartition(".")[2] or re.search(r"\bln_", name) is not None


def _counts_experts(config: dict[str, Any]) -> bool:
    text = config.get("text_config")
    every = {**config, **(text if isinstance(text, dict) else {})}
    return any("expert" in key and isinstance(value, int) and value > 1 for key, value in every.items())
