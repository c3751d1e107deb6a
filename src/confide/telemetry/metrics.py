"""Counters and histograms of a node, and their text for Prometheus. Pure.

docs/protocols/tenancy.md §6; the text is Prometheus exposition format 0.0.4. A sum adds steps, not
measurements: whoever reads it before and after a call learns no more than the step of that call.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from confide.telemetry.facts import BYTES, SECONDS, TOKENS, step_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from confide.telemetry.facts import CallFacts

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_Labels = tuple[tuple[str, str], ...]


class _Histogram:
    def __init__(self, name: str, about: str, steps: tuple[float, ...]) -> None:
        self._name, self._about, self._steps = name, about, steps
        self._counts: dict[_Labels, Counter[float]] = {}

    def observe(self, labels: _Labels, value: float | None) -> None:
        if value is not None:
            self._counts.setdefault(labels, Counter())[step_of(value, self._steps)] += 1

    def lines(self) -> Iterator[str]:
        yield from _head(self._name, self._about, "histogram")
        for labels, counts in sorted(self._counts.items()):
            total = 0
            for step in self._steps:
                total += counts[step]
                yield _line(f"{self._name}_bucket", (*labels, ("le", _number(step))), total)
            yield _line(f"{self._name}_bucket", (*labels, ("le", "+Inf")), total)
            added = sum(step * count for step, count in counts.items())
            yield _line(f"{self._name}_sum", labels, added)
            yield _line(f"{self._name}_count", labels, total)


class _Counts:
    def __init__(self, name: str, about: str, kind: str = "counter") -> None:
        self._name, self._about, self._kind = name, about, kind
        self.values: Counter[_Labels] = Counter()

    def lines(self) -> Iterator[str]:
        yield from _head(self._name, self._about, self._kind)
        for labels, value in sorted(self.values.items()):
            yield _line(self._name, labels, value)


class Metrics:
    """
    The numbers of one boot.

    With `by_key`, calls are told apart by the id of their key too: whoever reads the numbers then
    learns who calls when (§6.4).
    """

    def __init__(self, *, by_key: bool = False) -> None:
        self._by_key = by_key
        self._active = _Counts("confide_calls_in_progress", "Calls in progress.", "gauge")
        self._active.values[()] = 0
        self._calls = _Counts("confide_calls_total", "Calls that ended.")
        self._refusals = _Counts("confide_refusals_total", "Calls refused by the node, by code.")
        self._histograms = tuple(
            _Histogram(f"confide_{name}", about, steps)
            for name, about, steps in (
                ("call_seconds", "From the call to the end of its answer.", SECONDS),
                ("first_byte_seconds", "From the call to the first byte of its answer.", SECONDS),
                ("request_bytes", "Bytes of requests.", BYTES),
                ("response_bytes", "Bytes of answers.", BYTES),
                ("input_tokens", "Tokens read, as engines report them.", TOKENS),
                ("output_tokens", "Tokens written, as engines report them.", TOKENS),
            )
        )

    def begin(self) -> None:
        """Count a call that came."""
        self._active.values[()] += 1

    def end(self, facts: CallFacts) -> None:
        """Count a call that ended; `begin` was told of it."""
        self._active.values[()] -= 1
        endpoint = (("endpoint", facts.endpoint),)
        of_call: _Labels = (*endpoint, ("finish", facts.finish), ("status", facts.status_class))
        if self._by_key:
            of_call = (*of_call, ("key", facts.key_id))
        self._calls.values[of_call] += 1
        if facts.code:
            self._refusals.values[("code", facts.code),] += 1
        values = (
            facts.seconds,
            facts.first_byte,
            facts.request_bytes,
            facts.response_bytes,
            facts.input_tokens,
            facts.output_tokens,
        )
        for histogram, value in zip(self._histograms, values, strict=True):
            histogram.observe(endpoint, value)

    def text(self) -> str:
        """Return what a scrape gets."""
        parts: tuple[_Counts | _Histogram, ...]
        parts = (self._active, self._calls, self._refusals, *self._histograms)
        return "".join(f"{line}\n" for part in parts for line in part.lines())


def _head(name: str, about: str, kind: str) -> Iterator[str]:
    yield f"# HELP {name} {about}"
    yield f"# TYPE {name} {kind}"


def _line(name: str, labels: _Labels, value: float) -> str:
    # Labels are words of this source and ids of keys: nothing in them is to be escaped.
    inside = ",".join(f'{label}="{word}"' for label, word in labels)
    return f"{name}{{{inside}}} {_number(value)}" if inside else f"{name} {_number(value)}"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))
