"""What all tests share."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import runs
import warm

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test needs a network
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # each worker of pytest-xdist has one core
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what it puts into the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the runs that tests start would be deaf to Ctrl-C too
if (
    signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
):  # as nohup starts a command: then a run takes it for no wish to end
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Among several workers the files that train come first: a long one that starts last keeps all waiting."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: not {"runs", "Stages"} & vars(getattr(item, "module", item)).keys())


def pytest_collection_finish() -> None:
    """What is imported stays, as in the training process: each collection of garbage would look through all of it."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    warm.end()


@pytest.fixture(autouse=True)
def _plain_output(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Messages are compared as text, so no colour and a fixed width."""
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    yield


@pytest.fixture(scope="session")
def gated(tmp_path_factory: pytest.TempPathFactory) -> runs.Gated:
    """A run of sft and dpo that its gate had stopped. It forgot much."""
    return runs.Gated(runs.once(tmp_path_factory, "gated", lambda folder: runs.Gated(folder).make()))


@pytest.fixture(scope="session")
def rlhf(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe with two branches, dpo and reward model with ppo, and its run."""
    folder = runs.once(tmp_path_factory, "rlhf", runs.make_rlhf)
    return folder / "small.yaml", folder / "run"


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of a real chat model: SmolLM2-135M-Instruct, bfloat16, tied embeddings, ChatML.

    Its weights were rounded to 4 bits once (Q4_1) before they came here: it is a base of its own, a little worse than
    the published one, and figures of it are figures of this base.
    """
    import real_model

    try:
        return real_model.folder()
    except real_model.OutOfReachError as error:
        pytest.skip(str(error))
