"""KL(incoming || now) on the tokens that a stage trains on, over the whole vocabulary.

The policy that came in is the teacher on the new data, as in Learning without Forgetting (Li & Hoiem 2016, arXiv
1606.09282). The forward KL covers what the incoming policy would say, and is the direction that RL's Razor (2025, arXiv
2509.04259) finds to go with forgetting. The hidden states of both policies are kept, and of the logits a few positions
at a time, forward and backward, so that (tokens, vocabulary) is never held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.func import functional_call

from align.policy.unwrapped import unwrapped

LOGITS = 2**25  # held at a time, of each of the two policies
Head: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""Hidden states, (positions, width), to logits, (positions, vocabulary)."""


class Incoming:
    """The policy as it is now, beside the one that it becomes: what is trained is held twice, everything else once."""

    def __init__(self, model: nn.Module) -> None:
        self.kept = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def hidden(self, model: nn.Module, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Its last hidden states, (rows, positions, width), without dropout."""
        was, seen = model.training, list[torch.Tensor]()
        model.eval()
        try:
            with hidden_states(model, seen, last=True):
                functional_call(model, self.kept, (), dict(inputs))
        except _EnoughError:
            pass
        finally:
            model.train(was)
        return seen[0]

    def head(self, model: nn.Module) -> Head:
        """Its output layer."""
        lm = unwrapped(model)
        module = lm.get_output_embeddings()
        kept = {name: self.kept[found] for name, found in _names(model, module).items() if found in self.kept}
        return lambda hidden: _finished(lm, functional_call(module, kept, (hidden,)))


class _EnoughError(Exception):
    """Leaves a forward once the hidden states are there."""


@contextmanager
def hidden_states(model: nn.Module, seen: list[torch.Tensor], *, last: bool = False) -> Iterator[None]:
    """Gather the last hidden states of each forward within.

    Args:
        last: leave the forward by an exception, before the output layer.
    """

    def hook(_: Any, __: Any, output: Any) -> None:
        seen.append(output.last_hidden_state)
        if last:
            raise _EnoughError

    handle = unwrapped(model).base_model.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def divergence(model: nn.Module, incoming: Incoming, now: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """KL(incoming || now) in nats, summed over positions, differentiable by `now` and by the output layer's weights.

    Args:
        now, before: hidden states of the two policies, (positions, width).
    """
    module = unwrapped(model).get_output_embeddings()
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    found: torch.Tensor = _Summed.apply(model, incoming, before, now, *trained)  # type: ignore[no-untyped-call]
    return found


class _Summed(torch.autograd.Function):
    """The sum, with its gradients from the same pass over the logits."""

    @staticmethod
    def forward(
        ctx: Any, model: nn.Module, incoming: Incoming, before: torch.Tensor, now: torch.Tensor, *trained: torch.Tensor
    ) -> torch.Tensor:
        total, slopes = _summed(model, incoming, before, now, trained)
        ctx.save_for_backward(*slopes)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> Any:
        return None, None, None, *((upstream * slope).to(slope.dtype) for slope in ctx.saved_tensors)


def _summed(
    model: nn.Module, incoming: Incoming, before: torch.Tensor, now: torch.Tensor, trained: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The KL, and its derivatives by `now` and by the trained weights of the output layer."""
    lm = unwrapped(model)
    module, reference = lm.get_output_embeddings(), incoming.head(model)
    size = max(1, LOGITS // lm.config.get_text_config().vocab_size)
    total = torch.zeros((), device=now.device)
    by_now, by_head = [torch.zeros_like(now[:0])], [torch.zeros_like(one) for one in trained]
    for mine, theirs in zip(torch.split(now, size), torch.split(before, size), strict=True):
        # without the cache of autocast: its copies of weights belong to the pass around this one
        with torch.enable_grad(), _uncached(now):
            leaf = mine.detach().requires_grad_()
            value = _kl(reference(theirs).detach(), _finished(lm, module(leaf)))
            slopes = torch.autograd.grad(value, [leaf, *trained])
        total = total.to(value.dtype) + value.detach()
        by_now.append(slopes[0])
        for so_far, slope in zip(by_head, slopes[1:], strict=True):
            so_far += slope
    return total, [torch.cat(by_now), *by_head]


def _kl(reference: torch.Tensor, now: torch.Tensor) -> torch.Tensor:
    """KL(softmax(reference) || softmax(now)), summed over positions, in float32 at least."""
    dtype = torch.promote_types(now.dtype, torch.float32)
    p, q = reference.to(dtype).log_softmax(-1), now.to(dtype).log_softmax(-1)
    return (p.exp() * (p - q)).sum()


def _finished(lm: Any, logits: torch.Tensor) -> torch.Tensor:
    """What some models do to the logits after the output layer, as TRL's fused head has it: a factor, then a cap."""
    config = lm.config.get_text_config()
    scale = next((found for name in _FACTORS if (found := getattr(config, name, None)) is not None), None)
    divided = getattr(config, "logits_scaling", None)
    if scale is None and divided is not None:
        scale = divided if config.model_type == "hyperclovax" else 1 / divided
    logits = logits if scale is None else logits * scale
    cap = getattr(config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


_FACTORS = ("logit_scale", "output_multiplier", "lm_head_multiplier")


def _names(model: nn.Module, module: nn.Module) -> dict[str, str]:
    """The module's parameters by their names in it -> in the model, also where they are an embedding's too."""
    by_id = {id(parameter): name for name, parameter in model.named_parameters()}
    return {name: by_id[id(parameter)] for name, parameter in module.named_parameters() if id(parameter) in by_id}


def _uncached(tensor: torch.Tensor) -> torch.autocast:
    kind = tensor.device.type
    return torch.autocast(
        kind, dtype=torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind), cache_enabled=False
    )
