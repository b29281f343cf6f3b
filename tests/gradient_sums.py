"""The gradient that a trainer steps by, and those of losses alone: a term must add its own gradient, times its weight.

    whole = gradient_sums.of_update(trainer_with_the_term)
    plain = gradient_sums.of_update(trainer_without)
    alone = gradient_sums.of_loss(model, loss)       # over all rows of the update at once, by autograd
    assert gradient_sums.difference(whole, plain, [(weight, alone)]) < 1e-6

`in_processes` does the first two in several processes.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback

HERE = Path(__file__).parent
Gradients = dict[str, torch.Tensor]

PLAIN: dict[str, Any] = {
    "use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no", "logging_steps": 1, "seed": 3,
    "max_steps": 1, "learning_rate": 1e-2, "lr_scheduler_type": "constant", "optim": "sgd", "max_grad_norm": 0.0,
    "disable_tqdm": True, "train_sampling_strategy": "sequential", "gradient_checkpointing": False,
    "ddp_find_unused_parameters": False,
}  # fmt: skip
"""Training arguments under which the gradients of the first update are what the losses say, unclipped, in float32."""


class _Kept(TrainerCallback):
    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.updates: list[Gradients] = []

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.updates.append(_of(self.model))


def _of(model: nn.Module) -> Gradients:
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.detach().clone() for name, p in trained.items()}


def of_update(trainer: Any, number: int = 0) -> Gradients:
    """The gradients of an update, over its micro-batches and processes; trains to the end.

    Args:
        number: of the update, from 0.
    """
    kept = _Kept(trainer.model)
    trainer.add_callback(kept)
    trainer.train()
    return kept.updates[number]


def of_loss(model: nn.Module, loss: Callable[[nn.Module], torch.Tensor]) -> Gradients:
    """The gradients of a loss by itself; leaves none behind."""
    model.zero_grad()
    loss(model).backward()
    found = _of(model)
    model.zero_grad()
    return found


def difference(whole: Gradients, plain: Gradients, parts: Sequence[tuple[float, Gradients]]) -> float:
    """The largest absolute difference between `whole` and `plain` + the weighted parts."""
    assert whole.keys() == plain.keys() and all(part.keys() == whole.keys() for _, part in parts)
    worst = 0.0
    for name, found in whole.items():
        expected = plain[name] + sum((weight * part[name] for weight, part in parts), torch.zeros_like(found))
        worst = max(worst, float((found - expected).abs().max()))
    return worst


def size(gradients: Gradients) -> float:
    """The largest absolute value: one that is no larger than the tolerance would prove nothing."""
    return max(float(gradient.abs().max()) for gradient in gradients.values())


def in_processes(make: str, folder: Path, cases: Sequence[dict[str, Any]], processes: int = 2) -> list[Gradients]:
    """`of_update` of trainers in several processes, by gloo on the CPU, as the first process has it.

    Args:
        make: `module:function` of this folder; called with the keywords of a case, returns a trainer.
        folder: for files.
        cases: what json can hold.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(processes):
        world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
        environment = {**os.environ, **{name: str(value) for name, value in world.items()}}
        environment |= {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parent), environment.get("PYTHONPATH", "")])
        arguments = [sys.executable, __file__, make, str(folder), json.dumps(cases)]
        started.append(
            subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    said = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0] * processes, "\n".join(said)
    return [load_file(folder / f"gradients-{number}.safetensors") for number in range(len(cases))]


def _main(make: str, folder: str, cases: str) -> None:
    module, name = make.split(":")
    maker = getattr(importlib.import_module(module), name)
    for number, case in enumerate(json.loads(cases)):
        found = of_update(maker(**case))
        if os.environ["RANK"] == "0":
            save_file(
                {key: value.contiguous() for key, value in found.items()},
                Path(folder) / f"gradients-{number}.safetensors",
            )
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    _main(*sys.argv[1:])
