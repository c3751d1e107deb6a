"""The commitment to a data set: salted leaves, one root, one value. docs/protocols/dataset.md §2.

The salt and the rows are the owner's; the commitment is public. A parsed commitment is only what
somebody says: believe one that a plan, a record or the rows themselves lead to.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from confide.crypto.keyed import KeyedPrefix
from confide.crypto.merkle import Frontier, fold, hash_leaf
from confide.errors import DatasetRejected, FormatError, Reason
from confide.rats import Finding, Status
from confide.training.row_shapes import KINDS
from confide.training.rows import MAX_ROWS
from confide.wire.json import Members, jcs, parse_json

if TYPE_CHECKING:
    from collections.abc import Iterable

    from confide.training.inclusion import PathRecorder
    from confide.training.row_shapes import Kind
    from confide.training.rows import Row
    from confide.wire.json import JsonValue

__all__ = [
    "SALT_BYTES",
    "Commitment",
    "DatasetTree",
    "RowSalts",
    "commit_rows",
    "leaf_hash",
    "parse_commitment",
    "parse_salt",
    "read_commitment",
    "require_commitment",
]

SALT_BYTES: Final = 32
_TYPE: Final = "confide/dataset/v1"
_ROW_SALT: Final = b"confide/row-salt/v1\0"
_CLAUSE: Final = "docs/protocols/dataset.md#2"
_REASON: Final = Reason.DATASET_FORMAT


@dataclass(frozen=True, slots=True)
class Commitment:
    """What is public of a data set (2.4): its kind, how many rows, and the root over them."""

    kind: Kind
    rows: int
    root: bytes

    def value(self) -> dict[str, JsonValue]:
        """Return the JSON value."""
        return {"type": _TYPE, "kind": self.kind, "rows": self.rows, "root": self.root.hex()}

    def encode(self) -> bytes:
        """Return the RFC 8785 bytes: the file, and what is hashed."""
        return jcs(self.value())

    @property
    def digest(self) -> bytes:
        """The name of the data set."""
        return hashlib.sha256(self.encode()).digest()


def parse_commitment(raw: bytes) -> Commitment:
    """Parse a commitment file. Raises `FormatError`."""
    return read_commitment(parse_json(raw, what="commitment", reason=_REASON))


def read_commitment(value: JsonValue) -> Commitment:
    """Read a commitment out of a document that was parsed. Raises `FormatError`."""
    members = Members(value, what="commitment", reason=_REASON)
    members.choice("type", (_TYPE,))
    kind = members.choice("kind", KINDS)
    rows = members.integer("rows", low=1, high=MAX_ROWS)
    root = members.hexes("root", 32)
    members.end()
    return Commitment(kind, rows, root)


def parse_salt(raw: bytes) -> bytes:
    """Parse the file of a salt (4.1). Raises `FormatError`."""
    try:
        text = raw.decode("ascii").removesuffix("\n")
        salt = bytes.fromhex(text)
    except ValueError:
        salt, text = b"", ""
    if len(salt) != SALT_BYTES or salt.hex() != text:
        what = "salt of a data set: not 64 lower-case hex digits"
        raise FormatError(what, reason=_REASON, clause="docs/protocols/dataset.md#4.1")
    return salt


class RowSalts:
    """The salts of rows under one data set's salt (2.2)."""

    __slots__ = ("_keyed",)

    def __init__(self, salt: bytes) -> None:
        if len(salt) != SALT_BYTES:
            raise ValueError("the salt of a data set has 32 bytes")
        self._keyed = KeyedPrefix(salt, _ROW_SALT)

    def at(self, index: int) -> bytes:
        """Return the salt of the row at `index`."""
        return self._keyed.digest(index.to_bytes(8, "big"))


def leaf_hash(salt: bytes, record: bytes) -> bytes:
    """Return the leaf of `record` under its own salt (2.3)."""
    return hash_leaf(salt + record)


class DatasetTree:
    """The tree over rows as they come, in O(log n) memory. `path` records one row's proof."""

    __slots__ = ("_frontier", "_kind", "_path", "_salts")

    def __init__(self, salts: RowSalts, *, path: PathRecorder | None = None) -> None:
        self._salts = salts
        self._path = path
        self._frontier = Frontier()
        self._kind: Kind | None = None

    def add(self, row: Row) -> bytes:
        """Append `row`, which has to be the next one; return its leaf."""
        index = self._frontier.size
        if row.index != index or (self._kind is not None and self._kind != row.kind):
            raise ValueError("rows come in order, of one kind")
        self._kind = row.kind
        leaf = leaf_hash(self._salts.at(index), row.record)
        completed = self._frontier.append(leaf)
        if self._path is not None:
            self._path.take(index, completed)
        return leaf

    def commitment(self) -> Commitment:
        """Return the commitment to the rows so far; `ValueError` where there is none."""
        if self._kind is None:
            raise ValueError("a data set has at least one row")
        if self._path is not None:
            self._path.end(self._frontier)
        return Commitment(self._kind, self._frontier.size, fold(self._frontier.nodes))


def commit_rows(rows: Iterable[Row], salt: bytes) -> Commitment:
    """Return the commitment to `rows` under the data set's `salt`."""
    tree = DatasetTree(RowSalts(salt))
    for row in rows:
        tree.add(row)
    return tree.commitment()


def require_commitment(found: Commitment, known: bytes) -> Finding:
    """
    Require that `found` is the commitment that the digest `known` names (3.2).

    Raises `DatasetRejected`. Sizes alone are told: which row differs, no digest can say.
    """
    step = ("dataset/1", _CLAUSE, "commitment")
    # Digests of public values: nothing is learnt from how long it takes.
    if found.digest == known:
        return Finding(Status.PASS, *step, f"{found.rows} rows of kind {found.kind}")
    detail = f"{found.rows} rows of kind {found.kind} have another commitment"
    raise DatasetRejected((Finding(Status.FAIL, *step, detail, Reason.DATASET_MISMATCH),))
