"""benchmarks/gpu/ppo.py on a CPU: its dry run takes the same way through a tiny shape."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoTokenizer, LlamaForCausalLM

from align.data.lengths import Lengths

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks/ is no part of the package

from benchmarks.gpu import __main__ as everything  # noqa: E402
from benchmarks.gpu import memory, ppo  # noqa: E402

TINY = ppo.TINY
# of the tiny shape, by hand: width 64, 8 layers, MLP 128, 320 words, a head of keys for each of queries
MATRICES = 8 * (4 * 64 * 64 + 3 * 64 * 128)
TRUNK = MATRICES + 320 * 64 + (2 * 8 + 1) * 64
POLICY, SCORER = TRUNK + 320 * 64, TRUNK + 64
LORA = 8 * 16 * (4 * (64 + 64) + 3 * (64 + 128))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as the benchmark writes it."""
    made = tmp_path_factory.mktemp("tiny")
    ppo.write_model(TINY.shape, made)
    return made


@pytest.mark.slow
def test_a_dry_run_prints_tables_and_writes_json(tmp_path: Path) -> None:
    out = tmp_path / "ppo.json"
    command = [sys.executable, "-m", "benchmarks.gpu.ppo", "--dry", "--out", str(out), "--runs", str(tmp_path / "runs")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    written = json.loads(out.read_text(encoding="utf-8"))
    rows = written["cases"]
    assert done.stdout.splitlines()[-2:] == [ppo.line(row) for row in rows] and len(rows) == len(ppo.CASES)
    assert ppo.computed(TINY.shape) in done.stdout
    assert written["computed_bytes"] == ppo.needs(TINY.shape) and written["versions"]["torch"] == torch.__version__
    for row in rows:
        assert "error" not in row
        assert len(row["rollout_seconds"]) == TINY.rollouts and min(row["rollout_seconds"]) > 0
        assert [one["answers"] for one in row["rollouts"]] == [TINY.batch * TINY.passes] * TINY.rollouts
        assert row["rollouts"][0]["kl"] == 0 and row["rollouts"][0]["tokens"] <= TINY.answer
        assert row["stages"]["ppo"]["parameters"]["trainable"] == LORA
    held = [row["stages"]["ppo"]["parameters"]["total"] - POLICY for row in rows]
    assert held == [3 * LORA, 2 * LORA], "of policy, reward model and critic on the one base; a head needs no third"


def test_what_is_computed_is_right_by_hand() -> None:
    small, trunk = (1 / 2 + 1 / 64 + 4 / 64 / 256) * MATRICES, 2 * (TRUNK - MATRICES)
    base = small + trunk + 2 * 320 * 64
    bfloat16, float32, four, adapter, head = ppo.needs(TINY.shape).values()
    assert bfloat16 == {"policy": 14 * POLICY, "reference": 2 * POLICY, "value": 14 * SCORER, "reward": 2 * SCORER}
    assert float32 == {"policy": 16 * POLICY, "reference": 4 * POLICY, "value": 16 * SCORER, "reward": 4 * SCORER}
    assert four == {
        "policy": base + 16 * LORA,
        "reference": base,
        "value": small + trunk + 16 * (LORA + 64),
        "reward": small + trunk + 4 * (LORA + 64),
    }
    assert adapter == {"base": base, "policy": 16 * LORA, "value": 16 * (LORA + 64), "reward": 4 * (LORA + 64)}
    assert head == {**adapter, "value": 16 * 64}


def test_the_7b_shape_counts_as_published() -> None:
    seven = ppo.REAL.shape
    assert sum(ppo.weights(seven)) == 6_738_415_616  # Llama 2 7B, and its LoRA of rank 16 on all linear layers
    assert ppo.lora(seven) == 39_976_960
    row = ppo.computed(seven).splitlines()[2]
    assert row.endswith("|  | 94.34 | 13.48 | 92.50 | 13.21 | 213.5 |")


def test_keys_and_values_may_have_fewer_heads() -> None:
    shape = replace(TINY.shape, num_key_value_heads=2)
    assert ppo.weights(shape)[0] == MATRICES - 8 * 2 * 64 * 32
    assert ppo.lora(shape) == LORA - 8 * 16 * 2 * 32


def test_the_model_is_written_a_layer_at_a_time_and_loads(folder: Path) -> None:
    model, said = LlamaForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not said["missing_keys"] and not said["unexpected_keys"] and model.dtype == torch.bfloat16
    assert sum(parameter.numel() for parameter in model.parameters()) == POLICY
    assert len(list(folder.glob("*.safetensors"))) == TINY.shape.num_hidden_layers + 1
    with safe_open(folder / "model-3.safetensors", "pt") as layer:
        assert {name.split(".")[2] for name in layer.keys()} == {"3"}  # noqa: SIM118
        matrix = layer.get_tensor("model.layers.3.mlp.up_proj.weight").float()
    assert matrix.std().item() == pytest.approx(0.02, rel=0.05)


def test_prompts_have_the_tokens_that_were_asked_for(folder: Path) -> None:
    words = AutoTokenizer.from_pretrained(folder)
    found = ppo.rows(TINY)
    assert len(found["prompts"]) == TINY.rollouts * TINY.batch * TINY.passes
    for row in [*found["prompts"], *found["pairs"]]:
        ids = words.apply_chat_template(row["prompt"], add_generation_prompt=True)["input_ids"]
        assert len(ids) == TINY.prompt and max(ids) < TINY.shape.vocab_size
    assert all(len(row["chosen"][0]["content"]) == TINY.answer for row in found["pairs"])
    assert Lengths.of(folder) is not None, "align counts with the same tokenizer"


def test_seconds_go_from_rollout_to_rollout() -> None:
    lines = [(0, 10.0), (1, 13.0), (2, 14.0), (3, 14.5), (4, 16.0), (6, 19.0)]
    entries = [{"step": step, "time": time} for step, time in lines]
    entries.insert(3, {"step": 2, "time": 99.0, "alarm": "it goes wrong"})
    assert ppo.seconds(entries, steps=2, count=3) == [4.0, 2.0, 3.0]


def test_a_case_that_fails_is_a_row(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(ppo.CASES, "ppo-7b-head", "heads")
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny/model").symlink_to(folder)
    row = ppo.measure("ppo-7b-head", dry=True, root=tmp_path)
    assert row["error"].startswith("error ") and "'stages.ppo.critic'" in row["error"]
    assert ppo.line(row).startswith("| QLoRA r16, nf4, 7B, critic `heads` | failed: error ")


def test_a_line_has_memory_only_where_a_gpu_was() -> None:
    stages = {
        "reward": {"peak_memory_bytes": 6e9},
        "ppo": {"peak_memory_bytes": 9.5e9, "seconds": 61.4, "parameters": {"trainable": LORA, "total": POLICY}},
    }
    row = {"case": "ppo-7b-head", "dry": False, "stages": stages, "rollout_seconds": [30.0, 10.0, 12.0]}
    assert ppo.line(row) == "| QLoRA r16, nf4, 7B, critic `head` | 0.1 of 0 M | 6.00 | 9.50 | 11.0 | 61 |"
    assert ppo.line(row | {"dry": True}) == "| QLoRA r16, nf4, 7B, critic `head` | 0.1 of 0 M |  |  | 11.0 | 61 |"


def test_one_call_runs_all_parts_into_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(command[2:])
        part = command[2].rpartition(".")[2]
        Path(command[4]).write_text(json.dumps({"cases": [part]}), encoding="utf-8")
        return subprocess.CompletedProcess(command, int(part == fails))

    monkeypatch.setattr(everything.subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["gpu", "--dry", "--out", str(tmp_path / "all.json")])
    fails = "ppo"
    with pytest.raises(SystemExit, match="1"):
        everything.main()
    assert [file.name for file in tmp_path.iterdir() if "memory" in file.name] == ["all.memory.json"], "it is kept"
    fails = ""
    everything.main()
    assert [command[0] for command in asked[2:]] == [f"benchmarks.gpu.{part}" for part in everything.PARTS]
    assert all(command[-1] == "--dry" for command in asked)
    assert [file.name for file in tmp_path.iterdir()] == ["all.json"]
    written = json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))
    assert written == {part: {"cases": [part]} for part in ("memory", "ppo", "engines")}
    assert set(memory.CASES).isdisjoint(ppo.CASES)
