"""DeepSpeed with ZeRO-2: each process holds the whole model, and a part of the optimizer's state and of the gradients.

Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models". The weights stay whole
in each process, so that measuring and saving need no gathering. Weights, gradients and state stay in the precision that
the same stage has without DeepSpeed: its own bf16 mode, which would round trained weights, is switched off.
"""

from __future__ import annotations

import importlib.metadata
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.engines import command, world
from align.run_folder.launch import Launch, Place

if TYPE_CHECKING:
    from accelerate import PartialState
    from transformers import Trainer

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
    zero = {"zero_stage": launch.zero_stage, "offload_optimizer_device": "none", "offload_param_device": "none"}
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
    """Have DeepSpeed leave all weights in their precision; for bf16 the model casts by itself, as it does under DDP."""
    import torch

    plugin = trainer.accelerator.state.deepspeed_plugin
    for name in ("bf16", "fp16"):
        plugin.deepspeed_config[name] = {"enabled": False}
    plugin.hf_ds_config._dtype = torch.float32  # else the trainer rounds what comes in, such as a reference
    if trainer.args.bf16:
        world.cast(trainer)


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


def whole(trainer: Trainer) -> None:
    """Take DeepSpeed's wrapper off. Each trained weight gets memory of its own again: they were parts of one buffer."""
    engine = trainer.model_wrapped
    model = trainer.accelerator.unwrap_model(engine, keep_fp32_wrapper=False)
    if engine is model:  # nothing was left to train
        return
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.clone()
    engine.destroy()
