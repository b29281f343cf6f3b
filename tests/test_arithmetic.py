"""The note on bfloat16 on a processor that computes it slowly."""

from __future__ import annotations

from pathlib import Path

import pytest

from align import api
from align.preflight import arithmetic

RECIPE = """\
name: x
model: {base: lab, dtype: DTYPE}
parameterization: {method: METHOD}
stages: {sft: {data: lab/helpdesk, training: {TRAINING max_steps: 4}}}
"""
OLD = "processor\t: 0\nflags\t\t: fpu sse4_2 avx2 fma\n"
NEW = "processor\t: 0\nflags\t\t: fpu sse4_2 avx2 fma avx512f avx512bw\n"


def noted(
    monkeypatch: pytest.MonkeyPatch, folder: Path, dtype: str, method: str, training: str = "", flags: str = OLD
) -> str:
    """The note of a recipe on a machine with such a processor and no GPU."""
    (folder / "cpuinfo").write_text(flags)
    monkeypatch.setattr(arithmetic, "CPUINFO", folder / "cpuinfo")
    monkeypatch.setattr(arithmetic.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(arithmetic.shutil, "which", lambda _: None)
    text = RECIPE.replace("DTYPE", dtype).replace("METHOD", method).replace("TRAINING", training)
    (folder / "x.yaml").write_text(text)
    return next((note for note in api.check(folder / "x.yaml").notes if "AVX-512" in note), "")


@pytest.mark.parametrize(
    ("dtype", "method", "training", "slow"),
    [
        ("bfloat16", "lora", "", True),
        ("auto", "lora", "", True),
        ("auto", "qlora", "", True),
        ("auto", "full", "", False),
        ("float32", "lora", "", False),
        ("float32", "qlora", "", False),
        ("float32", "qlora, quantization: {bnb_4bit_compute_dtype: bfloat16}", "", True),
        ("float32", "full", "bf16: true,", True),
    ],
)
def test_it_is_told_of_stages_that_compute_in_bfloat16(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dtype: str, method: str, training: str, slow: bool
) -> None:
    found = noted(monkeypatch, tmp_path, dtype, method, training)
    assert found.startswith("stage sft computes in bfloat16") if slow else not found


def test_a_processor_that_computes_it_is_not_slow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert not noted(monkeypatch, tmp_path, "bfloat16", "lora", flags=NEW)
    assert not noted(monkeypatch, tmp_path, "bfloat16", "lora", flags="Features\t: asimd bf16\n")


def test_of_several_stages_it_is_told_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    both = "lora}\npipeline: sft_dpo\nstages: {dpo: {data: lab/helpdesk_preferences}, sft: {data: lab/helpdesk"
    (tmp_path / "cpuinfo").write_text(OLD)
    monkeypatch.setattr(arithmetic, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(arithmetic.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(arithmetic.shutil, "which", lambda _: None)
    text = f"name: x\nmodel: {{base: lab}}\nparameterization: {{method: {both}}}}}\n"
    (tmp_path / "x.yaml").write_text(text)
    found = [note for note in api.check(tmp_path / "x.yaml").notes if "AVX-512" in note]
    assert [note.partition(" in bf")[0] for note in found] == ["stages sft, dpo compute"]
