"""The broker's store with the vault before it: names and values in, sealed records out. Blocking.

Clause: docs/protocols/broker.md §7. One process may hold several; a change is refused when another
writer was faster, and the caller reads again.

Every change moves the root with it (7.5). A root that is older than the newest that this process
saw is refused. What a record is read as has to be what was there when all of it last added up to
the root, or what was written here since; where it is not, another process may have written it, and
all of it is added up anew before it is believed. Not remembered are kinds that strangers or states
make many of: `decision-*` is read at a start alone, and states are guarded by state.md 5.2.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from confide.broker.record import Change, Record, Summary, named, unname
from confide.broker.root import NOTHING, ROOT, parse_root, refuse_root
from confide.crypto.salted import SALT_BYTES
from confide.errors import FormatError, Reason, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from confide.broker.record import Mark
    from confide.broker.root import Root
    from confide.broker.vault import Vault
    from confide.ports import Entropy, KeyStore

__all__ = ["UNREMEMBERED", "Edit", "Entry", "SealedStore"]

# Kinds of which a running process remembers no record.
UNREMEMBERED: Final = frozenset(
    {"decision-pending", "decision-released", "decision-settled", "state", "state-blob"}
)
# Others are faster that often in a row only where something is wrong.
_ATTEMPTS: Final = 16


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
    """A `KeyStore` under one master key. Safe in any number of threads."""

    def __init__(self, store: KeyStore, vault: Vault, entropy: Entropy) -> None:
        self._store = store
        self._vault = vault
        self._entropy = entropy
        self._place = (ROOT[0], vault.row(*ROOT))
        # The newest root that this process saw, and the marks of what it remembers, by kind and
        # row; None before the first time that everything was added up.
        self._newest: Mark | None = None
        self._known: dict[str, dict[str, Mark]] | None = None
        # Whoever writes waits for the root anyway; so what is remembered keeps their order.
        self._writing = threading.Lock()

    def begin(self, header: bytes, edits: Sequence[Edit]) -> None:
        """Begin an empty store with these new records: all or nothing. `ConfigurationError`."""
        changes = [self._change(edit) for edit in edits]
        records = [
            Record(change.kind, change.row, 1, change.sealed)
            for change in changes
            if change.sealed is not None
        ]
        root = NOTHING.after(self._vault, come=[record.mark for record in records])
        sealed = self._seal(*self._place, 1, ROOT[1], root.encode())
        self._store.begin(header, [*records, Record(*self._place, 1, sealed)])

    def verify(self) -> None:
        """
        Establish that the records are exactly those that the newest root counts in.

        Reads the marks of all of them, in flat memory but for what is remembered. Does not open
        any. Raises `FormatError` with VAULT_FORMAT where a record or the root was put back, added
        or taken out by somebody else; `Unavailable`.
        """
        with self._writing:
            for _ in range(_ATTEMPTS):
                if self._add_up():
                    return
        raise _moving()

    def get(self, kind: str, name: str) -> Entry | None:
        """Return the record `name`, None where there is none. `FormatError`, `Unavailable`."""
        row = self._vault.row(kind, name)

        def known(kinds: dict[str, Mark]) -> list[Mark]:
            return [kinds[row]] if row in kinds else []

        def read() -> list[Record]:
            found = self._store.read(kind, row)
            return [] if found is None else [found]

        records = self._believed(kind, read, known)
        if not records:
            return None
        entry = self._open(records[0])
        if entry.name != name:
            raise FormatError(
                "broker store: a record of another name",
                reason=Reason.VAULT_FORMAT,
                clause="docs/protocols/broker.md#7.1",
            )
        return entry

    def entries(self, kind: str) -> tuple[Entry, ...]:
        """Return every record of one kind, by name."""

        def known(kinds: dict[str, Mark]) -> list[Mark]:
            return [mark for _, mark in sorted(kinds.copy().items())]

        records = self._believed(kind, lambda: list(self._store.records(kind)), known)
        found = [self._open(record) for record in records]
        return tuple(sorted(found, key=lambda entry: entry.name))

    def apply(self, edits: Sequence[Edit]) -> bool:
        """Make all `edits`, durable when this returns; False where a revision moved: none."""
        changes = [self._change(edit) for edit in edits]
        come = [
            Record(change.kind, change.row, change.expected + 1, change.sealed).mark
            for change in changes
            if change.sealed is not None
        ]
        written: list[Mark] = []

        def seal(before: Record | None, gone: Sequence[Mark]) -> bytes:
            root = self._root(before).after(self._vault, gone=gone, come=come)
            revision = 1 if before is None else before.revision + 1
            sealed = self._seal(*self._place, revision, ROOT[1], root.encode())
            written[:] = [Record(*self._place, revision, sealed).mark]
            return sealed

        with self._writing:
            if not self._store.apply(changes, Summary(*self._place, seal)):
                return False
            self._newest = written[0]
            self._remember(changes, come)
            return True

    def _root(self, record: Record | None) -> Root:
        """Return the root that `record` holds; refuse one that is missing or was put back."""
        if record is None:
            refuse_root("it has no root")
        newest = self._newest
        if newest is not None and (
            record.revision < newest.revision
            or (record.revision == newest.revision and record.mark != newest)
        ):
            refuse_root("its root is older than one that was seen")
        return parse_root(self._open(record).value)

    def _add_up(self) -> bool:
        """Compare every mark with the root; False where it moved meanwhile."""
        record = self._store.read(*self._place)
        root, current = self._root(record), None if record is None else record.mark
        counted, found = NOTHING, None
        known: dict[str, dict[str, Mark]] = {}
        for mark in self._store.marks():
            if (mark.kind, mark.row) == self._place:
                found = mark
                continue
            counted = counted.after(self._vault, come=(mark,))
            if mark.kind not in UNREMEMBERED:
                known.setdefault(mark.kind, {})[mark.row] = mark
        if found != current:
            return False
        root.require(counted)
        self._newest, self._known = current, known
        return True

    def _believed(
        self,
        kind: str,
        read: Callable[[], list[Record]],
        known: Callable[[dict[str, Mark]], list[Mark]],
    ) -> list[Record]:
        """Return what `read` finds once it is what is remembered; add up anew where it is not."""
        if kind in UNREMEMBERED:
            return read()
        for attempt in range(_ATTEMPTS):
            found, kinds = read(), self._known
            if kinds is not None:
                if [record.mark for record in found] == known(kinds.get(kind, {})):
                    return found
                if attempt == 0:
                    # A change of this process may have come between: look again first.
                    continue
            self.verify()
        raise _moving()

    def _remember(self, changes: Sequence[Change], come: Sequence[Mark]) -> None:
        if self._known is None:
            return
        for change in changes:
            self._known.get(change.kind, {}).pop(change.row, None)
        for mark in come:
            if mark.kind not in UNREMEMBERED:
                self._known.setdefault(mark.kind, {})[mark.row] = mark

    def _change(self, edit: Edit) -> Change:
        if edit.kind == ROOT[0]:
            raise ValueError("the root follows from the other records")
        row = self._vault.row(edit.kind, edit.name)
        if edit.value is None:
            return Change(edit.kind, row, edit.expected, None)
        sealed = self._seal(edit.kind, row, edit.expected + 1, edit.name, edit.value)
        return Change(edit.kind, row, edit.expected, sealed)

    def _seal(self, kind: str, row: str, revision: int, name: str, value: bytes) -> bytes:
        salt, plaintext = self._entropy.token(SALT_BYTES), named(name, value)
        return self._vault.seal(kind, row, revision=revision, salt=salt, plaintext=plaintext)

    def _open(self, record: Record) -> Entry:
        name, value = unname(self._vault.open(record))
        return Entry(record.kind, name, record.revision, value)


def _moving() -> Unavailable:
    return Unavailable("the store is changed by others at this moment; try again")
