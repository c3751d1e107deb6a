"""A service in the foreground: what it says, and how its process ends."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING, NoReturn

from confide.adapters.linux import forbid_core_dumps
from confide.cli.screen import printable

if TYPE_CHECKING:
    from collections.abc import Coroutine

__all__ = ["end_process", "run_service", "say"]


def say(line: str) -> None:
    """Write one line to the log of this process."""
    print(printable(line), file=sys.stderr, flush=True)  # noqa: T201 - the log of this process


def run_service(serving: Coroutine[None, None, None]) -> NoReturn:
    """Serve until `serving` ends, then end the process. What it raises comes through."""
    # Keys are in memory, and nowhere else but in their files.
    forbid_core_dumps()
    asyncio.run(serving)
    end_process()


def end_process() -> NoReturn:
    """
    End the process with status 0, at once; everything of ours is closed.

    Threads of the HTTP server outlive its last answer; one that meets an interpreter in its
    finalisation aborts the process.
    """
    sys.stderr.flush()
    os._exit(0)
