"""Counters and histograms of a node, and their text for Prometheus. Pure.

docs/protocols/tenancy.md §6; the text is Prometheus exposition format 0.0.4. A sum adds steps, not
measurements: whoever reads it before and after a call learns no more than the step of that call.
Counts of several processes are added up, one for one (docs/protocols/workers.md §2.7).
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from confide.telemetry.facts import BYTES, SECONDS, TOKENS, step_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from confide.telemetry.facts import CallFacts

    _Labels = tuple[tuple[str, str], ...]
    # A family, its labels, and the step of a histogram: what is counted once.
    Series = tuple[str, _Labels, float]

__all__ = ["CONTENT_TYPE", "Metrics", "WorkerMetrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_NO_STEP: Final = 0.0


@dataclass(frozen=True, slots=True)
class _Family:
    name: str
    about: str
    kind: str = "counter"
    steps: tuple[float, ...] = ()


_ACTIVE: Final = _Family("confide_calls_in_progress", "Calls in progress.", "gauge")
_CALLS: Final = _Family("confide_calls_total", "Calls that ended.")
_REFUSALS: Final = _Family("confide_refusals_total", "Calls refused by the node, by code.")
_HISTOGRAMS: Final = tuple(
    _Family(f"confide_{name}", about, "histogram", steps)
    for name, about, steps in (
        ("call_seconds", "From the call to the end of its answer.", SECONDS),
        ("first_byte_seconds", "From the call to the first byte of its answer.", SECONDS),
        ("request_bytes", "Bytes of requests.", BYTES),
        ("response_bytes", "Bytes of answers.", BYTES),
        ("input_tokens", "Tokens read, as engines report them.", TOKENS),
        ("output_tokens", "Tokens written, as engines report them.", TOKENS),
    )
)
_IN_PROGRESS: Final[Series] = (_ACTIVE.name, (), _NO_STEP)


class Metrics:
    """
    The numbers of one process since it began.

    With `by_key`, calls are told apart by the id of their key too: whoever reads the numbers then
    learns who calls when (§6.4).
    """

    def __init__(self, *, by_key: bool = False) -> None:
        self._by_key = by_key
        self._counts: Counter[Series] = Counter({_IN_PROGRESS: 0})

    def begin(self) -> None:
        """Count a call that came."""
        self._counts[_IN_PROGRESS] += 1

    def end(self, facts: CallFacts) -> None:
        """Count a call that ended; `begin` was told of it."""
        self._counts[_IN_PROGRESS] -= 1
        endpoint = (("endpoint", facts.endpoint),)
        of_call: _Labels = (*endpoint, ("finish", facts.finish), ("status", facts.status_class))
        if self._by_key:
            of_call = (*of_call, ("key", facts.key_id))
        self._counts[_CALLS.name, of_call, _NO_STEP] += 1
        if facts.code:
            self._counts[_REFUSALS.name, (("code", facts.code),), _NO_STEP] += 1
        values = (
            facts.seconds,
            facts.first_byte,
            facts.request_bytes,
            facts.response_bytes,
            facts.input_tokens,
            facts.output_tokens,
        )
        for family, value in zip(_HISTOGRAMS, values, strict=True):
            if value is not None:
                self._counts[family.name, endpoint, step_of(value, family.steps)] += 1

    def text(self) -> str:
        """Return what a scrape gets."""
        return _text(self._counts)

    def encode(self) -> bytes:
        """Return all counts, for `WorkerMetrics`."""
        return json.dumps([[*series, count] for series, count in self._counts.items()]).encode()


class WorkerMetrics:
    """
    The numbers of a node of several workers, each of which tells all of its own now and then.

    What a worker counted stays counted when it ended. `raw` comes from this node's own processes.
    """

    def __init__(self) -> None:
        self._ended: Counter[Series] = Counter({_IN_PROGRESS: 0})
        self._told: dict[int, Counter[Series]] = {}

    def take(self, worker: int, raw: bytes) -> None:
        """Take what `worker` has counted since it began."""
        self._told[worker] = Counter(
            {
                (name, tuple((label, word) for label, word in labels), step): count
                for name, labels, step, count in json.loads(raw)
            }
        )

    def end(self, worker: int) -> None:
        """Keep the counts of a worker that ended; its calls are in progress no more."""
        counts = self._told.pop(worker, Counter())
        del counts[_IN_PROGRESS]
        self._ended.update(counts)

    def text(self) -> str:
        """Return what a scrape gets."""
        total = Counter(self._ended)
        for counts in self._told.values():
            total.update(counts)
        return _text(total)


def _text(counts: Counter[Series]) -> str:
    found: dict[str, dict[_Labels, dict[float, int]]] = {}
    for (name, labels, step), count in counts.items():
        found.setdefault(name, {}).setdefault(labels, {})[step] = count
    families = (_ACTIVE, _CALLS, _REFUSALS, *_HISTOGRAMS)
    lines = (line for family in families for line in _lines(family, found.get(family.name, {})))
    return "".join(f"{line}\n" for line in lines)


def _lines(family: _Family, found: dict[_Labels, dict[float, int]]) -> Iterator[str]:
    yield f"# HELP {family.name} {family.about}"
    yield f"# TYPE {family.name} {family.kind}"
    for labels, counts in sorted(found.items()):
        if family.steps:
            yield from _histogram(family, labels, counts)
        else:
            yield _line(family.name, labels, counts[_NO_STEP])


def _histogram(family: _Family, labels: _Labels, counts: dict[float, int]) -> Iterator[str]:
    total = 0
    for step in family.steps:
        total += counts.get(step, 0)
        yield _line(f"{family.name}_bucket", (*labels, ("le", _number(step))), total)
    yield _line(f"{family.name}_bucket", (*labels, ("le", "+Inf")), total)
    added = sum(step * count for step, count in counts.items())
    yield _line(f"{family.name}_sum", labels, added)
    yield _line(f"{family.name}_count", labels, total)


def _line(name: str, labels: _Labels, value: float) -> str:
    # Labels are words of this source and ids of keys: nothing in them is to be escaped.
    inside = ",".join(f'{label}="{word}"' for label, word in labels)
    return f"{name}{{{inside}}} {_number(value)}" if inside else f"{name} {_number(value)}"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))
