"""Why the KL of a PPO run jumps from one rollout to the next, and what holds it.

    python -m benchmarks.kl_jumps            # 12 runs of `benchmarks.ppo`'s toy; about 15 minutes of CPU
    options: --seeds N..., --episodes N, --rate R (learning rate), --weight W (of the reward), --runs FOLDER (kept)

The reward is a random network, which has no opinion of length, and the learning rate three times that of
`benchmarks.ppo`. Gradients are not clipped, clipped together with the critic's, or apart from them; and the last also
with `target_kl`. `together` is what transformers does with all parameters of a model, and what a trainer does that has
its critic inside the policy's module and leaves clipping to it. align clips policy and critic apart.

Of each run: the highest KL of a rollout, the largest jump of it between two neighbours, and the length of answers and
the KL of a token on either side of that jump.
"""

from __future__ import annotations

import argparse
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from align.rl import rollouts
from align.runner import launch
from benchmarks import clock
from benchmarks.ppo_toy import COEF, MINIBATCH, NEW_TOKENS, PASSES, RATE, ROLLOUT, TOY, Bench

SEEDS = (1, 2, 3)
EPISODES = 2560
WEIGHT = 6.0
TARGET_KL = 0.03


class Way(NamedTuple):
    """How far an update may go."""

    max_grad_norm: float
    together: bool = False
    target_kl: float | None = None


WAYS = {
    "not clipped": Way(0.0),
    "together": Way(1.0, together=True),
    "apart": Way(1.0),
    f"apart, target_kl {TARGET_KL:g}": Way(1.0, target_kl=TARGET_KL),
}

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


def write_reward(folder: Path, base: Path) -> Path:
    """A random network that scores the last token of a text, of the shape of the base."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    if not folder.is_dir():
        config = AutoConfig.from_pretrained(base, num_labels=1, initializer_range=0.1)
        torch.manual_seed(0)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
        AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def run(
    bench: Bench, reward: dict[str, Any], name: str, seed: int, episodes: int, rate: float
) -> list[tuple[float, float]]:
    """KL and length of every rollout."""
    way = WAYS[name]
    file = bench.root / "together_ppo.py"
    file.write_text(TOGETHER, encoding="utf-8")
    stage: dict[str, Any] = {
        "policy": "base",
        "data": str(bench.prompts),
        "reward": reward,
        "critic": "model",
        "kl": {"controller": "fixed", "coef": COEF},
        "cliprange_value": 0.2,
        "target_kl": way.target_kl,
        "training": {
            "bf16": False,
            "save_strategy": "no",
            "learning_rate": rate,
            "max_grad_norm": way.max_grad_norm,
            "max_steps": episodes // ROLLOUT * PASSES * (ROLLOUT // MINIBATCH),
            "per_device_train_batch_size": MINIBATCH,
            "steps_per_generation": ROLLOUT // MINIBATCH,
            "num_iterations": PASSES,
            "max_completion_length": NEW_TOKENS,
        },
    }
    if way.together:
        stage["stage"] = str(file)
    folder = "_".join([*name.replace(",", "").split(), str(seed)])
    stages = bench.run(folder, {"ppo": stage}, seed, {"method": "full"})
    return [(one.kl, one.length) for one in rollouts.read(stages / "ppo/rollouts.jsonl")]


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--episodes", type=int, default=EPISODES)
    parser.add_argument(
        "--weight", type=float, default=WEIGHT, help="of the reward: how hard it pulls against the penalty"
    )
    parser.add_argument("--rate", type=float, default=3 * RATE, help="learning rate")
    parser.add_argument("--runs", type=Path, help="keep the run folders here; what is finished is not repeated")
    asked = parser.parse_args()
    clock.one_thread()
    launch.quiet()
    with tempfile.TemporaryDirectory() as temporary:
        root = (asked.runs or Path(temporary)).resolve()
        root.mkdir(parents=True, exist_ok=True)
        clock.heading(
            f"KL jumps: {asked.episodes} episodes, {ROLLOUT} a rollout, learning rate {asked.rate:g}, "
            f"weight {asked.weight:g}, seeds {asked.seeds}"
        )
        bench = Bench(root, TOY, prompts=512, pairs=0)
        reward = {"source": str(write_reward(root / "reward", bench.model)), "weight": asked.weight}
        print("| gradients | seed | highest KL | largest jump | its tokens an answer | its KL of a token |")
        print("|---|---|---|---|---|---|")
        jumps: dict[str, list[float]] = {name: [] for name in WAYS}
        for seed in asked.seeds:
            for name, found in jumps.items():
                told = run(bench, reward, name, seed, asked.episodes, asked.rate)
                before, after = max(pairwise(told), key=lambda pair: abs(pair[1][0] - pair[0][0]))
                found.append(abs(after[0] - before[0]))
                cells = [
                    f"{max(kl for kl, _ in told):.1f}",
                    f"{before[0]:.1f} -> {after[0]:.1f}",
                    f"{before[1]:.1f} -> {after[1]:.1f}",
                    f"{before[0] / before[1]:.2f} -> {after[0] / after[1]:.2f}",
                ]
                print(f"| {name} | {seed} | {' | '.join(cells)} |", flush=True)
        print()
        for name, found in jumps.items():
            print(f"{name}: largest jump {clock.spread(found, 1)}")


if __name__ == "__main__":
    main()
