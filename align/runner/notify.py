"""Tells the recipe's hook what became of a run: one JSON document to a command or a webhook, which may fail or hang."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from align.errors import AlignError, Exit
from align.recipe.notify_keys import Notify
from align.report import records, sentence
from align.run_folder import secrets
from align.run_folder.paths import RunDir
from align.run_folder.records import Record
from align.version import VERSION

FORMAT = 1  # of the document
PATIENCE = 10.0  # seconds that a hook may take, and that the end of a run waits for all that is still to be told
Event = Literal["end", "gate", "failure", "interrupt"]

_URL = re.compile(r"(\w+://)(?:[^\s/@'\"]*@)?([^\s/?#'\"]+)([^\s?#'\"]*)(\?[^\s'\"]*)?")


class Notification(Record):
    """The document; docs/recipes/launch.md describes it.

    Attributes:
        stage: the one that the gate, the failure or the interrupt is about.
        exit: the exit code of the command; None at a gate, after which the run may go on.
        verdict: the report's sentence; None as long as the report is not written.
        error: what and remedy.
    """

    format: int = FORMAT
    event: Event
    align: str = VERSION
    run: str
    folder: str
    time: str
    stage: str | None = None
    exit: int | None = None
    verdict: str | None = None
    error: dict[str, str] | None = None
    stages: tuple[dict[str, Any], ...] = ()
    report: str | None = None


class Notifier:
    """Delivers in a thread of its own, in order, so that no stage waits for a hook."""

    def __init__(self, keys: Notify | None, root: Path, run: RunDir, name: str, say: Callable[[str], None]) -> None:
        self.keys, self.run, self.run_name, self.say = keys, run, name, say
        self.url, self.words = keys.target(root) if keys else ("", [])
        self.exit = Exit.DONE  # of the command, once it is known
        self.faults: queue.Queue[str] = queue.Queue()
        self.waiting: queue.Queue[bytes | None] = queue.Queue()
        self.process: subprocess.Popen[bytes] | None = None
        self.thread: threading.Thread | None = None
        if self.url or self.words:
            self.thread = threading.Thread(target=self._work, daemon=True)
            self.thread.start()

    def send(self, event: Event, **more: Any) -> None:
        """Put an event in the queue; returns at once."""
        if self.thread is None:
            return
        try:
            self.waiting.put(self._document(event, more))
        except Exception as error:  # whatever it is, it must neither end a run nor hide why one ended
            self.say(f"notify: nothing was told of the {event}: {type(error).__name__}")
        self._tell_faults()

    def close(self) -> None:
        """Wait for what is still to be told, at most `PATIENCE` seconds."""
        if self.thread is None or self.keys is None:
            return
        self.waiting.put(None)
        self.thread.join(PATIENCE)
        self._tell_faults()
        if self.thread.is_alive():
            self.say(f"notify: {self.keys.name()} did not answer within {PATIENCE:g} s; the run does not wait for it")
            _kill(self.process)

    def _tell_faults(self) -> None:
        while not self.faults.empty():
            self.say(self.faults.get())

    def _document(self, event: Event, more: dict[str, Any]) -> bytes:
        facts = {"run": self.run_name, "folder": str(self.run.root), **_state(self.run, event), **more}
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        written = Notification(event=event, time=moment, **facts).model_dump(mode="json")
        return json.dumps(_masked(written, self._secrets()), ensure_ascii=False).encode("utf-8", "replace")

    def _secrets(self) -> list[str]:
        """What is told to nobody, the longest first, since one may be a part of another."""
        own = [text for text in (self.url, *self.words[1:]) if len(text) >= secrets.SHORTEST]
        return sorted([*own, *secrets.values()], key=len, reverse=True)

    def _work(self) -> None:
        while (document := self.waiting.get()) is not None:
            assert self.keys is not None
            try:
                fault = self._post(document) if self.url else self._call(document)
            except Exception as error:  # whatever it is, it is no reason for a run to fail
                fault = f"failed: {type(error).__name__}"
            if fault:
                self.faults.put(f"notify: {self.keys.name()} {fault}")

    def _post(self, document: bytes) -> str:
        """POST it; what went wrong, without the URL, or nothing."""
        headers = {"Content-Type": "application/json", "User-Agent": f"align/{VERSION}"}
        request = urllib.request.Request(self.url, data=document, headers=headers, method="POST")
        try:
            urllib.request.build_opener(_NoRedirect).open(request, timeout=PATIENCE).close()
        except urllib.error.HTTPError as error:
            error.close()
            return f"answered {error.code}"
        except TimeoutError:
            return f"did not answer within {PATIENCE:g} s"
        except urllib.error.URLError as error:
            timed_out = isinstance(error.reason, TimeoutError)
            why = getattr(error.reason, "strerror", None) or type(error.reason).__name__
            return f"did not answer within {PATIENCE:g} s" if timed_out else f"cannot be reached: {why}"
        return ""

    def _call(self, document: bytes) -> str:
        """Run the command; what went wrong, or nothing."""
        with tempfile.TemporaryFile() as said:
            try:
                self.process = subprocess.Popen(
                    self.words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said, start_new_session=True
                )
            except OSError as error:
                return f"cannot be started: {error.strerror}"
            try:
                self.process.communicate(document, timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                _kill(self.process)
                self.process.wait()
                return f"did not end within {PATIENCE:g} s"
            if not self.process.returncode:
                return ""
            said.seek(0)
            last = said.read()[-2000:].decode("utf-8", "replace").strip().rpartition("\n")[2]
        told = _masked(last, self._secrets())[:200]
        return f"ended with exit code {self.process.returncode}" + (f": {told}" if told else "")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Another address is not what the user gave."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


@contextmanager
def told(keys: Notify | None, root: Path, run: RunDir, name: str, say: Callable[[str], None]) -> Iterator[Notifier]:
    """A notifier for one run; how the block ends is told too."""
    notifier = Notifier(keys, root, run, name, say)
    try:
        yield notifier
        notifier.send("end", exit=int(notifier.exit))
    except KeyboardInterrupt:
        notifier.send("interrupt", exit=int(Exit.INTERRUPTED))
        raise
    except AlignError as error:
        notifier.send("failure", exit=int(error.exit), error={"what": _what(error), "remedy": error.remedy})
        raise
    except Exception as error:
        what = f"an error that nobody expected: {type(error).__name__}"
        notifier.send("failure", exit=int(Exit.STAGE_FAILED), error={"what": what, "remedy": ""})
        raise
    finally:
        notifier.close()


def _what(error: AlignError) -> str:
    return str(error) if not error.what else f"{error.place}: {error.what}" if error.place else error.what


def _state(run: RunDir, event: Event) -> dict[str, Any]:
    """What the run folder says; little, where there is no run in it yet."""
    try:
        found = records.load(run.root)
    except AlignError:
        return {}
    stages = []
    for stage in found.stages:
        decision = stage.decision
        entry = {"id": stage.id, "program": stage.entry.stage, "status": stage.entry.status}
        written = (
            decision.model_dump(mode="json", include={"action", "policy", "violations", "budgets"}) if decision else {}
        )
        stages.append(entry | written | ({"reasons": decision.alarming} if decision else {}))
    status = {"failure": "failed", "interrupt": "interrupted"}.get(event)
    about = next((stage.id for stage in found.stages if stage.entry.status == status), None)
    over = event != "gate" and (run.root / "report.html").is_file()
    return {
        "stages": tuple(stages),
        "stage": about,
        "verdict": sentence.verdict_line(found) if over else None,
        "report": str(run.root / "report.html") if over else None,
    }


def _masked(value: Any, hidden: list[str]) -> Any:
    """The same without secrets: values of the environment that are called so, and what of a URL may be one."""
    if isinstance(value, dict):
        return {key: _masked(inner, hidden) for key, inner in value.items()}
    if isinstance(value, list):
        return [_masked(inner, hidden) for inner in value]
    if not isinstance(value, str):
        return value
    for secret in hidden:
        value = value.replace(secret, secrets.HIDDEN)
    return _without_urls(value)


def _without_urls(text: str) -> str:
    """URLs by their scheme and host alone."""
    return _URL.sub(
        lambda found: f"{found[1]}{found[2]}" + ("/***" if found[3] not in ("", "/") or found[4] else ""), text
    )


def _kill(process: subprocess.Popen[bytes] | None) -> None:
    """End a command and what it has started."""
    if process is not None and process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
