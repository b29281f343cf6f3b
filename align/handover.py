"""From the policy that came in to the model that a stage trains: continue, stack, or merge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from align import model as models
from align import parameterization
from align.data import encode
from align.rundir import RunDir
from align.stage import Ticket


@dataclass
class Builder:
    """Makes the model that a stage trains from the policy that came in."""

    run: RunDir
    ticket: Ticket
    tokenizer: PreTrainedTokenizerBase
    sample: list[dict[str, Any]]
    loaded: Any = None

    def __post_init__(self) -> None:
        self.method = parameterization.load(self.ticket.parameterization["method"])
        self.keys = self.method.Keys.model_validate(self.ticket.parameterization)
        self.quantization = self.method.quantization(self.keys)
        self.dtype = models.dtype_of(self.ticket.model.get("dtype", "auto"), self.method.TRAINS_BASE)

    def pristine(self) -> Any:
        """The base as this stage loads it; used again by `build` where the policy stands on it directly."""
        model = self._load(self.ticket.policy.base.path, self.quantization)
        if self.ticket.policy.weights is None and not self._merges():
            self.loaded = model
        return model

    def build(self) -> tuple[Any, models.Merge | None]:
        """The policy with this stage's weights trainable, and what a merge on the way did."""
        policy = self.ticket.policy
        folder = str(self.run.root / policy.weights) if policy.weights else policy.base.path
        if self._merges():
            base = self._load(folder, policy.quantization)
            merged, report = models.merge(base, policy, self.run.root, self._prompts())
            return self.method.apply(merged.to(self.dtype), self.keys, models.TRAINED), report
        model = self.loaded if self.loaded is not None else self._load(folder, self.quantization)
        if self.method.TRAINS_BASE:
            return self.method.apply(model, self.keys, models.TRAINED), None
        names = models.adapter_names(policy)
        if self.continues():
            model = models.put_adapters(model, policy, self.run.root, last=models.TRAINED)
            names[-1] = models.TRAINED
        else:
            model = models.put_adapters(model, policy, self.run.root)
            model = self.method.apply(model, self.keys, models.TRAINED)
            names.append(models.TRAINED)
        models.activate(model, names, trainable=models.TRAINED)
        return model, None

    def continues(self) -> bool:
        """Whether this stage goes on with the last adapter: same method, same settings."""
        adapters = self.ticket.policy.adapters
        return bool(adapters) and adapters[-1].settings == self.ticket.parameterization

    def _merges(self) -> bool:
        return self.method.TRAINS_BASE and bool(self.ticket.policy.adapters)

    def _load(self, folder: str, quantization: dict[str, Any] | None) -> Any:
        return models.load_weights(folder, self.ticket.model, self.dtype, quantization)

    def _prompts(self) -> list[list[int]]:
        rows = [row for row in self.sample if "chosen" not in row]
        rows += [{"prompt": r["prompt"], "completion": r["chosen"]} for r in self.sample if "chosen" in r]
        return encode.for_language_modeling(rows, self.tokenizer, completion_only=False)[0]
