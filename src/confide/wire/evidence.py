"""Evidence as it travels: quotes, reports, logs, and the endorsements the attester passes along.

Format: docs/protocols/evidence.md. Bytes to value and back; nothing here is believed. Large parts
stand in a table of blobs named by SHA-256, so that several pieces of evidence share them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from confide.errors import FormatError, Reason
from confide.wire.json import JsonValue, Members, b64decode, b64encode, jcs, parse_json

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "DeviceEvidence",
    "EvidenceBundle",
    "GpuEndorsements",
    "decode_evidence",
    "encode_evidence",
    "parse_blobs",
    "parse_evidence",
]

_TYPE = "confide/evidence/v1"
_CLAUSE = "docs/protocols/evidence.md#1"
# From: nvidia.md §7 step 1: at most 16 devices; each names two manifests.
_MAX_DEVICES = 16
_MAX_BLOBS = 512
_REASON = Reason.EVIDENCE_MISSING


@dataclass(frozen=True, slots=True)
class DeviceEvidence:
    """One device's signed report and its certificate chain (PEM, leaf first), both unverified."""

    report: bytes
    chain_pem: bytes


@dataclass(frozen=True, slots=True)
class GpuEndorsements:
    """Reference manifests by id (XML bytes) and OCSP responses (DER), unverified."""

    rims: tuple[tuple[str, bytes], ...]
    ocsp: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class EvidenceBundle:
    """
    Everything one node presents for one statement. All of it is hostile until appraised.

    `statement` and `keyset` are JSON documents, `runtime_log` the JSON array of RTMR3.
    """

    statement: JsonValue
    keyset: JsonValue
    quote: bytes
    collateral: bytes
    firmware_log: bytes
    runtime_log: JsonValue
    devices: tuple[DeviceEvidence, ...]
    endorsements: GpuEndorsements

    @property
    def digest(self) -> bytes:
        """SHA-256 over the canonical document (blobs by digest)."""
        blobs: dict[str, bytes] = {}
        return hashlib.sha256(jcs(encode_evidence(self, blobs))).digest()


def _put(blobs: dict[str, bytes], raw: bytes) -> str:
    name = hashlib.sha256(raw).hexdigest()
    blobs[name] = raw
    return name


def encode_evidence(bundle: EvidenceBundle, blobs: dict[str, bytes]) -> dict[str, JsonValue]:
    """Return the document of `bundle`; its large parts are added to `blobs`."""
    return {
        "type": _TYPE,
        "statement": bundle.statement,
        "keyset": bundle.keyset,
        "tdx": {
            "quote": b64encode(bundle.quote),
            "collateral": _put(blobs, bundle.collateral),
            "firmware_log": _put(blobs, bundle.firmware_log),
            "runtime_log": bundle.runtime_log,
        },
        "devices": [
            {"report": b64encode(device.report), "chain": _put(blobs, device.chain_pem)}
            for device in bundle.devices
        ],
        "endorsements": {
            "rims": {name: _put(blobs, xml) for name, xml in bundle.endorsements.rims},
            "ocsp": [_put(blobs, answer) for answer in bundle.endorsements.ocsp],
        },
    }


def encode_blobs(blobs: Mapping[str, bytes]) -> dict[str, JsonValue]:
    """Return the JSON table of `blobs`."""
    return {name: b64encode(raw) for name, raw in blobs.items()}


def parse_blobs(value: JsonValue) -> dict[str, bytes]:
    """Parse a blob table; every blob has to hash to its name."""
    if not isinstance(value, dict) or len(value) > _MAX_BLOBS:
        raise FormatError("blobs: not a table of blobs", reason=_REASON, clause=_CLAUSE)
    found: dict[str, bytes] = {}
    for name, text in value.items():
        if not isinstance(text, str):
            raise FormatError("blobs: a blob is not text", reason=_REASON, clause=_CLAUSE)
        raw = b64decode(text, what="blob", reason=_REASON)
        if hashlib.sha256(raw).hexdigest() != name:
            raise FormatError(
                "blobs: a blob does not hash to its name",
                reason=Reason.DIGEST_MISMATCH,
                clause=_CLAUSE,
            )
        found[name] = raw
    return found


def parse_evidence(value: JsonValue, blobs: Mapping[str, bytes]) -> EvidenceBundle:
    """
    Parse one evidence document whose large parts are in `blobs`.

    Raises `FormatError` with EVIDENCE_MISSING for any absent part. Does not verify anything.
    """
    top = Members(value, what="evidence", reason=_REASON)
    top.choice("type", (_TYPE,))
    statement, keyset = top.value("statement"), top.value("keyset")
    tdx = top.members("tdx")
    quote = tdx.base64("quote")
    collateral, firmware_log = (
        _blob(blobs, tdx.text(name)) for name in ("collateral", "firmware_log")
    )
    runtime_log = tdx.value("runtime_log")
    tdx.end()
    devices = tuple(
        _parse_device(item, blobs) for item in top.items("devices", max_items=_MAX_DEVICES)
    )
    endorsements = _parse_endorsements(top.members("endorsements"), blobs)
    top.end()
    return EvidenceBundle(
        statement, keyset, quote, collateral, firmware_log, runtime_log, devices, endorsements
    )


def _blob(blobs: Mapping[str, bytes], name: str) -> bytes:
    if name not in blobs:
        raise FormatError("evidence: a named blob is absent", reason=_REASON, clause=_CLAUSE)
    return blobs[name]


def _parse_device(value: JsonValue, blobs: Mapping[str, bytes]) -> DeviceEvidence:
    members = Members(value, what="device evidence", reason=_REASON)
    device = DeviceEvidence(members.base64("report"), _blob(blobs, members.text("chain")))
    members.end()
    return device


def _parse_endorsements(members: Members, blobs: Mapping[str, bytes]) -> GpuEndorsements:
    table = members.value("rims")
    if not isinstance(table, dict) or len(table) > 2 * _MAX_DEVICES:
        members.refuse("rims is not a table")
    rims: list[tuple[str, bytes]] = []
    for name, digest in table.items():
        if not isinstance(digest, str):
            members.refuse("a manifest is not named by its digest")
        rims.append((name, _blob(blobs, digest)))
    answers = tuple(_blob(blobs, name) for name in members.texts("ocsp"))
    members.end()
    return GpuEndorsements(tuple(rims), answers)


def encode_evidence_file(bundle: EvidenceBundle) -> bytes:
    """Return one self-contained JSON document: evidence and blobs."""
    blobs: dict[str, bytes] = {}
    document = encode_evidence(bundle, blobs)
    return jcs({"evidence": document, "blobs": encode_blobs(blobs)})


def decode_evidence(raw: bytes) -> EvidenceBundle:
    """Parse what `encode_evidence_file` writes."""
    value = parse_json(raw, what="evidence", reason=_REASON)
    top = Members(value, what="evidence file", reason=_REASON)
    blobs = parse_blobs(top.value("blobs"))
    bundle = parse_evidence(top.value("evidence"), blobs)
    top.end()
    return bundle
