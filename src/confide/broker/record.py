"""What a broker's store holds: rows of sealed records, changed all together or not at all. Pure.

Clause: docs/protocols/broker.md §7.1, §7.2. A store sees none of what it holds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Change", "Record"]


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
