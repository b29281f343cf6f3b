"""Commands in processes that have imported what they need beforehand: importing is most of what a small run costs.

A `Warm` is a process that imports modules once and then forks itself for each command, which gets the arguments, the
environment, the folder and the standard streams it would have had. `command` is `align`, in a process that has not
imported torch, as its parent process is; the training process that it starts, and `trained`, are forked from one that
has. What is about starting, killing or importing uses real processes: `runs.run(..., cold=True)`, `runs.started`.
"""

from __future__ import annotations

import array
import atexit
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

LIGHT = (
    *("align.cli", "align.api", "align.runner.loop", "align.runner.progress", "align.report.terminal"),
    *("align.report.html", "align.report.markdown", "align.report.plots", "align.forgetting.matrix", "scipy.stats"),
)
HEAVY = ("align.cli", "align.worker.execute", "align.worker.compare", "align.results.chat", "align.results.export")
HEAVY += tuple(f"align.trainers.{name}" for name in ("sft", "dpo", "kto", "reward", "ppo", "critic_free"))
TRAINING = "ALIGN_TESTS_TRAINING"  # where a warm `align` finds the process that its training process is forked from


class Forked:
    """A forked process, as `subprocess.Popen` has it, as far as it is used."""

    def __init__(
        self, address: str, module: str, arguments: Sequence[str], streams: Sequence[int], **more: Any
    ) -> None:
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.connect(address)
        here = {"cwd": str(Path.cwd()), "env": dict(os.environ)}
        asked = {"module": module, "arguments": list(arguments), **here, **more}
        socket.send_fds(self.connection, [json.dumps(asked).encode() + b"\n"], streams)
        self.stdin: Any = None
        self.returncode: int | None = None
        self.pid = int(_line(self.connection))

    def poll(self) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self.connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("forked", timeout or 0)
            self.returncode = int(_line(self.connection))
            self.connection.close()
        return self.returncode


def _line(connection: socket.socket, begun: bytes = b"") -> bytes:
    while not begun.endswith(b"\n"):
        more = connection.recv(2**16)
        if not more:
            raise EOFError("the warm process is gone")
        begun += more
    return begun


class Warm:
    """A process that others are forked from; it ends with the one that started it."""

    def __init__(self, modules: Sequence[str]) -> None:
        self.folder = tempfile.mkdtemp(prefix="warm-")
        self.address = f"{self.folder}/socket"
        self.process = subprocess.Popen(
            [sys.executable, "-P", __file__, self.address, *modules],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        assert self.process.stdout is not None and self.process.stderr is not None
        assert self.process.stdout.readline() == b"warm\n", self.process.stderr.read().decode()

    def run(
        self, module: str, arguments: Sequence[str], stdin: str, cwd: Path | None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """A command to its end."""
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            given.write(stdin.encode())
            streams = [file.fileno() for file in (given, out, err) if file.seek(0) == 0]
            here = {"cwd": str(cwd or Path.cwd()), "env": {**os.environ, **environment}}
            code = Forked(self.address, module, arguments, streams, **here).wait()
            texts = [file.read().decode() for file in (out, err) if file.seek(0) == 0]
        return subprocess.CompletedProcess([module, *arguments], code, *texts)

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        shutil.rmtree(self.folder)


_started: dict[str, Warm] = {}


def trained(*arguments: str, stdin: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A command of align that loads a model: `chat`, `export`."""
    return _training().run("align", arguments, stdin, cwd)


def command(*arguments: str, stdin: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A command of align that imports no torch, whose training process is a warm one."""
    if "command" not in _started:
        _started["command"] = Warm(LIGHT)
    training = {TRAINING: _training().address} if arguments[0] == "run" else {}
    return _started["command"].run("align", arguments, stdin, cwd, **training)


def start(run: Path, launched: Any, log: Path, place: Any) -> Forked:
    """In place of `launch.start`: one training process, forked instead of started."""
    from align.runner import launch

    assert str(launched) == "ddp, 1 process", "others are started, with cold=True"
    read, write = os.pipe()
    with log.open("ab") as out:
        environment = launch._QUIET | dict(os.environ) | {"PYTHONSAFEPATH": "1"}
        address = os.environ.get(TRAINING) or _training().address
        child = Forked(address, "align.worker", [str(run)], [read, out.fileno(), out.fileno()], env=environment)
    os.close(read)
    child.stdin = os.fdopen(write, "wb")
    return child


def _training() -> Warm:
    if "training" not in _started:
        _started["training"] = Warm(HEAVY)
    return _started["training"]


def end() -> None:
    """End all that this process has started; what they cost is then part of what it cost."""
    while _started:
        _started.popitem()[1].end()


def serve(address: str, modules: Sequence[str]) -> None:
    """Import, and fork for whoever asks until standard input ends."""
    from align.runner import launch

    launch.start = start  # type: ignore[assignment]
    if tuple(modules) == HEAVY:
        for key, value in launch._QUIET.items():  # as the training process would find it while it imports
            os.environ.setdefault(key, value)
    for module in modules:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()
    assert ("torch" in sys.modules) == (tuple(modules) == HEAVY)
    threads = {(thread / "comm").read_text().strip() for thread in Path("/proc/self/task").iterdir()}
    assert len(threads - {"jemalloc_bg_thd"}) == 1, f"a fork has only the thread that forks, not {threads}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        signal.signal(signal.SIGCHLD, _reap)
        print("warm", flush=True)
        while listener in select.select([listener, 0], [], [])[0]:
            connection, _ = listener.accept()
            data, streams, _, _ = socket.recv_fds(connection, 2**16, 3)
            asked = json.loads(_line(connection, data))
            if os.fork() == 0:
                listener.close()
                _watch(connection, asked, streams)
            for file in (*streams, connection.detach()):
                os.close(file)


def _reap(*_: object) -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _watch(connection: socket.socket, asked: dict[str, Any], streams: array.array[int]) -> None:
    """Fork once more, and tell how that process ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if child == 0:
        connection.close()
        _become(asked, streams)
    for file in streams:
        os.close(file)
    with suppress(BrokenPipeError):
        connection.send(b"%d\n" % child)
        connection.send(b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    os._exit(0)


def _become(asked: dict[str, Any], streams: array.array[int]) -> None:
    """The command itself, in place of this process."""
    code: Any = 1
    try:
        os.setsid()
        for number, file in enumerate(streams):
            os.dup2(file, number)
            os.close(file)
        os.environ.clear()
        os.environ.update(asked["env"])
        os.chdir(asked["cwd"])
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if asked["module"] == "align" and "transformers" in sys.modules:
            importlib.import_module("transformers").logging.set_verbosity_error()  # `launch.quiet` comes too late here
        sys.argv = [asked["module"], *asked["arguments"]]
        runpy.run_module(asked["module"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as asked_for:
        code = asked_for.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(BaseException):
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2:])
