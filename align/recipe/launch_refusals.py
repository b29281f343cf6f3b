"""Launches that a stage cannot have: one row each, refused before a model is loaded and shown in docs/engines.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from align.errors import AlignError
from align.penalties import keys as penalties
from align.recipe.document import Document
from align.recipe.keys import Recipe
from align.recipe.plan import StagePlan
from align.run_folder.launch import Launch

_DDP = "write `launch: {engine: ddp, processes: N}` in the stage"
_UNTESTED = "it is not tested yet that they train as they do with ddp"
_SHARING = ("fsdp", "deepspeed")  # weights, gradients or state
_ZERO_3 = "deepspeed with zero_stage 3"
_IN_PARTS = ("fsdp", _ZERO_3)  # the weights too
_METHODS = ("full", "lora")
_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused")


@dataclass(frozen=True)
class Refusal:
    """One combination that is refused.

    Attributes:
        engines: of the launch; `_ZERO_3` is one of its own here.
        what: is combined with it, as it follows "the engine deepspeed with".
        why: it cannot work, or is not known to.
        instead: the nearest combination that works.
        is_there: whether a stage has it.
        issue: address of a library's own issue or pull request about it; empty where there is none.
    """

    engines: tuple[str, ...]
    what: str
    why: str
    instead: str
    is_there: Callable[[StagePlan, Recipe], bool]
    issue: str = ""

    @property
    def named(self) -> str:
        """The issue as a link that says whose it is; a dash where there is none."""
        _, _, path = self.issue.partition("github.com/")
        return f"[{path.split('/')[1]} {path.rpartition('/')[2]}]({self.issue})" if self.issue else "–"


def _has_terms(plan: StagePlan, recipe: Recipe) -> bool:
    stage = plan.program.stage
    replayed = (stage.replays == "term" or stage.samples) and plan.replays
    return bool(penalties.settings(plan.keys.model_dump())) or replayed


def _lora(plan: StagePlan) -> Mapping[str, Any]:
    """The keys of the stage's adapter; none where there is none."""
    found = plan.method_keys.model_dump().get("lora")
    return found if isinstance(found, dict) else {}


def compiles(training: Mapping[str, Any]) -> bool:
    """Whether training arguments have the model compiled; the last two do so by themselves."""
    return any(training.get(name) for name in ("torch_compile", "torch_compile_backend", "torch_compile_mode"))


def _optimizer(plan: StagePlan) -> str:
    return str(plan.training.get("optim", _OPTIMIZERS[0]))


