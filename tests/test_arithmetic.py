"""The note on half precision on a processor that computes it slowly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from align import api
from align.preflight import arithmetic
from align.recipe import load as recipes

RECIPE = """\
name: x
model: {base: lab, dtype: DTYPE}
parameterization: {method: METHOD}
stages: {sft: {data: lab/helpdesk, training: {TRAINING max_steps: 4}}}
"""
OLD = "fpu sse4_2 avx2 fma"
BF16 = {"load_in_4bit": True, "bnb_4bit_compute_dtype": "bfloat16"}


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A machine with such a processor and no GPU."""

    def machine(flags: str) -> None:
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{flags}\n")
        monkeypatch.setattr(arithmetic, "CPUINFO", tmp_path / "cpuinfo")
        monkeypatch.setattr(arithmetic, "DRIVERS", (tmp_path / "nvidiactl",))
        monkeypatch.setattr(arithmetic.platform, "machine", lambda: "x86_64")
        monkeypatch.setattr(arithmetic.shutil, "which", lambda _: None)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    machine(f"flags\t\t: {OLD}")
    return machine


def noted(folder: Path, dtype: str, method: str, training: str = "", saved: dict[str, Any] | None = None) -> str:
    text = RECIPE.replace("DTYPE", dtype).replace("METHOD", method).replace("TRAINING", training)
    (folder / "x.yaml").write_text(text)
    loaded = recipes.load(folder / "x.yaml", ())
    return "".join(arithmetic.notes(loaded.stages, loaded.recipe.model.dtype, saved))


EXPLICIT = "qlora, quantization: {bnb_4bit_compute_dtype: bfloat16}"


@pytest.mark.parametrize(
    ("dtype", "method", "training", "remedy"),
    [
        ("bfloat16", "lora", "", "`model.dtype: float32`"),
        ("auto", "lora", "", "`model.dtype: float32`"),
        ("auto", "qlora", "", "`model.dtype: float32`"),
        ("auto", EXPLICIT, "", "`bnb_4bit_compute_dtype: float32` and `model.dtype: float32`"),
        ("float32", EXPLICIT, "", "`bnb_4bit_compute_dtype: float32`"),
        ("float32", "full", "bf16: true,", "`bf16: false`"),
        ("float16", "lora", "", "`model.dtype: float32`"),
        ("auto", "full", "", None),
        ("float32", "lora", "", None),
        ("float32", "qlora", "", None),
        ("float16", "qlora, quantization: {bits: 8}", "", "`model.dtype: float32`"),
    ],
)
def test_the_note_names_what_would_help(
    on: Any, tmp_path: Path, dtype: str, method: str, training: str, remedy: str | None
) -> None:
    found = noted(tmp_path, dtype, method, training)
    if remedy is None:
        assert not found
        return
    precision = "float16" if dtype == "float16" else "bfloat16"
    assert found.startswith(f"stage sft computes in {precision}, and this machine has no GPU")
    assert found.endswith(f"at float32: {remedy}")


@pytest.mark.parametrize(
    ("dtype", "flags", "slow"),
    [
        ("bfloat16", f"flags: {OLD} avx512f avx512bw", False),
        ("float16", f"flags: {OLD} avx512f avx512bw", True),
        ("float16", f"flags: {OLD} avx512bw avx512_fp16", False),
        ("bfloat16", f"flags: {OLD} avx_ifma", False),
        ("bfloat16", "Features: asimd bf16", False),
    ],
)
def test_what_a_processor_computes_is_not_slow(on: Any, tmp_path: Path, dtype: str, flags: str, slow: bool) -> None:
    on(flags)
    assert bool(noted(tmp_path, dtype, "lora")) is slow


def test_where_a_gpu_computes_nothing_is_said(on: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidiactl").touch()
    assert not noted(tmp_path, "bfloat16", "lora")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert noted(tmp_path, "bfloat16", "lora"), "it is hidden"


def test_a_base_that_is_saved_in_4_bits_says_what_it_is_computed_in(on: Any, tmp_path: Path) -> None:
    assert "bfloat16" in noted(tmp_path, "float32", "lora", saved=BF16)
    assert not noted(tmp_path, "auto", "lora", saved={**BF16, "bnb_4bit_compute_dtype": "float32"})
    assert not noted(tmp_path, "float32", "qlora", saved=BF16), "the recipe's goes before it"


def test_of_several_stages_it_is_told_once_and_for_this_machine_alone(on: Any, tmp_path: Path) -> None:
    stages = "{dpo: {data: lab/helpdesk_preferences}, sft: {data: lab/helpdesk}}"
    text = f"name: x\nmodel: {{base: lab}}\nparameterization: {{method: lora}}\npipeline: sft_dpo\nstages: {stages}\n"
    (tmp_path / "x.yaml").write_text(text)
    found = [note for note in api.check(tmp_path / "x.yaml").notes if "no GPU" in note]
    assert [note.partition(" in bf")[0] for note in found] == ["stages sft, dpo compute"]
