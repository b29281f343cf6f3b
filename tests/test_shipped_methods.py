"""The basic, advanced and production recipe of each method, on the lab in place of their model and data."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from align import shipped
from align.recipe import load

METHODS = ("full", "lora", "qlora", "spectrum", "adapter")
LEVELS = ("basic", "advanced", "production")
ITEMS = [{"prompt": f"copy: {word}", "answer": word} for word in ("a b", "c d", "e f", "g h", "i j", "k l")]
PROBES = "forgetting.probes={copy: {data: items.jsonl, metric: exact}}"  # the lab's take longer than two steps
DATA = {"sft": "lab/helpdesk", "dpo": "lab/helpdesk_preferences"}


def on_the_lab(name: str) -> list[str]:
    """What is set for two short steps of each stage; the engine, the gates and the method stay."""
    found = load.load(load.locate(f"gpu/{name}"))
    texts = ["model.base=lab", "model.dtype=float32", "forgetting.answers=false", PROBES]
    if found.recipe.replay is not None:
        texts.append("replay.data=lab/general")
    if found.stages[0].launch.processes > 1:
        texts.append("launch.processes=2")
    for plan in found.stages:
        at = f"stages.{plan.id}"
        texts += [f"{at}.data={{source: {DATA[plan.id]}, limit: 64}}", f"{at}.training.max_length=96"]
        texts += [f"{at}.eval_data=8"] if plan.keys.eval_data is not None else []
        texts += [f"{at}.training.max_steps=2", f"{at}.training.per_device_train_batch_size=2"]
    return texts


def test_every_method_has_all_levels() -> None:
    known = shipped.names("recipes")
    assert [
        f"gpu/{method}_{level}" for method in METHODS for level in LEVELS if f"gpu/{method}_{level}" not in known
    ] == []
    for method in METHODS:
        used = {level: load.load(load.locate(f"gpu/{method}_{level}")).stages for level in LEVELS}
        assert {one.method_keys.method for stages in used.values() for one in stages} == {method}
        assert [len(used[level]) for level in LEVELS] == [1, 2, 2]
        assert [used[level][0].launch.processes for level in LEVELS] == [1, 1, 4]


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("method", METHODS)
def test_a_recipe_runs_on_the_lab(method: str, level: str, tmp_path: Path) -> None:
    path = load.locate(f"gpu/{method}_{level}").resolve()
    sets = [word for text in on_the_lab(f"{method}_{level}") for word in ("--set", text)]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    command = [sys.executable, "-m", "align", "run", str(path), *sets, "--run-dir", "run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode in (0, 3), done.stderr  # 3: the gate of a production recipe stopped it
    run = json.loads((tmp_path / "run/run.json").read_text())
    assert run["stages"]["sft"]["status"] == ("done" if done.returncode == 0 else "stopped")
    assert (tmp_path / "run/report.html").is_file()
