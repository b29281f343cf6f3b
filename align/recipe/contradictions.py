"""What in a recipe does not go together: keys of one stage, and stages that follow each other. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from align.errors import AlignError, FaultList
from align.parameterization import chain
from align.policy.base import Base
from align.recipe import pipeline, training_arguments
from align.recipe.document import Document, dotted

if TYPE_CHECKING:
    from align.recipe.plan import StagePlan


def of_chain(read: Document, plans: Sequence[StagePlan], faults: FaultList) -> list[str]:
    """Whether each stage's parameterization can go on from those of the stages before it; notes on what changes."""
    policies: dict[str, list[chain.Layer]] = {pipeline.BASE: []}
    held: dict[str, Any] = {}
    notes = []
    for plan in plans:
        own = chain.Layer(plan.method, plan.method_keys, plan.id)
        try:
            policies[plan.id] = chain.after(policies[plan.policy], own)
            _check_copies(plan, policies)
        except AlignError as error:
            policies[plan.id] = [own]
            faults.found.append(read.fault(("stages", plan.id), error.what, error.remedy))
        held[plan.id] = None if plan.trains_base else plan.method.quantization(plan.method_keys)
        if plan.policy in held and not plan.trains_base and held[plan.policy] != held[plan.id]:
            what = f"'{plan.policy}' was trained on a base with different quantisation (4 or 8 bits, or none)"
            notes.append(f"stage {plan.id}: {what}, so its starting policy is slightly different")
    return notes


def _check_copies(plan: StagePlan, policies: Mapping[str, Sequence[chain.Layer]]) -> None:
    """Raises AlignError where a critic of its own would start from what cannot be merged into one."""
    if getattr(plan.keys, "critic", None) != "model":
        return
    start = plan.rewards[0] if plan.rewards else plan.policy
    stuck = next((layer for layer in policies.get(start, []) if not layer.traits.merges), None)
    if stuck is not None:
        what = f"the critic of stage '{plan.id}', a separate model, would start from '{start}', whose "
        what += f"{stuck.keys.method} cannot be merged"
        raise AlignError(what, "use `critic: adapter` or `critic: head`")


def of_stage(read: Document, plan: StagePlan, processes: int) -> list[AlignError]:
    """What of a stage does not go with its parameterization."""
    stage, method = plan.program.stage, plan.method_keys.method
    quantized = plan.method.quantization(plan.method_keys) is not None
    found = plan.keys.contradictions(method=method, trains_base=plan.trains_base, quantized=quantized)
    if (stage.gives == "reward" or "prompt" in stage.rows) and not plan.method.traits(plan.method_keys).inside:
        what = (
            f"stage '{plan.id}' cannot train {method}, which learns a prompt, because nothing can share a base with it"
        )
        found.append(("parameterization", what, "choose a method that acts in the layers, such as lora"))
    if "prompt" in stage.rows:
        found += [*_rollouts(plan, processes), *_online(plan)]
    return [
        *(read.fault(("stages", plan.id, key), what, remedy) for key, what, remedy in found),
        *_idle(read, plan),
    ]


def of_base(read: Document, plans: Sequence[StagePlan], base: Base) -> Iterator[AlignError]:
    """Training arguments for what the base has not."""
    if any("expert" in key for part in (base.config, base.config.get("text_config") or {}) for key in part):
        return
    for plan in plans:
        if plan.keys.training.get("router_aux_loss_coef"):
            path = ("stages", plan.id, "training", "router_aux_loss_coef")
            what = f"'{dotted(path)}' is for mixture-of-experts models, and '{base.name}' is not one"
            yield read.fault(path, what, "leave it out")


def _idle(read: Document, plan: StagePlan) -> Iterator[AlignError]:
    """Training arguments that would do nothing."""
    config = plan.program.stage.arguments
    if config is None:
        return
    keys = frozenset(type(plan.keys).model_fields)
    for name, what, remedy in training_arguments.idle(plan.keys.training, _values(plan, config), config, keys):
        path = ("stages", plan.id, "training", name)
        yield read.fault(path, what.replace("{key}", dotted(path)), remedy)


