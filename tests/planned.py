"""A stage to be traced and to be trained: the same ticket, with the same rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from align.lab import data
from align.planning import depths
from align.planning.questions import STEPS
from align.planning.records import Asked
from align.run_folder import files
from align.run_folder.paths import RunDir
from align.run_folder.records import BaseModelIdentity, Policy, Reward
from models import Stages, settings

ROWS, BATCH = 64, 4
OWN = "def reward(completions, **_):\n    return [float(len(str(one))) for one in completions]\n"


def case(folder: Path, model: Path, method: str, program: str, **training: Any) -> tuple[Stages, Asked]:
    """A stage on a model, with a batch of the longest rows of the lab again and again, and the question about it."""
    stages = Stages(RunDir(folder))
    stages.run.data.mkdir(parents=True, exist_ok=True)
    base = Policy(base=BaseModelIdentity(name="model", path=str(model), identity="model"))
    pairs = program in ("dpo", "reward", "kto")
    rows = sorted(data.rows("lab/helpdesk_preferences" if pairs else "lab/helpdesk", n=64), key=_length)[-BATCH:]
    if program == "kto":
        sides = [("chosen", True), ("rejected", False)]
        rows = [
            {"prompt": row["prompt"], "completion": row[name], "label": good} for row in rows for name, good in sides
        ][:BATCH]
    given: dict[str, Any] = {"bf16": False, "max_steps": STEPS, "per_device_train_batch_size": BATCH, **training}
    rewards = []
    if program == "ppo":
        files.write_text(folder / "own.py", OWN)
        rewards = [Reward(name="own", kind="function", weight=1.0, path=str(folder / "own.py"), function="reward")]
        given = {"max_completion_length": 16, "steps_per_generation": 1, "num_iterations": 1} | given
    chosen = settings(method, **({"spectrum": {"snr_threshold": 0.5}} if method == "spectrum" else {}))
    ticket = stages.ticket(
        "one", program, base, chosen, rows=[rows[at % BATCH] for at in range(ROWS)], rewards=rewards, **given
    )
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    count = depths.layers(config)
    assert count is not None
    pair = (2, 4) if count > depths.WHOLE else (count,)
    return stages, Asked(ticket=ticket, layers=count, depths=pair)


def _length(row: dict[str, Any]) -> int:
    return len(json.dumps(row))
