"""Keyset: the public identity of one node boot. Bytes to value and back.

Format: docs/protocols/binding.md §1. A keyset is believed only when evidence binds its digest;
until then it is hostile. Private halves never appear here.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from confide.errors import FormatError, Reason
from confide.wire.faces import FACE_KEY_BYTES, face_of_algorithm
from confide.wire.json import JsonValue, Members, b64encode, jcs

if TYPE_CHECKING:
    from confide.wire.faces import FaceName

__all__ = [
    "Keyset",
    "KeysetKey",
    "Purpose",
    "format_time",
    "parse_keyset",
    "parse_time",
]

_TYPE = "confide/keyset/v1"
_CLAUSE = "docs/protocols/binding.md#1"
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\Z", re.ASCII)

Purpose = Literal["seal", "sign-receipt", "face"]
# From: docs/protocols/binding.md §1.3, §1.8. Algorithm to purpose and public key size in bytes.
_ALGORITHMS: dict[str, tuple[Purpose, int]] = {
    "MLKEM768-X25519": ("seal", 1216),
    "X25519": ("seal", 32),
    "Ed25519": ("sign-receipt", 32),
    **{algorithm: ("face", size) for algorithm, size in FACE_KEY_BYTES.items()},
}


def format_time(value: datetime) -> str:
    """Return RFC 3339 UTC to the second, the only time format in our documents."""
    if value.tzinfo is None:
        raise ValueError("a time without a zone")
    return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_time(text: str, *, what: str, reason: Reason) -> datetime:
    """Parse what `format_time` writes, and nothing else."""
    try:
        if _TIME.match(text):
            return datetime.fromisoformat(text)
    except ValueError:
        pass
    raise FormatError(f"{what}: not a UTC time to the second", reason=reason, clause="RFC 3339")


@dataclass(frozen=True, slots=True)
class KeysetKey:
    """
    One public key. `id` is 0..255 and unique within the keyset.

    It is the key id of the OHTTP key configuration for `seal` keys and the DSSE keyid (decimal)
    for `sign-receipt` keys.
    """

    id: int
    algorithm: str
    public_key: bytes

    @property
    def purpose(self) -> Purpose:
        """What the key may be used for; an algorithm has exactly one purpose."""
        return _ALGORITHMS[self.algorithm][0]

    @property
    def face(self) -> FaceName | None:
        """The face that the key belongs to; None for the node's own keys."""
        return face_of_algorithm(self.algorithm)


@dataclass(frozen=True, slots=True)
class Keyset:
    """
    Public keys of one boot of one node, with role, software digest and validity (UTC).

    The keys never outlive the process that made them.
    """

    role: Literal["agent", "model"]
    software: bytes
    not_before: datetime
    not_after: datetime
    keys: tuple[KeysetKey, ...]

    def document(self) -> dict[str, JsonValue]:
        """Return the JSON document."""
        return {
            "type": _TYPE,
            "role": self.role,
            "software": self.software.hex(),
            "not_before": format_time(self.not_before),
            "not_after": format_time(self.not_after),
            "keys": [
                {
                    "id": key.id,
                    "algorithm": key.algorithm,
                    "public_key": b64encode(key.public_key),
                }
                for key in self.keys
            ],
        }

    @property
    def digest(self) -> bytes:
        """SHA-256 over the RFC 8785 bytes."""
        return hashlib.sha256(jcs(self.document())).digest()

    def for_purpose(self, purpose: Purpose) -> tuple[KeysetKey, ...]:
        """Return the keys for `purpose`, preferred first (order of the keyset)."""
        return tuple(key for key in self.keys if key.purpose == purpose)


def parse_keyset(value: JsonValue) -> Keyset:
    """
    Parse the document of a keyset.

    Raises `FormatError` with KEYSET_MISMATCH: unknown algorithm, wrong key size, duplicate id,
    validity that ends before it begins, no key for sealing or none for signing.
    """
    reason = Reason.KEYSET_MISMATCH
    top = Members(value, what="keyset", reason=reason)
    top.choice("type", (_TYPE,))
    role: Literal["agent", "model"] = top.choice("role", ("agent", "model"))
    software = top.hexes("software", 32)
    times = [
        parse_time(top.text(name), what=f"keyset {name}", reason=reason)
        for name in ("not_before", "not_after")
    ]
    keys = tuple(_parse_key(item, reason) for item in top.items("keys", max_items=16))
    top.end()
    keyset = Keyset(role, software, times[0], times[1], keys)
    if times[0] >= times[1]:
        top.refuse("validity ends before it begins")
    if len({key.id for key in keys}) != len(keys):
        top.refuse("a key id stands twice")
    if not keyset.for_purpose("seal") or not keyset.for_purpose("sign-receipt"):
        top.refuse("a key for sealing and one for signing are both needed")
    return keyset


def _parse_key(value: JsonValue, reason: Reason) -> KeysetKey:
    members = Members(value, what="keyset key", reason=reason)
    key_id = members.integer("id", high=255)
    algorithm = members.choice("algorithm", tuple(_ALGORITHMS))
    public_key = members.base64("public_key")
    members.end()
    if len(public_key) != _ALGORITHMS[algorithm][1]:
        raise FormatError(
            f"keyset key {key_id}: {len(public_key)} bytes for {algorithm}",
            reason=reason,
            clause=_CLAUSE,
        )
    return KeysetKey(key_id, algorithm, public_key)
