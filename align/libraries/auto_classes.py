"""What transformers' Auto classes can load without code of the model's own, as their source lists it."""

from __future__ import annotations

import re
from functools import lru_cache

from align.libraries import fields

_CAUSAL = "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES = OrderedDict("
_ANY_TOKENIZER = {"PreTrainedTokenizer", "PreTrainedTokenizerFast", "TokenizersBackend", "PythonBackend"}


@lru_cache
def causal_models() -> frozenset[str]:
    """The `model_type`s that AutoModelForCausalLM knows; none where the source is another than today's."""
    _, found, rest = _source("modeling_auto.py").partition(_CAUSAL)
    return (
        frozenset(re.findall(r'^\s*\("([\w.-]+)",', rest.partition("\n)\n")[0], re.MULTILINE)) if found else frozenset()
    )


@lru_cache
def tokenizer_classes() -> frozenset[str]:
    """The `tokenizer_class`es that AutoTokenizer knows, with and without the `Fast` at the end."""
    named = set(re.findall(r'"(\w+Tokenizer)(?:Fast)?"', _source("tokenization_auto.py")))
    return frozenset({*named, *(f"{name}Fast" for name in named), *_ANY_TOKENIZER})


@lru_cache
def tokenized_models() -> frozenset[str]:
    """The `model_type`s whose tokenizer AutoTokenizer takes from transformers, whatever the model's files name."""
    text = _source("tokenization_auto.py")
    listed = text.partition("MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS: set[str] = {")[2].partition("}")[0]
    mapped = text.partition("TOKENIZER_MAPPING_NAMES = ")[2].partition("\n)\n")[0]
    return frozenset({*re.findall(r'"([\w.-]+)",', listed), *re.findall(r'^\s*\("([\w.-]+)",', mapped, re.MULTILINE)})


def _source(name: str) -> str:
    file = fields.folder("transformers") / "models" / "auto" / name
    return file.read_text(encoding="utf-8") if file.is_file() else ""
