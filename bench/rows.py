"""Rows, repetition and what the kernel knows about a process: the tools of every measurement.

The machine is usually shared. Rates of work inside this process are calls a CPU second, best of
several repetitions; whatever involves other processes is measured in turns with its peer, and
medians are compared.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MB = 1_000_000


@dataclass(frozen=True, slots=True)
class Row:
    """
    One measurement. `peer` is measured in the same run, `ratio` is value to peer.

    `met` is None where there is no budget, or nothing could be measured (`value` None).
    """

    name: str
    value: float | None
    unit: str
    peer: float | None = None
    ratio: float | None = None
    budget: str = ""
    met: bool | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def row(
    name: str,
    value: float,
    unit: str,
    *,
    peer: float | None = None,
    budget: str = "",
    met: bool | None = None,
) -> Row:
    """Return a row with its numbers rounded to four digits."""
    ratio = value / peer if peer else None
    return Row(name, _digits(value), unit, _digits(peer), _digits(ratio), budget, met)


def absent(name: str, unit: str, why: str) -> Row:
    """Return the row of something that this machine cannot measure."""
    return Row(name, None, unit, budget=f"not measured: {why}")


def _digits(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def rate(action: Callable[[], object], *, seconds: float = 0.3, repeat: int = 5) -> float:
    """Return calls a CPU second of this process: the best of `repeat`."""
    action()
    best = 0.0
    for _ in range(repeat):
        count, start = 0, time.process_time()
        while (spent := time.process_time() - start) < seconds:
            action()
            count += 1
        best = max(best, count / spent)
    return best


def rates(*actions: Callable[[], object], rounds: int = 5) -> tuple[float, ...]:
    """Return `rate` of each of `actions`, measured in turns."""
    found = [[rate(action, repeat=1) for action in actions] for _ in range(rounds)]
    return tuple(max(column) for column in zip(*found, strict=True))


def medians(*arms: Callable[[], float], rounds: int) -> tuple[float, ...]:
    """Call `arms` in turns and return the median of each."""
    found = [[arm() for arm in arms] for _ in range(rounds)]
    return tuple(statistics.median(column) for column in zip(*found, strict=True))


def cpu_seconds(pid: int) -> float:
    """Return the processor time of all threads of `pid` (proc(5), schedstat), in seconds."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def family(pid: int) -> tuple[int, ...]:
    """Return `pid` and the processes it started (proc(5), children)."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return (pid, *(int(child) for child in children))


def quantile(values: Sequence[float], part: float) -> float:
    """Return the value below which `part` of `values` lie."""
    ordered = sorted(values)
    return ordered[min(int(part * len(ordered)), len(ordered) - 1)]


def resident_bytes(pid: int) -> int:
    """Return the resident set of `pid` (proc(5), VmRSS), in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the process has no resident set")
