"""The command line: its options are frozen, it imports nothing heavy, and each stream and exit code has its use."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from align import shipped
from align.cli import guard
from align.cli.commands import app
from align.errors import AlignError, Exit, Faults, Place
from align.parameterization import method
from align.recipe.load import locate
from error_cases import CHATS, RECIPE

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "datasets", "trl", "peft", "accelerate", "bitsandbytes")
DRIVER = f"""\
import sys
from align.cli.commands import app
from align.cli.guard import guarded
code = guarded(app)
print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
sys.exit(code)
"""
# A knob of a run goes into the recipe, where it is recorded. Whoever adds an option changes this on purpose.
OPTIONS = {
    "run": [
        "recipe",
        "--set",
        "--run-dir",
        "--from",
        "--only",
        "--fresh",
        "--processes",
        "--machines",
        "--machine-rank",
        "--main-address",
        "--print-launch",
        "--model",
        "--data",
        "--method",
        "--stage",
        "--print-sbatch",
        "--sbatch",
    ],
    "check": ["recipe", "--set", "--offline"],
    "import": ["file", "--out", "--stage", "--processes", "--json"],
    "plan": ["recipe", "--set", "--run-dir", "--gpu", "--calibrate", "--json"],
    "tune": [
        *("recipe", "--stage", "--over", "--gain", "--steps", "--trials", "--minutes", "--set", "--run-dir", "--out"),
        "--json",
    ],
    "doctor": ["--hub", "--quick", "--json"],
    "status": ["run_dir", "--json"],
    "report": ["run_dir", "--json"],
    "advise": [
        *("run_dir", "--model", "--data", "--gpu", "--gpus", "--tasks", "--goal", "--far", "--out", "--json"),
    ],
    "init": ["--out"],
    "compare": ["runs", "--json", "--html"],
    "list": ["--json"],
    "schema": [],
    "chat": ["run_dir", "--stage", "--max-new-tokens", "--temperature"],
    "export": ["run_dir", "out", "--stage", "--form", "--dtype"],
    "merge": ["out", "adapter", "--rank", "--form"],
    "spectrum": ["model", "--snr-threshold", "--estimator", "--json", "--workers"],
    "lab build": ["out", "--seed"],
    "data show": [
        *("data", "stage", "--row", "--set", "--model", "--chat-template", "--max-length", "--split", "--format"),
        "--json",
    ],
    "data check": [
        *(
            "data",
            "--stage",
            "--against",
            "--against-split",
            "--model",
            "--chat-template",
            "--max-length",
            "--split",
            "--format",
        ),
        *("--rejects", "--json"),
    ],
    "data convert": ["data", "to", "--stage", "--on-bad-row", "--rejects", "--split", "--format"],
}


def commands(group: Any, before: str = "") -> Iterator[tuple[str, list[str]]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{before}{name} ")
        else:
            yield before + name, [p.opts[0] for p in command.params if p.name != "help"]


def align(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own; the last line of stderr lists the heavy packages it imported."""
    environment = {**os.environ, "NO_COLOR": "1", "COLUMNS": "120"}
    command = [sys.executable, "-c", DRIVER, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)


def test_the_options_are_frozen() -> None:
    assert dict(commands(typer.main.get_command(app))) == OPTIONS


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["check", "recipes/dpo_qlora.yaml"],
        ["list"],
        ["schema"],
        ["plan", "--help"],
        ["run", "--help"],
        ["spectrum", "--help"],
        ["data", "show", "lab/helpdesk", "--model", "lab"],
        ["data", "check", "lab/helpdesk", "--stage", "sft"],
    ],
    ids=" ".join,
)
def test_nothing_heavy_is_imported(arguments: list[str]) -> None:
    done = align(*arguments)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (0, "[]"), done.stderr


def test_results_go_to_stdout_and_all_else_to_stderr(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "chats.jsonl").write_text(CHATS + CHATS)
    done = align("check", "recipe.yaml", cwd=tmp_path)
    assert done.stdout == "sft: sft from base, full, 6 rows\nrecipe.yaml: ok\n"
    assert done.stderr == "note stage sft: 3 of 6 rows are duplicates\n[]\n"


def test_most_rows_dropped_is_a_warning_not_a_note(tmp_path: Path) -> None:
    """Half of them is a note; 26 of 28 is what a run should not be spent on unheard."""
    long = json.dumps({"prompt": "word " * 100, "completion": "Yes."}) + "\n"
    short = json.dumps({"prompt": "Why?", "completion": "Yes."}) + "\n"
    (tmp_path / "recipe.yaml").write_text(RECIPE + "    too_long: drop\n    training: {max_length: 32}\n")
    (tmp_path / "chats.jsonl").write_text(long * 26 + short * 2)
    said = [line for line in align("check", "recipe.yaml", cwd=tmp_path).stderr.splitlines() if "dropped" in line]
    assert "note stage sft: 26 of 28 rows are dropped: no answer is left by max_length 32" in said
    assert said[-1] == (
        "warning sft: 2 of 28 rows remain: 26 (93%) were dropped; raise `training.max_length` (32), or shorten the rows"
    )
    (tmp_path / "chats.jsonl").write_text(long * 2 + short * 2)
    assert "warning" not in align("check", "recipe.yaml", cwd=tmp_path).stderr


