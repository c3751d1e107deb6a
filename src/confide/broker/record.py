"""What a broker's store holds: rows of sealed records, changed all together or not at all. Pure.

Clause: docs/protocols/broker.md §7.1, §7.2. A store sees none of what it holds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from confide.crypto.salted import SALT_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Change", "Mark", "Record", "Summary", "in_order", "named", "unname"]


@dataclass(frozen=True, slots=True)
class Mark:
    """
    One writing of one record: no other has the same `salt`, drawn anew each time.

    A revision alone would not do: a record that was removed and made again begins at 1.
    """

    kind: str
    row: str
    revision: int
    salt: bytes


@dataclass(frozen=True, slots=True)
class Record:
    """One sealed record. `revision` counts its changes, from 1."""

    kind: str
    row: str
    revision: int
    sealed: bytes = field(repr=False)

    @property
    def mark(self) -> Mark:
        """What tells it from every other writing."""
        return Mark(self.kind, self.row, self.revision, self.sealed[:SALT_BYTES])


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


@dataclass(frozen=True, slots=True)
class Summary:
    """
    The record that sums up the others, and what becomes of it when some of them change.

    `seal` is given that record, None where there is none, and the marks of the records that are
    replaced or removed; it returns what the next revision holds.
    """

    kind: str
    row: str
    seal: Callable[[Record | None, Sequence[Mark]], bytes]


def in_order(changes: Sequence[Change]) -> list[Change]:
    """Return `changes` by kind and row; `ValueError` for two of one record."""
    if len({(change.kind, change.row) for change in changes}) != len(changes):
        raise ValueError("two changes of one record")
    return sorted(changes, key=lambda change: (change.kind, change.row))


def named(name: str, value: bytes) -> bytes:
    """Return what is sealed: the name travels inside, as rows do not tell it."""
    return len(name.encode()).to_bytes(2, "big") + name.encode() + value


def unname(plaintext: bytes) -> tuple[str, bytes]:
    """Return name and value of what was opened."""
    size = int.from_bytes(plaintext[:2], "big")
    return plaintext[2 : 2 + size].decode(), plaintext[2 + size :]
