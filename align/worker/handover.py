"""From the policy that came in to the model that a stage trains: continue, stack, or merge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from align.data import encode
from align.data.tokenizer import TextTokenizer
from align.merging import into_base
from align.merging.verdict import Merge
from align.parameterization import chain, method
from align.policy import load as models
from align.policy import score_head, stack
from align.run_folder.paths import RunDir
from align.run_folder.records import Adapter, Gives, Ticket


@dataclass
class Builder:
    """Makes the model that a stage trains from the policy that came in.

    Attributes:
        sample: rows to compare a merged model with the adapted one on.
        preload: the stage's own; see align.stage.Stage.
        loaded: a base that was loaded already.
    """

    run: RunDir
    ticket: Ticket
    tokenizer: PreTrainedTokenizerBase
    sample: list[dict[str, Any]]
    preload: Callable[[Ticket, Any, Path], Any] | None = None
    loaded: Any = None

    def __post_init__(self) -> None:
        self.method = method.load(self.ticket.parameterization["method"])
        self.keys = self.method.Keys.model_validate(self.ticket.parameterization)
        self.quantization = self.method.quantization(self.keys)
        self.layers = chain.layers(self.ticket.policy.adapters)
        self.trains_base = self.method.traits(self.keys).trains_base
        self.dtype = models.dtype_of(self.ticket.model.get("dtype", "auto"), self.trains_base)

    def pristine(self) -> Any:
        """The base as this stage loads it; used again by `build` where the policy stands on it directly."""
        if self.loaded is not None:
            return self.loaded
        model = self._load(self.ticket.policy.base.path, self.quantization)
        if self.ticket.policy.weights is None and not self._unquantized() and self.ticket.gives == "policy":
            self.loaded = model
        return model

    def build(self) -> tuple[Any, Merge | None]:
        """The policy with this stage's weights trainable, and what a merge on the way did."""
        return self._onto_base() if self.trains_base else (self._onto_frozen(), None)

    def _onto_base(self) -> tuple[Any, Merge | None]:
        """Adapters become part of the weights that are trained; those that cannot stay on them, frozen and active."""
        policy, report = self.ticket.policy, None
        run, merged = self.run.root, self._merged()
        scores = self.ticket.gives == "reward"
        if self._unquantized():
            model = self._load(self._folder(), policy.quantization)
            if merged:
                model, report = into_base.merge(model, merged, run, prompts(self.sample, self.tokenizer), self.dtype)
            else:
                model = models.cast(models.dequantized(model, self.dtype), self.dtype)
            model = score_head.from_policy(model) if scores else model
        else:
            model = self._base()
        model = self.method.apply(model, self.keys, stack.TRAINED, self.folder)
        if scores:
            model.score.requires_grad_(True)
        kept = policy.adapters[len(merged) :]
        if kept:
            trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
            model = stack.bare(stack.put(model, kept, run))  # the trainer must save the weights, not the adapters
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name.replace(".base_layer.", ".") in trained)
        return model, report

    def _onto_frozen(self) -> Any:
        """This stage's adapter on the base, over the earlier ones; or the last of them, trained further."""
        policy, model, run = self.ticket.policy, self._base(), self.run.root
        continues = chain.continues(self.layers, chain.Layer(self.method, self.keys, self.ticket.stage))
        model = stack.put(model, policy.adapters[:-1] if continues else policy.adapters, run)
        if self.preload is not None:
            model = self.preload(self.ticket, model, run)
        if continues:
            model = stack.resume(model, policy.adapters[-1], run)
        else:
            model = self.method.apply(model, self.keys, stack.TRAINED, self.folder)
        return stack.cast_trained(model, self.method.traits(self.keys).trained_in)

    def _merged(self) -> list[Adapter]:
        """The first adapters of the policy, as far as they can be merged."""
        return self.ticket.policy.adapters[: chain.mergeable(self.layers)]

    def _unquantized(self) -> bool:
        """Whether the base has to be made anew for this stage: adapters are merged, or 4-bit weights unpacked."""
        return self.trains_base and bool(self._merged() or self.ticket.policy.quantization)

    def _folder(self) -> str:
        policy = self.ticket.policy
        return str(self.run.root / policy.weights) if policy.weights else policy.base.path

    def _base(self) -> Any:
        if self.loaded is not None:
            return self.loaded
        return self._load(self._folder(), self.quantization, self.ticket.gives)

    def _load(self, folder: str, quantization: dict[str, Any] | None, gives: Gives = "policy") -> Any:
        return models.load_weights(folder, self.ticket.model, self.dtype, quantization, gives)

    @property
    def folder(self) -> Path:
        """Where the parameterization writes what it finds out."""
        return self.run.stage(self.ticket.stage).root


def prompts(rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of rows to compare two models on: conversations and texts, the better answers of pairs, prompts."""
    plain = [_whole(row) for row in rows if "chosen" not in row]
    plain += [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows if "chosen" in row]
    return [row.ids for row in encode.encoded(plain, TextTokenizer.of(tokenizer))]


def _whole(row: dict[str, Any]) -> dict[str, Any]:
    """A prompt that is a text, as a text: with the end after it, without which a single token has no next one."""
    if "completion" not in row and isinstance(row.get("prompt"), str):
        return {"text": row["prompt"]}
    return row
