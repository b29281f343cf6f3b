"""Gives every bad input to the real command, in one fresh process, and prints what it answered as JSON.

python tests/bad_input_driver.py FOLDER
"""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import importlib.util
import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import compared_runs
from align.cli.commands import app
from align.cli.guard import guarded
from error_cases import Case, cases

HEAVY = ("torch", "transformers", "datasets", "trl", "peft", "accelerate")
PROJECT = "/home/you/project"  # stands for the current folder in messages


def hub(error: Callable[[], Exception]) -> contextlib.AbstractContextManager[Any]:
    """The Hub answers with an error."""
    return mock.patch("huggingface_hub.snapshot_download", side_effect=lambda *_, **__: raise_(error()))


def raise_(error: Exception) -> None:
    raise error


def refused(name: str) -> Exception:
    from huggingface_hub import errors

    response: Any = SimpleNamespace(headers={}, request=None, status_code=403)
    made: Exception = getattr(errors, name)("Access to the model is restricted.\nDetails follow.", response=response)
    return made


def gated() -> contextlib.AbstractContextManager[Any]:
    return hub(lambda: refused("GatedRepoError"))


def unknown() -> contextlib.AbstractContextManager[Any]:
    return hub(lambda: refused("RepositoryNotFoundError"))


def no_revision() -> contextlib.AbstractContextManager[Any]:
    return hub(lambda: refused("RevisionNotFoundError"))


def disk_full() -> contextlib.AbstractContextManager[Any]:
    return hub(lambda: OSError(errno.ENOSPC, "No space left on device"))


@contextlib.contextmanager
def held() -> Iterator[None]:
    """The run folder is locked, as another process does it."""
    from filelock import FileLock

    Path("runs/chain").mkdir(parents=True)
    Path("runs/chain/.holder").write_text('{"pid": 4242}')
    with FileLock("runs/chain/.lock"):
        yield


@contextlib.contextmanager
def other() -> Iterator[None]:
    """The run folder was written for another recipe."""
    Path("runs/other").mkdir(parents=True)
    Path("runs/other/run.json").write_text('{"format": 1, "name": "another", "stages": {}}')
    yield


def two_runs(**second: Any) -> contextlib.AbstractContextManager[Any]:
    """runs/a and runs/b, which were measured."""
    scores = {"sft": {"copy": 90, "sort": 90}}
    compared_runs.write_run(Path("runs/a"), scores)
    compared_runs.write_run(Path("runs/b"), second.pop("scores", scores), **second)
    return contextlib.nullcontext()


def other_base() -> contextlib.AbstractContextManager[Any]:
    return two_runs(model=compared_runs.LAB.model_copy(update={"name": "./mine", "identity": "b"}))


def other_probes() -> contextlib.AbstractContextManager[Any]:
    return two_runs(scores={"sft": {"copy": 90, "add": 90}})


def other_content() -> contextlib.AbstractContextManager[Any]:
    return two_runs(asked="2")


def not_measured() -> contextlib.AbstractContextManager[Any]:
    two_runs(probes="none")
    shutil.rmtree("runs/b/base")
    return contextlib.nullcontext()


def without(*names: str) -> contextlib.AbstractContextManager[Any]:
    """Packages that cannot be found, whether they are installed here or not."""
    true_spec, true_version = importlib.util.find_spec, importlib.metadata.version

    def version(name: str) -> str:
        if name in names:
            raise importlib.metadata.PackageNotFoundError(name)
        return true_version(name)

    stack = contextlib.ExitStack()
    spec = mock.Mock(side_effect=lambda name, *rest: None if name in names else true_spec(name, *rest))
    stack.enter_context(mock.patch("importlib.util.find_spec", spec))
    stack.enter_context(mock.patch("importlib.metadata.version", version))
    return stack


def no_trackers() -> contextlib.AbstractContextManager[Any]:
    return without("wandb", "mlflow")


def no_bitsandbytes() -> contextlib.AbstractContextManager[Any]:
    return without("bitsandbytes")


def no_deepspeed() -> contextlib.AbstractContextManager[Any]:
    return without("deepspeed")


def no_harness() -> contextlib.AbstractContextManager[Any]:
    return without("lm-eval", "lm_eval")


@contextlib.contextmanager
def harness() -> Iterator[None]:
    """lm-evaluation-harness with one task, whether it is installed here or not."""
    tasks = Path("site/lm_eval/tasks/hellaswag")
    tasks.mkdir(parents=True)
    (tasks / "hellaswag.yaml").write_text("task: hellaswag\ndataset_path: Rowan/hellaswag\n")
    spec, version = importlib.util.find_spec, importlib.metadata.version
    its_own = SimpleNamespace(origin=str(Path("site/lm_eval/__init__.py").absolute()))
    with (
        mock.patch("importlib.util.find_spec", lambda name, *rest: its_own if name == "lm_eval" else spec(name, *rest)),
        mock.patch("importlib.metadata.version", lambda name: "0.4.13" if name == "lm-eval" else version(name)),
    ):
        yield


def old_trl() -> contextlib.AbstractContextManager[Any]:
    true = importlib.metadata.version
    return mock.patch("importlib.metadata.version", lambda name: "0.24.0" if name == "trl" else true(name))


def small_disk() -> contextlib.AbstractContextManager[Any]:
    return mock.patch("shutil.disk_usage", return_value=SimpleNamespace(free=10_000_000))


def answer(case: Case, folder: Path) -> dict[str, Any]:
    """What the command says to a case in a folder of its own, and which heavy packages it imported."""
    folder.mkdir()
    for name, content in case.contents().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    os.chdir(folder)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(globals()[case.setup]() if case.setup else contextlib.nullcontext())
        stack.enter_context(mock.patch("sys.argv", ["align", *case.command]))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        code = guarded(app)
    _, _, said = err.getvalue().replace(str(folder), PROJECT).partition("error ")
    heavy = [name for name in HEAVY if name in sys.modules]
    return {
        "code": int(code),
        "said": said.replace("\nerror ", "\n").rstrip("\n"),
        "heavy": heavy,
        "out": out.getvalue(),
    }


def main(folder: Path) -> None:
    """Print the answers to all cases."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    found = {name: answer(case, folder / str(number)) for number, (name, case) in enumerate(cases().items())}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
