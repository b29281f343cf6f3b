"""PPO: a `ppo` stage of `align run` against the PPOTrainer that TRL had until 1.12, and what shared adapters save.

    python -m benchmarks.ppo            (a) the same toy on both sides, in turn, seeds 1 to 5
    python -m benchmarks.ppo memory     (b) policy, value and reward as adapters of one base against four models
    options: --seeds N..., --episodes N, --runs FOLDER (kept), --peer FOLDER (the environment of TRL 1.11)

(a) A Llama of half a million random parameters; a reward model that a `reward` stage trains once on pairs, where
answers with more words of one half of the vocabulary are better; 2,048 answers, 64 a rollout, four passes of four
minibatches over each; float32; the coefficient of the KL penalty stays. Gradients are not clipped, as TRL's trainer
does not. Seconds are CPU seconds of the trainers' `train()`: no imports, no loading, no checkpoints. Both sides run
with align's settings of glibc. TRL's side is benchmarks/trl_ppo.py in an environment of its own, made at the first run.

(b) A Llama of 152 million random parameters, float32, one rollout of four answers and its updates, each side in a
process of its own. Memory is what the process grew by over what it had after all imports, at its peak. The four models:
every weight of the policy is trained, and so is every weight of the critic.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import mean, median
from typing import Any

from scipy.stats import mannwhitneyu

from align.runner import launch
from benchmarks import clock
from benchmarks.ppo_toy import COEF, EPISODES, LARGE, MINIBATCH, NEW_TOKENS, PASSES, RATE, ROLLOUT, TOY, Bench

SEEDS = (1, 2, 3, 4, 5)
SIGNIFICANT = 0.05  # two-sided test of Mann and Whitney: above it, a difference is one that seeds make
ALIGN, TRL = "align", "TRL 1.11"
PEER = Path.home() / ".cache" / "align-benchmarks" / "trl-1.11"
TARGETS = {"seconds": 0.8, "memory": 0.45, "held": 0.35}


@dataclass(frozen=True)
class Result:
    """One run: mean score and KL of its last third, the highest KL of a rollout."""

    score: float
    kl: float
    peak: float
    seconds: float
    held: int

    @classmethod
    def of(cls, rollouts: Sequence[dict[str, Any]], seconds: float, held: int) -> Result:
        last = rollouts[-max(1, len(rollouts) // 3) :]
        kls = [one["kl"] for one in rollouts]
        return cls(mean(one["score"] for one in last), mean(one["kl"] for one in last), max(kls), seconds, held)


# ---- (a) ------------------------------------------------------------------------------------------------------------


def align_side(bench: Bench, reward: Path, seed: int, episodes: int) -> Result:
    """A `ppo` stage with a critic of its own."""
    stage = {
        "stage": str(bench.stage),
        "policy": "base",
        "data": str(bench.prompts),
        "reward": str(reward),
        "critic": "model",
        "reference": "auto",
        "kl": {"controller": "fixed", "coef": COEF},
        "cliprange_value": 0.2,
        "training": {
            "bf16": False,
            "save_strategy": "no",
            "learning_rate": RATE,
            "max_grad_norm": 0.0,
            "max_steps": episodes // ROLLOUT * PASSES * (ROLLOUT // MINIBATCH),
            "per_device_train_batch_size": MINIBATCH,
            "steps_per_generation": ROLLOUT // MINIBATCH,
            "num_iterations": PASSES,
            "max_completion_length": NEW_TOKENS,
        },
    }
    folder = bench.run(f"align{seed}", {"ppo": stage}, seed, {"method": "full"}) / "ppo"
    measured = json.loads((folder / "measured.json").read_text(encoding="utf-8"))
    lines = (folder / "rollouts.jsonl").read_text(encoding="utf-8").splitlines()
    return Result.of([json.loads(line) for line in lines], measured["seconds"], measured["held"])


def trl_side(bench: Bench, reward: Path, seed: int, episodes: int, python: Path) -> Result:
    """TRL's PPOTrainer, with the same weights, prompts and settings."""
    here = bench.root / f"trl{seed}"
    here.mkdir(exist_ok=True)
    settings = {
        "policy": str(bench.model),
        "reward": str(reward / "model"),
        "prompts": str(bench.prompts),
        "arguments": {
            "seed": seed,
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "learning_rate": RATE,
            "lr_scheduler_type": "constant",
            "total_episodes": episodes,
            # the whole rollout, from which the trainer cuts minibatches; with accumulation it would step once a pass
            "per_device_train_batch_size": ROLLOUT,
            "gradient_accumulation_steps": 1,
            "num_mini_batches": ROLLOUT // MINIBATCH,
            "num_ppo_epochs": PASSES,
            "response_length": NEW_TOKENS,
            "stop_token": "eos",
            "temperature": 1.0,
            "kl_coef": COEF,
            "num_sample_generations": 0,
        },
    }
    text, file, result = json.dumps(settings), here / "settings.json", here / "result.json"
    if not result.is_file() or file.read_text(encoding="utf-8") != text:
        result.unlink(missing_ok=True)
        file.write_text(text, encoding="utf-8")
        script = str(Path(__file__).with_name("trl_ppo.py"))
        clock.cpu_seconds([str(python), script, "settings.json", str(result)], here)
    found = json.loads(result.read_text(encoding="utf-8"))
    return Result.of(found["rollouts"], found["seconds"], found["held"])