def test_check_takes_the_hub_on_trust_when_told(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("lab", "no/such-model").replace("chats.jsonl", "no/such-data"))
    done = align("check", "recipe.yaml", "--offline", cwd=tmp_path)
    assert done.stdout == "sft: sft from base, full, rows not looked up\nrecipe.yaml: ok\n"
    assert done.stderr.splitlines()[:-1] == [
        "note the model 'no/such-model' was not looked up",
        "note stage sft: the data 'no/such-data' were not looked up",
    ]


@pytest.mark.parametrize("name", [name for name in shipped.names("recipes") if name.startswith("gpu/")])
def test_the_recipes_for_gpus_are_right(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(locate(name))
    assert guarded("check", path, "--offline") == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{path}: ok"


def guarded(*arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["align", *arguments])
        return guard.guarded(app)


def raising(error: BaseException) -> int:
    def command() -> None:
        raise error

    return guard.guarded(command)


def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(AlignError("it is wrong", "mend it")) == Exit.BAD_INPUT
    assert raising(AlignError("no GPU", exit=Exit.MACHINE)) == Exit.MACHINE
    assert raising(Faults([AlignError("a"), AlignError("b", exit=Exit.MACHINE)])) == Exit.MACHINE
    assert raising(KeyboardInterrupt()) == 130
    assert raising(SystemExit(3)) == 3
    with pytest.raises(ZeroDivisionError):  # what nobody expected keeps its traceback
        raising(ZeroDivisionError())
    assert capsys.readouterr().err == (
        "error it is wrong\n  -> mend it\n"
        "error no GPU\n"
        "error a\nerror b\n"
        "interrupted; run the same command again to resume\n"
    )


def test_ctrl_c_in_a_command_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(name: str) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr("align.recipe.load.locate", interrupt)
    assert guarded("check", "recipe.yaml") == 130
    assert capsys.readouterr().err == "interrupted; run the same command again to resume\n"


def test_what_looks_like_markup_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """File names and values may hold brackets; and a line is not broken where the terminal ends."""
    raising(AlignError("[red]x[/red] " + "long " * 60, place=Place("a[1].yaml", 2)))
    assert capsys.readouterr().err == "error a[1].yaml:2: [red]x[/red] " + "long " * 60 + "\n"


@pytest.mark.parametrize("arguments", [["--bad"], ["check"], ["run", "--processes", "0"], ["nothing"]], ids=" ".join)
def test_a_wrong_command_line_is_bad_input(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(*arguments) == Exit.BAD_INPUT
    assert "Traceback" not in capsys.readouterr().err


def test_list_names_all_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded("list") == 0
    said = capsys.readouterr().out
    names = [
        *shipped.names("recipes"),
        *shipped.names("pipelines"),
        *shipped.names("stages"),
        *method.names(),
    ]
    assert set(names) <= set(re.findall(r"[\w./-]+", said))
    assert "What it is for" not in said


def test_status_of_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded("status", str(tmp_path)) == 2
    assert capsys.readouterr().err == (
        f"error '{tmp_path}' is not a run folder\n  -> give a folder that `align run` wrote, such as runs/NAME\n"
    )


# A run without a recipe ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", ["chats.jsonl", "a b.jsonl", "no", "12", "a: b.jsonl", '"q".jsonl'])
def test_a_run_without_a_recipe_writes_a_right_one(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from align.recipe import from_flags, load

    monkeypatch.chdir(tmp_path)
    path = from_flags.write("lab", data, method="qlora", stage="sft")
    found = load.load(path)
    assert found.recipe.model.base == "lab"
    assert found.recipe.stages["sft"]["data"] == data
    assert [plan.method_keys.method for plan in found.stages] == ["qlora"]
    assert from_flags.write("lab", data, method="qlora", stage="sft") == path  # again is as well as once
    changed = ["stages.sft.training.learning_rate=1.0e-4", "forgetting.probes=none", "seed=7"]
    path.unlink()
    assert from_flags.write("lab", data, method="qlora", stage="sft", overrides=changed) == path
    alone = load.load(path)
    assert (alone.recipe.seed, alone.recipe.forgetting.probes) == (7, "none")
    assert alone.stages[0].training["learning_rate"] == 1e-4
    assert alone.stages[0].training["gradient_accumulation_steps"] == 4, "what was there stays"
    assert alone.recipe.stages["sft"]["data"] == data
    assert path.read_text().startswith("# sft of lab on ") and "# needs: the model and the data" in path.read_text()
    assert from_flags.write("lab", data, method="qlora", stage="sft", overrides=changed) == path
    path.unlink()
    with pytest.raises(AlignError) as wrong:
        from_flags.write("lab", data, method="qlora", stage="sft", overrides=["stages.sft.trainig.max_steps=3"])
    assert str(wrong.value).startswith("--set stages.sft.trainig.max_steps=3: ") and not path.exists()
    from_flags.write("lab", data, method="qlora", stage="sft")
    path.write_text("changed by its owner\n")
    with pytest.raises(AlignError) as error:
        from_flags.write("lab", data, method="qlora", stage="sft")
    assert str(error.value) == f"'{path}' already exists and differs\n  -> align run {path}, or remove it"
