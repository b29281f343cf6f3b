"""Launches that a stage cannot have: one row each, refused before a model is loaded and shown in docs/engines.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from align.errors import AlignError
from align.forgetting.keys import ForgettingKeys
from align.penalties import keys as penalties
from align.recipe.document import Document
from align.recipe.plan import StagePlan

_DDP = "write `launch: {engine: ddp, processes: N}` in the stage"
_UNTESTED = "it is not tested yet that they train as they do without DeepSpeed"
_METHODS = ("full", "lora")
_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused")


@dataclass(frozen=True)
class Refusal:
    """One combination that is refused.

    Attributes:
        engine: of the launch.
        what: is combined with it, as it follows "DeepSpeed with" and "the engine deepspeed with".
        why: it cannot work, or is not known to.
        instead: the nearest combination that works.
        is_there: whether a stage has it.
    """

    engine: str
    what: str
    why: str
    instead: str
    is_there: Callable[[StagePlan, ForgettingKeys], bool]


def _has_terms(plan: StagePlan, forgetting: ForgettingKeys) -> bool:
    replayed = plan.program.stage.replays == "term" and plan.replays
    return bool(penalties.settings(plan.keys.model_dump())) or replayed


def compiles(training: Mapping[str, Any]) -> bool:
    """Whether training arguments have the model compiled; the last two do so by themselves."""
    return any(training.get(name) for name in ("torch_compile", "torch_compile_backend", "torch_compile_mode"))


def _optimizer(plan: StagePlan) -> str:
    return str(plan.training.get("optim", _OPTIMIZERS[0]))


REFUSALS: Final = (
    Refusal(
        "deepspeed",
        "a stage that samples answers (ppo, rloo, grpo, sdft)",
        "it samples from the model that DeepSpeed has wrapped, which is not tested yet",
        _DDP,
        lambda plan, _: plan.program.stage.samples,
    ),
    Refusal(
        "deepspeed",
        "a stage of your own",
        "its trainer may keep its optimizer's state in another way, which checkpoints would not hold",
        _DDP,
        lambda plan, _: plan.program.name.endswith(".py"),
    ),
    Refusal(
        "deepspeed",
        "a method other than full and lora",
        f"of quantised bases, and of methods that read gradients as adalora does, {_UNTESTED}",
        f"choose `method: lora` or `full`, or {_DDP}",
        lambda plan, _: plan.method_keys.method not in _METHODS,
    ),
    Refusal(
        "deepspeed",
        "a term beside the stage's own loss (ewc, l2_sp, kl_coef, replay in dpo and kto)",
        "DeepSpeed takes each gradient away as soon as it is there, and terms are computed outside of its wrapper",
        f"remove it, or {_DDP}",
        _has_terms,
    ),
    Refusal(
        "deepspeed",
        "an optimizer other than torch's AdamW",
        "a state that is no number for each weight cannot be shared out and put together again",
        f"write `optim: adamw_torch`, or {_DDP}",
        lambda plan, _: _optimizer(plan) not in _OPTIMIZERS,
    ),
    Refusal(
        "deepspeed",
        "fp16",
        "the gradients' scale would be DeepSpeed's own",
        f"write `bf16: true`, or {_DDP}",
        lambda plan, _: bool(plan.training.get("fp16")),
    ),
    Refusal(
        "deepspeed",
        "torch_compile",
        "compiling what DeepSpeed has wrapped is not tested yet",
        f"leave it out, or {_DDP}",
        lambda plan, _: compiles(plan.training),
    ),
    Refusal(
        "deepspeed",
        "measuring inside a stage (forgetting.every)",
        "measuring between two steps of DeepSpeed is not tested yet",
        f"remove `forgetting.every`, or {_DDP}",
        lambda plan, forgetting: forgetting.every is not None and plan.program.stage.gives == "policy",
    ),
)


def faults(read: Document, plans: list[StagePlan], forgetting: ForgettingKeys) -> Iterator[AlignError]:
    """Every stage whose launch does not go with what it trains, at the launch that it has."""
    for plan in plans:
        for row in REFUSALS:
            if plan.launch.engine == row.engine and row.is_there(plan, forgetting):
                what = f"stage '{plan.id}' cannot have the engine {row.engine} with {row.what}: {row.why}"
                at = ("launch",) if plan.keys.launch is None else ("stages", plan.id, "launch")
                yield read.fault(at, what, row.instead)


def table() -> str:
    """The rows as docs/engines.md shows them."""
    head = "| engine | with | why it is refused | the nearest that works |\n|---|---|---|---|\n"
    return head + "".join(f"| `{row.engine}` | {row.what} | {row.why} | {row.instead} |\n" for row in REFUSALS)
