"""The wheel, installed elsewhere and used from a folder whose own packages have our names."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import runs

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_wheel_runs_beside_packages_of_the_same_names(tmp_path: Path) -> None:
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run(build, check=True)
    wheel = next(tmp_path.glob("align_suite-*.whl"))
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True)
    site = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    # the dependencies of this environment, without its editable install: path files in a path entry are not read
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")

    here = tmp_path / "project"
    for package in ("stages", "pipelines", "recipes", "align", "datasets"):
        (here / package).mkdir(parents=True)
        (here / package / "__init__.py").write_text("raise RuntimeError('the wrong package')\n", encoding="utf-8")
    runs.write(here)
    command = [str(tmp_path / "venv" / "bin" / "align"), "run", "small.yaml", "--run-dir", "out"]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (here / "out/stages/dpo/outcome.json").is_file()
    listed = subprocess.run([command[0], "list"], cwd=here, capture_output=True, text=True, check=True).stdout
    for name in ("dpo_qlora", "gpu/dpo_qlora_llama3.1_8b", "sft_dpo", "qlora"):
        assert name in listed
