"""Whether the installed transformers has the code that a base needs, or would run some that comes with it. No torch."""

from __future__ import annotations

from typing import Any

from align.errors import AlignError, did_you_mean, nearest, shown
from align.libraries import auto_classes
from align.policy.base import Base
from align.run_folder import files

_TRUST = "read it, and write `trust_remote_code: true` under `model:` if it is to be run"


def check(base: Base) -> None:
    """Raises AlignError where transformers would not load a base whose own code is not to run."""
    kind, known = base.config.get("model_type"), auto_classes.causal_models()
    if known and kind is not None and kind not in known:
        raise _unknown(base, kind)
    if base.path is None:
        return
    config = files.read_object(base.path / "tokenizer_config.json")
    tokenizer = config.get("tokenizer_class")
    if tokenizer is not None and not isinstance(tokenizer, str):
        what = f"the tokenizer_config.json of the model '{base.name}' has a tokenizer_class that is not text"
        raise AlignError(f"{what}, but {shown(tokenizer)}", "copy or download the model again")
    own = _maps(config, "AutoTokenizer") and tokenizer not in auto_classes.tokenizer_classes()
    if own and kind not in auto_classes.tokenized_models():
        what = f"the tokenizer of the model '{base.name}' is Python code that comes with it, which is not run"
        raise AlignError(what, _TRUST)


def _unknown(base: Base, kind: Any) -> AlignError:
    if _maps(base.config, "AutoModelForCausalLM"):
        return AlignError(f"the model '{base.name}' is Python code that comes with it, which is not run", _TRUST)
    what = f"the installed transformers knows no causal language model of the model_type {shown(kind)[:100]}"
    known = auto_classes.causal_models()
    meant = did_you_mean(kind, known) if isinstance(kind, str) and nearest(kind, known) else ""
    return AlignError(f"{what}, which '{base.name}' names", meant or "choose another base, or a newer transformers")


def _maps(config: dict[str, Any], auto: str) -> bool:
    """Whether a configuration names code of its own for one of the Auto classes."""
    found = config.get("auto_map")
    return auto in found if isinstance(found, dict) else bool(found) and auto == "AutoTokenizer"
