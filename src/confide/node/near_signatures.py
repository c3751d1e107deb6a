"""What `GET /v1/signature/{id}` of the NEAR face answers from. In memory, bounded, for 20 minutes.

Clauses: docs/protocols/near-face.md §4. An entry holds two digests and a name; it is signed when it
is asked for, with the keys of the keyset that the exchange belongs to.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from datetime import datetime

    from confide.node.near_keys import NearKeys, SigningAlgorithm
    from confide.wire.json import JsonValue

__all__ = ["SignatureStore", "SignedExchange"]

# From: near-wire.md §5.
_LIFE: Final = timedelta(seconds=1200)
_MAX_ENTRIES: Final = 16384


@dataclass(frozen=True, slots=True)
class SignedExchange:
    """
    One exchange: the `text` to sign, or None where the caller left before its answer was whole.

    `hidden` is False where the bodies went over a connection that others can read.
    """

    text: str | None
    keys: NearKeys
    hidden: bool

    def document(self, algorithm: SigningAlgorithm) -> dict[str, JsonValue]:
        """Return the answer of the look-up."""
        if self.text is None:
            return {
                "error_code": "STREAM_DISCONNECTED",
                "message": "The caller left before the answer was whole: nothing was signed.",
            }
        return {
            "text": self.text,
            "signature": self.keys.sign(algorithm, self.text.encode("utf-8")),
            "signing_address": self.keys.address(algorithm),
            "signing_algo": algorithm.value,
            "signature_kind": "provider_tee",
        }


class SignatureStore:
    """Exchanges by the id of their answer; the newest of one id, the newest of all."""

    def __init__(self) -> None:
        self._entries: OrderedDict[str, tuple[datetime, SignedExchange]] = OrderedDict()

    def add(self, ids: tuple[str, ...], entry: SignedExchange, *, now: datetime) -> None:
        """Keep `entry` under each of `ids` until it is too old or there are too many."""
        for one in ids:
            self._entries.pop(one, None)
            self._entries[one] = (now, entry)
        while len(self._entries) > _MAX_ENTRIES:
            self._entries.popitem(last=False)

    def find(self, name: str, *, hidden: bool, now: datetime) -> SignedExchange | None:
        """
        Return the exchange called `name`, if it is still known.

        Over a connection that others can read (`hidden` False) only what went over such a one:
        digests of a text that nobody saw would let them try texts.
        """
        while self._entries:
            made, _ = next(iter(self._entries.values()))
            if now - made <= _LIFE:
                break
            self._entries.popitem(last=False)
        found = self._entries.get(name)
        if found is None or (found[1].hidden and not hidden):
            return None
        return found[1]
