"""Every critic of PPO with every reference that it allows, on the lab: the KL held, the critic alive.

    python -m benchmarks.critics                     # twelve runs; about half an hour of CPU
    options: --only NAME..., --runs FOLDER

The chain is recipes/rlhf_qlora.yaml, or recipes/rlhf_full.yaml where every weight is trained, or the latter with LoRA
from the reward model on, at seed 7 with 30 rollouts. `KL` is the mean over the last third of the rollouts, `explained
variance` that of the last third together.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from align.rl import rollouts
from benchmarks import clock

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Setup:
    """A recipe, a critic and a reference."""

    recipe: str
    critic: str
    reference: str
    how: str  # the reference in words
    settings: tuple[str, ...] = ()  # of the recipe besides

    @property
    def chain(self) -> str:
        """The folder of the SFT and the reward model that it starts from."""
        return f"{self.recipe}{'_then_lora' if self.settings else ''}"

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.chain}-{self.critic}-{self.reference}"


# full weights from SFT, on which reward model and policy are adapters: without them the policy is its own reference
_LORA = "parameterization={method: lora, lora: {r: 16, alpha: 32}}"
THEN_LORA = (
    f"stages.reward.{_LORA}",
    f"stages.ppo.{_LORA}",
    "stages.reward.training.learning_rate=1.0e-3",
    "stages.ppo.training.learning_rate=5.0e-4",
    "stages.ppo.kl.coef=0.2",
)


SETUPS = [
    Setup("rlhf_qlora", "adapter", "auto", "the incoming adapter, kept"),
    Setup("rlhf_qlora", "adapter", "model", "a model of its own"),
    Setup("rlhf_qlora", "head", "auto", "the incoming adapter, kept"),
    Setup("rlhf_qlora", "head", "model", "a model of its own"),
    Setup("rlhf_qlora", "model", "auto", "the incoming adapter, kept"),
    Setup("rlhf_qlora", "model", "model", "a model of its own"),
    Setup("rlhf_full", "adapter", "auto", "adapters off", THEN_LORA),
    Setup("rlhf_full", "head", "auto", "adapters off", THEN_LORA),
    Setup("rlhf_full", "head", "auto", "swapped weights"),
    Setup("rlhf_full", "head", "model", "a model of its own"),
    Setup("rlhf_full", "model", "auto", "swapped weights"),
    Setup("rlhf_full", "model", "model", "a model of its own"),
]


DTYPE = {"rlhf_qlora": ("model.dtype=bfloat16",)}  # in which the table was measured


def run(setup: Setup, root: Path) -> str:
    """Run a setup, with SFT and reward model shared, and return its Markdown row."""
    recipe, started, folder = ROOT / f"recipes/{setup.recipe}.yaml", root / setup.chain, root / setup.name
    given = [
        part
        for one in ("forgetting.probes=none", *DTYPE.get(setup.recipe, ()), *setup.settings)
        for part in ("--set", one)
    ]
    common = [sys.executable, "-m", "align", "run", str(recipe), *given]
    if not started.is_dir():
        clock.cpu_seconds([*common, "--run-dir", str(started), "--set", "stages.ppo.training.max_steps=4"], root)
    if not folder.is_dir():
        shutil.copytree(started, folder)
    keys = ["--set", f"stages.ppo.critic={setup.critic}", "--set", f"stages.ppo.reference={setup.reference}"]
    clock.cpu_seconds([*common, "--run-dir", str(folder), *keys], root)
    stage = folder / "stages/ppo"
    outcome = json.loads((stage / "outcome.json").read_text(encoding="utf-8"))
    found, metrics = rollouts.read(stage / "rollouts.jsonl"), outcome["metrics"]
    held = abs(metrics["kl"] / metrics["kl_target"] - 1) <= 0.25
    cells = [
        f"{found[0].kl:g}",
        f"{metrics['kl']:.2f} of {metrics['kl_target']:g}{'' if held else ' (NOT within 25 %)'}",
        f"{metrics['explained_variance']:.2f}",
        f"{found[0].score:.2f} -> {metrics['score_last']:.2f}",
        f"{outcome['cpu_seconds']:.0f}",
        ", ".join(metrics["alarms"]) or "none",
    ]
    return f"| {setup.chain} | {setup.critic} | {setup.how} | {' | '.join(cells)} |"


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[setup.name for setup in SETUPS], metavar="NAME")
    parser.add_argument("--runs", type=Path, help="keep the run folders here")
    asked = parser.parse_args()
    clock.heading("critics: every critic of PPO with every reference, 30 rollouts on the lab")
    print("| recipe | critic | reference | first KL | KL | explained variance | score | CPU s | alarms |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        root = (asked.runs or Path(temporary)).resolve()
        root.mkdir(parents=True, exist_ok=True)
        for setup in SETUPS:
            if not asked.only or setup.name in asked.only:
                print(run(setup, root), flush=True)


if __name__ == "__main__":
    main()
