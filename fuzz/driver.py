"""Runs targets under guards for processor time and memory, and reports what breaks the invariant.

The guards: `ITIMER_PROF` counts the processor time of this process, so that a loaded machine
changes nothing; the peak of resident memory during one input (`VmHWM`, Linux, set back before each)
may stand `RSS_BYTES` above where the input began.
"""

from __future__ import annotations

import base64
import random
import signal
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from confide.crypto.errors import BadSignature
from confide.errors import ConfideError, LocalProtocolError
from fuzz.mutate import Mutator

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

# The slowest honest input, eight GPUs in a receipt, takes well below one second.
CPU_SECONDS = 5.0
RSS_BYTES = 256 * 1024 * 1024
_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True, slots=True)
class Target:
    """
    One parser or state machine.

    `run` takes one hostile input; `seeds` are genuine ones. With `json_values` most mutations
    edit JSON values instead of bytes.
    """

    name: str
    run: Callable[[bytes], object]
    seeds: Callable[[], tuple[bytes, ...]]
    json_values: bool = False
    tokens: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Crash:
    """An input that gave something else than a result or one of our errors."""

    target: str
    seed: int
    number: int
    data: bytes
    what: str

    def __str__(self) -> str:
        return (
            f"target {self.target}, --seed {self.seed}, input {self.number}\n{self.what}\n"
            f"base64 {base64.b64encode(self.data).decode()}"
        )


class _TimeIsUpError(BaseException):
    """Not an `Exception`: no handler in the code under test may swallow it."""


def _time_is_up(_signal: int, _frame: FrameType | None) -> None:
    raise _TimeIsUpError


def make_input(target: Target, seed: int, number: int) -> bytes:
    """Return input `number` of `target`: the seeds themselves first, then mutations."""
    seeds = target.seeds()
    if number < len(seeds):
        return seeds[number]
    source = random.Random(f"{seed}/{target.name}/{number}")
    return Mutator(source, target.tokens).mutate(seeds, json_values=target.json_values)


def try_input(target: Target, data: bytes) -> str | None:
    """Run `target` on `data`; None where the invariant holds, else what happened."""
    before = _begin_peak()
    previous = signal.signal(signal.SIGPROF, _time_is_up)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        target.run(data)
    except LocalProtocolError:
        return f"hostile bytes became our caller's mistake\n{traceback.format_exc(limit=-8)}"
    except (ConfideError, BadSignature):
        pass
    except _TimeIsUpError:
        return f"more than {CPU_SECONDS} s of processor time\n{traceback.format_exc(limit=-8)}"
    # Whatever else comes out, a panic of a native library included, breaks the invariant.
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return traceback.format_exc(limit=-8)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)
    grown = _peak() - before
    if grown > RSS_BYTES:
        return f"resident memory grew by {grown} bytes"
    return None


def fuzz(target: Target, *, seed: int, numbers: range) -> Crash | None:
    """Try the inputs `numbers` of `target`; the first one that breaks the invariant, or None."""
    for number in numbers:
        data = make_input(target, seed, number)
        what = try_input(target, data)
        if what is not None:
            return Crash(target.name, seed, number, data, what)
    return None


def _begin_peak() -> int:
    # From: proc_pid_clear_refs(5): 5 sets the peak of the resident set back to its size now.
    _CLEAR_REFS.write_text("5")
    return _peak()


def _peak() -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
