"""What signals do to a process of the child: none ends it; those that ask for an end have it save and leave."""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
from types import FrameType

from align.run_folder.paths import RunDir

ASKING = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
)
_asked = threading.Event()
_forking = threading.local()


def listen() -> None:
    """Handle the signals, and from now on receive those that the parent held back while this process started.

    SIGQUIT writes the Python stacks into the log: the parent sends it to one that hangs. A crash writes them too.
    """
    for number in ASKING:
        if signal.getsignal(number) != signal.SIG_IGN or number != signal.SIGHUP:  # nohup
            signal.signal(number, _ask)
    faulthandler.register(signal.SIGQUIT, file=2, all_threads=True)
    faulthandler.enable(file=2)
    # what it forks, such as a pool or a process of a user's reward, can still be ended with `terminate`
    os.register_at_fork(before=_hold, after_in_parent=_release, after_in_child=_forget)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)


def _hold() -> None:
    """Have SIGTERM wait until a forked process is as it should be."""
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))


def _release() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


def _forget() -> None:
    if signal.getsignal(signal.SIGTERM) == _ask:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _release()


def _ask(number: int, frame: FrameType | None) -> None:
    """However often it is asked: a scheduler tells every process, and the launcher tells it again."""
    _asked.set()


def asked(run: RunDir) -> bool:
    """Whether the process is to save and leave: by a signal, or by the parent."""
    return _asked.is_set() or run.stop.is_file()
