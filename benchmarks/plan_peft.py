"""What a plan says of PEFT's methods on Llama-3.2-3B, beside the memory that PEFT publishes of them.

    python -m benchmarks.plan_peft --runs FOLDER           # about twenty CPU seconds a method
    python -m benchmarks.plan_peft --runs FOLDER --write   # and put the table into docs/plan.md

PEFT's figures are `accelerator_memory_max` of method_comparison/MetaMathQA/results in huggingface/peft at 5d602fd: what
torch's allocator had reserved on an L40S, 5,000 steps of 4 rows of at most 768 tokens, the base in bfloat16, adapters
in float32, neither autocast nor gradient checkpointing. A plan takes 4 rows of 768 tokens and the same settings, and
its figure stands without the CUDA context. The base is the model's shape with a sparse file for its weights: nothing is
read of them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

from align.planning import target
from benchmarks import clock, page

PAGE = Path(__file__).parents[1] / "docs" / "plan.md"
MARK = "<!-- table: peft -->"
SHAPE = {
    "vocab_size": 128256,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
    "max_position_embeddings": 131072,
}
LENGTH, ROWS = 768, 4
QV = ["q_proj", "v_proj"]
LORA = {"r": 32, "alpha": 64, "target_modules": QV}
# By name: the parameterization, and PEFT's figure in bytes.
PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "full": ({"method": "full"}, 38_870_000_000),
    "LoRA r 32": ({"method": "lora", "lora": LORA}, 22_290_000_000),
    "LoRA r 64": ({"method": "lora", "lora": {**LORA, "r": 64, "alpha": 128}}, 22_550_000_000),
    "DoRA r 32": ({"method": "lora", "lora": {**LORA, "use_dora": True}}, 24_530_000_000),
    "LoRA r 10 on the MLP": (
        {"method": "lora", "lora": {"r": 10, "alpha": 20, "target_modules": ["gate_proj", "up_proj", "down_proj"]}},
        24_700_000_000,
    ),
    "IA3": ({"method": "ia3"}, 23_230_000_000),
    "layer norms": ({"method": "ln_tuning"}, 21_180_000_000),
    "LoHa r 32": ({"method": "loha", "peft": {"r": 32, "alpha": 64, "target_modules": QV}}, 23_910_000_000),
    "LoKr r 32": (
        {"method": "lokr", "peft": {"r": 32, "alpha": 64, "decompose_factor": 4, "target_modules": QV}},
        23_590_000_000,
    ),
    "OFT r 32": ({"method": "oft", "peft": {"r": 32, "target_modules": QV}}, 22_330_000_000),
    "BOFT": ({"method": "boft", "peft": {"boft_block_size": 4, "boft_n_butterfly_factor": 1}}, 24_690_000_000),
    "VeRA r 256": ({"method": "vera", "peft": {"r": 256, "target_modules": QV}}, 21_620_000_000),
    "FourierFT": (
        {"method": "fourierft", "peft": {"n_frequency": 1000, "scaling": 300, "target_modules": QV}},
        23_660_000_000,
    ),
}


def base(folder: Path) -> Path:
    """The model's shape under the lab's tokenizer; its weights take no room on the disk."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from align.lab import MODEL_DIR

    if (folder / "model.safetensors").is_file():
        return folder
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "eos_token_id", "bos_token_id")}
    config = LlamaConfig(**SHAPE, **ids, dtype="bfloat16", architectures=["LlamaForCausalLM"])
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    header, end = {}, 0
    for name, tensor in model.named_parameters():
        begin, end = end, end + 2 * tensor.numel()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return folder


def planned(name: str, root: Path) -> dict[str, Any]:
    """The stage of an `align plan`."""
    folder = root / name.replace(" ", "-")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    row = {"prompt": "what is it ? ", "completion": "what is it ? " * LENGTH}  # cut to the length
    (folder / "rows.jsonl").write_text((json.dumps(row) + "\n") * 16, encoding="utf-8")
    training = {
        "per_device_train_batch_size": ROWS,
        "max_length": LENGTH,
        "gradient_checkpointing": False,
        "bf16": False,
        "max_steps": 4,
    }
    recipe = {
        "name": "peft",
        "model": {"base": str(root / "model"), "dtype": "bfloat16"},
        "parameterization": PUBLISHED[name][0],
        "forgetting": {"probes": "none"},
        "stages": {"sft": {"data": "rows.jsonl", "training": training}},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    align = str(Path(sys.executable).with_name("align"))
    words = [align, "plan", "recipe.yaml", "--run-dir", "run", "--gpu", "48GB", "--json"]
    said = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    if said.returncode:
        raise SystemExit(said.stderr)
    found: dict[str, Any] = json.loads(said.stdout)["stages"][0]
    return found


def table(root: Path) -> str:
    """The Markdown table, by PEFT's figure."""
    lines = ["| method | PEFT | planned | planned / PEFT |", "|---|---|---|---|"]
    for name, (_, published) in sorted(PUBLISHED.items(), key=lambda one: one[1][1]):
        kept = root / f"{name.replace(' ', '-')}.json"
        if kept.is_file():
            found = json.loads(kept.read_text(encoding="utf-8"))["device_memory_bytes"] - target.CONTEXT
            lines.append(f"| {name} | {published / 1e9:.1f} GB | {found / 1e9:.1f} GB | {found / published:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """The methods that the folder does not hold yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=list(PUBLISHED), default=list(PUBLISHED))
    parser.add_argument("--write", action="store_true", help="put the table into docs/plan.md")
    asked = parser.parse_args()
    root = asked.runs.resolve()
    base(root / "model")
    clock.heading("plan: the memory that PEFT publishes of Llama-3.2-3B")
    for name in asked.only:
        kept = root / f"{name.replace(' ', '-')}.json"
        if not kept.is_file():
            kept.write_text(json.dumps(planned(name, root)), encoding="utf-8")
    print(table(root))
    if asked.write:
        page.fill(PAGE, MARK, table(root))


if __name__ == "__main__":
    main()
