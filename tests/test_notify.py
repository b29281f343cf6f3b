"""`notify`: what a command and a webhook are told, that no secret is told or kept, and that no hook holds a run up."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from align.errors import AlignError, Exit
from align.recipe.load import load
from align.recipe.notify_keys import SECRET, Notify
from align.recipe.resolved import resolved
from align.run_folder.paths import RunDir
from align.runner import notify
from align.runner.notify import Notifier
from test_loop import RECIPE, Runs, probes, runs

__all__ = ["probes", "runs"]


class Hook(HTTPServer):
    """A webhook on this machine; `answer` is its status, `wait` how long it takes."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.got: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.answer, self.release = 200, threading.Event()
        self.release.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/services/T0KEN?key=hidden"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        hook = self.server
        assert isinstance(hook, Hook)
        hook.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        hook.headers.append(dict(self.headers))
        hook.release.wait(30)
        self.send_response(hook.answer)
        self.send_header("Location", "http://127.0.0.1:1/elsewhere")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hook() -> Iterator[Hook]:
    server = Hook()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.release.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> float:
    """A second instead of ten."""
    monkeypatch.setattr(notify, "PATIENCE", 1.0)
    return 1.0


def command(folder: Path, code: str) -> str:
    """An override whose command runs Python code."""
    file = folder / "hook.py"
    file.write_text(code, encoding="utf-8")
    return f"notify={json.dumps([sys.executable, str(file)])}"


def keeping(folder: Path) -> str:
    """A command that keeps what it gets, a line for each."""
    return command(
        folder,
        f"import sys\nwith open({str(folder / 'got')!r}, 'a') as file:\n    file.write(sys.stdin.read() + '\\n')\n",
    )


def got(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "got").read_text().splitlines()]


def test_a_command_is_told_of_the_end(runs: Runs) -> None:
    runs.run(keeping(runs.folder))
    (document,) = got(runs.folder)
    assert document.pop("time").endswith("Z") and document.pop("align")
    assert document == {
        "format": 1,
        "event": "end",
        "run": "small",
        "folder": str(runs.dir.root),
        "stage": None,
        "exit": 0,
        "verdict": "Nothing was measured: the recipe says `probes: none`.",
        "error": None,
        "stages": [
            {"id": "sft", "program": "sft", "status": "done"},
            {"id": "dpo", "program": "dpo", "status": "done"},
        ],
        "report": str(runs.dir.root / "report.html"),
    }
    assert not [line for line in runs.said if "notify" in line]


def test_a_gate_is_told_when_it_decides_and_not_again(runs: Runs, probes: str) -> None:
    runs.right = {"sft": 20}
    runs.run(probes, keeping(runs.folder), "forgetting.on_violation=stop")
    gate, end = got(runs.folder)
    assert (gate["event"], gate["stage"], gate["exit"], gate["verdict"]) == ("gate", "sft", None, None)
    (stage, later) = gate["stages"]
    assert (stage["action"], stage["violations"][0]["probe"], later["status"]) == ("stop", "sums", "pending")
    assert stage["reasons"][0].startswith("sums: 0.9 -> 0.2 (-0.700")
    assert (end["event"], end["exit"], end["stages"][0]["status"]) == ("end", Exit.GATE, "stopped")
    assert end["verdict"].startswith("After sft the model gained nothing for certain and forgot sums (-0.700)")
    runs.run(probes, keeping(runs.folder), "forgetting.on_violation=stop")
    assert [document["event"] for document in got(runs.folder)[2:]] == ["end"]


