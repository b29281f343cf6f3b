"""benchmarks/gpu/engines.py on a CPU: its dry run takes the same way with the lab model and two processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks/ is no part of the package

from align.recipe import load  # noqa: E402
from benchmarks.gpu import engines  # noqa: E402


@pytest.mark.slow
def test_a_dry_run_compares_two_processes_with_one(tmp_path: Path) -> None:
    out = tmp_path / "engines.json"
    command = [sys.executable, "-m", "benchmarks.gpu.engines", "--dry", "--methods", "lora", "--out", str(out)]
    done = subprocess.run(
        [*command, "--runs", str(tmp_path / "runs")], cwd=ROOT, capture_output=True, text=True, check=True
    )
    rows = json.loads(out.read_text(encoding="utf-8"))["cases"]
    assert {row["engine"] for row in rows} == set(engines.ENGINES)
    for row in rows:
        assert engines.line(row) in done.stdout.splitlines() and engines.line(row).endswith("| 1e-05, met |")
        assert len(row["one"]) == len(row["several"]) == engines.TINY.steps
        assert row["one"][-1] < row["one"][0], "it learns, so that the last loss says something"
    outcome = json.loads((tmp_path / "runs/lora-2/stages/sft/outcome.json").read_text(encoding="utf-8"))
    assert outcome["world_size"] == 2 and outcome["global_batch_size"] == engines.TINY.batch


@pytest.mark.parametrize("method", engines.RATES)
@pytest.mark.parametrize("processes", [1, 2, 8])
def test_the_global_batch_stays(method: str, processes: int, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(engines.recipe(method, engines.REAL, processes, "lab")), encoding="utf-8")
    found = load.load(path)
    (plan,) = found.stages
    assert plan.training["per_device_train_batch_size"] * found.recipe.launch.processes == engines.REAL.batch
    assert plan.training["bf16"] is True and plan.method_keys.method == method


def test_differences_are_relative_to_one_process() -> None:
    assert engines.differences([2.0, 7.0, 1.0], [2.5, 9.0, 0.9]) == pytest.approx({"first": 0.25, "last": 0.1})
    with pytest.raises(ValueError, match="zip"):
        engines.differences([2.0, 1.0], [2.0])


def row(**figures: Any) -> dict[str, Any]:
    return {"engine": "ddp", "processes": 4, "method": "full", "one": [2, 1], "several": [2, 1], **figures}


def test_a_difference_is_judged_by_what_is_allowed() -> None:
    told = engines.line(row(first=1e-3, last=1e-2, tolerance=1e-2))
    assert told == "| ddp x 4, full | 2.0000 | 2.0000 | 1.0e-03 | 1.0000 | 1.0000 | 1.0e-02 | 0.01, met |"
    assert engines.line(row(first=1.1e-2, last=0.0, tolerance=1e-2)).endswith("| 0.01, NOT met |")
    assert engines.line(row(first=0.0, last=1.1e-2, tolerance=1e-2)).endswith("| 0.01, NOT met |")


@pytest.mark.parametrize("processes", [1, 3])
def test_a_machine_with_too_few_gpus_is_a_row(processes: int, tmp_path: Path) -> None:
    found = engines.measure("ddp", "lora", processes, dry=False, root=tmp_path)
    why = f"{processes} processes cannot share 16 rows; 2 or more are compared with one"
    assert engines.line(found) == f"| ddp x {processes}, lora | failed: {why} |"
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(engines.RATES, "lora", -1.0)
    found = engines.measure("ddp", "lora", 2, dry=True, root=tmp_path)
    assert found["error"].startswith("error ") and "'stages.sft.training.learning_rate'" in found["error"]
