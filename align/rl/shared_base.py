"""What a stage holds on its one base: the adapters of the policy, its reference, its value and its reward models.

Worked out from the ticket alone, so that the adapters can be put beneath the one that the stage trains, and be found
again by name. Santacroce et al. 2023 (arXiv 2309.00754) call the shape Hydra.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.errors import AlignError
from align.parameterization import chain
from align.parameterization import method as methods
from align.parameterization.chain import Layer, beside
from align.policy import stack
from align.policy.base import held_alike
from align.run_folder.records import Adapter, Policy, Reward, Ticket

VALUE = "align_value"  # PEFT's name of the value adapter


@dataclass(frozen=True)
class Loading:
    """A finished adapter to be put on the base, by the name it gets there."""

    adapter: Adapter
    run: Path
    name: str


@dataclass
class Sets:
    """The adapters of a stage by what they are for, each a list of names in the order in which they were stacked.

    Attributes:
        policy: what is trained; its last is `default`.
        reference: the policy that came in.
        rewards: of the reward models on the same base, by their index in the ticket.
        value: of the critic `adapter`; None for the other critics.
        loads: what has to be put on the base beneath the trained adapter, the value adapter apart.
        value_from: the reward model whose last adapter the value adapter starts as; None for a new one.
    """

    policy: list[str]
    reference: list[str]
    rewards: dict[int, list[str]] = field(default_factory=dict)
    value: list[str] | None = None
    loads: list[Loading] = field(default_factory=list)
    value_from: int | None = None


def plan(ticket: Ticket, run: Path, *, value: bool = False) -> Sets | None:
    """The adapter sets of a stage; None where it trains base weights, on which no finished adapter fits any more.

    Args:
        run: the run folder.
        value: whether the critic is an adapter.
    """
    own = Layer.of(ticket.parameterization, ticket.stage)
    if own.traits.trains_base:
        return None
    incoming, quantization = ticket.policy.adapters, own.method.quantization(own.keys)
    called = stack.names(incoming)
    continues = chain.continues(chain.layers(incoming), own)
    sets = Sets(policy=[*(called[:-1] if continues else called), stack.TRAINED], reference=called)
    if continues:
        sets.loads.append(Loading(incoming[-1], run, called[-1]))
    on_it = list(incoming)
    for number, reward in enumerate(ticket.rewards):
        model, root = reward.model, Path(reward.root) if reward.root else run
        if model is None or not model.adapters or not _same_base(reward, ticket.policy, quantization, run):
            continue
        if _biased(model.adapters, root) != _biased(incoming, run):
            continue  # biases of the base stay as the last adapter that trains them has set them, whoever acts
        if not _fits(on_it, model.adapters, own, continues=continues):
            continue
        sets.rewards[number] = _names(sets, reward, number, incoming, run)
    if value:
        sets.value_from = next(iter(sets.rewards), None)
        below = sets.rewards[sets.value_from][:-1] if sets.value_from is not None else called
        sets.value = [*below, VALUE]
    return sets


def _same_base(reward: Reward, policy: Policy, quantization: dict[str, Any] | None, run: Path) -> bool:
    """Whether a reward model stands on the very weights that the stage holds."""
    model, root = reward.model, Path(reward.root) if reward.root else run
    assert model is not None
    own = (root / model.weights).resolve() if model.weights else None
    held = (run / policy.weights).resolve() if policy.weights else None
    return model.base.identity == policy.base.identity and own == held and held_alike(model.quantization, quantization)


def _biased(held: Sequence[Adapter], root: Path) -> list[Path]:
    """Those of adapters that change the base itself, in order."""
    pairs = zip(held, chain.layers(held), strict=True)
    return [(root / adapter.path).resolve() for adapter, layer in pairs if not layer.traits.switches]


def _fits(on_it: list[Adapter], more: Sequence[Adapter], own: Layer, *, continues: bool) -> bool:
    """Take a reward model's adapters to those on the base, if the stage's own can still go on top."""
    trial = list(on_it)
    if not beside(trial, list(more)):
        return False
    if not continues or len(trial) > len(on_it):  # then the policy's own is put on after those
        try:
            chain.check_top(chain.layers(trial), own)
        except AlignError:
            return False
    on_it[:] = trial
    return True


def _names(sets: Sets, reward: Reward, number: int, incoming: Sequence[Adapter], run: Path) -> list[str]:
    """The names of a reward model's adapters on the base; those that the policy has are not loaded again."""
    assert reward.model is not None
    root = Path(reward.root) if reward.root else run
    at = {run / adapter.path: name for adapter, name in zip(incoming, stack.names(incoming), strict=True)}
    at |= {load.run / load.adapter.path: load.name for load in sets.loads}
    names = []
    for adapter in reward.model.adapters:
        path = root / adapter.path
        if path not in at:
            at[path] = f"reward_{number}_{adapter.name}"
            sets.loads.append(Loading(adapter, root, at[path]))
        names.append(at[path])
    return names


def put(ticket: Ticket, model: Any, run: Path, *, value: bool = False) -> Any:
    """Put the adapters of `plan` onto the base, beneath the one that the stage is going to train."""
    sets = plan(ticket, run, value=value)
    if sets is None:
        return model
    for load in sets.loads:
        model = stack.put(model, [load.adapter], load.run, last=load.name)
    if sets.value is None:
        return model
    if sets.value_from is None:
        method = methods.load(ticket.parameterization["method"])
        keys = method.Keys.model_validate(ticket.parameterization)
        return method.apply(model, keys, VALUE)
    reward = ticket.rewards[sets.value_from]
    assert reward.model is not None
    root = Path(reward.root) if reward.root else run
    return stack.put(model, reward.model.adapters[-1:], root, last=VALUE)
