"""The proofs of one launch of a stage, from its start to what it saved; docs/ARCHITECTURE.md says what they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from align.parameterization import chain
from align.proofs import saved, weights
from align.proofs.start import Begins, Start
from align.proofs.weights import Digest
from align.run_folder import proofs
from align.run_folder.records import Ticket
from align.run_folder.stage_dir import StageDir
from align.stage.job import Job

_DRAWN = ("pvera",)
_AS_NO_CHANGE = ("full", "spectrum", "lora", "qlora", "adapter", "ia3")
ONE_PROCESS = "there is one process"


class Proving(Start):
    """All proofs of a stage; nothing is computed before the stage trains."""

    def __init__(self, here: StageDir, ticket: Ticket, world: Any) -> None:
        resumed = ticket.resume_from is not None
        super().__init__(here.proofs, ticket.fingerprint, world, resumed=resumed, begins=begins(ticket))
        self.names: set[str] = set()
        self.trained: dict[str, Digest] = {}

    def begin(self, job: Job) -> None:
        """Note which weights the stage trains of its own: PPO puts a critic beside them, which is saved elsewhere."""
        self.names = {name for name, parameter in job.model.named_parameters() if parameter.requires_grad}
        job.proving = self

    def ended(self, model: Any) -> None:
        """Hold the trained weights of all processes against each other. All call it.

        Raises:
            AlignError: they differ.
        """
        self.trained = weights.trained(model)
        found = weights.agree(self.trained, self.world)
        one: dict[proofs.Name, str] = {} if found else {"ranks_agree": ONE_PROCESS}
        self.made = self.made.model_copy(update={"ranks_agree": found, "absent": self.made.absent | one})

    def saved(self, folder: Path, model: Any) -> None:
        """Hold the saved model against the trained weights. Of the first process.

        Raises:
            AlignError: it is not what was trained.
        """
        own = {name: one for name, one in self.trained.items() if name in self.names}
        self.made = self.made.model_copy(update={"saved": saved.prove(folder, model, own)})


def begins(ticket: Ticket) -> Begins:
    """What the policy that a stage trains is at first beside the one that came in: the same where that one's own
    weights are trained further, or a new adapter of which it is known. A new prompt changes a policy at once, and so do
    some of PEFT's initialisations."""
    settings = ticket.parameterization
    own = chain.Layer.of(settings, ticket.stage)
    if settings["method"] in _DRAWN:
        return "drawn"
    if own.traits.trains_base or chain.continues(chain.layers(ticket.policy.adapters), own):
        return "equal"
    lora = settings.get("lora") or {}
    if settings["method"] not in _AS_NO_CHANGE or lora.get("init_lora_weights", True) not in (True, "gaussian"):
        return "changed"
    return "rounded" if lora.get("use_dora") else "equal"
