"""Recipes as YAML that both YAML 1.2, which align reads, and YAML 1.1 read alike."""

from __future__ import annotations

from io import StringIO
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

_WORDS = ("yes", "no", "on", "off", "y", "n")  # which YAML 1.1 takes for true or false


def dump(recipe: dict[str, Any]) -> str:
    """A recipe as text: mappings as blocks, the inmost below `stages` and lists of scalars on a line."""
    out, yaml = StringIO(), YAML(typ="rt", pure=True)
    yaml.width = 4096
    yaml.representer.add_representer(float, _float)
    yaml.dump(_laid_out(recipe, 0), out)
    return out.getvalue()


def _float(representer: Any, value: float) -> Any:
    """With a point, which YAML 1.1 wants of a number: 5.0e-06."""
    text = repr(value)
    pointed = text.replace("e", ".0e") if "e" in text and "." not in text else text
    return representer.represent_scalar("tag:yaml.org,2002:float", pointed)


def _laid_out(value: Any, depth: int) -> Any:
    if isinstance(value, dict):
        found = CommentedMap({key: _laid_out(each, depth + 1) for key, each in value.items()})
        if depth > 3:
            found.fa.set_flow_style()
        return found
    if isinstance(value, list):
        listed = CommentedSeq([_laid_out(each, 9) for each in value])
        if not any(isinstance(each, dict) for each in value):
            listed.fa.set_flow_style()
        return listed
    if isinstance(value, str) and value.lower() in _WORDS:
        return DoubleQuotedScalarString(value)
    return value
