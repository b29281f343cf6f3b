"""`align plan --calibrate`: seconds of an update, from a few of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from align.cli.commands import app
from align.errors import AlignError
from align.planning import calibration, words
from align.recipe import load
from align.recipe.plan import Loaded
from align.runner import loop

RECIPE = """\
name: small
model: {base: lab}
parameterization: {method: lora}
forgetting: {probes: lab}
stages:
  sft:
    data: {source: lab/helpdesk, limit: 64}
    training: {max_steps: 40, per_device_train_batch_size: 4, save_steps: 10}
  grpo:
    data: {source: lab/helpdesk, limit: 32}
    reward: "./own.py:short"
    policy: sft
    training:
      max_steps: 60
      per_device_train_batch_size: 4
      num_generations: 4
      steps_per_generation: 3
      max_completion_length: 8
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(
        "def short(completions, **kept):\n    return [-float(len(str(one))) for one in completions]\n"
    )
    Path("x.yaml").write_text(RECIPE)
    return Path("x.yaml")


def metrics(path: Path, times: dict[int, float]) -> Path:
    path.write_text("".join(json.dumps({"step": step, "time": time}) + "\n" for step, time in times.items()))
    return path


@pytest.mark.parametrize(
    ("times", "first", "seconds"),
    [
        ({0: 100.0, 1: 110.0, 2: 112.0, 3: 114.0, 4: 116.0}, 1, 2.0),
        ({0: 0.0, 1: 9.0, 2: 9.1, 3: 9.2, 4: 12.2, 5: 12.3, 6: 12.4}, 3, 3.2 / 3),  # a rollout, then its updates
        ({0: 0.0, 1: 5.0}, 1, None),
        ({}, 1, None),
    ],
)
def test_the_first_is_not_counted(tmp_path: Path, times: dict[int, float], first: int, seconds: float | None) -> None:
    found = calibration._of_an_update(metrics(tmp_path / "metrics.jsonl", times), first)
    assert found == (None if seconds is None else pytest.approx(seconds))
    assert calibration._of_an_update(tmp_path / "none", first) is None


def test_what_is_run_is_short_and_writes_nowhere(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[Loaded, Path]] = []

    def execute(run: loop.Run) -> None:
        ran.append((run.loaded, run.dir.root))
        for id, times in (("sft", {1: 10.0, 4: 13.0}), ("grpo", {3: 20.0, 6: 26.0})):
            run.dir.stage(id).root.mkdir(parents=True)
            metrics(run.dir.stage(id).metrics, times)

    monkeypatch.setattr(loop.Run, "execute", execute)
    loaded = load.load(recipe, ["seed=3"])
    found = calibration.seconds(recipe, ["seed=3"], loaded, None)  # type: ignore[arg-type]
    assert found == {"sft": 1.0, "grpo": 2.0}
    [(short, folder)] = ran
    assert [plan.training["max_steps"] for plan in short.stages] == [4, 6]
    assert (short.recipe.seed, short.recipe.forgetting.probes) == (3, "none")
    assert not folder.exists() and not Path("runs").exists()


def test_of_another_gpu_nothing_can_be_measured(recipe: Path) -> None:
    done = CliRunner().invoke(app, ["plan", str(recipe), "--calibrate", "--gpu", "24GB"])
    assert isinstance(done.exception, AlignError)
    assert str(done.exception).startswith("--calibrate measures this machine, not a GPU of another size")


@pytest.mark.parametrize(
    ("seconds", "said"), [(7.4, "7 s"), (119, "2 min"), (5_990, "1 h 40 min"), (90_000, "25 h 0 min")]
)
def test_durations(seconds: float, said: str) -> None:
    assert words.duration(seconds) == said


@pytest.mark.slow
def test_of_the_lab(recipe: Path) -> None:
    done = CliRunner().invoke(app, ["plan", str(recipe), "--calibrate", "--json"])
    assert done.exit_code == 0, done.output
    found = {stage["id"]: stage for stage in json.loads(done.stdout)["stages"]}
    for id, steps in (("sft", 40), ("grpo", 60)):
        assert 0 < found[id]["seconds_per_step"] < 60
        assert found[id]["seconds"] == pytest.approx(steps * found[id]["seconds_per_step"])
    assert not Path("runs").exists()
