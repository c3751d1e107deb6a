"""The keys of one node boot: made at start, held in memory, never written, never outlived.

Clause: docs/protocols/binding.md §1. Randomness comes through the `Entropy` port.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

from confide.crypto.ed25519 import Ed25519Signer
from confide.crypto.kem import PrivateKey, load_private_key
from confide.receipts.issue import ReceiptSigner
from confide.wire.keyset import Keyset, KeysetKey
from confide.wire.ohttp import Kem

if TYPE_CHECKING:
    from datetime import datetime

    from confide.ports import Entropy

__all__ = ["NodeKeys", "make_node_keys"]


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
    used_ids: frozenset[int] = frozenset(),
) -> NodeKeys:
    """
    Draw a keyset: X-Wing preferred, X25519 for interop, Ed25519 for receipts.

    Valid from the minute before that of `now` for `lifetime`. `used_ids` are ids of keysets that
    requests may still be sealed to: none of them is used again.
    """
    xwing_id, x25519_id, receipt_id = [free for free in range(1, 256) if free not in used_ids][:3]
    # A client whose clock is a little behind must not find the keys not yet valid.
    begin = now.replace(microsecond=0, second=0) - timedelta(minutes=1)
    xwing = load_private_key(Kem.X_WING, entropy.token(32))
    x25519 = load_private_key(Kem.X25519, entropy.token(32))
    signer = Ed25519Signer(entropy.token(32))
    keyset = Keyset(
        role=role,
        software=software,
        not_before=begin,
        not_after=begin + lifetime,
        keys=(
            KeysetKey(xwing_id, "MLKEM768-X25519", xwing.public_key.raw),
            KeysetKey(x25519_id, "X25519", x25519.public_key.raw),
            KeysetKey(receipt_id, "Ed25519", signer.public_key),
        ),
    )
    return NodeKeys(
        keyset, ((xwing_id, xwing), (x25519_id, x25519)), ReceiptSigner(receipt_id, signer)
    )
