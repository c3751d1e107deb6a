"""The broker's store with the vault before it: names and values in, sealed records out. Blocking.

Clause: docs/protocols/broker.md §7. One process may hold several; a change is refused when another
writer was faster, and the caller reads again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from confide.broker.record import Change, Record
from confide.crypto.salted import SALT_BYTES
from confide.errors import FormatError, Reason

if TYPE_CHECKING:
    from collections.abc import Sequence

    from confide.broker.vault import Vault
    from confide.ports import Entropy, KeyStore

__all__ = ["Edit", "Entry", "SealedStore"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One opened record."""

    kind: str
    name: str
    revision: int
    value: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Edit:
    """A change to the record `name`, made for revision `expected` (0: new); None removes it."""

    kind: str
    name: str
    expected: int
    value: bytes | None = field(repr=False)


class SealedStore:
    """A `KeyStore` under one master key."""

    def __init__(self, store: KeyStore, vault: Vault, entropy: Entropy) -> None:
        self._store = store
        self._vault = vault
        self._entropy = entropy

    def begin(self, header: bytes, edits: Sequence[Edit]) -> None:
        """Begin an empty store with these new records: all or nothing. `ConfigurationError`."""
        changes = [self._change(edit) for edit in edits]
        self._store.begin(
            header,
            [
                Record(change.kind, change.row, 1, change.sealed)
                for change in changes
                if change.sealed is not None
            ],
        )

    def get(self, kind: str, name: str) -> Entry | None:
        """Return the record `name`, None where there is none. `FormatError`, `Unavailable`."""
        record = self._store.read(kind, self._vault.row(kind, name))
        if record is None:
            return None
        entry = self._open(record)
        if entry.name != name:
            raise FormatError(
                "broker store: a record of another name",
                reason=Reason.VAULT_FORMAT,
                clause="docs/protocols/broker.md#7.1",
            )
        return entry

    def entries(self, kind: str) -> tuple[Entry, ...]:
        """Return every record of one kind, by name."""
        found = [self._open(record) for record in self._store.records(kind)]
        return tuple(sorted(found, key=lambda entry: entry.name))

    def apply(self, edits: Sequence[Edit]) -> bool:
        """Make all `edits`, durable when this returns; False where a revision moved: none."""
        return self._store.apply([self._change(edit) for edit in edits])

    def _change(self, edit: Edit) -> Change:
        row = self._vault.row(edit.kind, edit.name)
        if edit.value is None:
            return Change(edit.kind, row, edit.expected, None)
        # The name travels inside: rows do not tell it.
        plaintext = len(edit.name.encode()).to_bytes(2, "big") + edit.name.encode() + edit.value
        sealed = self._vault.seal(
            edit.kind,
            row,
            revision=edit.expected + 1,
            salt=self._entropy.token(SALT_BYTES),
            plaintext=plaintext,
        )
        return Change(edit.kind, row, edit.expected, sealed)

    def _open(self, record: Record) -> Entry:
        raw = self._vault.open(record)
        size = int.from_bytes(raw[:2], "big")
        name = raw[2 : 2 + size].decode()
        return Entry(record.kind, name, record.revision, raw[2 + size :])
