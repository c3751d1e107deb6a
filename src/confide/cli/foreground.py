"""A service in the foreground: what it says, and how its process ends."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING, NoReturn

import typer

from confide.adapters.crash import say_crashes_without_content, tell_loop
from confide.adapters.linux import forbid_core_dumps
from confide.cli.exits import problem_of
from confide.cli.screen import printable
from confide.errors import ConfideError

if TYPE_CHECKING:
    from collections.abc import Coroutine

__all__ = ["end_process", "run_node", "run_service", "say"]


def say(line: str) -> None:
    """Write one line to the log of this process."""
    print(printable(line), file=sys.stderr, flush=True)  # noqa: T201 - the log of this process


def run_service(serving: Coroutine[None, None, None]) -> NoReturn:
    """Serve until `serving` ends, then end the process. What it raises comes through."""
    # Keys are in memory, and nowhere else but in their files.
    forbid_core_dumps()
    asyncio.run(serving)
    end_process()


def run_node(serving: Coroutine[None, None, None]) -> NoReturn:
    """
    Serve until `serving` ends, then end the process; for one that holds keys, prompts and inputs.

    They are in memory and nowhere else: no core file, no log, no traceback (tenancy.md §8).
    """
    forbid_core_dumps()
    say_crashes_without_content()
    try:
        asyncio.run(_told(serving))
    except ConfideError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201 - a process' last word
        raise typer.Exit(problem_of(error).code) from error
    end_process()


async def _told(serving: Coroutine[None, None, None]) -> None:
    tell_loop(asyncio.get_running_loop())
    await serving


def end_process() -> NoReturn:
    """
    End the process with status 0, at once; everything of ours is closed.

    Threads of the HTTP server outlive its last answer; one that meets an interpreter in its
    finalisation aborts the process.
    """
    sys.stderr.flush()
    os._exit(0)
