"""A backup of a store: its header, every sealed record, a MAC over all of it. Pure, streaming.

Clause: docs/protocols/broker.md §7.4, whose layout this is. Nothing in it is opened by it: records
stay sealed. Reading holds one record at a time and establishes, once the last record was taken,
that whoever holds the master key wrote exactly these records in this order, that each opens, and
that they are those of their root (7.5): a backup of a store that somebody changed is not made.
It does not establish that this is the newest backup.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import TYPE_CHECKING, Final, NoReturn, Protocol

from confide.broker.master import MAX_HEADER_BYTES
from confide.broker.record import Record
from confide.broker.root import Tally
from confide.broker.vault import Vault
from confide.crypto.kem import hkdf_expand, hkdf_extract
from confide.errors import FormatError, Reason

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["BackupReader", "ByteSource", "write_backup"]

_MAGIC: Final = b"confide/broker-backup/v1\n"
_KEY: Final = b"confide/broker-backup/v1"
_MAC_BYTES: Final = 32
_RECORD, _END = b"\x01", b"\x00"
# Far above the largest state (state.md 1.4) and secret (release.md 2.3).
_MAX_SEALED_BYTES: Final = 1 << 30
_KIND: Final = re.compile(r"[a-z][a-z0-9-]{0,63}\Z")
_ROW: Final = re.compile(r"[0-9a-f]{64}\Z")
_CLAUSE: Final = "docs/protocols/broker.md#7.4"


class ByteSource(Protocol):
    """Bytes in order, as a file opened for reading gives them."""

    def read(self, size: int, /) -> bytes:
        """Return `size` bytes, fewer only at the end."""
        ...


def _refuse(what: str) -> NoReturn:
    raise FormatError(f"broker backup: {what}", reason=Reason.VAULT_FORMAT, clause=_CLAUSE)


def _key(master: bytes) -> bytes:
    return hkdf_expand(hkdf_extract(b"", master), _KEY, 32)


def write_backup(master: bytes, header: bytes, records: Iterable[Record]) -> Iterator[bytes]:
    """
    Iterate over the pieces of a backup of `records`, which come by kind and row.

    Raises `FormatError` for a record that does not open, and at the end for records that are not
    those of their root: a backup of them could not be restored.
    """
    mac = hmac.new(_key(master), digestmod=hashlib.sha256)
    for piece in _pieces(Tally(Vault(master)), header, records):
        mac.update(piece)
        yield piece
    yield mac.digest()


def _pieces(tally: Tally, header: bytes, records: Iterable[Record]) -> Iterator[bytes]:
    yield _MAGIC + len(header).to_bytes(4, "big") + header
    count, last = 0, ("", "")
    for record in records:
        _verify(tally, record, last)
        count, last = count + 1, (record.kind, record.row)
        yield b"".join(
            (
                _RECORD,
                len(record.kind).to_bytes(1, "big"),
                record.kind.encode(),
                bytes.fromhex(record.row),
                record.revision.to_bytes(8, "big"),
                len(record.sealed).to_bytes(4, "big"),
                record.sealed,
            )
        )
    tally.require()
    yield _END + count.to_bytes(8, "big")


def _verify(tally: Tally, record: Record, last: tuple[str, str]) -> None:
    """Refuse a record that is out of order, of no form of ours, or does not open."""
    if not _KIND.match(record.kind) or not _ROW.match(record.row):
        _refuse("a record without a name of ours")
    if not 0 < record.revision < 1 << 63 or len(record.sealed) > _MAX_SEALED_BYTES:
        _refuse("a record whose revision or size is out of bounds")
    if (record.kind, record.row) <= last:
        _refuse("a record twice or out of order")
    tally.take(record)


class BackupReader:
    """
    A hostile backup of `size` bytes, read once.

    `header` is read at once and believed by nobody before it opened; then `records` is taken to
    its end. What it yields before that end is not yet verified as a whole. `FormatError`.
    """

    def __init__(self, source: ByteSource, size: int) -> None:
        self._source = source
        self._left = size
        self._seen = bytearray()
        if size < len(_MAGIC) or self._take(len(_MAGIC)) != _MAGIC:
            _refuse("not a backup of a broker's store")
        length = self._uint(4)
        if length > MAX_HEADER_BYTES:
            _refuse("a header that is too long")
        self.header = self._take(length)

    def records(self, master: bytes) -> Iterator[Record]:
        """Iterate over the records; whatever is wrong is refused, at the latest after the last."""
        mac = hmac.new(_key(master), digestmod=hashlib.sha256)
        tally = Tally(Vault(master))
        count, last = 0, ("", "")
        while (mark := self._take(1)) == _RECORD:
            record = self._record()
            mac.update(self._seen)
            self._seen.clear()
            _verify(tally, record, last)
            yield record
            count, last = count + 1, (record.kind, record.row)
        if mark != _END or self._uint(8) != count:
            _refuse("a record is missing, or something else stands in its place")
        mac.update(self._seen)
        if not hmac.compare_digest(mac.digest(), self._take(_MAC_BYTES)):
            _refuse("it was changed since it was written, or belongs to another store")
        if self._left:
            _refuse(f"{self._left} bytes after the end")
        tally.require()

    def _record(self) -> Record:
        kind = self._take(self._uint(1)).decode("ascii", "replace")
        row = self._take(32).hex()
        revision = self._uint(8)
        return Record(kind, row, revision, self._take(self._uint(4)))

    def _take(self, count: int) -> bytes:
        # Never asked for more than there is: a length costs nobody memory.
        if count > self._left:
            _refuse(f"it ends {count - self._left} bytes too early")
        raw = self._source.read(count)
        if len(raw) != count:
            _refuse("it became shorter while it was read")
        self._left -= count
        self._seen += raw
        return raw

    def _uint(self, size: int) -> int:
        return int.from_bytes(self._take(size), "big")
