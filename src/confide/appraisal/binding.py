"""The one definition of what evidence binds. Both sides import it.

Clauses: docs/protocols/binding.md §2. A typed, domain-separated statement in RFC 8785 JSON; the
GPU nonce and the TDX REPORTDATA are hashes of it. Nothing is ever quoted raw, so evidence made
for one purpose cannot be read as evidence for another.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from confide.errors import Reason
from confide.wire.json import JsonValue, Members, jcs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from confide.wire.evidence import GpuEvidence

__all__ = [
    "Purpose",
    "Statement",
    "closing_nonce",
    "devices_digest",
    "parse_statement",
]

_TYPE = "confide/statement/v1"
_GPU_NONCE = b"confide/gpu-nonce/v1\0"
_REPORT_DATA = b"confide/report-data/v1\0"
_DEVICES = b"confide/devices/v1\0"
_CLOSING = b"confide/closing-nonce/v1\0"

Purpose = Literal["channel", "claim", "release"]
# Evidence of these is about one document, and names it.
_CLAIMING = ("claim", "release")


@dataclass(frozen=True, slots=True)
class Statement:
    """
    What one piece of evidence says. All byte strings are 32 bytes.

    `purpose` `channel`: the holder of `keyset` speaks for this node, now (`nonce`), under
    `expectation`. `claim`: it has issued the document with SHA-256 `claim`. `release`: it asks a
    broker for secrets, wrapped to the key that `claim` commits to (docs/protocols/broker.md 3.4).
    `devices` is set exactly when device evidence travels along.
    """

    purpose: Purpose
    nonce: bytes
    keyset: bytes
    expectation: bytes
    claim: bytes | None = None
    devices: bytes | None = None

    def __post_init__(self) -> None:
        if (self.purpose in _CLAIMING) != (self.claim is not None):
            raise ValueError("a claim digest belongs to purposes claim and release, and only there")
        for value in (self.nonce, self.keyset, self.expectation, self.claim, self.devices):
            if value is not None and len(value) != 32:
                raise ValueError("digests and nonces are 32 bytes")

    def document(self) -> dict[str, JsonValue]:
        """Return the JSON document; members that are not set are absent."""
        document: dict[str, JsonValue] = {
            "type": _TYPE,
            "purpose": self.purpose,
            "nonce": self.nonce.hex(),
            "keyset": self.keyset.hex(),
            "expectation": self.expectation.hex(),
        }
        if self.claim is not None:
            document["claim"] = self.claim.hex()
        if self.devices is not None:
            document["devices"] = self.devices.hex()
        return document

    @property
    def gpu_nonce(self) -> bytes:
        """The 32-byte nonce of device evidence: it precedes `devices` and so leaves it out."""
        return hashlib.sha256(_GPU_NONCE + jcs(replace(self, devices=None).document())).digest()

    @property
    def report_data(self) -> bytes:
        """The 64 bytes of TDX REPORTDATA."""
        return hashlib.sha512(_REPORT_DATA + jcs(self.document())).digest()


def parse_statement(value: JsonValue) -> Statement:
    """Parse a statement document. Raises `FormatError` with STATEMENT_MISMATCH."""
    members = Members(value, what="statement", reason=Reason.STATEMENT_MISMATCH)
    members.choice("type", (_TYPE,))
    purpose: Purpose = members.choice("purpose", ("channel", "claim", "release"))
    nonce, keyset, expectation = (
        members.hexes(name, 32) for name in ("nonce", "keyset", "expectation")
    )
    claim = members.hexes("claim", 32) if members.has("claim") else None
    devices = members.hexes("devices", 32) if members.has("devices") else None
    members.end()
    if (purpose in _CLAIMING) != (claim is not None):
        members.refuse("claim belongs to purposes claim and release, and only there")
    return Statement(purpose, nonce, keyset, expectation, claim, devices)


def devices_digest(devices: Sequence[GpuEvidence]) -> bytes:
    """Return SHA-256 over the ordered device evidence, each part length-prefixed."""
    digest = hashlib.sha256(_DEVICES)
    for device in devices:
        for part in (device.report, device.chain_pem):
            digest.update(len(part).to_bytes(4, "big") + part)
    return digest.digest()


def closing_nonce(nonce: bytes, transcript: bytes) -> bytes:
    """
    Return the nonce of the evidence that closes a run at the model node.

    It contains the owner's `nonce` and the head of the run's `transcript`, so that the GPU signs
    after, and about, what was executed.
    """
    return hashlib.sha256(_CLOSING + nonce + transcript).digest()
