"""The public Python surface: what it offers, what it imports, and that it does what the command does."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import align
import runs
import warm
from align.runner import launch

RECIPE = """\
name: small
seed: 3
model: {base: lab, dtype: float32}
parameterization: {method: qlora}
forgetting: {probes: none}
stages:
  sft:
    data: {source: lab/helpdesk, limit: 32}
    training: {learning_rate: 1.0e-3, max_steps: 4, per_device_train_batch_size: 8}
"""
PROBE = "{probes: {own: {data: own.jsonl, metric: accuracy}}}"
PUBLIC = [
    "Adapted",
    "AlignError",
    "Checked",
    "PlannedStage",
    "Run",
    "SpectrumAnalyzer",
    "Stage",
    "StageKeys",
    "StageResult",
    "check",
    "load_policy",
    "nf4",
    "open_run",
    "run",
]


def questions() -> str:
    """Items that the lab's base answers, as lines of a probe's file."""
    words = [" ".join(order) for order in itertools.permutations("abcde", 3)]
    return "".join(json.dumps({"prompt": f"sort: {w}", "answer": " ".join(sorted(w.split()))}) + "\n" for w in words)


def imported(code: str, *names: str) -> list[str]:
    """Which of these packages a program imports."""
    program = f"{code}\nimport sys\nprint(*[name for name in {names!r} if name in sys.modules])"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> align.Run:
    """A run through Python."""
    folder = tmp_path_factory.mktemp("api")
    return align.run(runs.write(folder, RECIPE), run_dir=folder / "run")


def test_the_surface() -> None:
    assert align.__all__ == PUBLIC
    assert [name for name in PUBLIC if getattr(align, name).__name__.rpartition(".")[2] != name] == []
    with pytest.raises(AttributeError, match=r"^module 'align' has no attribute 'Policy'$"):
        _ = align.Policy


def test_import_is_light(tmp_path: Path) -> None:
    heavy = ("torch", "transformers", "peft", "trl", "datasets")
    assert imported("import align", *heavy, "pydantic", "rich", "align.api") == []
    assert imported(f"import align\nalign.check({str(runs.write(tmp_path, RECIPE))!r})", *heavy) == []


def test_check_tells_the_plan_and_all_faults(tmp_path: Path) -> None:
    recipe = runs.write(tmp_path, RECIPE)
    printed = runs.align("check", str(recipe)).stdout
    assert [*map(str, align.check(recipe).stages), f"{recipe}: ok"] == printed.splitlines()
    with pytest.raises(align.AlignError) as raised:
        align.check(recipe, ["stages.sft.data=lab/nothing", "model.base=./nothing"])
    assert "lab/nothing" in str(raised.value) and "./nothing" in str(raised.value)


def test_a_run_gives_the_weights_of_the_command(ours: align.Run, tmp_path: Path) -> None:
    runs.run(runs.write(tmp_path, RECIPE), tmp_path / "run")
    assert runs.weights(ours.folder) == runs.weights(tmp_path / "run") != {}


def test_a_stage_of_a_run(ours: align.Run) -> None:
    stage = align.open_run(ours.folder).stage("sft")
    assert (stage.outcome.steps, stage.report) == (4, {})
    assert stage.policy is not None and [one.name for one in stage.policy.adapters] == ["sft"]
    with pytest.raises(align.AlignError) as raised:
        ours.stage("dpo")
    assert str(raised.value) == f"'{ours.folder}' has no finished stage 'dpo'\n  -> choose one of: sft"


def test_a_loaded_policy_answers_as_in_chat(ours: align.Run) -> None:
    model, tokenizer = align.load_policy(ours, "sft")
    asked = [{"role": "user", "content": "sort: b a c"}]
    inputs = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**inputs.to(model.device), max_new_tokens=16, do_sample=False)
    answer = tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    chat = runs.align("chat", str(ours.folder), "--max-new-tokens", "16", stdin="sort: b a c\n\n").stdout
    assert answer == chat.strip() != ""


def test_the_page_for_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """With a probe, so that a stage's report has cells."""
    page = (Path(__file__).parents[1] / "docs/python.md").read_text(encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("{probes: none}", PROBE), encoding="utf-8")
    (tmp_path / "own.jsonl").write_text(questions(), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "start", warm.start)
    code = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    for block in code:
        exec(block, names)
    plan, steps, report, _answer = capsys.readouterr().out.splitlines()
    assert plan == "sft: sft from base, qlora, 32 rows"
    assert steps.startswith("4 ")
    table = json.loads((tmp_path / "runs/mine/forgetting.json").read_text(encoding="utf-8"))["matrix"]["sft"]
    assert report == str({probe: cell["score"] for probe, cell in table.items()}) != "{}"
    assert {f"`{name}`" for name in align.__all__} <= set(re.findall(r"`\w+`", page.replace("(", "` "))) | {
        "`Checked`",
        "`PlannedStage`",
        "`StageResult`",
    }


def test_a_gate_that_stops_the_run_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "start", warm.start)
    strict = PROBE.removesuffix("}") + ", max_drop: 0, on_violation: stop}"
    (tmp_path / "own.jsonl").write_text(questions(), encoding="utf-8")
    recipe = runs.write(tmp_path, RECIPE.replace("{probes: none}", strict))
    with pytest.raises(align.AlignError) as raised:
        align.run(recipe, run_dir=tmp_path / "run", overrides=["stages.sft.training.learning_rate=0.3"])
    decision = json.loads((tmp_path / "run/stages/sft/decision.json").read_text(encoding="utf-8"))
    assert decision["action"] == "stop"
    assert raised.value.what == f"the gate stopped the run after 'sft': {decision['reasons'][0]}"
    assert raised.value.exit == 3
