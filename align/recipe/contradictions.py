"""What in a recipe does not go together: keys of one stage, and stages that follow each other. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from align.errors import AlignError, FaultList
from align.forgetting import probes
from align.forgetting.keys import ForgettingKeys
from align.parameterization import chain
from align.penalties import keys as penalties
from align.policy.base import Base, held_alike
from align.recipe import optimization, pipeline, training_arguments
from align.recipe.document import Document, dotted
from align.stage.keys import Setting

if TYPE_CHECKING:
    from align.recipe.plan import Loaded, StagePlan

Layers = Mapping[str, Sequence[chain.Layer]]
"""The adapters of a policy, by the stage that hands it on."""


def of_chain(read: Document, plans: Sequence[StagePlan], faults: FaultList) -> Layers:
    """The adapters that each stage hands on: whether its parameterization can go on from those that come in."""
    policies: dict[str, list[chain.Layer]] = {pipeline.BASE: []}
    for plan in plans:
        try:
            policies[plan.id] = chain.after(policies[plan.policy], plan.layer)
        except AlignError as error:
            policies[plan.id] = [plan.layer]
            faults.found.append(read.fault(("stages", plan.id), error.what, error.remedy))
    return policies


def of_probes(read: Document, keys: ForgettingKeys, plans: Sequence[StagePlan]) -> Iterator[AlignError]:
    """What is asked of probes, and cannot be done: names that none has, and ends that a method cannot come to."""
    names = probes.names(keys)
    unlimited = keys.unlimited(names) if names else None
    if unlimited:
        key = unlimited.partition(" ")[0]
        yield read.fault(("forgetting", *key.split(".")), unlimited, "correct the name, or remove it")
    yield from _of_kinds(read, keys, probes.texts(keys))
    unknown = keys.unwatched(names)
    if unknown:
        yield read.fault(("forgetting", "watch"), unknown, "correct the name, or remove it")
    for plan in plans:
        if keys.early_stop and plan.layer.keys.method == "adalora":
            what = f"`early_stop` cannot end stage '{plan.id}' early: AdaLoRA chooses its ranks over the whole training"
            yield read.fault(("forgetting", "early_stop"), what, "remove it, or choose another method, such as lora")


def _of_kinds(read: Document, keys: ForgettingKeys, texts: Mapping[str, bool]) -> Iterator[AlignError]:
    """Limits that would be held against nothing: of an accuracy for running text, of a perplexity for answers."""
    budgets = keys.budgets.named() if keys.budgets else {}
    for name in keys.max_drop if isinstance(keys.max_drop, dict) else ():
        if texts.get(name):
            what = f"max_drop has a limit for {name}, which is running text and has no accuracy"
            yield read.fault(("forgetting", "max_drop", name), what, "write `max_perplexity_ratio`, or remove it")
    for budget, other, of_text in (("accuracy", "perplexity", True), ("perplexity", "accuracy", False)):
        for name in budgets.get(budget, ()):
            if texts.get(name) is of_text:
                kind = "running text" if of_text else "no running text"
                what = f"budgets.{budget} names {name}, which is {kind}: it has no {budget}"
                remedy = f"write it under `budgets.{other}`, or remove it"
                yield read.fault(("forgetting", "budgets", budget, name), what, remedy)


def of_idle_keys(keys: ForgettingKeys) -> list[str]:
    """Notes on keys of `forgetting` that have nothing to act on."""
    general = probes.GENERAL_TEXT in probes.names(keys)
    idle = [] if general or keys.items == "auto" else ["`items` does nothing: it is for the probes of `general`"]
    chosen = general and keys.items == "auto"
    if keys.budget != ForgettingKeys().budget and not chosen:  # a run writes its default out
        idle.append("`budget` does nothing: it chooses the number of items of `general` with `items: auto`")
    if keys.on_budget == "stop" and not (keys.budgets and keys.budgets.given()):
        idle.append("`on_budget: stop` does nothing: there are no `budgets`")
    return [f"forgetting: {text}" for text in idle]


def of_precision(plans: Sequence[StagePlan]) -> list[str]:
    """Notes on stages that go on from a policy over a base in another precision."""
    held: dict[str, Any] = {}
    notes = []
    for plan in plans:
        held[plan.id] = None if plan.trains_base else plan.method.quantization(plan.method_keys)
        if plan.policy in held and not plan.trains_base and not held_alike(held[plan.policy], held[plan.id]):
            what = f"'{plan.policy}' was trained on a base with different quantisation (4 or 8 bits, or none)"
            notes.append(f"stage {plan.id}: {what}, so its starting policy is slightly different")
    return notes


def of_base_row(plans: Sequence[StagePlan], keys: ForgettingKeys) -> list[str]:
    """Notes on stages that start from the base in another precision than the one that it is measured in: once for the
    run, as its first stage loads it."""
    first, *others = plans
    measured = first.method.quantization(first.method_keys)
    return [
        f"stage {plan.id}: the base is measured as '{first.id}' loads it, with different quantisation (4 or 8 bits, or "
        "none), so what quantising costs is part of the changes"
        for plan in others
        if keys.probes != "none"
        and (plan.policy, plan.program.stage.gives) == (pipeline.BASE, "policy")
        and not held_alike(plan.method.quantization(plan.method_keys), measured)
    ]


def of_stage(read: Document, plan: StagePlan, layers: Layers) -> list[AlignError]:
    """What of a stage does not go with its parameterization, or with what comes in."""
    stage, method, traits = plan.program.stage, plan.method_keys.method, plan.layer.traits
    setting = Setting(
        own=plan.layer,
        replays=plan.replays,
        policy=plan.policy,
        rewards=plan.rewards,
        layers=layers,
    )
    found = plan.keys.contradictions(setting)
    settings = plan.keys.model_dump(include={penalties.EWC, penalties.L2_SP})
    found += penalties.faults(plan.id, settings, stage.gives, plan.method_keys.model_dump())
    if (stage.gives == "reward" or stage.samples) and not traits.inside:
        what = (
            f"stage '{plan.id}' cannot train {method}, which learns a prompt, because nothing can share a base with it"
        )
        found.append(("parameterization", what, "choose a method that acts in the layers, such as lora"))
    if plan.keys.on_nan == "skip" and method == "adalora":
        what = f"stage '{plan.id}' cannot leave steps out: AdaLoRA chooses its ranks by the gradients of every step"
        found.append(("on_nan", what, "remove `on_nan`, or choose another method, such as lora"))
    if stage.samples:
        found += _rollouts(plan, plan.launch.processes)
    if stage.samples and not traits.switches:
        what = f"stage '{plan.id}' cannot train biases of the base, because they would change the reference too"
        found.append(("parameterization", what, "write `bias: none`"))
    return [
        *(read.fault(("stages", plan.id, key), what, remedy) for key, what, remedy in found),
        *_recomputed(read, plan),
        *_idle(read, plan),
    ]


def goes(loaded: Loaded, plan: StagePlan, training: dict[str, Any]) -> bool:
    """Whether a stage could be trained with these training arguments, of fewer rows at a time, in place of its own."""
    if not plan.keys.splits(training):
        return False
    given = {name: value for name, value in training.items() if value != plan.training.get(name)}
    keys = plan.keys.model_copy(update={"training": {**plan.keys.training, **given}})
    layers = of_chain(loaded.document, loaded.stages, FaultList())
    other = replace(plan, training=training, keys=keys)
    return not of_stage(loaded.document, other, layers) and not any(optimization.faults(training))


def of_base(read: Document, plans: Sequence[StagePlan], base: Base) -> Iterator[AlignError]:
    """Training arguments for what the base has not."""
    if any("expert" in key for part in (base.config, base.config.get("text_config") or {}) for key in part):
        return
    for plan in plans:
        if plan.keys.training.get("router_aux_loss_coef"):
            path = ("stages", plan.id, "training", "router_aux_loss_coef")
            what = f"'{dotted(path)}' is for mixture-of-experts models, and '{base.name}' is not one"
            yield read.fault(path, what, "leave it out")


def _recomputed(read: Document, plan: StagePlan) -> Iterator[AlignError]:
    """Gradient checkpointing of a method whose layers cannot be computed twice."""
    for name in ("gradient_checkpointing", "activation_checkpointing"):
        if plan.keys.training.get(name) and not plan.layer.traits.recomputes:
            method = plan.method_keys.method
            what = (
                f"stage '{plan.id}' cannot train {method} with {name}: PEFT puts its vectors into the key-value cache, "
            )
            what += "which is not there when a layer is computed again"
            yield read.fault(("stages", plan.id, "training", name), what, "leave it out, or choose p_tuning or lora")


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
    if plan.program.stage.samples and clips and passes == (plan.global_batch[1], 1):
        said.append(f"`{clips}` has no effect: a rollout has only one update, made by the policy that sampled it")
    return [f"stage {plan.id}: {text}" for text in said]


def _values(plan: StagePlan, config: str) -> dict[str, Any]:
    """Of all arguments and keys of a stage."""
    defaults = {name: argument.default for name, argument in training_arguments.known(config).items()}
    keys = plan.keys.model_dump()
    evaluated = {"eval_strategy": "no" if keys.get("eval_data") is None else "steps"}  # as the engine has it
    return {**defaults, **evaluated, **plan.training, **keys}


def _rollouts(plan: StagePlan, processes: int) -> list[tuple[str, str, str]]:
    """Whether a rollout has answers to compare, of each prompt as many as it is to have, and ends with an update."""
    training = plan.training
    steps = training.get("steps_per_generation") or training["gradient_accumulation_steps"]
    sizes = (training["per_device_train_batch_size"], steps, training.get("num_generations", 1))
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        return []  # refused as arguments
    answers, each = sizes[0] * steps * processes, sizes[2]
    if answers < 2 and not plan.program.stage.demonstrated:
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
