"""Ending everything that a process and its children have started. Linux.

docs/protocols/training-ranks.md 6.4: workers of Ray have process groups of their own, and one
session with who started them.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["end_session", "session_members"]

# Whoever is killed can have started another one just before.
_ROUNDS = 50


def session_members(session: int) -> Iterator[int]:
    """Yield who runs in `session`; who has ended and was not waited for does not."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            stat = (entry / "stat").read_text()
        except OSError:
            continue  # Has ended meanwhile.
        # From: proc_pid_stat(5): state, ppid, pgrp, session, after a name in parentheses.
        state, _, _, number = stat.rpartition(")")[2].split()[:4]
        if int(number) == session and state not in "ZX":
            yield int(entry.name)


def end_session(session: int, *, but: int = 0) -> None:
    """Kill all that runs in `session`, except `but`."""
    for _ in range(_ROUNDS):
        found = [each for each in session_members(session) if each != but]
        if not found:
            return
        for each in found:
            with suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
