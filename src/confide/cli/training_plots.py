"""Plots of a training report: small SVG without text, labels beside it in HTML. Pure strings.

A line is stretched to the width that there is, its labels are not: they stay readable on a phone.
Nothing here is a verdict; numbers are those of the owner's log.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Bar", "Line", "Mark", "bars", "number", "plot"]

_WIDTH, _HEIGHT = 1000, 300
# More points than this no screen shows; of each group the lowest and the highest stay.
_MAX_POINTS = 500
_TABLE_ROWS = 12


@dataclass(frozen=True, slots=True)
class Line:
    """
    One series over steps: its name, its values, and the class that colours it.

    `at` are the steps of the values, in order; without them they are those from 1.
    """

    name: str
    values: Sequence[float]
    style: str
    at: Sequence[int] = ()

    @property
    def steps(self) -> Sequence[int]:
        """The step of each value."""
        return self.at or range(1, len(self.values) + 1)


@dataclass(frozen=True, slots=True)
class Mark:
    """A vertical line at a step."""

    step: int
    style: str


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: its name, its value, and the class that colours it."""

    name: str
    value: float
    style: str


def number(value: float) -> str:
    """Return a number as people read it: four digits that count."""
    return f"{value:.4g}"


def plot(title: str, note: str, lines: Sequence[Line], *, marks: Sequence[Mark] = ()) -> str:
    """Return a figure of `lines`, which have values at the same steps; at least one value."""
    values = [value for line in lines for value in line.values]
    low, high = min(values), max(values)
    steps = lines[0].steps
    drawn = "".join(_polyline(line, low, high) for line in lines)
    ruled = "".join(
        f'<line class="grid" x1="0" y1="{y}" x2="{_WIDTH}" y2="{y}"/>'
        for y in (1, _HEIGHT // 2, _HEIGHT - 1)
    )
    marked = "".join(
        f'<line class="mark {mark.style}" x1="{x:.1f}" y1="0" x2="{x:.1f}" y2="{_HEIGHT}"/>'
        for mark in marks
        for x in (_across(mark.step, steps),)
    )
    said = (
        f"{note} From {number(lines[0].values[0])} at step {steps[0]} to "
        f"{number(lines[0].values[-1])} at step {steps[-1]}; lowest "
        f"{number(min(lines[0].values))}, highest {number(max(lines[0].values))}."
    )
    middle = number((low + high) / 2)
    labels = (number(high), middle, number(low)) if high > low else ("", middle, "")
    scale = "".join(f"<span>{label}</span>" for label in labels)
    busy = " busy" if len(lines) > 1 else ""
    head = f"<figcaption><h3>{html.escape(title)}</h3>{_legend(lines)}</figcaption>"
    across = f"<span>{steps[0]}</span><span>step</span><span>{steps[-1]}</span>"
    return (
        f'<figure class="plot{busy}">{head}'
        f'<div class="frame"><div class="y" aria-hidden="true">{scale}</div>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{html.escape(f"{title}. {said}")}">{ruled}{marked}{drawn}</svg></div>'
        f'<div class="x" aria-hidden="true">{across}</div>'
        f"<p>{html.escape(said)}</p>{_table(lines)}</figure>"
    )


def _legend(lines: Sequence[Line]) -> str:
    if len(lines) < 2:
        return ""
    items = "".join(
        f'<li><i class="{line.style}"></i>{html.escape(line.name)}</li>' for line in lines
    )
    return f'<ul class="legend">{items}</ul>'


def _across(step: int, steps: Sequence[int]) -> float:
    first, last = steps[0], steps[-1]
    return _WIDTH / 2 if first == last else (step - first) * _WIDTH / (last - first)


def _polyline(line: Line, low: float, high: float) -> str:
    if high == low:
        # Without a span there is one line, in the middle.
        low, high = low - 1.0, high + 1.0
    span = high - low
    points = " ".join(
        f"{_across(step, line.steps):.1f},{_HEIGHT - 6 - (value - low) / span * (_HEIGHT - 12):.1f}"
        for step, value in _thinned(line)
    )
    return f'<polyline class="line {line.style}" points="{points}"/>'


def _thinned(line: Line) -> list[tuple[int, float]]:
    """Return (step, value) of at most 500 points, extremes of each group kept."""
    pairs = list(zip(line.steps, line.values, strict=True))
    if len(pairs) <= _MAX_POINTS:
        return pairs
    size = -(-2 * len(pairs) // _MAX_POINTS)
    kept: list[tuple[int, float]] = []
    for at in range(0, len(pairs), size):
        group = pairs[at : at + size]
        ends = {min(group, key=lambda pair: pair[1]), max(group, key=lambda pair: pair[1])}
        kept += sorted(ends)
    return kept


def _table(lines: Sequence[Line]) -> str:
    steps = lines[0].steps
    last = len(steps) - 1
    rows = sorted({i * last // (_TABLE_ROWS - 1) for i in range(_TABLE_ROWS)})
    head = "".join(f"<th scope=col>{html.escape(line.name)}</th>" for line in lines)
    body = "".join(
        f"<tr><th scope=row>{steps[row]}</th>"
        + "".join(f"<td>{number(line.values[row])}</td>" for line in lines)
        + "</tr>"
        for row in rows
    )
    return (
        "<details><summary>Numbers</summary><table><thead><tr><th scope=col>step</th>"
        f"{head}</tr></thead><tbody>{body}</tbody></table></details>"
    )


def bars(title: str, note: str, items: Sequence[Bar]) -> str:
    """Return a figure of horizontal bars from 0, each with its number."""
    most = max((item.value for item in items), default=0.0) or 1.0
    rows = "".join(
        f"<div class=bar><span>{html.escape(item.name)}</span>"
        f'<svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="track" width="100" height="10"/>'
        f'<rect class="{item.style}" width="{max(0.0, item.value) / most * 100:.2f}" height="10"/>'
        f"</svg><b>{number(item.value)}</b></div>"
        for item in items
    )
    return (
        f'<figure class="bars"><figcaption><h3>{html.escape(title)}</h3></figcaption>{rows}'
        f"<p>{html.escape(note)}</p></figure>"
    )
