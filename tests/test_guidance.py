"""Advice before a run: every situation of the handbooks, its reason and its figure, and recipes that pass the check."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from align import api
from align.cli import advising
from align.cli.commands import app
from align.guidance import measured, recipe, rules, words
from align.guidance.rules import Choice
from align.guidance.situation import GB, GOALS, Needs, Situation
from align.planning import questions, target

BILLION = 10**9
SEVEN = {  # what is measured of the shape of Llama 2 7B, about
    "full": Needs(104 * GB, GB),
    "lora": Needs(15 * GB, GB),
    "qlora": Needs(6 * GB, GB),
}
SEVENTY = {"full": Needs(1040 * GB, 4 * GB), "lora": Needs(133 * GB, 4 * GB), "qlora": Needs(43 * GB, 4 * GB)}
THIRTEEN = {"full": Needs(200 * GB, GB), "lora": Needs(28 * GB, GB), "qlora": Needs(10 * GB, GB)}


def situation(label: float | None, **keys: Any) -> Situation:
    """Of a model of 7 billion parameters, unless the keys say otherwise."""
    given = {"parameters": 7 * BILLION, "rows": 5_000, "stage": "sft", "needs": SEVEN} | keys
    return Situation(memory=None if label is None else round(label * 2**30), label=label, **given)


@pytest.mark.parametrize(
    ("now", "method", "said"),
    [
        (situation(12), "qlora", ["for 12 GB, less than 24, QLoRA is usual", "takes 6 GB, which fits"]),
        (situation(24), "lora", ["for 24 GB LoRA is usual", "takes 15 GB, which fits"]),
        (situation(40), "lora", ["for 40 GB LoRA is usual, or all weights of a model of 7 billion"]),
        (
            situation(80, goal="quality", devices=8),
            "full",
            ["where cost is no object", "takes 13.9 GB on each of 8, shared"],
        ),
        (situation(160, goal="quality"), "full", ["where cost is no object", "takes 104 GB, which fits"]),
        (situation(80, goal="quality"), "lora", ["takes 104 GB here, which does not fit: LoRA instead", "15 GB"]),
        (situation(24, tasks=5), "lora", ["for 5 tasks on one base LoRA or bottleneck adapters are usual"]),
        (situation(12, tasks=5), "qlora", ["takes 15 GB here, which does not fit: QLoRA instead"]),
        (
            situation(24, goal="prototype", needs=SEVEN | {"prefix_tuning": Needs(14 * GB, GB)}),
            "prefix_tuning",
            ["for a rapid prototype prefix tuning is usual"],
        ),
        (situation(24, goal="domain"), "lora", ["for a domain LoRA of rank 32 to 64", "rank 32: a domain asks for"]),
        (situation(24, goal="domain", rows=50_000), "lora", ["rank 64: a domain asks for 32 to 64"]),
        (situation(160, rows=200_000, far=True), "full", ["for more than 100,000 rows far from pretraining"]),
        (situation(160, rows=200_000), "lora", ["for 160 GB LoRA is usual"]),
        (situation(160, rows=50_000, far=True), "lora", ["for 160 GB LoRA is usual"]),
        (
            situation(80, parameters=70 * BILLION, needs=SEVENTY),
            "qlora",
            ["for more than 13 billion parameters on one card QLoRA is usual", "takes 43 GB, which fits"],
        ),
        (situation(48, parameters=13 * BILLION, needs=THIRTEEN), "lora", ["for 48 GB LoRA is usual", "28 GB"]),
        (situation(16, parameters=13 * BILLION, needs=THIRTEEN), "qlora", ["for 16 GB, less than 24", "10 GB"]),
        # the model and the data decide, not the table
        (
            situation(12, parameters=BILLION, needs={"lora": Needs(4 * GB, GB), "qlora": Needs(2 * GB, GB)}),
            "lora",
            ["QLoRA is usual", "LoRA fits as well (takes 4 GB), and 4 bits would save what need not be saved"],
        ),
        (situation(4), "qlora", ["but it does not fit: it takes 6 GB; take a smaller model or a larger device"]),
        (situation(None), "lora", ["where the memory is not known LoRA is usual"]),
    ],
)
def test_every_situation_has_its_method_reason_and_figure(now: Situation, method: str, said: list[str]) -> None:
    choice = rules.choose(now)
    assert choice.method == choice.settings["method"] == method
    for text in said:
        assert any(text in reason for reason in choice.reasons), choice.reasons


@pytest.mark.parametrize(("rows", "rank"), [(200, 8), (5_000, 16), (50_000, 64)])
def test_the_rank_follows_from_the_data(rows: int, rank: int) -> None:
    choice = rules.choose(situation(24, rows=rows))
    assert choice.settings["lora"] == {"r": rank, "alpha": 2 * rank, "target_modules": "auto"}


@pytest.mark.parametrize(
    ("now", "at_once", "accumulated"),
    [
        (situation(24), 8, 2),  # 15 + 7 = 22 GB
        (situation(16), 2, 8),
        (situation(80), 16, 1),
        (situation(24, devices=4), 4, 1),
        (situation(None), 1, 16),
    ],
)
def test_as_many_rows_at_a_time_as_fit(now: Situation, at_once: int, accumulated: int) -> None:
    training = rules.choose(now).training
    assert training["per_device_train_batch_size"] == at_once
    assert training["gradient_accumulation_steps"] == accumulated
    assert at_once * accumulated * now.devices == rules.BATCH


@pytest.mark.parametrize(
    ("stage", "goal", "rate"), [("sft", "balanced", 2e-4), ("sft", "quality", 2e-5), ("dpo", "balanced", 1e-5)]
)
def test_the_rate_is_that_of_method_and_stage(stage: str, goal: Any, rate: float) -> None:
    assert rules.choose(situation(160, stage=stage, goal=goal)).training["learning_rate"] == rate


def test_what_handbooks_give_stands_beside_what_is_computed() -> None:
    found = {method: rest for method, *rest in rules.compared(situation(24))}
    assert found["lora"] == ["15 GB", "fits", "12 to 16 GB for 7B"]
    assert found["full"] == ["104 GB", "does not fit", "60 GB in pure bfloat16, 2 of 80 GB for 7B"]
    assert {rest[-1] for _, *rest in rules.compared(situation(24, parameters=BILLION))} == {""}
    assert next(rules.compared(situation(24, needs={"lora": Needs(15 * GB, GB, exact=False)})))[1] == "~15 GB"


@pytest.mark.parametrize("devices", [1, 2, 3, 5, 6, 7, 12, 16, 32])
@pytest.mark.parametrize("stage", ["sft", "kto"])
def test_an_update_has_about_sixteen_rows(devices: int, stage: str) -> None:
    training = rules.choose(situation(80, devices=devices, stage=stage)).training
    at_once, accumulated = training["per_device_train_batch_size"], training["gradient_accumulation_steps"]
    assert at_once >= (2 if stage == "kto" else 1)
    whole = at_once * accumulated * devices
    assert rules.BATCH / 2 < whole <= rules.BATCH or accumulated == 1


def test_activations_are_not_shared() -> None:
    """Of 124 GB, 20 are of the row: on four devices a quarter of the rest and the row itself."""
    now = situation(80, goal="quality", devices=4, needs={**SEVEN, "full": Needs(124 * GB, 20 * GB)})
    assert now.of_a_device("full") == pytest.approx(46 * GB)
    assert now.of_a_device("full", 4) == pytest.approx(106 * GB)
    assert rules.choose(now).training["per_device_train_batch_size"] == 2


def test_what_does_nothing_is_told() -> None:
    assert any(
        "2 tasks on one base come before" in text
        for text in rules.choose(situation(80, tasks=2, goal="quality")).reasons
    )
    assert any(
        "ask for all weights from 100,000 rows on" in text for text in rules.choose(situation(80, far=True)).reasons
    )


def test_a_prefix_takes_larger_steps() -> None:
    needs = {"prefix_tuning": Needs(14 * GB, GB)}
    assert rules.choose(situation(24, goal="prototype", needs=needs)).training["learning_rate"] == 1e-2


def test_several_devices() -> None:
    assert rules.choose(situation(80, goal="quality", devices=8)).launch == {"engine": "fsdp", "processes": 8}
    assert rules.choose(situation(24, devices=2)).launch == {"processes": 2}
    assert rules.choose(situation(24)).launch == {}


@pytest.mark.parametrize("method", ["full", "lora", "qlora", "prefix_tuning"])
@pytest.mark.parametrize("data", ["lab/helpdesk", "lab/helpdesk_preferences"])
def test_each_recipe_passes_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, data: str) -> None:
    monkeypatch.chdir(tmp_path)
    goal: Any = {"full": "quality", "prefix_tuning": "prototype"}.get(method, "balanced")
    stage = "dpo" if "preferences" in data else "sft"
    needs = {"lora": Needs(20 * GB, GB)} if method == "qlora" else {}
    choice = rules.choose(situation(12 if method == "qlora" else 40, goal=goal, stage=stage, needs=needs))
    assert choice.method == method
    Path("x.yaml").write_text(recipe.text("lab", data, stage, choice, held_out=True))
    [planned] = api.check("x.yaml").stages
    assert (planned.program, planned.method) == (stage, method)
    assert planned.held_out > 0
    assert Path("x.yaml").read_text().count("# - ") == len(choice.reasons)


@pytest.mark.slow
def test_what_the_lab_takes_is_traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = measured.measure(
        "lab", "lab/helpdesk", "sft", ("full", "lora", "qlora", "prefix_tuning"), target.asked("1")
    )
    assert list(found.needs) == ["full", "lora", "qlora", "prefix_tuning"]
    assert all(one.exact and one.row > 0 for one in found.needs.values())
    assert found.needs["full"].peak > found.needs["lora"].peak > found.needs["qlora"].peak
    assert found.rows == 3_000
    assert 1_500_000 < found.parameters < 2_500_000


def command(*arguments: str, cwd: Path, **environment: str) -> tuple[int, str, str]:
    import subprocess

    called = [sys.executable, "-m", "align", *arguments]
    own = {**os.environ, "COLUMNS": "150", "NO_COLOR": "1", **environment}
    done = subprocess.run(called, cwd=cwd, env=own, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_answers_with_labels(tmp_path: Path) -> None:
    rows = [{"prompt": f"p {i}", "completion": "c", "label": i % 2 == 0} for i in range(40)]
    (tmp_path / "run-1e-5.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ("advise", "--model", "lab", "--data", "run-1e-5.jsonl", "--gpu", "12GB", "--out", "x.yaml")
    code, _, said = command(*given, cwd=tmp_path)
    assert code == 0, said
    assert "run-1e-5.jsonl" in (tmp_path / "x.yaml").read_text()


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    given = ("advise", "--model", "lab", "--data", "lab/helpdesk", "--gpu", "12GB", "--out", "x.yaml")
    code, out, said = command(*given, cwd=tmp_path)
    assert code == 0, said
    assert "LoRA fits as well" in out and "recipe: x.yaml" in out
    [planned] = api.check(tmp_path / "x.yaml").stages
    assert planned.method == "lora"
    code, out, _ = command(*given, "--json", cwd=tmp_path)
    assert code == 0
    assert json.loads(out)["method"] == "lora"
    code, _, said = command(*given[:-2], "--out", "x.yaml", "--goal", "domain", cwd=tmp_path)
    assert (code, "'x.yaml' already exists and differs" in said) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["advise"], "give a finished run, or --model and --data"),
        (["advise", "run", "--model", "lab"], "give a finished run, or --model and --data"),
        (["advise", "--model", "lab"], "--data is missing"),
        (["advise", "--model", "lab", "--data", "lab/helpdesk", "--goal", "best"], "there is no goal 'best'"),
        (["advise", "--model", "lab", "--data", "no.jsonl"], "there is no file or folder 'no.jsonl'"),
        (["advise", "--model", "lab", "--data", "p.jsonl"], "'p.jsonl' has prompts without answers"),
        (
            ["advise", "--model", "lab", "--data", "m.jsonl"],
            "the rows of 'm.jsonl' are of several kinds: 1 are chat, 1 are preference",
        ),
        (["advise", "run", "--gpu", "24GB"], "of a finished run only --json changes anything"),
        (["init"], "align init asks questions, and this is no terminal"),
    ],
)
def test_what_cannot_be_advised(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "Hi"}\n')
    pair = '{"prompt": "a", "chosen": "b", "rejected": "c"}\n'
    (tmp_path / "m.jsonl").write_text('{"instruction": "a", "output": "b"}\n' + pair)
    code, _, said = command(*arguments, cwd=tmp_path)
    assert code == 2
    assert sentence in said


def test_a_provider_chooses_itself(tmp_path: Path) -> None:
    given = ("advise", "--model", "x", "--data", "y", "--goal", "provider")
    code, out, _ = command(*given, cwd=tmp_path)
    assert code == 0
    assert "a provider's API chooses the method itself" in out.replace("\n", " ")
    assert not list(tmp_path.iterdir())


def test_init_asks_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(advising, "_asked_by_a_person", lambda: True)
    asked: list[Any] = []

    def measure(*given: Any) -> measured.Measured:
        asked.append(given)
        return measured.Measured(7 * BILLION, SEVEN, 3_000, ("a note",))

    monkeypatch.setattr(measured, "measure", measure)
    answers = ["lab", "lab/helpdesk", "12GB", "1", "1", "balanced", "n"]
    done = CliRunner().invoke(app, ["init", "--out", "x.yaml"], input="\n".join(answers) + "\n")
    assert done.exit_code == 0, done.output
    [(base, data, stage, methods, device)] = asked
    assert (base, data, stage, methods) == ("lab", "lab/helpdesk", "sft", ("full", "lora", "qlora"))
    assert device.memory == 12 * 2**30
    [planned] = api.check("x.yaml").stages
    assert planned.method == "qlora"


def test_words(capsys: pytest.CaptureFixture[str]) -> None:
    now = situation(24, devices=2)
    choice: Choice = rules.choose(now)
    for shown in words.shown(now, choice, "a GPU of 24 GB"):
        Console(width=120, highlight=False).print(shown)
    said = capsys.readouterr().out
    assert "7 B parameters, 5,000 rows for sft, 2 x a GPU of 24 GB (25.8 GB)" in said
    assert set(GOALS) == {"balanced", "quality", "prototype", "domain", "provider"}
    assert words.document(now, choice, "x.yaml")["methods"]["qlora"]["fits"] is True


@pytest.mark.parametrize("method", ["prefix_tuning", "prompt_tuning", "lora"])
def test_on_a_gpu_only_what_can_be_recomputed_is(method: str, tmp_path: Path) -> None:
    loaded = recipe.tried("lab", "lab/helpdesk", "sft", method, 2, tmp_path)
    [plan] = loaded.stages
    recomputed = method != "prefix_tuning"
    assert questions._training(plan, target.asked("24GB"), 1)["gradient_checkpointing"] is recomputed
    assert plan.layer.traits.recomputes is recomputed
