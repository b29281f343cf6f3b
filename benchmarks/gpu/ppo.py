"""Peak memory of PPO of a 7B-shaped Llama whose four roles share one 4-bit base, and seconds of a rollout, on one GPU.

    python -m benchmarks.gpu.ppo --out ppo.json   # all cases; one that fails is a row with its error
    python -m benchmarks.gpu.ppo --dry            # the same code with a tiny shape on the CPU
    options: --cases NAME..., --runs FOLDER (keeps model and runs there; what is there already is not made again)

Each case is an `align run` of its own: a reward model on the base, 2 steps, then PPO against it, QLoRA both. A rollout
is 16 answers of at most 128 tokens to prompts of 128, learnt from once, in 2 updates of 8. The weights are random and
written to a folder (13.5 GB, about a minute), a layer at a time; the network is not used. Random weights hardly ever
say the end token, so that all answers come to the limit.

Peaks are those of a stage, its loading included, in GB of 10^9 bytes, without the memory outside PyTorch's allocator.
Seconds go from one line of metrics.jsonl to another; those of the first rollout are left out of the median.

A set-up of four models is not run, as it would not fit: what it holds is computed from the shape, without activations
and without the cache of sampling. The same is computed for the one base, to be compared with. Value and reward model
have no language-model head. The first row is the least that training every weight of policy and value takes: weights in
bfloat16, gradients and AdamW's moments in float32. align's `full` holds weights in float32, frozen copies as well.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from align.rl import rollouts
from benchmarks import clock
from benchmarks.gpu import memory
from benchmarks.gpu.memory import ROOT, Row, Shape
from benchmarks.synthetic import TEMPLATE, Writer, write_rows

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

RANK = 16
CASES = {"ppo-7b-adapter": "adapter", "ppo-7b-head": "head"}  # the critic of each
INDEX = "model.safetensors.index.json"  # written last


@dataclass(frozen=True)
class Scale:
    """How much is measured: tokens of a prompt and of an answer, answers of a pass, passes of a rollout, rollouts."""

    shape: Shape
    prompt: int
    answer: int
    batch: int
    passes: int
    rollouts: int


REAL = Scale(memory.REAL.shapes["7B"], prompt=128, answer=128, batch=8, passes=2, rollouts=3)
TINY = Scale(replace(memory.TINY.shapes["7B"], vocab_size=320), prompt=48, answer=8, batch=2, passes=2, rollouts=3)

# ---- the model and its data -----------------------------------------------------------------------------------------


def tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte, three special ones, and a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    entries = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    raw = Tokenizer(models.BPE(vocab={entry: i for i, entry in enumerate(entries)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(special)
    made = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token=special[0], eos_token=special[2])
    made.chat_template = TEMPLATE
    return made


def write_model(shape: Shape, folder: Path) -> None:
    """A Llama with random bfloat16 weights and the tokenizer; one layer is in memory at a time."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    words = tokenizer()
    ends = {"bos_token_id": None, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    config = LlamaConfig(**asdict(shape), max_position_embeddings=1024, tie_word_embeddings=False, **ends)
    config.architectures, config.dtype = ["LlamaForCausalLM"], torch.bfloat16
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    words.save_pretrained(folder)
    with torch.device("meta"):
        meta = LlamaForCausalLM(config).state_dict()
    torch.manual_seed(0)
    shards: dict[str, list[str]] = {}
    for name in meta:
        part = name.split(".")[2] if name.startswith("model.layers.") else "rest"
        shards.setdefault(f"model-{part}.safetensors", []).append(name)
    for file, names in shards.items():
        save_file({name: _random(meta[name]) for name in names}, folder / file, metadata={"format": "pt"})
    placed = {name: file for file, names in shards.items() for name in names}
    size = sum(2 * tensor.numel() for tensor in meta.values())
    index = {"metadata": {"total_size": size}, "weight_map": placed}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _random(meta: torch.Tensor) -> torch.Tensor:
    """A matrix of a normal distribution, or a norm of ones."""
    import torch

    values = torch.empty(meta.shape, dtype=torch.bfloat16)
    return values.normal_(std=0.02) if meta.ndim > 1 else values.fill_(1)


def rows(scale: Scale) -> dict[str, list[Row]]:
    """Pairs for the reward model, and prompts for PPO; all prompts are of one length."""
    words, writer = tokenizer(), Writer(1)

    def turn(role: str, length: int) -> list[dict[str, str]]:
        return [{"role": role, "content": writer.text(length)[:length]}]  # a token is a byte

    around = len(words.apply_chat_template(turn("user", 0), add_generation_prompt=True)["input_ids"])
    asked, answers = scale.prompt - around, {"chosen": scale.answer, "rejected": scale.answer // 2}
    return {
        "pairs": [
            {"prompt": turn("user", asked), **{side: turn("assistant", length) for side, length in answers.items()}}
            for _ in range(3 * scale.batch)
        ],
        "prompts": [{"prompt": turn("user", asked)} for _ in range(scale.rollouts * scale.batch * scale.passes)],
    }


def recipe(name: str, scale: Scale, here: Path) -> Row:
    """What `align run` is asked to do, with the model and the rows of a folder."""
    quiet = {"save_strategy": "no", "logging_steps": 1, "per_device_train_batch_size": scale.batch}
    sampling = {
        "max_steps": scale.rollouts * scale.passes,
        "steps_per_generation": scale.passes,
        "num_iterations": 1,
        "max_completion_length": scale.answer,
    }
    return {
        "name": name,
        "seed": 7,
        "model": {"base": str(here / "model"), "dtype": "bfloat16"},
        "parameterization": {"method": "qlora", "lora": {"r": RANK, "alpha": 2 * RANK}},
        "forgetting": {"probes": "none"},
        "stages": {
            "reward": {
                "policy": "base",
                "data": str(here / "pairs"),
                "eval_data": scale.batch,
                "training": quiet | {"max_steps": 2},
            },
            "ppo": {
                "policy": "base",
                "data": str(here / "prompts"),
                "reward": "reward",
                "critic": CASES[name],
                "training": quiet | sampling,
            },
        },
    }


# ---- what is measured -----------------------------------------------------------------------------------------------


def measure(name: str, dry: bool, root: Path) -> Row:
    """Run one case in a process of its own; its error where it fails."""
    scale, here = (TINY, root / "tiny") if dry else (REAL, root / "7b")
    if not (here / "model" / INDEX).is_file():
        write_model(scale.shape, here / "model")
    for kind, found in rows(scale).items():
        if not (here / kind).is_dir():
            write_rows(found, here / kind)
    file, run = here / f"{name}.yaml", here / name
    file.write_text(json.dumps(recipe(name, scale, here), indent=2) + "\n", encoding="utf-8")  # JSON is YAML
    command = [sys.executable, "-m", "align", "run", str(file), "--run-dir", str(run)]
    settings = {**os.environ, **clock.OFFLINE, "NO_COLOR": "1", "COLUMNS": "1000"}
    done = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return {"case": name, "dry": dry, **read(run, scale)}
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    told = next((line for line in lines if line.startswith("error ")), lines[-1] if lines else "")
    return {"case": name, "dry": dry, "error": told[:300] or f"ended with code {done.returncode}"}


def read(run: Path, scale: Scale) -> Row:
    """The figures of a finished run. Without CUDA its peaks are those of the whole process."""
    found = {}
    for stage in ("reward", "ppo"):
        outcome = json.loads((run / "stages" / stage / "outcome.json").read_text(encoding="utf-8"))
        found[stage] = {key: outcome[key] for key in ("peak_memory_bytes", "seconds", "cpu_seconds", "parameters")}
    here = run / "stages/ppo"
    each = rollouts.read(here / "rollouts.jsonl")
    metrics = (here / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {
        "stages": found,
        "rollout_seconds": seconds(map(json.loads, metrics), scale.passes, scale.rollouts),
        "rollouts": [{"answers": one.episodes, "tokens": one.length, "kl": one.kl} for one in each],
    }


def seconds(metrics: Iterable[Row], steps: int, count: int) -> list[float]:
    """Of each rollout, from the time at which its first step could begin to the line of its last one.

    Args:
        metrics: the lines of metrics.jsonl; the first is of step 0, when training begins.
        steps: of the optimizer in a rollout.
        count: rollouts.
    """
    times: dict[int, float] = {}
    for entry in metrics:
        if "alarm" not in entry:
            times.setdefault(entry["step"], entry["time"])
    return [times[number * steps] - times[(number - 1) * steps] for number in range(1, count + 1)]


def line(row: Row) -> str:
    """A row as Markdown; without CUDA figures of memory are empty."""
    title = f"QLoRA r{RANK}, nf4, 7B, critic `{CASES[row['case']]}`"
    if "error" in row:
        return f"| {title} | failed: {row['error'].replace('|', '/')} | | | | |"
    reward, ppo = (row["stages"][stage] for stage in ("reward", "ppo"))
    counted, peaks = ppo["parameters"], [reward["peak_memory_bytes"], ppo["peak_memory_bytes"]]
    cells = [
        f"{counted['trainable'] / 1e6:,.1f} of {counted['total'] / 1e6:,.0f} M",
        *("" if row["dry"] else f"{peak / 1e9:.2f}" for peak in peaks),
        f"{median(row['rollout_seconds'][1:]):.1f}",
        f"{ppo['seconds']:.0f}",
    ]
    return f"| {title} | {' | '.join(cells)} |"


# ---- what is computed -----------------------------------------------------------------------------------------------

NF4 = 1 / 2 + 1 / 64 + 4 / (64 * 256)  # bytes of a weight: its 4 bits, and the scales of blocks, quantised themselves
GRADIENT_AND_ADAM = 4 + 8  # bytes of a trained weight in float32
ROLES = ("base", "policy", "reference", "value", "reward")

Need = dict[str, float]  # bytes by role


def weights(shape: Shape) -> tuple[int, int, int]:
    """Numbers of weights: of the layers' matrices, of all else in the trunk, of the language-model head."""
    width, kv = shape.hidden_size, shape.hidden_size * shape.num_key_value_heads // shape.num_attention_heads
    layer = 2 * width * width + 2 * width * kv + 3 * width * shape.intermediate_size
    matrices, norms = shape.num_hidden_layers * layer, (2 * shape.num_hidden_layers + 1) * width
    return matrices, shape.vocab_size * width + norms, shape.vocab_size * width


def lora(shape: Shape) -> int:
    """Weights of a LoRA of `RANK` on all matrices of the layers."""
    width, kv = shape.hidden_size, shape.hidden_size * shape.num_key_value_heads // shape.num_attention_heads
    sides = 2 * (width + width) + 2 * (width + kv) + 3 * (width + shape.intermediate_size)
    return shape.num_hidden_layers * RANK * sides


def needs(shape: Shape) -> dict[str, Need]:
    """Bytes of weights, gradients and optimizer of each set-up, by what holds them."""
    matrices, rest, head = weights(shape)
    scorer = matrices + rest + shape.hidden_size  # one number for a position
    policy, trained = matrices + rest + head, 4 + GRADIENT_AND_ADAM
    small = NF4 * matrices + 2 * rest  # of a trunk in 4 bits
    adapter, number = lora(shape), shape.hidden_size
    return {
        "four models, weights in bfloat16, every weight of two trained": {
            "policy": (2 + GRADIENT_AND_ADAM) * policy,
            "reference": 2 * policy,
            "value": (2 + GRADIENT_AND_ADAM) * scorer,
            "reward": 2 * scorer,
        },
        "four models as align's `full` holds them, in float32": {
            "policy": trained * policy,
            "reference": 4 * policy,
            "value": trained * scorer,
            "reward": 4 * scorer,
        },
        f"four models in 4 bits, LoRA r{RANK}": {
            "policy": small + 2 * head + trained * adapter,
            "reference": small + 2 * head,
            "value": small + trained * (adapter + number),
            "reward": small + 4 * (adapter + number),
        },
        f"one base in 4 bits, LoRA r{RANK}, critic `adapter`": {
            "base": small + 2 * head,
            "policy": trained * adapter,
            "value": trained * (adapter + number),
            "reward": 4 * (adapter + number),
        },
        f"one base in 4 bits, LoRA r{RANK}, critic `head`": {
            "base": small + 2 * head,
            "policy": trained * adapter,
            "value": trained * number,
            "reward": 4 * (adapter + number),
        },
    }


def computed(shape: Shape) -> str:
    """The needs as a Markdown table."""
    heading = f"| set-up, 7B | {' | '.join(f'{role} GB' for role in ROLES)} | together GB |"
    lines = [heading, "|---" * (len(ROLES) + 2) + "|"]
    for name, need in needs(shape).items():
        cells = [f"{need[role] / 1e9:.2f}" if role in need else "" for role in ROLES]
        lines.append(f"| {name} | {' | '.join(cells)} | {sum(need.values()) / 1e9:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """What is computed, then all cases in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), metavar="NAME")
    parser.add_argument("--dry", action="store_true", help="a tiny shape on the CPU: whether it works, not a figure")
    parser.add_argument("--out", type=Path, help="write what was measured as JSON")
    parser.add_argument("--runs", type=Path, help="keep the model and the run folders here")
    asked = parser.parse_args()
    about: Row = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "gpu": "none, dry run with a tiny shape" if asked.dry else memory._gpu(),
        "versions": {name: version(name) for name in memory.PACKAGES},
    }
    print(f"{about['date']}, {about['gpu']}, {', '.join(f'{n} {v}' for n, v in about['versions'].items())}\n")
    shape = (TINY if asked.dry else REAL).shape
    print(f"Computed from the shape, not measured:\n\n{computed(shape)}\n\nMeasured:\n")
    print("| case | policy trained | reward peak GB | PPO peak GB | seconds a rollout | seconds of PPO |")
    print("|---|---|---|---|---|---|", flush=True)
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        root = (asked.runs or Path(temporary)).resolve()
        for name in asked.cases:
            found.append(measure(name, asked.dry, root))
            print(line(found[-1]), flush=True)
            if asked.out:
                written = {**about, "cases": found, "computed_bytes": needs(shape)}
                asked.out.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