REFUSALS: Final = (
    Refusal(
        _IN_PARTS,
        "a stage that samples answers (ppo, rloo, grpo, sdft)",
        "it samples from the model, of which each process has a part, and that is not tested yet",
        _DDP,
        lambda plan, _: plan.program.stage.samples,
        "https://github.com/huggingface/accelerate/issues/3425",
    ),
    Refusal(
        ("deepspeed",),
        "offload_optimizer in a stage that samples answers (ppo, rloo, grpo, sdft)",
        "what it clips apart, or leaves out, is taken from gradients that lie in main memory then, which is not tested",
        f"leave it out, or {_DDP}",
        lambda plan, _: plan.launch.offload_optimizer and plan.program.stage.samples,
    ),
    Refusal(
        ("deepspeed",),
        "vLLM (use_vllm)",
        "handing vLLM the weights of a model that DeepSpeed has wrapped is not tested yet",
        f"leave it out, or {_DDP}",
        lambda plan, _: bool(plan.training.get("use_vllm")),
    ),
    Refusal(
        _SHARING,
        "a stage of your own",
        "its trainer may keep its optimizer's state in another way, which checkpoints would not hold",
        _DDP,
        lambda plan, _: plan.program.name.endswith(".py"),
    ),
    Refusal(
        ("deepspeed",),
        "a method other than full and lora",
        f"of quantised bases, and of methods that read gradients as adalora does, {_UNTESTED}",
        f"choose `method: lora` or `full`, or {_DDP}",
        lambda plan, _: plan.method_keys.method not in _METHODS,
        "https://github.com/huggingface/peft/issues/2016",
    ),
    Refusal(
        ("fsdp",),
        "a method other than full, spectrum and lora",
        "4-bit weights stay whole in each process, and methods that read gradients or weights "
        f"between two steps would see parts of them; of all others {_UNTESTED}",
        f"choose `method: lora` or `full`, or {_DDP}",
        lambda plan, _: plan.method_keys.method not in (*_METHODS, "spectrum"),
        "https://github.com/huggingface/trl/pull/6343",
    ),
    Refusal(
        _IN_PARTS,
        "modules_to_save",
        "a head that the model ties to its embeddings would be shared out twice",
        f"leave it out, or {_DDP}",
        lambda plan, _: bool(_lora(plan).get("modules_to_save")),
        "https://github.com/huggingface/accelerate/pull/4171",
    ),
    Refusal(
        _IN_PARTS,
        "a LoRA with bias",
        "a head's bias is read past the engine's own way, and a bias in bfloat16 would be raised to float32",
        f"write `bias: none`, or {_DDP}",
        lambda plan, _: _lora(plan).get("bias", "none") != "none",
        "https://github.com/huggingface/accelerate/pull/3985",
    ),
    Refusal(
        (_ZERO_3,),
        "use_dora or target_parameters",
        "weights are read outside of the module that holds them, which is not tested yet",
        f"leave it out, or {_DDP}",
        lambda plan, _: bool(_lora(plan).get("use_dora") or _lora(plan).get("target_parameters")),
    ),
    Refusal(
        ("fsdp",),
        "a base in 4 or 8 bits",
        "quantised weights stay whole in each process",
        f"leave `quantization` out, or {_DDP}",
        lambda plan, _: plan.method_keys.method != "qlora" and bool(plan.method.quantization(plan.method_keys)),
        "https://github.com/huggingface/trl/pull/6343",
    ),
    Refusal(
        _SHARING,
        "every weight trained in half precision (model.dtype)",
        "the engine keeps and trains them in float32, and ends with other weights than ddp",
        f"write `dtype: float32` with `bf16: true`, or {_DDP}",
        lambda plan, recipe: (
            plan.trains_base
            and recipe.model.dtype in ("bfloat16", "float16")
            and (plan.launch.engine == "deepspeed" or plan.training.get("bf16") is not False)
        ),
        "https://github.com/huggingface/accelerate/pull/2674",
    ),
    Refusal(
        _SHARING,
        "arguments of DDP (ddp_bucket_cap_mb, ddp_static_graph, …)",
        "they do nothing where DDP does not train",
        f"leave them out, or {_DDP}",
        lambda plan, _: any(name.startswith("ddp_") and name != "ddp_timeout" for name in plan.training),
    ),
    Refusal(
        _SHARING,
        "a term beside the stage's own loss (ewc, l2_sp, kl_coef, replay in dpo, kto and stages that sample)",
        "terms are computed outside of the engine's wrapper, where it takes gradients away or holds parts of weights",
        f"remove it, or {_DDP}",
        _has_terms,
    ),
    Refusal(
        _SHARING,
        "an optimizer other than torch's AdamW",
        "a state that is no number for each weight cannot be shared out and put together again",
        f"write `optim: adamw_torch`, or {_DDP}",
        lambda plan, _: _optimizer(plan) not in _OPTIMIZERS,
        "https://github.com/bitsandbytes-foundation/bitsandbytes/issues/1633",
    ),
    Refusal(
        _SHARING,
        "fp16",
        "the scale of the gradients would be the engine's own",
        f"write `bf16: true`, or {_DDP}",
        lambda plan, _: bool(plan.training.get("fp16")),
    ),
    Refusal(
        _SHARING,
        "torch_compile",
        "compiling what the engine has wrapped is not tested yet",
        f"leave it out, or {_DDP}",
        lambda plan, _: compiles(plan.training),
        "https://github.com/pytorch/pytorch/issues/115484",
    ),
    Refusal(
        _SHARING,
        "measuring inside a stage (forgetting.every)",
        "measuring between two steps of such an engine is not tested yet",
        f"remove `forgetting.every`, or {_DDP}",
        lambda plan, recipe: recipe.forgetting.every is not None and plan.program.stage.gives == "policy",
    ),
)


def faults(read: Document, plans: list[StagePlan], recipe: Recipe) -> Iterator[AlignError]:
    """Every stage whose launch does not go with what it trains, at the launch that it has."""
    for plan in plans:
        for row in REFUSALS:
            if _names(plan.launch) & set(row.engines) and row.is_there(plan, recipe):
                what = f"stage '{plan.id}' cannot have the engine {plan.launch.engine} with {row.what}: {row.why}"
                at = ("launch",) if plan.keys.launch is None else ("stages", plan.id, "launch")
                yield read.fault(at, what, row.instead)


def _names(launch: Launch) -> set[str]:
    """What rows call its engine."""
    return {launch.engine, _ZERO_3} if launch.zero_stage == 3 else {launch.engine}


def table() -> str:
    """The rows as docs/engines.md shows them."""
    columns = ("engines", "with", "why it is refused", "the nearest that works", "a library's own issue")
    head = f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|\n"
    return head + "".join(
        f"| {_shown(row.engines)} | {row.what} | {row.why} | {row.instead} | {row.named} |\n" for row in REFUSALS
    )


def _shown(engines: tuple[str, ...]) -> str:
    return ", ".join("`deepspeed` with `zero_stage: 3`" if one == _ZERO_3 else f"`{one}`" for one in engines)
