"""The critic of PPO: what a policy's next tokens are worth, read from hidden states by one linear layer.

It lives inside the policy's module while that is trained, so that one optimizer and one DDP wrapper own everything;
`attach` puts it there and takes it off again. Three kinds:

- `head`: on the policy's own hidden states, which cost nothing more; policy and value share the trunk.
- `adapter`: the same frozen base under adapters of its own (Santacroce et al. 2023, arXiv 2309.00754).
- `model`: a network of its own (Ziegler et al. 2019; Ouyang et al. 2022).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from align.policy import score_head
from align.policy.score_head import Score
from align.policy.switchboard import Switchboard

NAME = "align_critic"  # the attribute of the policy's module
FILE = "critic.safetensors"


class Critic(nn.Module):
    """A value for every position.

    Args:
        head: one linear layer, (width) -> 1.
        backbone: the trunk of a `model` critic.
        names: the adapters of an `adapter` critic, in order.
    """

    def __init__(self, head: Score, backbone: nn.Module | None = None, names: Sequence[str] | None = None) -> None:
        super().__init__()
        self.head, self.backbone, self.names = head, backbone, names

    @property
    def shares(self) -> bool:
        """Whether it reads the hidden states that the policy's own forward makes."""
        return self.backbone is None and self.names is None

    def values(self, hidden: torch.Tensor) -> torch.Tensor:
        """(answers, positions, width) -> (answers, positions), float32."""
        found: torch.Tensor = self.head(hidden)
        return found.squeeze(-1)


