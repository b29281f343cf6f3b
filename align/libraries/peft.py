"""PEFT's methods and their settings, as its source declares them."""

from __future__ import annotations

import ast
from functools import lru_cache

from align.libraries import fields
from align.libraries.fields import Argument

_SHARED = ("config.py", "tuners/lycoris_utils.py", "tuners/lora/config.py", "tuners/prompt_tuning/config.py")


@lru_cache
def methods() -> tuple[str, ...]:
    """The names of PEFT's methods, in lower case (`ia3`), sorted.

    Raises:
        AlignError: peft is not installed.
    """
    types = fields.classes([fields.folder("peft") / "utils/peft_types.py"])["PeftType"]
    named = [item.targets[0] for item in types.body if isinstance(item, ast.Assign)]
    return tuple(sorted(target.id.lower() for target in named if isinstance(target, ast.Name)))


@lru_cache
def settings(method: str) -> dict[str, Argument]:
    """The fields of a method's config class, with those it inherits; empty where the method has no config."""
    root = fields.folder("peft")
    found = fields.classes([*(root / name for name in _SHARED), root / f"tuners/{method}/config.py"])
    own = next((name for name, node in found.items() if f"PeftType.{method.upper()}" in _assigned(node)), None)
    return fields.fields(own, found) if own else {}


@lru_cache
def has_quantized(method: str) -> bool:
    """Whether a method has layers for a base in 4 or 8 bits."""
    return (fields.folder("peft") / f"tuners/{method}/bnb.py").is_file()


@lru_cache
def adapts_embeddings(method: str) -> bool:
    """Whether a method can go on an embedding too."""
    source = fields.folder("peft") / f"tuners/{method}/model.py"
    return source.is_file() and "nn.Embedding" in source.read_text(encoding="utf-8")


def _assigned(node: ast.ClassDef) -> set[str]:
    """What the class assigns to attributes: `self.peft_type = PeftType.IA3`."""
    return {ast.unparse(item.value) for item in ast.walk(node) if isinstance(item, ast.Assign)}
