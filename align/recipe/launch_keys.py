"""The keys of `launch`: how many processes train, and how they share the model."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from align.run_folder.launch import Launch


class LaunchKeys(BaseModel):
    """`launch:` how the training processes are started and share the model."""

    model_config = ConfigDict(extra="forbid")
    engine: Literal["ddp", "fsdp", "deepspeed"] = Field(
        "ddp",
        description="how they share the model: `ddp`, each has all of it; `fsdp` (FSDP2), each trains a part of every "
        "weight; `deepspeed`, each has a part of what `zero_stage` says",
    )
    processes: int = Field(
        1, ge=1, le=1024, description="number of training processes on all machines, usually one per GPU"
    )
    machines: int = Field(1, ge=1, le=1024, description="number of machines that the processes are divided among")
    zero_stage: Literal[2, 3] | None = Field(
        None,
        description="of `deepspeed`: 2, its default, shares out the optimizer's state and the gradients; 3 the weights "
        "too",
    )
    offload_optimizer: bool = Field(
        False,
        description="of `deepspeed`: keep the optimizer's state, and the float32 weights that it updates, in main "
        "memory and take its steps there",
    )

    @model_validator(mode="after")
    def _of_engine(self) -> Self:
        if self.processes % self.machines:
            each = f"{self.processes} {'process' if self.processes == 1 else 'processes'}"
            what = f"{each} cannot be divided among {self.machines} machines"
            raise ValueError(f"{what}: write how many `processes` there are on all of them together")
        in_parts = {("fsdp", None): "fsdp", ("deepspeed", 3): "zero_stage: 3"}.get((self.engine, self.zero_stage))
        if in_parts and self.processes == 1:
            what = f"`{in_parts}` shares the weights among processes, and there is one"
            raise ValueError(f"{what}: write how many `processes`")
        if self.engine == "deepspeed":
            self.zero_stage = self.zero_stage or 2
        elif self.zero_stage is not None:
            raise ValueError(f"`zero_stage` does nothing with the engine {self.engine}; write `engine: deepspeed`")
        elif self.offload_optimizer:
            what = f"`offload_optimizer` does nothing with the engine {self.engine}"
            raise ValueError(f"{what}; write `engine: deepspeed`")
        return self

    @property
    def launch(self) -> Launch:
        """As a ticket holds it."""
        return Launch(**self.model_dump())
