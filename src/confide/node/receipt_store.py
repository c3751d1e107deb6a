"""Receipts of this boot, for `GET /v1/receipts/{id}` and closings: docs/protocols/receipt.md §3."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from confide.wire.dsse import Envelope

__all__ = ["ReceiptStore"]

# About 2.5 KiB each: what `GET /v1/receipts/{id}` and closings can still name.
_MAX_RECEIPTS = 8192
_MAX_DIGESTS = 200_000


class ReceiptStore:
    """Receipts of this boot, newest kept, and the digests of those issued. In memory only."""

    def __init__(self) -> None:
        self._by_id: OrderedDict[str, Envelope] = OrderedDict()
        self._digests: OrderedDict[bytes, None] = OrderedDict()

    def add(self, receipt_id: str, envelope: Envelope) -> None:
        """Keep `envelope`; the oldest go when there are too many."""
        self._by_id[receipt_id] = envelope
        self._digests[envelope.digest] = None
        if len(self._by_id) > _MAX_RECEIPTS:
            self._by_id.popitem(last=False)
        if len(self._digests) > _MAX_DIGESTS:
            self._digests.popitem(last=False)

    def find(self, receipt_id: str) -> Envelope | None:
        """Return the receipt with this id, if it is still kept."""
        return self._by_id.get(receipt_id)

    def issued(self, digest: bytes) -> bool:
        """Whether a receipt with this digest was issued by this boot (and is still known)."""
        return digest in self._digests
