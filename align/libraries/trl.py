"""TRL's and transformers' training arguments, as their source declares them."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache

from align.errors import AlignError, Exit
from align.libraries import fields
from align.libraries.fields import Argument

_FILES = {
    "trl": ("trainer/base_config.py", "trainer/{stem}_config.py", "experimental/{stem}/{stem}_config.py"),
    "transformers": ("trainer_utils.py", "training_args.py"),
}


@lru_cache
def known(config: str) -> dict[str, Argument]:
    """Every argument of a TRL config class (`SFTConfig`), with those it inherits from transformers.

    Raises:
        AlignError: trl or transformers is not installed, or holds no such class.
    """
    stem = config.removesuffix("Config").lower()
    paths = (fields.folder(package) / name.format(stem=stem) for package, names in _FILES.items() for name in names)
    found = fields.classes(paths)
    if config not in found:
        raise AlignError(f"the installed trl has no '{config}'", "pip install 'trl==1.16.*'", exit=Exit.MACHINE)
    return {name: _in_a_recipe(argument) for name, argument in fields.fields(config, found).items()}


@lru_cache
def of_generation() -> frozenset[str]:
    """What transformers' GenerationConfig takes: what its `__init__` pops from its keyword arguments."""
    file = fields.folder("transformers") / "generation" / "configuration_utils.py"
    return frozenset(re.findall(r'kwargs\.pop\("(\w+)"', file.read_text(encoding="utf-8")))


def _in_a_recipe(argument: Argument) -> Argument:
    """Where a mapping may stand, text is one in JSON, for the command line."""
    return replace(argument, kinds=argument.kinds - {"str"}) if "dict" in argument.kinds else argument
