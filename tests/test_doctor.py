"""`align doctor`: what it finds missing, with the line that installs it, and whether the demo will run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
from pathlib import Path
from typing import Any

import pytest

import runs
from align.doctor import diagnosis, hub, machine, packages, steps
from align.doctor.finding import Finding

ROOT = Path(__file__).parents[1]
REQUIRED = ["there>=2", "old<3,>=2", "gone==1.16.*", 'tracked>=1; extra == "wandb"', 'held>=1; extra == "eval"']


@pytest.fixture
def made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {"there": "2.1", "old": "3.0", "held": "1.0"}
    monkeypatch.setattr(packages.importlib.metadata, "requires", lambda _: [*REQUIRED, 'pytest>=8; extra == "dev"'])
    monkeypatch.setattr(packages, "installed", held.get)


def test_packages_are_held_against_their_ranges(made_of: None) -> None:
    found = {one.about: (one.state, one.found, one.remedy) for one in packages.look()}
    assert found.pop("Python")[0] == found.pop("align")[0] == "ok"
    assert found == {
        "there": ("ok", "2.1", ""),
        "old": ("fault", "3.0, but align was tested with <3,>=2", "pip install 'old<3,>=2'"),
        "gone": ("fault", "not installed", "pip install 'gone==1.16.*'"),
        "wandb": ("note", "not installed; only for the tracker of that name", "pip install 'align-suite[wandb]'"),
        "eval": ("ok", "held 1.0", ""),
    }


def test_every_extra_that_users_install_has_its_words() -> None:
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(packages._FOR) == set(extras) - {"dev"}


@pytest.mark.parametrize(
    ("said", "driver", "expected"),
    [
        ({"torch_error": "ModuleNotFoundError: No module named 'torch'"}, None, []),
        ({"torch_error": "OSError: libcudart.so"}, None, [("torch", "fault")]),
        ({"torch": "2", "cuda": "", "bf16": False, "gpus": []}, None, [("GPU", "note")]),
        ({"torch": "2", "cuda": "", "bf16": False, "gpus": []}, "570", [("GPU", "fault")]),
        ({"torch": "2", "cuda": "12.8", "bf16": True, "gpus": [["H200", 140e9]]}, "570", [("GPU", "ok")]),
    ],
)
def test_gpus_are_told_as_torch_sees_them(
    said: dict[str, Any], driver: str | None, expected: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_asked", lambda: {"library": "CudaBNBNativeLibrary", **said})
    found = [(one.about, one.state) for one in machine._stack(driver)]
    assert [one for one in found if one[0] != "bitsandbytes"] == expected


def test_the_hub_that_does_not_answer_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)

    def refused(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(hub.urllib.request, "urlopen", refused)
    assert hub.look().state == "note" and "no route" in hub.look().found
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "not asked" in hub.look().found


def test_ways_to_train_that_cannot_be_tried_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "_tried", lambda way, folder: Finding(way.name, "ok", "made"))
    monkeypatch.setattr(packages, "installed", lambda name: None if name == "deepspeed" else "1")
    found = {one.about: one.found for one in steps.look(tmp_path, gpus=1)}
    assert found["float32"] == found["4-bit"] == "made"
    assert found["ddp, 2 processes"] == "not tried: it needs 2 GPUs"
    assert found["ZeRO-2, 2 processes"] == "not tried: deepspeed is not installed"


def test_the_last_line_says_whether_the_demo_will_run() -> None:
    good, bad = Finding("4-bit", "ok", "made"), Finding("torch", "fault", "not installed")
    apart = Finding("fsdp, 2 processes", "fault", "it failed")
    assert diagnosis.verdict([good, apart]).startswith("`make demo` will run here: a step")
    assert diagnosis.verdict([Finding("GPU", "note", "none")]).startswith("`make demo` will run here, as far as")
    assert diagnosis.verdict([good, bad]) == "`make demo` will not run here before this is mended: torch"


def test_it_works_without_the_packages_that_align_is_made_of(tmp_path: Path) -> None:
    settings = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}

    def bare(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-S", "-m", "align", *words]  # without any installed package
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=settings, check=False)

    said = bare("run", "x.yaml")
    assert said.returncode == 4 and "is not installed\n  -> make install" in said.stderr
    assert "Traceback" not in said.stderr
    said = bare("doctor")
    assert said.returncode == 4 and "Traceback" not in said.stderr + said.stdout
    assert said.stdout.splitlines()[-1].startswith("`make demo` will not run here before this is mended: ")


@pytest.mark.slow
def test_a_step_is_made_in_each_way(tmp_path: Path) -> None:
    said = runs.align("doctor", "--json", cwd=tmp_path, cold=True).stdout
    found = {one["about"]: one for one in json.loads(said)["found"]}
    for name in ("float32", "bfloat16", "4-bit", "ddp, 2 processes", "fsdp, 2 processes"):
        assert found[name]["state"] == "ok", found[name]
    assert json.loads(said)["verdict"].startswith("`make demo` will run here: a step")
