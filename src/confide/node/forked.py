"""Forking a process that goes its own way: nothing of the parent's runs on in it. Linux.

The child has the parent's memory as it was, and of the parent's open files only those named; so it
takes over keys without anybody having sent them. It never returns into the parent's code.

The caller sees to it that no other thread of the parent is at work: what such a thread holds
locked would stay locked in the child.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["Forked", "fork_process"]

_STANDARD = (0, 1, 2)
_FAILED = 70
_HELD_BACK = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True, slots=True)
class Forked:
    """A child. `handle` becomes readable when it ends (pidfd_open(2))."""

    pid: int
    handle: int

    def send(self, number: signal.Signals) -> None:
        """Send a signal; nothing where it has ended."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.handle, number)

    def collect(self) -> int:
        """Return how an ended child ended, as `Popen.returncode` does, and forget it."""
        _, status = os.waitpid(self.pid, 0)
        os.close(self.handle)
        return os.waitstatus_to_exitcode(status)


def fork_process(run: Callable[[], None], *, keep: Iterable[int]) -> Forked:
    """
    Fork, call `run` in the child, and end the child when it returns.

    Of open files the child keeps those in `keep` and the standard ones. Signals to stop are as at
    the start of a process there. Raises `OSError`.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    # The parent's handlers may not run in the child, not even once.
    signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)
    try:
        pid = os.fork()
        if pid == 0:
            _be_child(run, {*keep, *_STANDARD})
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD_BACK)
    return Forked(pid, os.pidfd_open(pid))


def _be_child(run: Callable[[], None], keep: set[int]) -> None:
    status = _FAILED
    try:
        # Objects of the parent are never collected here: closing one would close another's file.
        gc.freeze()
        signal.set_wakeup_fd(-1)
        for number in _HELD_BACK:
            signal.signal(number, signal.SIG_DFL)
        _close_all_but(keep)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD_BACK)
        run()
        status = 0
    except BaseException as error:  # noqa: BLE001 - nothing may return into the parent's frames
        # Its type alone: a message may quote what passed through.
        print(f"confide: a worker ended: {type(error).__name__}", file=sys.stderr)  # noqa: T201
    finally:
        sys.stderr.flush()
        os._exit(status)


def _close_all_but(keep: set[int]) -> None:
    low = 0
    for handle in (*sorted(keep), os.sysconf("SC_OPEN_MAX")):
        # An empty range would mean every file there is (close_range(2), last = -1).
        if low < handle:
            os.closerange(low, handle)
        low = handle + 1