def new_head(model: PreTrainedModel, start: Score | None = None) -> Score:
    """A value head for a model: as the reward model's, from which values start (Ouyang et al. 2022, appendix C.4), or
    one that says 0 everywhere."""
    head = Score(score_head.width(model), 1, device=model.device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    if start is not None:
        head.weight.data.copy_(start.weight.data)
        if start.bias is not None:
            head.bias.data.copy_(start.bias.data)
    return head


@dataclass
class Passes:
    """The forwards of a policy with a critic inside it.

    `model(..., fused_lm_head=True)` goes on as before; while `collect` is open, the values of the same tokens are
    gathered beside it, in the same call, so that DDP sees one forward for one backward.
    """

    lm: PreTrainedModel
    critic: Critic
    switchboard: Switchboard | None
    wanted: list[torch.Tensor] | None = None
    detached: bool = False

    @contextmanager
    def collect(self, *, detached: bool = False) -> Iterator[list[Any]]:
        """Gather values, (rows, positions) for each forward within.

        Args:
            detached: the values' gradient stops at the hidden states of a shared trunk.
        """
        self.wanted, self.detached = [], detached
        try:
            yield self.wanted
        finally:
            self.wanted = None

    def hidden(self, trunk: nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The last hidden states of a trunk, (rows, positions, width)."""
        places = {"position_ids": positions(mask)} if takes_positions(trunk) else {}
        found: torch.Tensor = trunk(input_ids=ids, attention_mask=mask, use_cache=False, **places).last_hidden_state
        return found

    def values(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The values of a critic that reads hidden states of its own."""
        if self.critic.backbone is not None:
            return self.critic.values(self.hidden(self.critic.backbone, ids, mask))
        assert self.switchboard is not None
        with self.switchboard.acting(self.critic.names):
            return self.critic.values(self.hidden(self.lm.base_model, ids, mask))


@contextmanager
def attached(lm: PreTrainedModel, critic: Critic, switchboard: Switchboard | None) -> Iterator[Passes]:
    """Put a critic into a policy's module, patched by TRL's fused head already; everything is as it was afterwards."""
    passes = Passes(lm, critic, switchboard)
    fused = lm.forward
    setattr(lm, NAME, critic)

    @functools.wraps(fused)
    def forward(*args: Any, **kwargs: Any) -> Any:
        if passes.wanted is None or not kwargs.get("fused_lm_head"):
            return fused(*args, **kwargs)
        seen: list[torch.Tensor] = []
        hook = lm.base_model.register_forward_hook(lambda _, __, output: seen.append(output.last_hidden_state))
        try:
            found = fused(*args, **kwargs)
        finally:
            hook.remove()
        if critic.shares:
            passes.wanted.append(critic.values(seen[0].detach() if passes.detached else seen[0]))
        else:
            passes.wanted.append(passes.values(kwargs["input_ids"], kwargs["attention_mask"]))
        return found

    lm.forward = forward
    try:
        yield passes
    finally:
        lm.forward = fused
        delattr(lm, NAME)


@contextmanager
def amended(lm: PreTrainedModel) -> Iterator[None]:
    """Within, TRL's pass for log-probabilities is given what it lacks, and spared what nobody reads.

    Rows padded on the left get positions that count from their first token: TRL sends none, and a model with absolute
    positions (GPT-2) would see other ones than when it generated. The last token of a row is left out: it is predicted
    by the one before it, and predicts nothing.
    """
    inner, places = lm.forward, takes_positions(lm.base_model)

    @functools.wraps(inner)
    def forward(*args: Any, **kwargs: Any) -> Any:
        if not kwargs.get("fused_lm_head") or kwargs.get("labels") is None:
            return inner(*args, **kwargs)
        kwargs["shift_labels"] = kwargs.pop("labels")[:, 1:]
        if places and kwargs.get("position_ids") is None:
            kwargs["position_ids"] = positions(kwargs["attention_mask"])
        for name in ("input_ids", "attention_mask", "position_ids"):
            if kwargs.get(name) is not None:
                kwargs[name] = kwargs[name][:, :-1]
        return inner(*args, **kwargs)

    lm.forward = forward
    try:
        yield
    finally:
        lm.forward = inner


def without_dropout(model: nn.Module) -> None:
    """Two passes over the same tokens give the same: TRL switches off modules only, some models and methods keep their
    rates as numbers."""
    for module, name, value in dropout_rates(model):
        setattr(module, name, no_rate(value))


def dropout_rates(model: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """Where a model holds a rate of dropout above 0, and the value there: layers of dropout, what others keep as a
    number, as attention does, or as a number for each adapter, as some of PEFT's methods do."""
    found: list[tuple[nn.Module, str, Any]] = []
    for module in model.modules():
        for name, value in vars(module).items():
            layer = "Dropout" in type(module).__name__
            drops = name == "p" if layer else "dropout" in name or name == "layerdrop"
            rates = value.values() if isinstance(value, dict) else [value]
            if drops and any(isinstance(rate, float) and rate > 0 for rate in rates):
                found.append((module, name, value))
    return found


def no_rate(value: Any) -> Any:
    """What stands in place of a value of `dropout_rates`."""
    return dict.fromkeys(value, 0.0) if isinstance(value, dict) else 0.0


def positions(mask: torch.Tensor) -> torch.Tensor:
    """(rows, tokens) -> positions from each row's first real token on, as `generate` counts them."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def takes_positions(trunk: nn.Module) -> bool:
    """Whether a trunk can be told positions; others take them from the mask, or need none."""
    return "position_ids" in inspect.signature(trunk.forward).parameters


def is_critic(name: str) -> bool:
    """Whether a parameter of the policy's module is the critic's, its adapter's included."""
    from align.rl.shared_base import VALUE

    return bool({NAME, VALUE} & set(name.split(".")))


def save(model: nn.Module, folder: Path) -> None:
    """Write every tensor that the critic trains."""
    found = {name: p.detach().cpu().contiguous() for name, p in model.named_parameters() if is_critic(name)}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.clone() for name, tensor in found.items()}, folder / FILE)


def load(model: nn.Module, folder: Path) -> None:
    """Put them back, exactly."""
    stored = load_file(folder / FILE)
    own = {name: p for name, p in model.named_parameters() if is_critic(name)}
    if stored.keys() != own.keys():
        raise ValueError("the critic of the checkpoint has other weights than this one")
    for name, parameter in own.items():
        parameter.data.copy_(stored[name])
