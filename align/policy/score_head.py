"""The head of a reward model: one linear layer on the hidden state of an answer's last token, named `score`.

It is transformers' own, of a model for sequence classification with one label, so that what is saved loads anywhere.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from align.errors import AlignError
from align.policy.unwrapped import unwrapped

SCORE = "score"


class Score(nn.Linear):
    """In float32, whatever the trunk computes in: rewards that differ by less than bfloat16 can tell are the rule."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., width) -> (..., 1), float32."""
        with torch.autocast(hidden.device.type, enabled=False):
            return super().forward(hidden.to(self.weight.dtype)).float()


def prepare(model: Any, folder: Path) -> None:
    """Make a loaded model's head one of ours, with the weights of its files as exact as they are there.

    Raises:
        AlignError: the model has no linear head of that name.
    """
    head = getattr(model, SCORE, None)
    if not isinstance(head, nn.Linear):
        what = f"a reward model of the kind {type(model).__name__} has no linear head '{SCORE}'"
        raise AlignError(what, "start from another base, such as a Llama, Mistral, Qwen, Gemma, Phi or GPT-2")
    ours = Score(head.in_features, head.out_features, bias=head.bias is not None, device=head.weight.device)
    stored = _stored(folder)
    for name, parameter in ours.named_parameters():
        parameter.data.copy_(stored.get(f"{SCORE}.{name}", getattr(head, name).data))
    setattr(model, SCORE, ours)


def from_policy(model: PreTrainedModel) -> PreTrainedModel:
    """A reward model on the trunk of a language model, which is used up; its head draws from torch's random state."""
    config = copy.deepcopy(model.config)
    config.num_labels = 1
    with torch.device("meta"):
        made: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)
    setattr(made, made.base_model_prefix, getattr(model, model.base_model_prefix))
    setattr(made, SCORE, Score(width(model), 1, bias=False, device=model.device))
    nn.init.normal_(getattr(made, SCORE).weight, std=getattr(config, "initializer_range", 0.02))
    return made.eval()


def width(model: PreTrainedModel) -> int:
    """Of the hidden states that a model's head reads; OPT-350m's differ from `hidden_size`."""
    head: Any = getattr(model, SCORE, None) or model.get_output_embeddings()
    return int(head.in_features) if hasattr(head, "in_features") else int(head.weight.size(-1))


def has(model: Any) -> bool:
    """Whether a model, with adapters or without, is a reward model."""
    return hasattr(unwrapped(model), SCORE)


def is_head(name: str) -> bool:
    """Whether a tensor of a saved adapter or model belongs to the head."""
    return f".{name}".rpartition(".")[0].endswith(f".{SCORE}")


def of_adapter(folder: Path, device: torch.device) -> Score:
    """The head that was saved with a reward model's adapter, frozen.

    Raises:
        AlignError: there is none.
    """
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as tensors:
        stored = {name.rpartition(".")[2]: tensors.get_tensor(name) for name in list(tensors.keys()) if is_head(name)}
    if "weight" not in stored:
        what = f"the adapter in '{folder}' was saved without the head '{SCORE}'"
        raise AlignError(what, "train the reward model again")
    head = Score(stored["weight"].size(1), 1, bias="bias" in stored, device=device)
    head.load_state_dict({name: tensor.to(device) for name, tensor in stored.items()})
    return head.requires_grad_(False)


def _stored(folder: Path) -> dict[str, torch.Tensor]:
    """The head's tensors among a model's files; none in those of a language model."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            names = [name for name in list(tensors.keys()) if name.startswith(f"{SCORE}.")]
            found |= {name: tensors.get_tensor(name) for name in names}
    return found
