"""Rotation of keysets: the old one signs the new one, both are attested, the overlap is explicit.

Clause: docs/protocols/binding.md §1.6 and §1.7. A client that holds a proven keyset and meets
another one can tell three things apart: the same node rotated (a succession), the one it holds
ended (`keyset-expired`, `keyset-revoked`), or somebody else answers (`keyset-mismatch`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from confide.crypto.ed25519 import verify_ed25519
from confide.crypto.errors import BadSignature
from confide.errors import EvidenceRejected, Reason
from confide.rats import Finding, Status
from confide.wire.json import JsonValue, Members, b64encode, jcs
from confide.wire.keyset import format_time, parse_time

if TYPE_CHECKING:
    from datetime import datetime

    from confide.wire.keyset import Keyset

__all__ = [
    "Succession",
    "issue_succession",
    "parse_succession",
    "require_current",
    "verify_succession",
]

_TYPE = "confide/succession/v1"
_DOMAIN = b"confide/succession/v1\0"
_CLAUSE = "docs/protocols/binding.md#1"


class _Signer(Protocol):
    def sign(self, message: bytes) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Succession:
    """
    `old` (a keyset digest) names `new` as its successor and ends at `overlap_until` (UTC).

    `signature` is Ed25519 by the first receipt key of the old keyset; unverified.
    """

    old: bytes
    new: bytes
    overlap_until: datetime
    signature: bytes

    def signed(self) -> bytes:
        """Return the bytes that the old keyset signs."""
        return _DOMAIN + jcs(
            {
                "type": _TYPE,
                "old": self.old.hex(),
                "new": self.new.hex(),
                "overlap_until": format_time(self.overlap_until),
            }
        )

    def document(self) -> dict[str, JsonValue]:
        """Return the JSON document."""
        return {
            "type": _TYPE,
            "old": self.old.hex(),
            "new": self.new.hex(),
            "overlap_until": format_time(self.overlap_until),
            "signature": b64encode(self.signature),
        }


def issue_succession(
    signer: _Signer, *, old: bytes, new: bytes, overlap_until: datetime
) -> Succession:
    """Sign that `new` succeeds `old`, whose receipt key `signer` holds."""
    unsigned = Succession(old, new, overlap_until, b"")
    return Succession(old, new, overlap_until, signer.sign(unsigned.signed()))


def parse_succession(value: JsonValue) -> Succession:
    """Parse a succession document. Raises `FormatError`; believes nothing."""
    reason = Reason.KEYSET_MISMATCH
    members = Members(value, what="succession", reason=reason)
    members.choice("type", (_TYPE,))
    succession = Succession(
        members.hexes("old", 32),
        members.hexes("new", 32),
        parse_time(members.text("overlap_until"), what="overlap_until", reason=reason),
        members.base64("signature"),
    )
    members.end()
    return succession


def verify_succession(
    held: Keyset, met: Keyset, succession: Succession | None, *, now: datetime
) -> None:
    """
    Establish that `met` (proven just now) is `held` (proven earlier) or its lawful successor.

    Raises `EvidenceRejected`: KEYSET_MISMATCH when nothing of `held` leads to `met`,
    KEYSET_EXPIRED when `held` is past its end. A keyset past the overlap of its succession is
    KEYSET_REVOKED for whoever still wants to seal to it: see `require_current`.
    """
    if now > held.not_after:
        raise _refuse(Reason.KEYSET_EXPIRED, "the keyset held is past its end; prove again")
    if met.digest == held.digest:
        return
    if succession is None or (succession.old, succession.new) != (held.digest, met.digest):
        raise _refuse(Reason.KEYSET_MISMATCH, "no succession leads to the keyset met")
    try:
        key = held.for_purpose("sign-receipt")[0]
        verify_ed25519(key.public_key, succession.signature, succession.signed())
    except BadSignature as error:
        raise _refuse(Reason.KEYSET_MISMATCH, "the succession is not signed by the old") from error


def require_current(held: Keyset, succession: Succession | None, *, now: datetime) -> None:
    """
    Establish that `held` may still be sealed to at `now`.

    Raises `EvidenceRejected`: KEYSET_EXPIRED past its end, KEYSET_REVOKED past the overlap of a
    succession away from it. Verify the succession first.
    """
    if now > held.not_after:
        raise _refuse(Reason.KEYSET_EXPIRED, "past the end of the keyset; prove again")
    if succession is not None and succession.old == held.digest and now > succession.overlap_until:
        raise _refuse(Reason.KEYSET_REVOKED, "succeeded, and the overlap has ended; prove again")


def _refuse(reason: Reason, detail: str) -> EvidenceRejected:
    return EvidenceRejected((Finding(Status.FAIL, "keyset/1", _CLAUSE, "keyset", detail, reason),))