def peer(folder: Path) -> Path:
    """The Python of an environment with a TRL that still has PPO, made where it is not there yet."""
    python = folder / "bin" / "python"
    if not (folder / "ready").is_file():
        print(f"making an environment with TRL 1.11 in {folder}", file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        # torch by itself, so that no other package asks for a build with CUDA
        subprocess.run([*install, f"torch=={version('torch').partition('+')[0]}"], check=True)
        subprocess.run([*install, "trl==1.11.*", f"transformers=={version('transformers')}"], check=True)
        (folder / "ready").touch()
    return python


def parity(root: Path, seeds: Sequence[int], episodes: int, python: Path) -> None:
    """Both sides in turn at each seed, then medians."""
    bench = Bench(root, TOY, prompts=512, pairs=2000)
    reward = bench.reward({"method": "full"}, learning_rate=1e-3, max_steps=120)
    print("| seed | side | score | KL | peak KL | CPU s | parameters held |")
    print("|---|---|---|---|---|---|---|")
    found: dict[str, list[Result]] = {ALIGN: [], TRL: []}
    for seed in seeds:
        for side, results in found.items():
            results.append(
                align_side(bench, reward, seed, episodes)
                if side == ALIGN
                else trl_side(bench, reward, seed, episodes, python)
            )
            print(_row(str(seed), side, results[-1]), flush=True)
    ours, theirs = found.values()
    for side, results in found.items():
        print(_row("median", side, *results))
    print()
    for what in ("score", "kl"):
        a, b = ([float(getattr(one, what)) for one in results] for results in (ours, theirs))
        p = float(mannwhitneyu(a, b).pvalue)
        told = f"{'agree' if p >= SIGNIFICANT else 'DIFFER'} (p {p:.2f})"
        print(f"{what}: align {clock.spread(a, 2)}, TRL {clock.spread(b, 2)}: medians {told}")
    ratio = median(a.seconds / b.seconds for a, b in zip(ours, theirs, strict=True))
    clock.verdict("CPU seconds, align / TRL", ratio, TARGETS["seconds"])


def _row(seed: str, side: str, *results: Result) -> str:
    def middle(name: str) -> float:
        return median(float(getattr(one, name)) for one in results)

    cells = f"{middle('score'):.2f} | {middle('kl'):.2f} | {middle('peak'):.1f} | {middle('seconds'):.1f}"
    return f"| {seed} | {side} | {cells} | {middle('held') / 1e6:.3f}M |"


# ---- (b) ------------------------------------------------------------------------------------------------------------


def memory(root: Path) -> None:
    """The two set-ups, one after the other."""
    bench = Bench(root, LARGE, prompts=16, pairs=64)
    lora = {"method": "lora", "lora": {"r": 8, "alpha": 16}}
    reward = bench.reward(lora, learning_rate=1e-4, max_steps=2, per_device_train_batch_size=4)
    print("| set-up | parameters held | memory after the rollout | at the peak |")
    print("|---|---|---|---|")
    sides = {
        "adapters of one base": (lora, {"critic": "adapter", "reference": "auto"}),
        "four models": ({"method": "full"}, {"critic": "model", "reference": "model"}),
    }
    found = []
    for title, (method, keys) in sides.items():
        stage = {
            "stage": str(bench.stage),
            "policy": "base",
            "data": str(bench.prompts),
            "reward": str(reward),
            **keys,
            "training": {
                "bf16": False,
                "save_strategy": "no",
                "max_steps": 4,
                "per_device_train_batch_size": 4,
                "steps_per_generation": 1,
                "num_iterations": 4,
                "max_completion_length": NEW_TOKENS,
            },
        }
        folder = bench.run(title.replace(" ", "_"), {"ppo": stage}, 1, method) / "ppo"
        measured = json.loads((folder / "measured.json").read_text(encoding="utf-8"))
        found.append(measured)
        gib = [measured[name] / 2**20 for name in ("sampled", "peak")]
        print(f"| {title} | {measured['held'] / 1e6:.1f}M | {gib[0]:.2f} GiB | {gib[1]:.2f} GiB |", flush=True)
    ours, theirs = found
    print()
    clock.verdict("memory at the peak, adapters / four models", ours["peak"] / theirs["peak"], TARGETS["memory"])
    clock.verdict("memory after the rollout", ours["sampled"] / theirs["sampled"], TARGETS["memory"])
    clock.verdict("parameters held", ours["held"] / theirs["held"], TARGETS["held"])


def main() -> None:
    """Run one of the two comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparison", nargs="?", choices=("parity", "memory"), default="parity")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--episodes", type=int, default=EPISODES)
    parser.add_argument("--runs", type=Path, help="keep the run folders here; what is finished is not repeated")
    parser.add_argument("--peer", type=Path, default=PEER, help="the environment of TRL 1.11")
    asked = parser.parse_args()
    clock.one_thread()
    launch.quiet()
    with tempfile.TemporaryDirectory() as temporary:
        root = (asked.runs or Path(temporary)).resolve()
        root.mkdir(parents=True, exist_ok=True)
        if asked.comparison == "memory":
            clock.heading("ppo memory: 152 million parameters, float32, one rollout of 4 answers")
            memory(root)
        else:
            python = peer(asked.peer)
            clock.heading(f"ppo: {asked.episodes} episodes, {ROLLOUT} a rollout, {PASSES} passes, seeds {asked.seeds}")
            parity(root, asked.seeds, asked.episodes, python)


if __name__ == "__main__":
    main()