def test_a_failure_and_an_interrupt_are_told(runs: Runs) -> None:
    runs.raising["sft"] = AlignError("the card burns", "put it out", exit=Exit.STAGE_FAILED)
    with pytest.raises(AlignError, match="the card burns"):
        runs.run(keeping(runs.folder))
    runs.raising["dpo"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        runs.run(keeping(runs.folder))
    runs.raising["dpo"] = RuntimeError("with a secret in it")
    with pytest.raises(RuntimeError):
        runs.run(keeping(runs.folder))
    failure, interrupt, unexpected = got(runs.folder)
    assert (failure["event"], failure["exit"], failure["stage"]) == ("failure", Exit.STAGE_FAILED, "sft")
    assert failure["error"] == {"what": "the card burns", "remedy": "put it out"}
    assert (interrupt["event"], interrupt["exit"], interrupt["stage"]) == ("interrupt", Exit.INTERRUPTED, "dpo")
    assert unexpected["error"] == {"what": "an error that nobody expected: RuntimeError", "remedy": ""}


def test_faults_of_the_data_are_told_before_there_is_a_run(runs: Runs) -> None:
    with pytest.raises(AlignError):
        runs.run(keeping(runs.folder), "stages.sft.data=missing.jsonl")
    (document,) = got(runs.folder)
    assert (document["event"], document["stages"]) == ("failure", [])
    assert "there is no file or folder 'missing.jsonl'" in document["error"]["what"]


def test_a_webhook_gets_the_same(runs: Runs, hook: Hook) -> None:
    runs.run(f"notify={hook.url}")
    (document,) = hook.got
    assert (document["event"], document["run"], document["exit"]) == ("end", "small", 0)
    assert hook.headers[0]["Content-Type"] == "application/json"


def test_no_secret_is_told_shown_or_kept(runs: Runs, hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "sk-very-secret")
    words = "cannot fetch https://me:pw@host.example/a/b?token=abc with sk-very-secret, see https://host.example"
    runs.raising["sft"] = AlignError(f"{words} and {hook.url}", exit=Exit.STAGE_FAILED)
    hook.answer = 500
    with pytest.raises(AlignError):
        runs.run(f"notify={hook.url}")
    assert hook.got[0]["error"]["what"] == (
        "cannot fetch https://host.example/*** with ***, see https://host.example and ***"
    )
    assert "note notify: 127.0.0.1 answered 500" in runs.said
    kept = "".join(path.read_text(errors="replace") for path in runs.dir.root.rglob("*") if path.is_file())
    assert "T0KEN" not in kept and "T0KEN" not in "".join(runs.said) and "url: $ALIGN_NOTIFY_URL" in kept
    recipe = YAML(typ="safe", pure=True).load(runs.dir.recipe)
    assert recipe["notify"] == {"url": "$ALIGN_NOTIFY_URL"}


def test_a_secret_that_begins_like_another_and_one_that_a_command_says(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_KEY", "sk-secret")
    monkeypatch.setenv("B_KEY", "sk-secret-and-more")
    runs.run(command(runs.folder, "import sys\nsys.exit('refused: ' + 'x' * 170 + ' sk-secret-and-more')"))
    (told,) = [line for line in runs.said if line.startswith("note notify")]
    assert told.endswith(f": refused: {'x' * 170} ***")


def test_a_state_that_cannot_be_told_hides_nothing(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(notify, "_state", broken)
    runs.run(keeping(runs.folder))
    assert runs.code == Exit.DONE
    assert "note notify: nothing was told of the end: ZeroDivisionError" in runs.said
    runs.raising["dpo"] = AlignError("no memory is left", exit=Exit.STAGE_FAILED)
    with pytest.raises(AlignError, match="no memory is left"):
        runs.run(keeping(runs.folder), "stages.dpo.beta=0.3")
    assert "note notify: nothing was told of the failure: ZeroDivisionError" in runs.said


def test_the_url_may_stand_in_the_environment(runs: Runs, hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAT_HOOK", hook.url)
    runs.run("notify=$CHAT_HOOK")
    assert [document["event"] for document in hook.got] == ["end"]
    assert "url: $CHAT_HOOK" in runs.dir.recipe.read_text()
    monkeypatch.delenv("CHAT_HOOK")
    runs.run("notify={url: $CHAT_HOOK}")
    assert len(hook.got) == 1 and runs.code == Exit.DONE
    assert "note notify: the environment variable CHAT_HOOK is not set, so nobody will be told" in runs.said
    monkeypatch.setenv("CHAT_HOOK", "ftp://secret")
    runs.run("notify={url: $CHAT_HOOK}")
    assert "note notify: $CHAT_HOOK holds no http(s) URL" in runs.said


def test_a_redirect_is_not_followed(runs: Runs, hook: Hook) -> None:
    hook.answer = 302
    runs.run(f"notify={hook.url}")
    assert runs.code == Exit.DONE and "note notify: 127.0.0.1 answered 302" in runs.said


def test_a_webhook_that_is_not_there(runs: Runs, hook: Hook) -> None:
    hook.server_close()
    runs.run(f"notify={hook.url}")
    assert runs.code == Exit.DONE and "note notify: 127.0.0.1 cannot be reached: Connection refused" in runs.said


def test_a_command_that_fails_is_said_in_one_line(runs: Runs) -> None:
    failing = command(runs.folder, "import sys\nprint('first', file=sys.stderr)\nsys.exit('no such channel')")
    runs.run(failing)
    assert runs.code == Exit.DONE
    told = [line for line in runs.said if line.startswith("note notify")]
    assert told == [f"note notify: '{sys.executable}' ended with exit code 1: no such channel"]


def test_hooks_that_hang_hold_no_run_up(runs: Runs, hook: Hook, quick: float, probes: str) -> None:
    """Not at a gate, where the run goes on at once, and at the end for no longer than it waits."""
    runs.right = {"sft": 20, "dpo": 20}
    hook.release.clear()
    begun = time.monotonic()
    runs.run(probes, f"notify={hook.url}")
    assert runs.code == Exit.DONE and time.monotonic() - begun < quick + 2
    assert any(line.startswith("note notify: 127.0.0.1 did not answer within 1 s") for line in runs.said)
    pid = runs.folder / "pid"
    sleeper = f"import os, time\nopen({str(pid)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)"
    begun = time.monotonic()
    runs.run(probes, command(runs.folder, sleeper))
    assert time.monotonic() - begun < quick + 2
    deadline = time.monotonic() + 5
    while _alive(int(pid.read_text())) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _alive(int(pid.read_text())), "it was left behind"


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_no_shell_reads_the_command(tmp_path: Path) -> None:
    said: list[str] = []
    keys = Notify.model_validate(f"{sys.executable} -c 'import sys; open(sys.argv[1], \"w\")' '{tmp_path}/a; b'")
    notifier = Notifier(keys, tmp_path, RunDir(tmp_path / "none"), "one", said.append)
    notifier.send("end", exit=0)
    notifier.close()
    assert said == [] and [path.name for path in tmp_path.iterdir()] == ["a; b"]


def test_a_recipe_without_it_starts_no_thread_and_changes_no_fingerprint(runs: Runs) -> None:
    def threads() -> list[str]:
        return [one.name for one in threading.enumerate() if one.name != "align-patience"]  # which ends by itself

    before = threads()
    runs.run()
    assert threads() == before
    assert runs.run(keeping(runs.folder)) == ["finish"], "nothing is trained again"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("https://hooks.example/T0KEN", {"url": "$ALIGN_NOTIFY_URL"}),
        ("$HOOK", {"url": "$HOOK"}),
        ("./tell.sh done", {"command": ["{folder}/tell.sh", "done"]}),
        (["curl", "-d", "@-", "https://hooks.example/T0KEN"], {"command": ["curl", "-d", "@-", "$ALIGN_NOTIFY_URL"]}),
        (
            ["curl", "-H", "Authorization: Bearer T0KEN", "--api-key=T0KEN", "--token", "T0KEN", "-d", "@-"],
            {"command": ["curl", "-H", *[SECRET] * 2, "--token", SECRET, "-d", "@-"]},
        ),
        (["tell", "PASSWORD=T0KEN", "--token", "$MINE"], {"command": ["tell", SECRET, "--token", "$MINE"]}),
        (["tell", "tokens", "author=me", "--secretly"], {"command": ["tell", "tokens", "author=me", "--secretly"]}),
        ({"command": "mail -s 'it is done' me"}, {"command": ["mail", "-s", "it is done", "me"]}),
    ],
)
def test_the_written_recipe_holds_no_secret_and_can_be_moved(
    value: Any, expected: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tell.sh").touch()
    (tmp_path / "small.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    loaded = load(Path("small.yaml"), [f"notify={json.dumps(value)}"])
    written = json.loads(json.dumps(expected).replace("{folder}", str(tmp_path)))
    assert resolved(loaded)["notify"] == written
    (tmp_path / "again.yaml").write_text(json.dumps(resolved(loaded)))
    assert resolved(load(Path("again.yaml")))["notify"] == written


def test_no_message_repeats_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "small.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    for value, said in (
        ("htps://hooks.example/T0KEN", "'notify': the URL is none that can be posted to"),
        ("{url: 'https://me:T0KEN@hooks.example/'}", "'notify': the URL is none that can be posted to"),
        ("{url: 'https://hooks.example/T0KEN', command: a}", "'notify': one hook is told"),
        ("{webhook: 'https://hooks.example/T0KEN'}", "unknown key 'notify.webhook'"),
    ):
        with pytest.raises(AlignError) as caught:
            load(Path("small.yaml"), [f"notify={value}"])
        first, _ = str(caught.value).split("\n", 1)
        assert first == f"--set notify=...: {said}" and "T0KEN" not in str(caught.value)


def test_values_of_the_environment_as_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHANNEL", "#runs and more")
    keys = Notify.model_validate({"command": ["echo", "$CHANNEL", "a $CHANNEL"]})
    assert keys.target(tmp_path) == ("", ["echo", "#runs and more", "a $CHANNEL"])
