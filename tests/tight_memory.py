"""Shipped stages whose memory runs out, for the tests: where a process has too many rows at a time, as MEMORY says,
`4 rows from step 3 on` as `4:3`; in an evaluation of more than EVALUATED; or where it is MEGABYTES more than a process
has when it begins to train."""

import os
import resource
from dataclasses import replace
from pathlib import Path

from align.stage import Stage, program

FILE = f"""\
import sys

sys.path.append({str(Path(__file__).parent)!r})
from tight_memory import tight

STAGE = tight({{name!r}})
"""


def write(folder: Path, name: str) -> None:
    """A stage file, `tight_NAME.py`."""
    (folder / f"tight_{name}.py").write_text(FILE.format(name=name), encoding="utf-8")


def tight(name: str) -> Stage:
    """A shipped stage."""
    stage = program.load(name, Path()).stage

    def train(job):
        import torch
        from transformers import Trainer

        whole = Trainer.training_step
        rows, first = map(int, os.environ.get("MEMORY", "1024:0").split(":"))

        def training_step(self, *arguments, **named):
            if self.args.per_device_train_batch_size > rows and self.state.global_step + 1 >= first:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
            return whole(self, *arguments, **named)

        if "MEGABYTES" in os.environ:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * resource.getpagesize() + int(os.environ["MEGABYTES"]) * 2**20
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

        def evaluation_loop(self, *arguments, **named):
            if self.args.per_device_eval_batch_size > int(os.environ.get("EVALUATED", "1024")):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
            return evaluated(self, *arguments, **named)

        evaluated, Trainer.evaluation_loop = Trainer.evaluation_loop, evaluation_loop
        Trainer.training_step = training_step
        try:
            return stage.train(job)
        finally:
            Trainer.training_step, Trainer.evaluation_loop = whole, evaluated

    return replace(stage, train=train)
