"""How the processes that execute a stage are started and share its model, as a ticket holds it."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict


class Launch(BaseModel):
    """`launch:` of a stage. How it is trained, not what: none of it is in a fingerprint.

    Attributes:
        engine: a file of align/engines.
        processes: how many there are, on all machines together.
        machines: that they are divided among.
        zero_stage: what DeepSpeed shares out among them; None with another engine.
        offload_optimizer: whether DeepSpeed keeps the optimizer's state in main memory.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    engine: str = "ddp"
    processes: int = 1
    machines: int = 1
    zero_stage: int | None = None
    offload_optimizer: bool = False

    @property
    def name(self) -> str:
        """What its files in the run folder are called."""
        several = f"-on-{self.machines}" if self.machines > 1 else ""
        zero = f"-zero{self.zero_stage}" if self.zero_stage == 3 else ""
        offload = "-offload" if self.offload_optimizer else ""
        return f"{self.engine}{zero}{offload}-{self.processes}{several}"

    def __str__(self) -> str:
        zero = f" ZeRO-{self.zero_stage}" if self.zero_stage else ""
        several = f" on {self.machines} machines" if self.machines > 1 else ""
        offload = " with the optimizer in main memory" if self.offload_optimizer else ""
        number = f"{self.processes} {'process' if self.processes == 1 else 'processes'}"
        return f"{self.engine}{zero}{offload}, {number}{several}"


@dataclass(frozen=True)
class Place:
    """Which of the machines this is, and where all processes meet.

    Attributes:
        machine: its number; the first, 0, runs the recipe.
        address: of the first machine, as the others reach it.
        port: there; 0 where one that is free is looked for.
    """

    machine: int = 0
    address: str = ""
    port: int = 0


ALONE = Place()
