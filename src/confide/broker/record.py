"""What a broker's store holds: rows of sealed records, changed all together or not at all. Pure.

Clause: docs/protocols/broker.md §7.1, §7.2. A store sees none of what it holds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Change", "Record", "in_order"]


@dataclass(frozen=True, slots=True)
class Record:
    """One sealed record. `revision` counts its changes, from 1."""

    kind: str
    row: str
    revision: int
    sealed: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Change:
    """
    One change, made only where the record still has the revision `expected` (0: there is none).

    `sealed` None removes it. Otherwise it becomes revision `expected` + 1.
    """

    kind: str
    row: str
    expected: int
    sealed: bytes | None = field(repr=False)


def in_order(changes: Sequence[Change]) -> list[Change]:
    """Return `changes` by kind and row; `ValueError` for two of one record."""
    if len({(change.kind, change.row) for change in changes}) != len(changes):
        raise ValueError("two changes of one record")
    return sorted(changes, key=lambda change: (change.kind, change.row))
