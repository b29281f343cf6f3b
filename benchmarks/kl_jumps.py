"""Why the KL of a PPO run jumps: gradients not clipped, clipped together with the critic's, or apart from them.

    python -m benchmarks.kl_jumps            # 18 runs of `benchmarks.ppo`'s toy; about 15 minutes of CPU
    options: --seeds N..., --episodes N, --weight W (of the reward; 1), --runs FOLDER (kept)

`together` is what transformers does with all parameters of a model, and what a trainer does that has its critic inside
the policy's module and leaves clipping to it. align clips policy and critic apart. Of each run: the highest KL of a
rollout, the mean of the last third, and the largest jump from one rollout to the next.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

from align import launch
from benchmarks import clock
from benchmarks.ppo import COEF, MINIBATCH, NEW_TOKENS, PASSES, RATE, ROLLOUT, TOY, Bench

SEEDS = (1, 2, 3, 4, 5, 6)
EPISODES = 2048
WAYS = {"not clipped": (0.0, False), "together": (1.0, True), "apart": (1.0, False)}

# A stage file: the shipped stage, whose trainer clips as transformers does.
TOGETHER = """\
import dataclasses, sys
from pathlib import Path
from align import stage

SHIPPED = stage.load("ppo", Path()).stage

def train(job):
    from transformers import Trainer
    from align.trainers.ppo import PpoTrainer
    PpoTrainer._clip_grad_norm = Trainer._clip_grad_norm
    return SHIPPED.train(job)

STAGE = dataclasses.replace(SHIPPED, train=train)
"""


def run(bench: Bench, reward: dict[str, Any], way: str, seed: int, episodes: int) -> list[float]:
    """The KL of every rollout."""
    limit, together = WAYS[way]
    file = bench.root / "together_ppo.py"
    file.write_text(TOGETHER, encoding="utf-8")
    stage: dict[str, Any] = {
        "policy": "base",
        "data": str(bench.prompts),
        "reward": reward,
        "critic": "model",
        "kl": {"controller": "fixed", "coef": COEF},
        "cliprange_value": 0.2,
        "training": {
            "bf16": False,
            "save_strategy": "no",
            "learning_rate": RATE,
            "max_grad_norm": limit,
            "max_steps": episodes // ROLLOUT * PASSES * (ROLLOUT // MINIBATCH),
            "per_device_train_batch_size": MINIBATCH,
            "steps_per_generation": ROLLOUT // MINIBATCH,
            "num_iterations": PASSES,
            "max_completion_length": NEW_TOKENS,
        },
    }
    if together:
        stage["stage"] = str(file)
    folder = bench.run(f"{way.replace(' ', '_')}{seed}", {"ppo": stage}, seed, {"method": "full"}) / "ppo"
    lines = (folder / "rollouts.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["kl"] for line in lines]


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--episodes", type=int, default=EPISODES)
    parser.add_argument(
        "--weight", type=float, default=1.0, help="of the reward: how hard it pulls against the penalty"
    )
    parser.add_argument("--runs", type=Path, help="keep the run folders here; what is finished is not repeated")
    asked = parser.parse_args()
    clock.one_thread()
    launch.quiet()
    with tempfile.TemporaryDirectory() as temporary:
        root = (asked.runs or Path(temporary)).resolve()
        root.mkdir(parents=True, exist_ok=True)
        clock.heading(
            f"KL jumps: {asked.episodes} episodes, {ROLLOUT} a rollout, weight {asked.weight:g}, seeds {asked.seeds}"
        )
        bench = Bench(root, TOY, prompts=512, pairs=2000)
        trained = bench.reward({"method": "full"}, learning_rate=1e-3, max_steps=120)
        reward = {"source": str(trained), "weight": asked.weight}
        print("| gradients | seed | highest KL | largest jump | mean of the last third |")
        print("|---|---|---|---|---|")
        peaks: dict[str, list[float]] = {way: [] for way in WAYS}
        for seed in asked.seeds:
            for way, found in peaks.items():
                kls = run(bench, reward, way, seed, asked.episodes)
                jump = max(abs(b - a) for a, b in pairwise(kls))
                found.append(max(kls))
                late = mean(kls[-max(1, len(kls) // 3) :])
                print(f"| {way} | {seed} | {max(kls):.1f} | {jump:.1f} | {late:.2f} |", flush=True)
        print()
        for way, found in peaks.items():
            print(f"{way}: highest KL {clock.spread(found, 1)}, median {median(found):.1f}")


if __name__ == "__main__":
    main()
