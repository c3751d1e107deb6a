"""The root of a store: a sealed sum over every other record, so that none comes or goes. Pure.

Clause: docs/protocols/broker.md §7.5. The sum is MSet-Add-Hash of Clarke, Devadas, van Dijk,
Gassend and Suh (ASIACRYPT 2003) over marks: addition modulo 2^256 of one HMAC for each.

Who writes to the database sees neither the sum nor any term, and a row that is not the one written
there last has a mark that is not in the sum, as the broker draws a fresh salt for every writing:
two sets of marks that differ add up to the same with a chance of 2^-192 at the most. A mark that
the broker is made to subtract without its having been there stays subtracted, and no set of rows
holds a mark fewer than zero times (under XOR a second time would undo the first).

It does not tell a whole older store, root and all, from the newest.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NoReturn

from confide.broker.record import unname
from confide.errors import FormatError, Reason
from confide.wire.json import Members, jcs, parse_json

if TYPE_CHECKING:
    from collections.abc import Iterable

    from confide.broker.record import Mark, Record
    from confide.broker.vault import Vault

__all__ = ["NOTHING", "ROOT", "Root", "Tally", "parse_root", "refuse_root"]

# Kind and name of the record that holds it.
ROOT: Final = ("root", "store")
_TYPE: Final = "confide/broker-root/v1"
_SUM_BYTES: Final = 32
_MODULUS: Final = 1 << (8 * _SUM_BYTES)


@dataclass(frozen=True, slots=True)
class Root:
    """The sum of the terms of all records but the root's own, and how many they are."""

    total: int = field(repr=False)
    count: int

    def after(self, vault: Vault, *, gone: Iterable[Mark] = (), come: Iterable[Mark] = ()) -> Root:
        """Return the root once `gone` are out and `come` are in. `FormatError`."""
        total, count = self.total, self.count
        for mark in gone:
            total, count = total - vault.term(mark), count - 1
        for mark in come:
            total, count = total + vault.term(mark), count + 1
        return Root(total % _MODULUS, count)

    def require(self, counted: Root) -> None:
        """Refuse a store whose records add up to `counted`, and not to this."""
        if self.count != counted.count:
            refuse_root(f"{counted.count} records, where the broker left {self.count}")
        mine, theirs = (each.total.to_bytes(_SUM_BYTES, "big") for each in (self, counted))
        if not hmac.compare_digest(mine, theirs):
            refuse_root("a record is not the one that the broker wrote last")

    def encode(self) -> bytes:
        """Return the record. Secret."""
        total = self.total.to_bytes(_SUM_BYTES, "big").hex()
        return jcs({"type": _TYPE, "total": total, "count": self.count})


# Of a store without any record.
NOTHING: Final = Root(0, 0)


def parse_root(raw: bytes) -> Root:
    """Parse what `Root.encode` returned. Raises `FormatError` with VAULT_FORMAT."""
    what, reason = "root of a store", Reason.VAULT_FORMAT
    members = Members(parse_json(raw, what=what, reason=reason), what=what, reason=reason)
    members.choice("type", (_TYPE,))
    total = int.from_bytes(members.hexes("total", _SUM_BYTES), "big")
    root = Root(total, members.integer("count"))
    members.end()
    return root


class Tally:
    """Adds up whole records, the root among them, as they come."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._place = (ROOT[0], vault.row(*ROOT))
        self._counted = NOTHING
        self._root: Root | None = None

    def take(self, record: Record) -> None:
        """Open `record` and count it in. Raises `FormatError`."""
        plaintext = self._vault.open(record)
        if (record.kind, record.row) == self._place:
            self._root = parse_root(unname(plaintext)[1])
        else:
            self._counted = self._counted.after(self._vault, come=(record.mark,))

    def require(self) -> None:
        """Refuse what is not exactly the records of one root."""
        if self._root is None:
            refuse_root("it has no root")
        self._root.require(self._counted)


def refuse_root(what: str) -> NoReturn:
    """Raise the `FormatError` of a store that somebody else changed."""
    raise FormatError(
        f"broker store: {what}; somebody changed the database, restore a backup",
        reason=Reason.VAULT_FORMAT,
        clause="docs/protocols/broker.md#7.5",
    )
