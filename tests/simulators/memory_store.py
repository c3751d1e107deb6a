"""A `KeyStore` in memory, for whatever stands above the port."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from confide.broker.record import Change, Mark, Record, Summary, in_order
from confide.broker.root import ROOT
from confide.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


class MemoryStore:
    """The contract of `ports.KeyStore`, without durability."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], Record] = {}
        self._header: bytes | None = None
        self._lock = threading.Lock()

    @property
    def kept(self) -> list[Record]:
        """Every record but the root."""
        return [record for record in self.rows.values() if record.kind != ROOT[0]]

    def header(self) -> bytes | None:
        return self._header

    def begin(self, header: bytes, records: Iterable[Record] = ()) -> None:
        found = {(record.kind, record.row): record for record in records}
        with self._lock:
            if self._header is not None:
                raise ConfigurationError("the store was begun already")
            self._header = header
            self.rows.update(found)

    def replace_header(self, header: bytes) -> None:
        self._header = header

    def read(self, kind: str, row: str) -> Record | None:
        return self.rows.get((kind, row))

    def records(self, kind: str | None = None) -> Iterator[Record]:
        with self._lock:
            found = sorted(self.rows.items())
        return iter([record for (of, _), record in found if kind is None or of == kind])

    def marks(self) -> Iterator[Mark]:
        return (record.mark for record in self.records())

    def apply(self, changes: Sequence[Change], summary: Summary | None = None) -> bool:
        ordered = in_order(changes)
        with self._lock:
            found = [self.rows.get((change.kind, change.row)) for change in ordered]
            for change, known in zip(ordered, found, strict=True):
                if (0 if known is None else known.revision) != change.expected:
                    return False
            if summary is not None:
                before = self.rows.get((summary.kind, summary.row))
                sealed = summary.seal(before, [known.mark for known in found if known is not None])
                expected = 0 if before is None else before.revision
                ordered.append(Change(summary.kind, summary.row, expected, sealed))
            for change in ordered:
                place = (change.kind, change.row)
                if change.sealed is None:
                    self.rows.pop(place, None)
                else:
                    self.rows[place] = Record(*place, change.expected + 1, change.sealed)
        return True

    def close(self) -> None:
        """Nothing to let go of."""
