"""What replay keeps in stages that are not SFT: the same DPO, or PPO, without it and with it as a term of the loss.

    python -m benchmarks.replay_terms                          # three seeds of DPO at two rates, about ten CPU minutes
    python -m benchmarks.replay_terms --stage ppo --rates 1e-3 # PPO against a reward model
    python -m benchmarks.replay_terms --seeds 7 --runs runs    # one seed; the run folders are kept

One run a seed: a LoRA of the lab model learns the help desk by SFT with 20 % replay, and from that policy every stage
of the table goes on, so that all have the same start. The replay of the stages has two sources: three rows in four are
of the lab's set, one is of what SFT trained on. At the second rate DPO alone breaks. Figures
are those of the `report` items, which no gate judges; `gain` is the mean of the help desk's three measures, less that
after SFT, `skills` that of the ten skills, with the paired interval of its change against the base.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RATIO = 0.2
REPLAY = f"{{ratio: {RATIO}, sources: [{{data: lab/general, weight: 3}}, {{stage: sft, weight: 1}}]}}"
DESK = ("helpdesk correct", "helpdesk polite", "helpdesk parses")

START = """\
name: replay_terms
seed: {seed}
model: {{base: lab, dtype: float32, attn_implementation: eager}}
parameterization: {{method: lora, lora: {{r: 16, alpha: 32}}}}
forgetting: {{probes: lab, answers: false}}
stages:
  sft:
    data: lab/helpdesk
    replay: {{data: lab/general, ratio: {ratio}}}
    training: {{learning_rate: 5.0e-3, max_steps: {steps}, per_device_train_batch_size: 16, save_strategy: "no"}}
"""
REWARD = """\
  reward:
    policy: sft
    data: lab/helpdesk_preferences
    training: {learning_rate: 1.0e-3, max_steps: 80, per_device_train_batch_size: 16, save_strategy: "no"}
"""
STAGES = {
    "dpo": """\
  {id}:
    stage: dpo
    policy: sft
    data: lab/helpdesk_preferences
    training: {{learning_rate: {rate:g}, max_steps: {steps}, per_device_train_batch_size: 8, save_strategy: "no"}}
""",
    "ppo": """\
  {id}:
    stage: ppo
    policy: sft
    data: lab/helpdesk
    reward: reward
    kl: {{target: 2.0}}
    training:
      {{learning_rate: {rate:g}, max_steps: {steps}, per_device_train_batch_size: 16, steps_per_generation: 4,
      num_iterations: 2, max_completion_length: 24, save_strategy: "no"}}
""",
}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=STAGES, default="dpo")
    parser.add_argument("--seeds", type=int, nargs="+", default=[7, 8, 9])
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-4, 1e-3], help="of the stage that is compared")
    parser.add_argument("--steps", type=int, default=60, help="of the stage that is compared")
    parser.add_argument("--sft-steps", type=int, default=240)
    parser.add_argument("--runs", type=Path, help="keep the run folders here")
    options = parser.parse_args()
    print("| seed | after | task | gain | skills | against the base | FORGOT | CPU seconds |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        for seed in options.seeds:
            folder = (options.runs or Path(temporary)) / f"{options.stage}-{seed}"
            text = recipe(options.stage, seed, options.rates, options.steps, options.sft_steps)
            for row in rows(seed, run(text, folder)):
                print(row, flush=True)


def recipe(stage: str, seed: int, rates: list[float], steps: int, sft_steps: int) -> str:
    """One recipe: the start, and at each rate the stage without replay and with it."""
    text = START.format(seed=seed, ratio=RATIO, steps=sft_steps) + (REWARD if stage == "ppo" else "")
    for rate in rates:
        name = f"{stage}_{rate:.0e}".replace("-0", "").replace("-", "")
        for id, more in ((name, ""), (f"{name}_replay", f"    replay: {REPLAY}\n")):
            text += STAGES[stage].format(id=id, rate=rate, steps=steps) + more
    return text


def run(text: str, folder: Path) -> Path:
    """One run, in a folder of its own, which goes on where it was ended."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe_given.yaml").write_text(text, encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "align",
        "run",
        str(folder / "recipe_given.yaml"),
        "--run-dir",
        str(folder / "run"),
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return folder / "run"


def rows(seed: int, folder: Path) -> list[str]:
    """Markdown rows, one a stage."""
    found: dict[str, Any] = json.loads((folder / "forgetting.json").read_text(encoding="utf-8"))
    out, start = [], 0.0
    for stage in found["stages"][1:]:
        cells, mean = found["matrix"][stage], found["mean"][stage]["all"]
        outcome = json.loads((folder / "stages" / stage / "outcome.json").read_text(encoding="utf-8"))
        task = sum(cells[name]["score"] for name in DESK) / len(DESK)
        start = task if stage == "sft" else start
        skills = [name for name, probe in found["probes"].items() if probe["kind"] == "skill"]
        forgot = sum(cells[name]["verdict"] == "FORGOT" for name in skills)
        low, high = mean["ci95"]
        out.append(
            f"| {seed} | {stage} | {task:.3f} | {task - start:+.3f} | {mean['score']:.3f} | {mean['delta']:+.3f} "
            f"({low:+.3f} to {high:+.3f}) | {forgot} of {len(skills)} | {outcome['cpu_seconds']:.0f} |"
        )
    return out


if __name__ == "__main__":
    main()
