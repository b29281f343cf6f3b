"""A disk that is full or read-only, few open files, a clock set back: a sentence, and the same weights after it."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import runs

pytestmark = pytest.mark.slow
RECIPE = runs.RECIPE.replace("method: qlora", "method: lora")
# What time(2) and its like tell is so many seconds earlier; files keep the times of the system.
CLOCK = """\
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>

int clock_gettime(clockid_t clock, struct timespec *found) {
    static int (*own)(clockid_t, struct timespec *);
    if (!own) own = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int code = own(clock, found);
    if (clock == CLOCK_REALTIME && getenv("SET_BACK")) found->tv_sec -= atol(getenv("SET_BACK"));
    return code;
}
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("whole")
    runs.run(runs.write(folder, RECIPE), folder / "run")
    return runs.weights(folder / "run")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder], check=False)
    except OSError:
        pytest.skip("there is no mount")
    if mounted.returncode:
        pytest.skip("no disk can be mounted")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def full(disk: Path) -> Path:
    """Take all the room that is left."""
    filler = disk / "filler"
    with filler.open("wb") as file:
        while True:
            try:
                os.write(file.fileno(), b"x" * 4096)
            except OSError:
                return filler


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_a_disk_that_is_full(stage: str, disk: Path, whole: dict[str, str], tmp_path: Path) -> None:
    recipe, run = runs.write(tmp_path, RECIPE), disk / "run"
    process = runs.started(recipe, run)
    runs.wait_for(process, lambda: runs.last_step(run, stage) >= 3)
    filler = full(disk)
    said = " ".join(process.communicate()[0].split())
    assert process.returncode == 4 and "Traceback" not in said, said
    assert "free some" in said
    again = runs.run(recipe, run, code=4, cold=True).stderr  # still full
    assert "Traceback" not in again
    filler.unlink()
    runs.run(recipe, run)
    assert runs.weights(run) == whole


def test_a_disk_that_cannot_be_written(disk: Path, whole: dict[str, str], tmp_path: Path) -> None:
    recipe, run = runs.write(tmp_path, RECIPE), disk / "run"
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    said = " ".join(runs.run(recipe, run, code=2, cold=True).stderr.split())
    assert "cannot be written (Read-only file system) -> give another --run-dir" in said
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    runs.run(recipe, run)
    assert runs.weights(run) == whole


@pytest.mark.parametrize("files", [6, 12, 16, 24, 48])
def test_few_open_files(files: int, whole: dict[str, str], tmp_path: Path) -> None:
    """Whichever file is the one too many, it is told; or they are enough."""
    recipe, run = runs.write(tmp_path, RECIPE), tmp_path / "run"
    done = subprocess.run(
        runs.command(recipe, run), capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files)),
    )  # fmt: skip
    if done.returncode:
        assert done.returncode in (1, 4), done.stderr
        assert "Too many open files" in done.stderr, done.stderr
        assert files <= 6 or "Traceback" not in done.stderr, done.stderr
    runs.run(recipe, run)
    assert runs.weights(run) == whole


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_a_clock_that_was_set_back(whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clock.c").write_text(CLOCK)
    library = tmp_path / "clock.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "clock.c", "-ldl"], check=True)
    monkeypatch.setenv("LD_PRELOAD", str(library))
    recipe, run = runs.write(tmp_path, RECIPE), tmp_path / "run"
    process = runs.started(recipe, run)
    runs.wait_for(process, lambda: runs.last_step(run, "sft") >= 5)
    for pid in runs.children(process.pid):
        os.kill(pid, 9)
    process.communicate()
    monkeypatch.setenv("SET_BACK", "86400")
    said = runs.run(recipe, run, cold=True).stderr
    assert "resuming from checkpoint-" in said and "sft  12/12" in said and "dpo  8/8" in said
    assert runs.weights(run) == whole
    monkeypatch.setenv("SET_BACK", "172800")
    assert runs.run(recipe, run, cold=True).stderr.count("done already") == 2
