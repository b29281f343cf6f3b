"""DeepSpeed: each process holds a part of the gradients and the state (ZeRO-2), and of the weights too (ZeRO-3).

Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models". Before and after
training the weights are whole in each process: where the model is loaded, measured and saved. Weights, gradients and
state have the precision of the same stage with `ddp`: DeepSpeed's own bf16 mode, which would round trained weights, is
switched off.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from align.engines import command, world
from align.engines.modules import Modules
from align.run_folder.launch import Launch, Place

if TYPE_CHECKING:
    import torch
    from accelerate import PartialState
    from transformers import Trainer

_BEFORE: WeakKeyDictionary[Trainer, Modules] = WeakKeyDictionary()  # what models are before ZeRO-3 shares them out

TESTED = ">=0.19.8,<0.20"  # as the extra `deepspeed` of this distribution has it
INSTALL = "DS_BUILD_OPS=0 pip install 'align-suite[deepspeed]'"
LOCK_SECONDS = 600.0  # compiling takes one minute


def missing(launch: Launch) -> tuple[str, str] | None:
    """What this machine lacks: the package; or it would wait for a compiler that is gone."""
    from packaging.specifiers import SpecifierSet

    try:
        installed = importlib.metadata.version("deepspeed")
    except importlib.metadata.PackageNotFoundError:
        return "the engine deepspeed needs the package 'deepspeed', which is not installed", INSTALL
    if not SpecifierSet(TESTED).contains(installed, prereleases=True):
        return f"deepspeed {installed} is installed, but align needs {TESTED}", INSTALL
    for lock in _extensions().glob("*/*/lock"):
        if time.time() - lock.stat().st_mtime > LOCK_SECONDS:  # PyTorch waits for as long as it is there
            what = "the compilation of an extension of DeepSpeed was broken off, and each run would wait for it"
            return what, f"remove {lock.parent}"
    return None


def _extensions() -> Path:
    """Where PyTorch compiles the extensions that DeepSpeed loads."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR", cache / "torch_extensions"))


def configuration(launch: Launch, place: Place) -> dict[str, Any] | None:
    """Of accelerate; what is not here, such as the batch size, the trainer fills in from its own arguments."""
    started = {"deepspeed_multinode_launcher": "standard"} if launch.machines > 1 else {}  # by pdsh otherwise
    zero = {"zero_stage": launch.zero_stage, "offload_param_device": "none"}
    zero["offload_optimizer_device"] = "cpu" if launch.offload_optimizer else "none"
    if launch.zero_stage == 3:
        zero["zero3_init_flag"] = False  # models are loaded whole
    return command.configured("DEEPSPEED", launch, place) | {"deepspeed_config": zero | started}


def begin(launch: Launch) -> PartialState:
    """Meet the other processes.

    Raises:
        AlignError: another number came up than was asked for, or accelerate was not told of DeepSpeed.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") != "true":
        raise world.another("DeepSpeed was requested, but the launch does not ask accelerate for it")
    return world.meet(launch)


def arguments(launch: Launch) -> dict[str, Any]:
    """It needs none."""
    return {}


def prepare(trainer: Trainer) -> None:
    """Have DeepSpeed leave all weights in their precision; for bf16 the model casts by itself, as it does under DDP.

    Of ZeRO-3 also the sizes of its buffers, and what the model is before.
    """
    import torch

    plugin = trainer.accelerator.state.deepspeed_plugin
    for name in ("bf16", "fp16"):
        plugin.deepspeed_config[name] = {"enabled": False}
    plugin.deepspeed_config["zero_force_ds_cpu_optimizer"] = False  # offloaded too, it is the recipe's own optimizer
    plugin.hf_ds_config._dtype = torch.float32  # else the trainer rounds what comes in, such as a reference
    if trainer.args.bf16:
        world.cast(trainer)
    if plugin.zero_stage == 3:
        plugin.deepspeed_config["zero_optimization"] |= _sizes(trainer.model)
        model: Any = trainer.model
        _BEFORE[trainer] = Modules(model)


def _sizes(model: Any) -> dict[str, Any]:
    """Of ZeRO-3's buffers; by default it keeps a billion weights whole, which is all of a smaller model."""
    layers = getattr(model.config, "num_hidden_layers", 1)
    two_layers = 2 * sum(parameter.numel() for parameter in model.parameters()) // layers
    auto = ("reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold")
    return dict.fromkeys(auto, "auto") | dict.fromkeys(
        ("stage3_max_live_parameters", "stage3_max_reuse_distance"), two_layers
    )


