"""Fully sharded data parallel (FSDP2): each process holds a part of each weight, of its gradient and of its state.

Zhao et al. 2023, "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel" (arXiv 2304.11277). The weights of
one layer at a time are whole in a process, while it computes with them. Before and after training they all are: where
the model is loaded, measured and saved. Weights, gradients and state have the precision of the same stage with `ddp`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from align.engines import command, world
from align.engines.modules import Modules
from align.errors import AlignError, Exit
from align.run_folder.launch import Launch, Place

if TYPE_CHECKING:
    from accelerate import PartialState
    from transformers import Trainer

_BEFORE: WeakKeyDictionary[Trainer, Modules] = WeakKeyDictionary()  # what models are before they are shared


def missing(launch: Launch) -> tuple[str, str] | None:
    """Nothing: it comes with torch."""
    return None


def configuration(launch: Launch, place: Place) -> dict[str, Any] | None:
    """Of accelerate. What is shared is each decoder layer, which the model names in `_no_split_modules`."""
    keys = {
        "version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "reshard_after_forward": True,
        "state_dict_type": "FULL_STATE_DICT",
        "cpu_ram_efficient_loading": False,  # it has each process but the first load a model without weights
        "offload_params": False,
        "activation_checkpointing": False,  # `gradient_checkpointing` of the trainer is the one way
    }
    return command.configured("FSDP", launch, place) | {
        "fsdp_config": {f"fsdp_{key}": value for key, value in keys.items()}
    }


def begin(launch: Launch) -> PartialState:
    """Meet the other processes.

    Raises:
        AlignError: another number came up than was asked for, or accelerate was not told of FSDP.
    """
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    if os.environ.get("ACCELERATE_USE_FSDP") != "true" or os.environ.get("FSDP_VERSION") != "2":
        raise world.another("FSDP2 was requested, but the launch does not ask accelerate for it")
    AcceleratorState._reset_state()  # of the stage before
    state = world.meet(launch)
    if state.device.type == "cpu":
        # accelerate shards among GPUs only, and trains with DDP otherwise, in silence; it is this type that it asks for
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    return state


def arguments(launch: Launch) -> dict[str, Any]:
    """That gradients are shared out after each micro-batch: summed up first, they would be whole in each process.

    On a CPU also that the type of the processes stays as `begin` set it.
    """
    import torch

    given: dict[str, Any] = {"gradient_accumulation_kwargs": {"sync_each_batch": True}}
    return {"accelerator_config": given | ({} if torch.cuda.is_available() else {"use_configured_state": True})}


def prepare(trainer: Trainer) -> None:
    """Say what is shared out as one, have the model cast as it does under DDP, and gradients summed in float32; note
    what the model is before.

    A layer is put together in bfloat16: cast by autocast alone, each weight would stay in both precisions until the
    backward pass. A reward model is put together in float32, since its head computes in the precision of its weights.

    Raises:
        AlignError: the model does not say what its layers are.
    """
    import torch
    from torch.distributed.fsdp import MixedPrecisionPolicy

    from align.policy.score_head import Score

    model: Any = trainer.model
    plugin = trainer.accelerator.state.fsdp_plugin
    named = set(getattr(model, "_no_split_modules", None) or ())
    layers = named & {type(module).__name__ for module in model.modules()}
    if not layers:
        what = f"a {type(model).__name__} does not say what its layers are, so FSDP2 would share out nothing by itself"
        raise AlignError(what, "write `engine: ddp`, or `deepspeed`", exit=Exit.STAGE_FAILED)
    plugin.transformer_cls_names_to_wrap = sorted(layers)
    if trainer.args.bf16:
        exact = any(isinstance(module, Score) for module in model.modules())
        whole, half = torch.float32, None if exact else torch.bfloat16
        plugin.mixed_precision_policy = MixedPrecisionPolicy(half, whole, whole, cast_forward_inputs=False)
        world.cast(trainer)
    _BEFORE[trainer] = Modules(model)


def prove(trainer: Trainer, launch: Launch) -> None:
    """Raises AlignError where a weight is not shared out among all processes."""
    from torch.distributed.tensor import DTensor

    from align.policy.partitioned import reshard

    kind = trainer.accelerator.distributed_type.value
    world.assert_number(launch, trainer.accelerator.num_processes)
    if kind != "FSDP" or not trainer.accelerator.is_fsdp2:
        raise world.another(f"FSDP2 was requested, but the trainer is of the type {kind}")
    model: Any = trainer.model
    reshard(model)  # the proof before the first step has passed through it
    for name, parameter in model.named_parameters():
        shared = isinstance(parameter, DTensor) and all(one.is_shard() for one in parameter.placements)
        if not shared or parameter.device_mesh.size() != launch.processes:
            raise world.another(f"FSDP2 was requested, but {name} is not shared out among {launch.processes} processes")


def left_out(trainer: Trainer) -> bool:
    """It makes every update."""
    return False


def whole(trainer: Trainer) -> None:
    """Put each weight together again, in every process, and take off what FSDP has put around the modules."""
    import torch

    from align.policy.partitioned import reshard

    model: Any = trainer.model
    if trainer.optimizer is not None:  # what it holds is not needed any more, and the whole weights take its room
        trainer.optimizer.zero_grad()
        trainer.optimizer.state.clear()
    reshard(model)
    before = _BEFORE.pop(trainer)
    made: dict[torch.Tensor, torch.nn.Parameter] = {}  # a weight may stand in several modules
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if hasattr(parameter, "full_tensor"):
                if parameter not in made:
                    full = parameter.detach().full_tensor()
                    made[parameter] = torch.nn.Parameter(full, requires_grad=parameter.requires_grad)
                setattr(module, name, made[parameter])
    before.restore()
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
