"""What signals do to the parent: all that ask for an end mean what Ctrl-C means, to save at the next step and leave."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ONCE = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name))


def listen() -> None:
    """Handle the signals; where SIGHUP is ignored, as by nohup, it stays so."""
    for number in (signal.SIGINT, *ONCE):
        if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> None:
    """A scheduler may ask several times, a terminal that is closed asks twice: only a second Ctrl-C is impatient."""
    for other in ONCE:
        signal.signal(other, _nothing)
    raise KeyboardInterrupt


def _nothing(number: int, frame: FrameType | None) -> None:
    """In place of SIG_IGN: of a signal that is under way when it is set to that, Python prints a traceback."""


@contextmanager
def held() -> Iterator[None]:
    """Within, signals wait, and a process that is started inherits that: they wait until it is ready for them, and a
    launcher, which never is, does not die of one."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, *ONCE))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