def prove(trainer: Trainer, launch: Launch) -> None:
    """Raises AlignError where what trains is not DeepSpeed at the stage that was asked for, in all processes."""
    kind, wrapped = trainer.accelerator.distributed_type.value, trainer.model_wrapped
    world.assert_number(launch, trainer.accelerator.num_processes)
    if kind != "DEEPSPEED" or type(wrapped).__name__ != "DeepSpeedEngine":
        raise world.another(
            f"DeepSpeed was requested, but the trainer is of the type {kind} and trains a {type(wrapped).__name__}"
        )
    stage, among = wrapped.zero_optimization_stage(), wrapped.dp_world_size
    if (stage, among) != (launch.zero_stage, launch.processes):
        asked = f"ZeRO-{launch.zero_stage} among {launch.processes} processes was requested"
        raise world.another(f"{asked}, but DeepSpeed runs ZeRO-{stage} among {among}")
    offloads = bool(getattr(wrapped.optimizer, "offload_optimizer" if stage == 3 else "cpu_offload", False))
    if wrapped.optimizer is not None and offloads != launch.offload_optimizer:
        where = "main memory" if launch.offload_optimizer else "the device's memory"
        raise world.another(f"the optimizer's state was to be kept in {where}, but DeepSpeed keeps it elsewhere")
    if stage == 3:
        from transformers.integrations.deepspeed import set_hf_deepspeed_config

        set_hf_deepspeed_config(trainer.accelerator.state.deepspeed_plugin.hf_ds_config)  # TRL asks for it in a loss


def left_out(trainer: Trainer) -> bool:
    """Whether gradients contained NaN or infinite values: DeepSpeed leaves such a step out in silence."""
    return bool(getattr(getattr(trainer.model_wrapped, "optimizer", None), "overflow", False))


def whole(trainer: Trainer) -> None:
    """Take DeepSpeed's wrapper off. Each trained weight gets memory of its own again: they were parts of one buffer."""
    engine = trainer.model_wrapped
    model = trainer.accelerator.unwrap_model(engine, keep_fp32_wrapper=False)
    if trainer.accelerator.state.deepspeed_plugin.zero_stage == 3:
        _take_off()
    if engine is model:  # nothing was left to train
        return
    if engine.zero_optimization_stage() == 3:
        _put_together(engine, model, _BEFORE.pop(trainer))
        return
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.clone()
    engine.destroy()


def _put_together(engine: Any, model: Any, before: Modules) -> None:
    """Have each process hold every weight whole again, and take off what ZeRO-3 has put around the modules."""
    import torch

    from align.policy.partitioned import reshard
    from align.policy.partitioned import whole as gathered

    reshard(model)
    if engine.optimizer is not None:  # what it holds is not needed any more, and the whole weights take its room
        engine.optimizer.optimizer.state.clear()
    made: dict[torch.Tensor, torch.nn.Parameter] = {}  # a weight may stand in several modules
    for parameter in model.parameters():
        with gathered(parameter) as tensor:
            made[parameter] = torch.nn.Parameter(tensor.detach().clone(), requires_grad=parameter.requires_grad)
    engine.destroy()
    for module in model.modules():
        whole_ones = {name: one if one is None else made[one] for name, one in module._parameters.items()}
        module._parameters = whole_ones  # it was of a class that gathers what is looked at
    before.restore()


def _take_off() -> None:
    """What ZeRO-3 has put in place for all models: a function of torch's, and what libraries ask for."""
    import torch
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    patches = importlib.import_module("deepspeed.runtime.zero.partition_parameters")
    own = torch.nn.functional.linear
    torch.nn.functional.linear = getattr(patches.InsertPostInitMethodToModuleSubClasses, "linear_bk", own)
