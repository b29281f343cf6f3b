"""What a plan says of memory, beside what the stage allocates: each case once, in a process of its own.

    python -m benchmarks.plan_memory --shapes 50M 135M --runs FOLDER   # about a minute a case; what is there stays
    python -m benchmarks.plan_memory --runs FOLDER --write             # put what it holds into docs/plan.md

Models with random weights in bfloat16 and the lab's tokenizer; batches of 4 rows of the lab's longest. Allocated is the
peak of torch's CPU allocator, mapped weights included. Nothing of it is a time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import clock, page

sys.path.append(str(Path(__file__).parents[1] / "tests"))

PAGE = Path(__file__).parents[1] / "docs" / "plan.md"
MARK = "<!-- table: memory -->"
METHODS = ("full", "lora", "qlora", "spectrum", "adapter")
PROGRAMS = ("sft", "reward", "dpo", "kto", "ppo")
SHAPES: dict[str, dict[str, Any]] = {
    "50M": {
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "num_hidden_layers": 12,
        "vocab_size": 16384,
    },
    "135M": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "num_hidden_layers": 30,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
}


def folder_of(shape: str, root: Path) -> Path:
    """A model of that shape."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from align.lab import MODEL_DIR

    folder = root / "models" / shape
    if not (folder / "model.safetensors").is_file():
        tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
        ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "eos_token_id", "bos_token_id")}
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**SHAPES[shape], **ids)).to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def measure(shape: str, method: str, program: str, root: Path) -> dict[str, Any]:
    """Bytes that were planned and that were allocated."""
    import allocated
    import planned
    from align.planning import memory
    from align.planning.trace.stage import trace

    stages, asked = planned.case(root / f"{shape}-{method}-{program}", folder_of(shape, root), method, program)
    found = trace(stages.run.root, asked)
    if found.failed:
        return {"failed": found.failed}
    plan = memory.of_whole(found, asked.layers)
    return {"planned": plan.peak, "allocated": allocated.peak(stages.run, asked.ticket), "phase": plan.phase}


def table(root: Path) -> str:
    """The Markdown table."""
    lines = ["| shape | stage | " + " | ".join(METHODS) + " |", "|---|---|" + "---|" * len(METHODS)]
    ratios = []
    for shape in SHAPES:
        for program in PROGRAMS:
            cells = []
            for method in METHODS:
                path = root / f"{shape}-{method}-{program}.json"
                one = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
                if "planned" not in one:
                    cells.append(one.get("failed", "not run"))
                    continue
                ratio = one["planned"] / one["allocated"] - 1
                ratios.append(ratio)
                cells.append(f"{one['planned'] / 1e6:,.1f} / {one['allocated'] / 1e6:,.1f} MB ({ratio:+.1%})")
            lines.append(f"| {shape} | {program} | {' | '.join(cells)} |")
    within = sum(abs(ratio) <= 0.05 for ratio in ratios)
    lowest, highest = min(ratios, default=0.0), max(ratios, default=0.0)
    lines.append(f"| all | within 5 %: {within} of {len(ratios)} | {lowest:+.1%} to {highest:+.1%} | | | | |")
    return "\n".join(lines)


def main() -> None:
    """The cases that the folder does not hold yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="*", choices=list(SHAPES), default=[])
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--write", action="store_true", help="put the table into docs/plan.md")
    parser.add_argument("--one", nargs=3, metavar=("SHAPE", "METHOD", "PROGRAM"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    root = asked.runs.resolve()
    root.mkdir(parents=True, exist_ok=True)
    if asked.one:
        print(json.dumps(measure(*asked.one, root)))
        return
    clock.heading("plan: the memory of a stage, planned and allocated")
    for case in ((s, m, p) for s in asked.shapes for p in asked.programs for m in asked.methods):
        kept = root / f"{'-'.join(case)}.json"
        if kept.is_file():
            continue
        words = [sys.executable, "-m", "benchmarks.plan_memory", "--runs", str(root), "--one", *case]
        environment = {**os.environ, **clock.ONE_THREAD, **clock.OFFLINE}
        said = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        last = said.stdout.strip().splitlines()[-1:] or ["{}"]
        try:
            found = json.loads(last[0])
        except ValueError:
            found = {}
        if not found:
            found = {"failed": said.stderr.strip().splitlines()[-1]}
        kept.write_text(json.dumps(found), encoding="utf-8")
        print(*case, found, flush=True)
    print(table(root))
    if asked.write:
        page.fill(PAGE, MARK, table(root))


if __name__ == "__main__":
    main()