def notes(plan: StagePlan) -> list[str]:
    """What is said of a stage's training arguments and stops no run."""
    config = plan.program.stage.arguments
    if config is None:
        return []
    said = list(training_arguments.noted(plan.keys.training, _values(plan, config), config))
    passes = plan.training.get("steps_per_generation"), plan.training.get("num_iterations", 1)
    clips = next((name for name in ("epsilon", "epsilon_high", "delta") if name in plan.keys.training), None)
    if "prompt" in plan.program.stage.rows and clips and passes == (plan.global_batch[1], 1):
        said.append(f"`{clips}` has no effect: a rollout has only one update, made by the policy that sampled it")
    return [f"stage {plan.id}: {text}" for text in said]


def _values(plan: StagePlan, config: str) -> dict[str, Any]:
    """Of all arguments and keys of a stage."""
    defaults = {name: argument.default for name, argument in training_arguments.known(config).items()}
    keys = plan.keys.model_dump()
    evaluated = {"eval_strategy": "no" if keys.get("eval_data") is None else "steps"}  # as the engine has it
    return {**defaults, **evaluated, **plan.training, **keys}


def _online(plan: StagePlan) -> list[tuple[str, str, str]]:
    """What does not stand beside a reference and a critic on one base, or has nothing to act on."""
    found = []
    if "ptx_coef" in plan.keys.model_fields_set and not (plan.replay and plan.replay.ratio > 0):
        what = f"'ptx_coef' weights the loss on replayed rows, but stage '{plan.id}' has no replay"
        found.append(("ptx_coef", what, "give it a `replay:`, or leave `ptx_coef` out"))
    lora = getattr(plan.method_keys, "lora", None)
    if not plan.method.traits(plan.method_keys).switches:
        what = f"stage '{plan.id}' cannot train biases of the base, because they would change the reference too"
        found.append(("parameterization", what, "write `bias: none`"))
    if lora is not None and lora.modules_to_save and getattr(plan.keys, "critic", "head") in ("auto", "adapter"):
        what = f"stage '{plan.id}' trains modules in full, which its critic `adapter` would replace"
        found.append(("parameterization", what, "use `critic: head` or `critic: model`, or leave them out"))
    return found


def _rollouts(plan: StagePlan, processes: int) -> list[tuple[str, str, str]]:
    """Whether a rollout has answers to compare, of each prompt as many as it is to have, and ends with an update."""
    training = plan.training
    steps = training.get("steps_per_generation") or training["gradient_accumulation_steps"]
    sizes = (training["per_device_train_batch_size"], steps, training.get("num_generations", 1))
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        return []  # refused as arguments
    answers, each = sizes[0] * steps * processes, sizes[2]
    if answers < 2:
        what = f"stage '{plan.id}' would learn from one answer at a time, with nothing to compare it with"
        return [("training", what, "raise `steps_per_generation` or `per_device_train_batch_size`")]
    if answers % each:
        what = f"a rollout of stage '{plan.id}' has {answers} answers (per_device_train_batch_size x "
        what += f"steps_per_generation x processes), which is not a multiple of num_generations, {each}"
        return [("training", what, "change one of these")]
    if each < 2 <= plan.program.stage.defaults["all"].get("num_generations", 1):
        what = f"stage '{plan.id}' compares an answer with the others to its prompt, but num_generations is {each}"
        return [
            (
                "training",
                what,
                "write `num_generations: 2` or more, or use a `ppo` stage, whose critic needs no other answers",
            )
        ]
    passes, of_update = steps * training.get("num_iterations", 1), training["gradient_accumulation_steps"]
    if isinstance(of_update, int) and of_update > 0 and passes % of_update:
        what = (
            f"a rollout of stage '{plan.id}' is {passes} passes (steps_per_generation x num_iterations), which is not "
        )
        what += f"a multiple of gradient_accumulation_steps, {of_update}: an update would mix two rollouts"
        return [("training", what, "change one of these")]
    return []
