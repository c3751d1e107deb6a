"""DSSE envelopes around in-toto Statements v1. Bytes to value and back; verifies nothing.

Sources: DSSE protocol v1.0 (`PAE`), in-toto attestation framework v1. An envelope's payload is
kept as the exact bytes that were signed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from confide.errors import Reason
from confide.wire.json import JsonValue, Members, b64encode, jcs, parse_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "PAYLOAD_TYPE",
    "STATEMENT_TYPE",
    "Envelope",
    "encode_statement",
    "pae",
    "parse_envelope",
    "parse_statement_payload",
    "parse_typed_payload",
]

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_REASON = Reason.RECEIPT_FORMAT


def pae(payload: bytes) -> bytes:
    """Return the pre-authentication encoding of an in-toto payload: the bytes that are signed."""
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


@dataclass(frozen=True, slots=True)
class Envelope:
    """Exact payload bytes and (keyid, signature) pairs, unverified."""

    payload: bytes
    signatures: tuple[tuple[str, bytes], ...]

    @property
    def digest(self) -> bytes:
        """SHA-256 of the payload: how other receipts and claims name this one."""
        return hashlib.sha256(self.payload).digest()

    def document(self) -> dict[str, JsonValue]:
        """Return the JSON document."""
        return {
            "payload": b64encode(self.payload),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [
                {"keyid": keyid, "sig": b64encode(signature)}
                for keyid, signature in self.signatures
            ],
        }

    def encode(self) -> bytes:
        """Return the RFC 8785 bytes of the document."""
        return jcs(self.document())


def parse_envelope(value: JsonValue, *, reason: Reason = _REASON) -> Envelope:
    """Parse an envelope document. Raises `FormatError` with `reason`."""
    top = Members(value, what="DSSE envelope", reason=reason)
    payload = top.base64("payload")
    top.choice("payloadType", (PAYLOAD_TYPE,))
    signatures: list[tuple[str, bytes]] = []
    for item in top.items("signatures", max_items=16):
        members = Members(item, what="DSSE signature", reason=reason)
        signatures.append((members.text("keyid", max_chars=128), members.base64("sig")))
        members.end()
    top.end()
    return Envelope(payload, tuple(signatures))


def encode_statement(
    predicate_type: str, subjects: Sequence[tuple[str, bytes]], predicate: Mapping[str, JsonValue]
) -> bytes:
    """Return the canonical in-toto Statement v1 about `subjects` (name, SHA-256)."""
    return jcs(
        {
            "_type": STATEMENT_TYPE,
            "subject": [
                {"name": name, "digest": {"sha256": digest.hex()}} for name, digest in subjects
            ],
            "predicateType": predicate_type,
            "predicate": dict(predicate),
        }
    )


def parse_statement_payload(
    payload: bytes, *, predicate_type: str
) -> tuple[tuple[tuple[str, bytes], ...], Members]:
    """
    Parse an in-toto Statement v1 and return its subjects (name, SHA-256) and its predicate.

    The payload has to be the canonical form of itself, so that a digest names one meaning.
    """
    _, subjects, predicate = parse_typed_payload(
        payload, predicate_types=(predicate_type,), reason=_REASON
    )
    return subjects, predicate


def parse_typed_payload(
    payload: bytes, *, predicate_types: Sequence[str], reason: Reason
) -> tuple[str, tuple[tuple[str, bytes], ...], Members]:
    """
    Parse an in-toto Statement v1 of one of `predicate_types`, and say of which.

    As `parse_statement_payload`; raises `FormatError` with `reason`.
    """
    value = parse_json(payload, what="in-toto statement", reason=reason)
    top = Members(value, what="in-toto statement", reason=reason)
    if jcs(value) != payload:
        top.refuse("not in canonical form")
    top.choice("_type", (STATEMENT_TYPE,))
    predicate_type = top.choice("predicateType", predicate_types)
    subjects: list[tuple[str, bytes]] = []
    for item in top.items("subject"):
        members = Members(item, what="in-toto subject", reason=reason)
        digests = members.members("digest")
        subjects.append((members.text("name"), digests.hexes("sha256", 32)))
        digests.end()
        members.end()
    predicate = top.members("predicate")
    top.end()
    return predicate_type, tuple(subjects), predicate
