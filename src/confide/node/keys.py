"""The keys of one node boot: made at start, held in memory, never written, never outlived.

Clause: docs/protocols/binding.md §1. Randomness comes through the `Entropy` port.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

from confide.crypto.ed25519 import Ed25519Signer
from confide.crypto.ethereum import derive_secp256k1_public_key
from confide.crypto.kem import PrivateKey, load_private_key
from confide.receipts.issue import ReceiptSigner
from confide.wire.faces import FaceName
from confide.wire.keyset import Keyset, KeysetKey
from confide.wire.ohttp import Kem

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from confide.ports import Entropy

__all__ = ["FaceKey", "NodeKeys", "make_node_keys"]


def _ed25519(secret: bytes) -> bytes:
    return Ed25519Signer(secret).public_key


def _x25519(secret: bytes) -> bytes:
    return load_private_key(Kem.X25519, secret).public_key.raw


# From: docs/protocols/faces.md §2: algorithm to what makes the public key of its secret.
_FACE_KEYS: dict[FaceName, dict[str, Callable[[bytes], bytes]]] = {
    FaceName.ACI: {"aci-Ed25519": _ed25519},
    FaceName.EHBP: {"ehbp-X25519": _x25519},
    FaceName.NEAR: {
        "near-Ed25519": _ed25519,
        "near-secp256k1": derive_secp256k1_public_key,
        "near-X25519": _x25519,
    },
}


@dataclass(frozen=True, slots=True)
class FaceKey:
    """One key of a face: its id in the keyset, and its secret of 32 bytes."""

    id: int
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class NodeKeys:
    """
    A keyset with its private halves. Not printable: `repr` shows the public keyset only.

    `faces` are the faces that are on, `face` their keys by algorithm (faces.md §2).
    """

    keyset: Keyset
    seal: tuple[tuple[int, PrivateKey], ...] = field(repr=False)
    signer: ReceiptSigner = field(repr=False)
    faces: tuple[FaceName, ...] = ()
    face: Mapping[str, FaceKey] = field(default_factory=dict, repr=False)


def make_node_keys(
    *,
    role: Literal["agent", "model"],
    software: bytes,
    now: datetime,
    lifetime: timedelta,
    entropy: Entropy,
    used_ids: frozenset[int] = frozenset(),
    faces: Sequence[FaceName] = (),
) -> NodeKeys:
    """
    Draw a keyset: X-Wing preferred, X25519 for interop, Ed25519 for receipts.

    Valid from the minute before that of `now` for `lifetime`. `used_ids` are ids of keysets that
    requests may still be sealed to: none of them is used again. Every face of `faces` has keys of
    its own: no signature or secret of one protocol means anything in another.
    """
    free = iter(free for free in range(1, 256) if free not in used_ids)
    xwing_id, x25519_id, receipt_id = next(free), next(free), next(free)
    # A client whose clock is a little behind must not find the keys not yet valid.
    begin = now.replace(microsecond=0, second=0) - timedelta(minutes=1)
    xwing = load_private_key(Kem.X_WING, entropy.token(32))
    x25519 = load_private_key(Kem.X25519, entropy.token(32))
    signer = Ed25519Signer(entropy.token(32))
    drawn = {
        algorithm: (FaceKey(next(free), entropy.token(32)), public)
        for face in faces
        for algorithm, public in _FACE_KEYS.get(face, {}).items()
    }
    keyset = Keyset(
        role=role,
        software=software,
        not_before=begin,
        not_after=begin + lifetime,
        keys=(
            KeysetKey(xwing_id, "MLKEM768-X25519", xwing.public_key.raw),
            KeysetKey(x25519_id, "X25519", x25519.public_key.raw),
            KeysetKey(receipt_id, "Ed25519", signer.public_key),
            *(
                KeysetKey(key.id, algorithm, public(key.secret))
                for algorithm, (key, public) in drawn.items()
            ),
        ),
    )
    return NodeKeys(
        keyset,
        ((xwing_id, xwing), (x25519_id, x25519)),
        ReceiptSigner(receipt_id, signer),
        tuple(faces),
        {algorithm: key for algorithm, (key, _) in drawn.items()},
    )
