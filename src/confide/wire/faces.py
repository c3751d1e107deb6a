"""Compatibility faces by name: other services' protocols that a node may speak beside the channel.

Clauses: docs/protocols/faces.md. A face is weaker than the sealed channel in ways that `LACKS`
says in words; what it is called, by which ways requests come over it and which keys it has are
closed lists, shared by the node that measures and by the verifier that reads.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

__all__ = ["FACE_KEY_BYTES", "LACKS", "FaceName", "Way", "face_of_algorithm"]


class FaceName(StrEnum):
    """A face that a model node can have (faces.md §1)."""

    ACI = "aci"
    EHBP = "ehbp"
    NEAR = "near"


class Way(StrEnum):
    """How a request came that did not come through the sealed channel (faces.md §3)."""

    ACI_TLS = "aci/tls"
    EHBP = "ehbp"
    NEAR_E2EE_ECDSA = "near/e2ee-ecdsa"
    NEAR_E2EE_ED25519 = "near/e2ee-ed25519"
    NEAR_OHTTP = "near/ohttp"
    NEAR_TLS = "near/tls"


# From: faces.md §2: algorithm of a face's key in the keyset to the size of its public key.
FACE_KEY_BYTES: Final[dict[str, int]] = {
    "aci-Ed25519": 32,
    "ehbp-X25519": 32,
    "near-Ed25519": 32,
    "near-X25519": 32,
    "near-secp256k1": 64,
}

# From: faces.md §4: what a verdict says about a node that has the face.
LACKS: Final[dict[FaceName, str]] = {
    FaceName.ACI: "documents in ACI's form: no devices, no weights, receipts without order, and a "
    "second form of report data",
    FaceName.EHBP: "requests over EHBP: method, path, status and header fields in clear, no end of "
    "a message, lengths shown, no post-quantum key",
    FaceName.NEAR: "requests over NEAR's protocol: raw report data; sealed fields hide nothing "
    "from who changes requests on the way",
}


def face_of_algorithm(algorithm: str) -> FaceName | None:
    """Return the face whose key has this algorithm; None for the node's own algorithms."""
    return FaceName(algorithm.partition("-")[0]) if algorithm in FACE_KEY_BYTES else None
