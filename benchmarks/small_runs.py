"""Small runs of real trainers on the lab model, in processes that are forked from one that has imported everything."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from align.run_folder import checkpoints, files, heartbeats
from align.run_folder.paths import RunDir
from align.runner import processes
from benchmarks import clock

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import warm

SAVE_STEPS = 2
STEPS = {"sft": 8, "dpo": 6, "reward": 6, "ppo": 8}
CHAINS = {"SFT -> DPO": ("sft", "dpo"), "SFT -> reward -> PPO": ("sft", "reward", "ppo")}
ARGUMENTS = "training_args.bin"  # has the path of the run, and is not read again


def recipe(chain: str, seed: int = 3, probes: bool = False) -> str:
    """JSON is YAML."""

    def training(stage: str, **more: Any) -> dict[str, Any]:
        common = {"save_steps": SAVE_STEPS, "save_total_limit": 99, "logging_steps": 1, "bf16": False}
        return {**common, "max_steps": STEPS[stage], "per_device_train_batch_size": 4, "learning_rate": 1e-3, **more}

    pairs = {"source": "lab/helpdesk_preferences", "limit": 48}
    stages: dict[str, Any] = {
        "sft": {"data": {"source": "lab/helpdesk", "limit": 48}, "training": training("sft")},
        "dpo": {"policy": "sft", "data": pairs, "training": training("dpo", learning_rate=2e-4)},
        "reward": {"policy": "sft", "data": pairs, "training": training("reward")},
        "ppo": {
            "policy": "sft",
            "data": {"source": "lab/helpdesk", "limit": 32},
            "reward": "reward",
            "training": training("ppo", steps_per_generation=2, num_iterations=2, max_completion_length=12),
        },
    }
    return json.dumps(
        {
            "name": "kills",
            "seed": seed,
            "model": {"base": "lab", "dtype": "float32"},
            "parameterization": {"method": "lora"},
            "forgetting": {"probes": "lab", "items": 25} if probes else {"probes": "none"},
            "stages": {name: stages[name] for name in CHAINS[chain]},
        }
    )


class Run:
    """`align run` in the background, again and again in one folder."""

    def __init__(self, folder: Path, disk: Path, chain: str, *, seed: int = 3, probes: bool = False) -> None:
        self.folder, self.dir, self.stages = folder, RunDir(disk / "run"), CHAINS[chain]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recipe.yaml").write_text(recipe(chain, seed, probes), encoding="utf-8")

    def start(self) -> warm.Forked:
        """The command, forked, and its training process likewise."""
        if "command" not in warm._started:
            warm._started["command"] = warm.Warm(warm.LIGHT)
        words = ["run", str(self.folder / "recipe.yaml"), "--run-dir", str(self.dir.root)]
        environment = {**os.environ, **clock.OFFLINE, "COLUMNS": "1000", warm.TRAINING: warm._training().address}
        with (self.folder / "said.txt").open("ab") as out, Path(os.devnull).open("rb") as nothing:
            streams = [nothing.fileno(), out.fileno(), out.fileno()]
            address = warm._started["command"].address
            return warm.Forked(address, "align", words, streams, cwd=str(self.folder), env=environment)

    def trained_by(self) -> list[int]:
        """The training process, if it is there."""
        return [beat.pid for beat in heartbeats.read(self.dir).values() if not processes.is_gone(beat.pid)]

    def last_step(self, stage: str) -> int:
        with suppress(OSError, ValueError, IndexError, KeyError):
            lines = self.dir.stage(stage).metrics.read_text(encoding="utf-8").splitlines()
            return int(json.loads(lines[-1])["step"])
        return -1

    def is_at(self, stage: str, moment: str, step: int) -> bool:
        """Whether a stage is `starting`, `saving` the checkpoint of a step, or has made so many steps."""
        here = self.dir.stage(stage)
        if moment == "starting":
            return here.ticket.is_file()
        if moment == "saving":
            return (here.checkpoints / f"checkpoint-{step}").is_dir()
        return self.last_step(stage) >= step

    def checkpoints(self) -> dict[str, dict[str, str]]:
        """Hashes of the files of each whole checkpoint, by stage and step; of the trainer's state what is no time."""
        found = {}
        for stage in self.stages:
            for path in checkpoints.latest_first(self.dir.stage(stage).checkpoints):
                with suppress(OSError, KeyError, TypeError, ValueError):
                    listed = files.read_object(path / checkpoints.COMPLETE)["files"]
                    hashes = {name: one["sha256"] for name, one in listed.items() if name != ARGUMENTS}
                    state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
                    hashes["trainer_state.json"] = files.digest([state["global_step"], state["epoch"], _losses(state)])
                    found[f"{stage} {path.name}"] = hashes
        return found

    def losses(self) -> dict[str, dict[int, float]]:
        """The loss of each step of each stage, as it was made last."""
        found = {}
        for stage in self.stages:
            lines = map(json.loads, self.dir.stage(stage).metrics.read_text(encoding="utf-8").splitlines())
            found[stage] = {line["step"]: line["loss"] for line in lines if "loss" in line}
        return found

    def weights(self) -> dict[str, str]:
        """Hashes of what each stage hands on."""
        paths = sorted(path for name in self.stages for path in self.dir.stage(name).model.rglob("*.safetensors"))
        return {str(path.relative_to(self.dir.root)): files.file_sha256(path) for path in paths}


def _losses(state: dict[str, Any]) -> list[Any]:
    return [[entry.get("step"), entry.get("loss")] for entry in state["log_history"]]
