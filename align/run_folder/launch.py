"""How the processes that execute a stage are started and share its model, as a ticket holds it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Launch(BaseModel):
    """`launch:` of a stage. How it is trained, not what: none of it is in a fingerprint.

    Attributes:
        engine: a file of align/engines.
        processes: how many there are.
        zero_stage: what DeepSpeed shares out among them; None with another engine.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    engine: str = "ddp"
    processes: int = 1
    zero_stage: int | None = None

    @property
    def name(self) -> str:
        """What its files in the run folder are called."""
        return f"{self.engine}-{self.processes}"

    def __str__(self) -> str:
        zero = f" ZeRO-{self.zero_stage}" if self.zero_stage else ""
        return f"{self.engine}{zero}, {self.processes} {'process' if self.processes == 1 else 'processes'}"
