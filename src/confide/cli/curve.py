"""A curve in a terminal, in braille: two columns and four rows of dots in each character."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["curve", "short_number"]

_BLANK: Final = 0x2800
# From: Unicode 16, chapter 21, Braille Patterns: the bit of each dot, by column and row.
_DOTS: Final = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))


def curve(values: Sequence[float], *, width: int, height: int) -> list[str]:
    """
    Return `height` lines of `width` characters that show `values` from left to right.

    Many values fall into one column and count as their mean, few are joined by straight lines; the
    highest and the lowest touch the edges. Nothing is shown of no values.
    """
    columns, rows = 2 * width, 4 * height
    cells = [[0] * width for _ in range(height)]
    drawn = _columns(values, columns)
    low, high = min(drawn, default=0.0), max(drawn, default=0.0)
    before: int | None = None
    for column, value in enumerate(drawn):
        # Without a span there is one line, in the middle.
        share = (value - low) / (high - low) if high > low else 0.5
        row = round((1 - share) * (rows - 1))
        near = row if before is None else before + (row > before) - (row < before)
        for dot in range(min(row, near), max(row, near) + 1):
            cells[dot // 4][column // 2] |= _DOTS[column % 2][dot % 4]
        before = row
    return ["".join(chr(_BLANK + cell) for cell in line) for line in cells]


def _columns(values: Sequence[float], columns: int) -> list[float]:
    """Return one value for each column."""
    count = len(values)
    if count <= 1:
        return list(values)
    if count >= columns:
        cuts = [at * count // columns for at in range(columns + 1)]
        return [sum(values[start:end]) / (end - start) for start, end in pairwise(cuts)]
    found = []
    for column in range(columns):
        place = column * (count - 1) / (columns - 1)
        left = min(int(place), count - 2)
        found.append(values[left] + (place - left) * (values[left + 1] - values[left]))
    return found


def short_number(value: float) -> str:
    """Return a number for reading: `0.0123`, `2.41`, `1.9e-05`."""
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        return f"{value:.4g}"
    return f"{value:.1e}"
