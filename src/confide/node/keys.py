"""The keys of one node boot: made at start, held in memory, never written, never outlived.

Clause: docs/protocols/binding.md §1. Randomness comes through the `Entropy` port.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from confide.crypto.ed25519 import Ed25519Signer
from confide.crypto.kem import PrivateKey, load_private_key
from confide.receipts.issue import ReceiptSigner
from confide.wire.keyset import Keyset, KeysetKey
from confide.wire.ohttp import Kem

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from confide.ports import Entropy

__all__ = ["NodeKeys", "make_node_keys"]

# From: docs/protocols/binding.md §1.4: ids of the first keyset of a boot.
_XWING_ID, _X25519_ID, _RECEIPT_ID = 1, 2, 3


@dataclass(frozen=True, slots=True)
class NodeKeys:
    """A keyset with its private halves. Not printable: `repr` shows the public keyset only."""

    keyset: Keyset
    seal: tuple[tuple[int, PrivateKey], ...] = field(repr=False)
    signer: ReceiptSigner = field(repr=False)


def make_node_keys(
    *,
    role: Literal["agent", "model"],
    software: bytes,
    now: datetime,
    lifetime: timedelta,
    entropy: Entropy,
) -> NodeKeys:
    """
    Draw a keyset: X-Wing preferred, X25519 for interop, Ed25519 for receipts.

    Valid from a minute before `now` (clocks differ) for `lifetime`.
    """
    begin = now.replace(microsecond=0, second=0)
    xwing = load_private_key(Kem.X_WING, entropy.token(32))
    x25519 = load_private_key(Kem.X25519, entropy.token(32))
    signer = Ed25519Signer(entropy.token(32))
    keyset = Keyset(
        role=role,
        software=software,
        not_before=begin,
        not_after=begin + lifetime,
        keys=(
            KeysetKey(_XWING_ID, "MLKEM768-X25519", xwing.public_key.raw),
            KeysetKey(_X25519_ID, "X25519", x25519.public_key.raw),
            KeysetKey(_RECEIPT_ID, "Ed25519", signer.public_key),
        ),
    )
    return NodeKeys(
        keyset, ((_XWING_ID, xwing), (_X25519_ID, x25519)), ReceiptSigner(_RECEIPT_ID, signer)
    )
