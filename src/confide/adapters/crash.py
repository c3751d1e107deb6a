"""What a process says when it breaks: which error, and where in the code. Never what it held.

Clause: docs/protocols/tenancy.md §8. The text of an unforeseen exception may be a prompt, and
Python has five places that print it: uncaught exceptions of the main thread, of other threads, of
destructors, of tasks that nobody waits for, and the loggers of libraries.
"""

from __future__ import annotations

import faulthandler
import logging
import sys
import threading
import traceback
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    from types import TracebackType

__all__ = ["crash_line", "say_crash", "say_crashes_without_content", "tell_loop"]

_MAX_FRAMES = 8


def crash_line(kind: type[BaseException] | None, trace: TracebackType | None) -> str:
    """Return `unexpected KeyError at model.py:31 < serve.py:7`: the innermost place first."""
    name = "error" if kind is None else kind.__name__
    frames = [
        f"{frame.f_code.co_filename.rpartition('/')[2]}:{line}"
        for frame, line in traceback.walk_tb(trace)
    ]
    return f"unexpected {name} at {' < '.join(reversed(frames[-_MAX_FRAMES:])) or 'no place'}"


def say_crash(error: BaseException) -> None:
    """Write the crash line of `error` to the log of this process."""
    _say(type(error), error.__traceback__)


def say_crashes_without_content() -> None:
    """
    Have this process print crash lines in the place of tracebacks, and log nothing at all.

    For a process that holds prompts: it has no log of its own. Signals end it without a word.
    """
    faulthandler.disable()
    logging.disable(logging.CRITICAL)
    sys.excepthook = lambda kind, _error, trace: _say(kind, trace)
    threading.excepthook = lambda told: _say(told.exc_type, told.exc_traceback)
    sys.unraisablehook = lambda told: _say(told.exc_type, told.exc_traceback)


def tell_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Have `loop` say the same of tasks that nobody waits for."""
    loop.set_exception_handler(_of_loop)
    loop.set_debug(False)


def _of_loop(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error = context.get("exception")
    if isinstance(error, BaseException):
        say_crash(error)


def _say(kind: type[BaseException] | None, trace: TracebackType | None) -> None:
    print(crash_line(kind, trace), file=sys.stderr, flush=True)  # noqa: T201 - its last word
