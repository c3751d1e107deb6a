"""Receipts of this boot: the newest envelopes, and the digests of many more. In memory only.

Clauses: docs/protocols/receipt.md §3.4 and §5.2; docs/protocols/workers.md §2. The digests may lie
in memory that several workers share: whatever one of them issued, another can close.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from contextlib import nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from confide.wire.dsse import Envelope

__all__ = ["DIGEST_TABLE_BYTES", "IssuedDigests", "ReceiptStore"]

# About 2.5 KiB each: what `GET /v1/receipts/{id}` finds.
_MAX_RECEIPTS = 8192
# 262,144 digests: what closings can name.
_BUCKETS = 4096
_SLOTS = 64
_DIGEST_BYTES = 32
_CURSOR = struct.Struct("<Q")
_BUCKET_BYTES = _CURSOR.size + _SLOTS * _DIGEST_BYTES
DIGEST_TABLE_BYTES = _BUCKETS * _BUCKET_BYTES


class IssuedDigests:
    """
    The digests of the receipts that this node issued, the oldest of a bucket overwritten.

    `table` is `DIGEST_TABLE_BYTES` of zeros at first; whoever shares it shares the lock of `guard`.
    """

    def __init__(
        self,
        *,
        table: memoryview | None = None,
        guard: AbstractContextManager[None] | None = None,
    ) -> None:
        self._table = memoryview(bytearray(DIGEST_TABLE_BYTES)) if table is None else table
        self._guard = guard or nullcontext()

    def add(self, digest: bytes) -> None:
        """Remember `digest`. Raises what the guard raises; the receipt must not go out then."""
        at = _bucket(digest)
        with self._guard:
            (cursor,) = _CURSOR.unpack_from(self._table, at)
            start = at + _CURSOR.size + (cursor % _SLOTS) * _DIGEST_BYTES
            self._table[start : start + _DIGEST_BYTES] = digest
            _CURSOR.pack_into(self._table, at, cursor + 1)

    def __contains__(self, digest: bytes) -> bool:
        """Whether a receipt with this digest was issued by this boot, and is still known."""
        at = _bucket(digest)
        with self._guard:
            (cursor,) = _CURSOR.unpack_from(self._table, at)
            start = at + _CURSOR.size
            # What was never written is no digest, though zeros may be asked for.
            digests = bytes(self._table[start : start + min(cursor, _SLOTS) * _DIGEST_BYTES])
        found = digests.find(digest)
        while found % _DIGEST_BYTES > 0 and found >= 0:
            found = digests.find(digest, found + 1)
        return found >= 0


def _bucket(digest: bytes) -> int:
    if len(digest) != _DIGEST_BYTES:
        raise ValueError("a digest has 32 bytes")
    return int.from_bytes(digest[:4], "big") % _BUCKETS * _BUCKET_BYTES


class ReceiptStore:
    """Receipts of one process, newest kept; `issued` knows those of its siblings too."""

    def __init__(self, issued: IssuedDigests | None = None) -> None:
        self._by_id: OrderedDict[str, Envelope] = OrderedDict()
        self.issued = issued or IssuedDigests()

    def add(self, receipt_id: str, envelope: Envelope) -> None:
        """Keep `envelope`; the oldest go when there are too many."""
        self.issued.add(envelope.digest)
        self._by_id[receipt_id] = envelope
        if len(self._by_id) > _MAX_RECEIPTS:
            self._by_id.popitem(last=False)

    def find(self, receipt_id: str) -> Envelope | None:
        """Return the receipt with this id, if it is still kept here."""
        return self._by_id.get(receipt_id)
