"""Which alarms PPO raises: none in healthy runs, the right one in runs that were made to go wrong.

    python -m benchmarks.alarms                      # five healthy seeds and eight disasters; about 40 minutes of CPU
    python -m benchmarks.alarms --only healthy | disasters
    options: --seeds N..., --runs FOLDER

The healthy run is recipes/rlhf_qlora.yaml. A disaster changes its PPO stage, at seed 7, in two sizes. The thresholds of
align/rl/health.py were written before any of these was run, and none was moved since. One figure was: the explained
variance of a dead critic was the mean of those of five rollouts, and is that of the five together since healthy runs
(seed 10) were blamed for one rollout whose returns hardly varied. Hence the seeds from 12 on, and sizes of a critic's
disaster that were not run before.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from align.rl import rollouts
from benchmarks import clock

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "recipes/rlhf_qlora.yaml"
SEEDS = (12, 13, 14, 15, 16)
LENGTH = f"{ROOT}/benchmarks/length_reward.py:long"


@dataclass(frozen=True)
class Disaster:
    """A change of the healthy run's PPO stage, and the alarms that are right for it."""

    name: str
    settings: tuple[str, ...]
    right: frozenset[str]


def _length(weight: float) -> tuple[str, ...]:
    """Nothing but tokens is rewarded, and next to nothing holds the policy back."""
    fixed = "stages.ppo.kl={controller: fixed, coef: 0.01, target: 1.0}"
    return (f"stages.ppo.reward={{source: '{LENGTH}', weight: {weight}}}", fixed, "stages.ppo.replay=null", *EARLY)


# a policy that is not sure of its answers yet: one that is never tries a longer one
EARLY = ("stages.sft.training.max_steps=80",)
NO_PENALTY = "stages.ppo.kl={controller: fixed, coef: 0, target: 1.0}"
DISASTERS = [
    Disaster("a reward for length", _length(1), frozenset({"reward_hacking"})),
    Disaster("a reward for length, four times as large", _length(4), frozenset({"reward_hacking"})),
    Disaster(
        "coefficient 0, from an early policy", (NO_PENALTY, *EARLY), frozenset({"reward_hacking", "kl_explosion"})
    ),
    Disaster(
        "coefficient 0, twice the learning rate",
        (NO_PENALTY, "stages.ppo.training.learning_rate=1.0e-3"),
        frozenset({"reward_hacking", "kl_explosion"}),
    ),
    Disaster(
        "30 times the learning rate",
        ("stages.ppo.training.learning_rate=1.5e-2",),
        frozenset({"kl_explosion", "mode_collapse", "clipped", "not_finite"}),
    ),
    Disaster(
        "100 times the learning rate",
        ("stages.ppo.training.learning_rate=5.0e-2",),
        frozenset({"kl_explosion", "mode_collapse", "clipped", "not_finite"}),
    ),
    Disaster("a critic that is not trained", ("stages.ppo.critic_learning_rate=0",), frozenset({"dead_critic"})),
    Disaster(
        "a critic with 300 times the learning rate",
        ("stages.ppo.critic_learning_rate=0.15",),
        frozenset({"dead_critic"}),
    ),
]


def run(folder: Path, *settings: str, seed: int = 7) -> list[rollouts.Rollout]:
    """Run the recipe with some values changed; a run that fails is one too, as far as it came."""
    given = [f"seed={seed}", "model.dtype=bfloat16", "forgetting.probes=none", *settings]
    arguments = [part for one in given for part in ("--set", one)]
    command = [sys.executable, "-m", "align", "run", str(RECIPE), "--run-dir", str(folder), *arguments]
    try:
        clock.cpu_seconds(command, folder.parent)
    except SystemExit as error:
        print(f"<!-- {folder.name}: {error} -->")
    return rollouts.read(folder / "stages/ppo/rollouts.jsonl")


def row(name: str, found: list[rollouts.Rollout], right: frozenset[str]) -> str:
    """A Markdown row: the alarms with their rollouts, and whether they are what they should be."""
    raised = [(alarm.name, alarm.rollout) for one in found for alarm in one.alarms]
    told = ", ".join(f"{name} in {number}" for name, number in raised) or "none"
    fine = bool(right & {name for name, _ in raised}) if right else not raised
    last = found[-1]
    return f"| {name} | {told} | {last.score:.2f} | {last.kl:.2f} | {last.length:.1f} | {'yes' if fine else 'NO'} |"


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("healthy", "disasters"))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--runs", type=Path, help="keep the run folders here")
    asked = parser.parse_args()
    clock.heading("alarms: PPO of recipes/rlhf_qlora.yaml, healthy and made to go wrong")
    print("| run | alarms, with the rollout | score at the end | KL | tokens | right |")
    print("|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        root = (asked.runs or Path(temporary)).resolve()
        root.mkdir(parents=True, exist_ok=True)
        for seed in asked.seeds if asked.only != "disasters" else ():
            print(row(f"healthy, seed {seed}", run(root / f"healthy-{seed}", seed=seed), frozenset()), flush=True)
        if asked.only != "healthy":
            started = root / "started"  # SFT and reward model once
            if not started.is_dir():
                run(started, "stages.ppo.training.max_steps=4")
            for number, disaster in enumerate(DISASTERS):
                folder = root / f"disaster-{number}"
                shutil.rmtree(folder, ignore_errors=True)
                shutil.copytree(started, folder)
                print(row(disaster.name, run(folder, *disaster.settings), disaster.right), flush=True)


if __name__ == "__main__":
    main()
