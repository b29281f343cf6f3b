"""What a parameterization declares: its recipe keys and what is true of the weights that it trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict


class ParameterizationKeys(BaseModel):
    """The key that every parameterization has."""

    model_config = ConfigDict(extra="forbid")
    method: str


@dataclass(frozen=True)
class Linear:
    """In which of its weights a method's update is linear: with these at a share of their change, the update is that
    share of itself, exactly.

    Attributes:
        factors: names of the parameters in which the update of a new adapter is linear, its others as trained; empty:
            all that are trained, from the values that training began with.
        further: of an adapter that a later stage has trained further: `alike` where its factors are all that it trains,
            `joined` where the old and the new one stand side by side in one of both ranks, None where no adapter lies
            between the two.
    """

    factors: tuple[str, ...] = ()
    further: Literal["alike", "joined"] | None = "alike"


NOT_LINEAR = "its update is not linear in the weights that it trains"


@dataclass(frozen=True)
class Traits:
    """What a chain of stages has to know of a parameterization; see align/parameterization/chain.py.

    Attributes:
        trains_base: base weights change, rather than stay frozen under an adapter.
        merges: its adapter can become part of base weights.
        continues: a later stage of the same settings trains its adapter further.
        stacks: its adapter can stay, frozen and active, under what a later stage trains.
        tops: its adapter can be trained on top of another.
        repeats: also on top of one of the same method with other settings.
        inside: it acts in the model's layers, so that a reward model's head, a critic and a reference can be beside it.
        switches: all of it can be switched off; not so where it trains biases of the base itself.
        adjoins: its adapters in a policy have to follow one another, with none of another method between them.
        saves_modules: it trains modules whole besides.
        any_module: it goes on more than linear layers.
        recomputes: its layers can be computed a second time in the backward pass (gradient checkpointing).
        imports: the module that makes PEFT know it; None where PEFT does by itself.
        trained_in: dtype of an adapter's weights in training.
        linear: what a share of its update is made of; or why there is none.
    """

    trains_base: bool = False
    merges: bool = True
    continues: bool = True
    stacks: bool = True
    tops: bool = True
    repeats: bool = True
    inside: bool = True
    switches: bool = True
    adjoins: bool = False
    saves_modules: bool = False
    any_module: bool = False
    recomputes: bool = True
    imports: str | None = None
    trained_in: Literal["float32", "bfloat16"] = "float32"
    linear: Linear | str = NOT_LINEAR
