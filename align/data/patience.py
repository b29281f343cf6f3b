"""An end for Python code that nobody of this program wrote and that may never come to one, such as a chat template."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

LOOK = 0.25  # seconds between two looks


class TookTooLongError(Exception):
    """Raised in the thread whose block took longer than it may."""


class _Watch:
    """One thread that looks at the others, so that a block costs no thread of its own."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.until: dict[int, float] = {}  # by thread: when its block has to be over
        self.thread: threading.Thread | None = None

    def begin(self, seconds: float) -> None:
        with self.lock:
            self.until[threading.get_ident()] = time.monotonic() + seconds
            if self.thread is None or not self.thread.is_alive():  # a fork takes no other thread along
                self.thread = threading.Thread(target=self._look, name="align-patience", daemon=True)
                self.thread.start()

    def end(self) -> bool:
        """Whether the block was in time; else the exception is on its way."""
        with self.lock:
            return self.until.pop(threading.get_ident(), None) is not None

    def _look(self) -> None:
        while True:
            time.sleep(LOOK)
            with self.lock:
                if not self.until:
                    self.thread = None
                    return
                now = time.monotonic()
                for thread in [thread for thread, until in self.until.items() if now > until]:
                    del self.until[thread]
                    error = ctypes.py_object(TookTooLongError)
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), error)


_watch = _Watch()


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Within, Python code may take so long; a call into other languages ends when it will.

    Raises:
        TookTooLongError: it took longer.
    """
    _watch.begin(seconds)
    try:
        yield
    except TookTooLongError:
        raise
    except BaseException:
        _settle()
        raise
    else:
        _settle()


def _settle() -> None:
    """Have the exception raised here that is on its way, not somewhere behind the block."""
    if not _watch.end():
        for _ in range(1000):
            time.sleep(0.001)
