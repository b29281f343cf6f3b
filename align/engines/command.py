"""The command line that starts the processes of a launch, and what they find in their environment."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align.run_folder.launch import Launch, Place

WORKER = "align.worker"
# What launchers and schedulers hand to their processes, and `accelerate launch` to its own. Found in the environment of
# `align run`, as under Kubeflow or torchrun, it makes one process wait for others, or train by another engine.
FOREIGN = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("PET_NNODES", "PET_NPROC_PER_NODE", "PET_NODE_RANK", "PET_MASTER_ADDR", "PET_MASTER_PORT", "PET_RDZV_ENDPOINT"),
    *("PET_RDZV_BACKEND", "PET_RDZV_ID", "PET_RDZV_CONF", "PET_STANDALONE", "PET_MAX_RESTARTS"),
    *("ACCELERATE_USE_CPU", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_MEGATRON_LM"),
    *("ACCELERATE_USE_PARALLELISM_CONFIG", "ACCELERATE_MIXED_PRECISION", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"),
    *("ACCELERATE_GRADIENT_CLIPPING", "ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_DEEPSPEED_CONFIG_FILE"),
    *("ACCELERATE_CONFIG_DS_FIELDS", "ACCELERATE_TORCH_DEVICE"),
    *("FSDP_VERSION", "FSDP_AUTO_WRAP_POLICY", "FSDP_TRANSFORMER_CLS_TO_WRAP", "FSDP_MIN_NUM_PARAMS"),
    *("FSDP_STATE_DICT_TYPE", "FSDP_OFFLOAD_PARAMS", "FSDP_IGNORED_MODULES", "FSDP_RESHARD_AFTER_FORWARD"),
    *("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    *("PMI_SIZE", "PMI_RANK", "MPI_LOCALNRANKS", "MPI_LOCALRANKID"),
    *("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_RANK"),
    *("FSDP_CPU_RAM_EFFICIENT_LOADING", "FSDP_SYNC_MODULE_STATES", "FSDP_ACTIVATION_CHECKPOINTING"),
)


def line(launch: Launch, configuration: Path | None, arguments: Sequence[str]) -> list[str]:
    """The command line that runs the worker in all processes.

    `-P` keeps the current folder off its path: a user's folder may hold a `datasets.py`.

    Args:
        configuration: the file for `accelerate launch`; None: one process, started without it.
    """
    python = [sys.executable, "-P", "-m"]
    if configuration is None:
        return [*python, WORKER, *arguments]
    given = ["--config_file", str(configuration)]  # whole: accelerate would fill it up from the user's own otherwise
    return [*python, "accelerate.commands.launch", *given, "--module", WORKER, *arguments]


def environment(launch: Launch) -> dict[str, str]:
    """What the processes find in their environment where the user has set nothing."""
    if launch.processes == 1:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, cores() * launch.machines // launch.processes))}


def cores() -> int:
    """How many cores this process may use, where the system says; else how many there are."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def configured(distributed_type: str, launch: Launch, place: Place) -> dict[str, Any]:
    """What every configuration of accelerate says: how many processes there are, and where they meet."""
    several: dict[str, Any] = {}
    if launch.machines > 1:
        several = {"main_process_ip": place.address, "rdzv_backend": "static", "same_network": True}
    return {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": distributed_type,
        "num_machines": launch.machines,
        "machine_rank": place.machine,
        "num_processes": launch.processes,
        "main_process_port": place.port,  # 0: accelerate looks for a free one
        **several,
        "mixed_precision": "no",  # the trainer's own arguments decide
        "use_cpu": False,
    }
