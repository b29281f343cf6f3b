"""benchmarks/two_processes.py: how it counts."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks/ is no part of the package

from align.recipe import load  # noqa: E402
from benchmarks import two_processes  # noqa: E402

BURN = "import time\nwhile time.process_time() < {seconds}: pass\n"


@pytest.mark.parametrize("method", two_processes.RATES)
def test_both_sides_train_alike(method: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(two_processes.recipe(method, 40), encoding="utf-8")
    (plan,) = load.load(path).stages
    assert (plan.training["max_steps"], plan.training["bf16"], plan.method_keys.method) == (40, False, method)


def test_a_step_is_what_lies_between_two_readings() -> None:
    first, last = two_processes.Reading(4, 10.0, 8.0), two_processes.Reading(39, 13.5, 9.75)
    assert two_processes.between(first, last) == pytest.approx((0.1, 0.05))


def test_children_count_living_or_waited_for(tmp_path: Path) -> None:
    """A parent that uses little, with a child that has ended and one that lives on."""
    inner = f"{BURN.format(seconds=0.3)}open('burnt', 'w')\nimport time\ntime.sleep(60)\n"
    outer = (
        "import subprocess, sys\n"
        f"subprocess.run([sys.executable, '-S', '-c', {BURN.format(seconds=0.2)!r}])\n"
        f"subprocess.run([sys.executable, '-S', '-c', {inner!r}])\n"
    )
    process = subprocess.Popen([sys.executable, "-S", "-c", outer], cwd=tmp_path, start_new_session=True)
    try:
        while not (tmp_path / "burnt").exists():
            assert process.poll() is None
            time.sleep(0.02)
        everything, leaf = two_processes.tree_seconds(process.pid)
        assert 0.28 <= leaf <= 0.5, "the one that lives on"
        assert 0.48 <= everything <= 0.9 and everything - leaf >= 0.18, "and what its parent waited for"
    finally:
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        subprocess.run(["kill", child], check=True)
        process.wait()


def test_the_last_step_of_what_is_being_written(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    assert two_processes.last_step(metrics) == -1
    metrics.write_text('{"step": 3, "loss": 1.0}\n{"step": 4, "lo', encoding="utf-8")
    assert two_processes.last_step(metrics) == -1, "it is read again a moment later"
    metrics.write_text('{"step": 3, "loss": 1.0}\n', encoding="utf-8")
    assert two_processes.last_step(metrics) == 3
