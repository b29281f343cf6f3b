"""benchmarks/gpu/memory.py on a CPU: its dry run takes the same ways through tiny shapes."""

from __future__ import annotations

import json
import subprocess
import sys
from math import isfinite
from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks/ is no part of the package

from benchmarks.gpu import memory  # noqa: E402

TINY = memory.TINY.shapes["7B"]
D, MLP, LAYERS, WORDS = TINY.hidden_size, TINY.intermediate_size, TINY.num_hidden_layers, TINY.vocab_size
MATRICES = 4 * D * D + 3 * D * MLP  # of one layer
TOTAL = 2 * WORDS * D + LAYERS * (MATRICES + 2 * D) + D
LORA = LAYERS * 16 * (4 * 2 * D + 3 * (D + MLP))


@pytest.mark.slow
def test_a_dry_run_prints_a_table_and_writes_json(tmp_path: Path) -> None:
    out = tmp_path / "memory.json"
    command = [sys.executable, "-m", "benchmarks.gpu.memory", "--dry", "--cases", "qlora-7b", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    written = json.loads(out.read_text(encoding="utf-8"))
    (row,) = written["cases"]
    assert written["versions"]["torch"] == torch.__version__
    assert row["case"] == "qlora-7b" and row["parameters"] == {"total": TOTAL + LORA, "trainable": LORA}
    assert len(row["losses"]) == memory.TINY.warm_up + memory.TINY.steps and all(map(isfinite, row["losses"]))
    assert done.stdout.splitlines()[-1] == memory.line(row)
    assert memory.line(row).startswith("| QLoRA r16, nf4, 7B | 0.1 of 1 M | AdamW, fused |  |  |  | ")


@pytest.mark.parametrize(
    ("name", "trainable", "added"),
    [
        ("full-7b-8bit", TOTAL, 0),
        ("spectrum-7b", LAYERS // 4 * MATRICES, 0),
        ("adapter-7b", LAYERS * (2 * D * 64 + 64 + D), LAYERS * (2 * D * 64 + 64 + D)),
    ],
)
def test_a_case_trains_what_it_says(name: str, trainable: int, added: int) -> None:
    row = memory.measure(name, dry=True)
    assert row["parameters"] == {"total": TOTAL + added, "trainable": trainable}
    assert row["losses"][-1] < row["losses"][0], "the same row again and again is learnt"


def test_a_model_is_built_without_a_file_and_in_4_bits_where_asked() -> None:
    four_bits = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    model = memory.build(TINY, four_bits, torch.device("cpu"))
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"cpu"}
    packed = [module.weight for module in model.modules() if isinstance(module, bnb.nn.Linear4bit)]
    assert len(packed) == LAYERS * 7 and all(weight.quant_state.nested for weight in packed)
    assert sum(weight.numel() for weight in packed) == LAYERS * MATRICES // 2, "two weights a byte"
    assert model.lm_head.weight.dtype == torch.bfloat16
    assert packed[0].quant_state.quant_type == "nf4"


@pytest.mark.parametrize(("shape", "published"), [("7B", 6_738_415_616), ("70B", 68_976_648_192)])
def test_shapes_are_those_of_llama_2(shape: str, published: int) -> None:
    from dataclasses import asdict

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**asdict(memory.REAL.shapes[shape])))
    assert sum(parameter.numel() for parameter in model.parameters()) == published


def test_a_case_that_fails_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(memory.CASES, "unknown", memory.CASES["full-7b"])  # which the process itself does not know
    row = memory.in_process("unknown", dry=True)
    cells = memory.line(row).split(" | ")
    assert cells[0] == "| full, 7B"
    assert cells[1].startswith("failed: memory.py: error: argument --case: invalid choice: 'unknown'")


def test_a_target_is_judged_by_the_peak() -> None:
    figures = {"model_gb": 4, "reserved_gb": 7, "tokens_per_second": 1000, "parameters": {"trainable": 1, "total": 2}}
    row = {"case": "qlora-7b", **figures}
    assert memory.line({**row, "peak_gb": 6.5}).endswith("| 4.00 | 6.50 | 7.00 | 1,000 | 6.5, met |")
    assert memory.line({**row, "peak_gb": 6.51}).endswith("| 4.00 | 6.51 | 7.00 | 1,000 | 6.5, NOT met |")
