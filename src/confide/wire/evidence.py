"""Evidence as it travels: quotes, reports, logs, and the endorsements the attester passes along.

Format: docs/protocols/evidence.md. Bytes to value and back; nothing here is believed. Large parts
stand in a table of blobs named by SHA-256, so that several pieces of evidence share them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from confide.errors import FormatError, Reason
from confide.wire.json import JsonValue, Members, b64decode, b64encode, jcs, parse_json

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "EvidenceBundle",
    "GpuEvidence",
    "NvidiaEndorsements",
    "OcspAnswer",
    "RimDocument",
    "decode_evidence",
    "encode_blobs",
    "encode_evidence",
    "encode_evidence_file",
    "evidence_document",
    "parse_blobs",
    "parse_evidence",
    "parse_evidence_file",
]

_TYPE = "confide/evidence/v1"
_CLAUSE = "docs/protocols/evidence.md#1"
# From: nvidia.md §7 step 1: at most 16 devices; each names two manifests.
_MAX_DEVICES = 16
_MAX_BLOBS = 512
_MAX_ENDORSEMENTS = 256
_REASON = Reason.EVIDENCE_MISSING


@dataclass(frozen=True, slots=True)
class GpuEvidence:
    """
    One device: `report` is request followed by response, `chain_pem` is leaf first; unverified.

    `kind` is what the device is presented as, `gpu` or `switch`; its certificates decide.
    """

    report: bytes
    chain_pem: bytes
    kind: Literal["gpu", "switch"] = "gpu"


@dataclass(frozen=True, slots=True)
class RimDocument:
    """A manifest as served under `id`; that it is that manifest is proven, not believed."""

    id: str
    xml: bytes


@dataclass(frozen=True, slots=True)
class OcspAnswer:
    """
    An OCSP response, filed under the SHA-256 (hex) of the certificate that was asked about.

    The label only says where to look; the answer itself must be about that certificate.
    """

    certificate_sha256: str
    der: bytes


@dataclass(frozen=True, slots=True)
class NvidiaEndorsements:
    """What vouches for GPU evidence, from whoever supplied it. All of it is hostile."""

    rims: tuple[RimDocument, ...]
    ocsp: tuple[OcspAnswer, ...]


@dataclass(frozen=True, slots=True)
class EvidenceBundle:
    """
    Everything one node presents for one statement. All of it is hostile until appraised.

    `statement` and `keyset` are JSON documents, `runtime_log` the JSON array of RTMR3,
    `succession` the document that names the keyset before this one, or None.
    """

    statement: JsonValue
    keyset: JsonValue
    quote: bytes
    collateral: bytes
    firmware_log: bytes
    runtime_log: JsonValue
    devices: tuple[GpuEvidence, ...]
    endorsements: NvidiaEndorsements
    succession: JsonValue = None

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
        "succession": bundle.succession,
        "tdx": {
            "quote": b64encode(bundle.quote),
            "collateral": _put(blobs, bundle.collateral),
            "firmware_log": _put(blobs, bundle.firmware_log),
            "runtime_log": bundle.runtime_log,
        },
        "devices": [_encode_device(device, blobs) for device in bundle.devices],
        "endorsements": {
            "rims": {rim.id: _put(blobs, rim.xml) for rim in bundle.endorsements.rims},
            "ocsp": {
                answer.certificate_sha256: _put(blobs, answer.der)
                for answer in bundle.endorsements.ocsp
            },
        },
    }


def _encode_device(device: GpuEvidence, blobs: dict[str, bytes]) -> dict[str, JsonValue]:
    found: dict[str, JsonValue] = {
        "report": b64encode(device.report),
        "chain": _put(blobs, device.chain_pem),
    }
    # A GPU is written as it was before there were switches: equal evidence, equal digest.
    return found if device.kind == "gpu" else {**found, "kind": device.kind}


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
    succession = top.value("succession")
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
        statement,
        keyset,
        quote,
        collateral,
        firmware_log,
        runtime_log,
        devices,
        endorsements,
        succession,
    )


def _blob(blobs: Mapping[str, bytes], name: str) -> bytes:
    if name not in blobs:
        raise FormatError("evidence: a named blob is absent", reason=_REASON, clause=_CLAUSE)
    return blobs[name]


def _parse_device(value: JsonValue, blobs: Mapping[str, bytes]) -> GpuEvidence:
    members = Members(value, what="device evidence", reason=_REASON)
    report, chain = members.base64("report"), _blob(blobs, members.text("chain"))
    kind: Literal["gpu", "switch"] = "gpu"
    if members.has("kind"):
        kind = members.choice("kind", ("switch",))
    members.end()
    return GpuEvidence(report, chain, kind)


def _parse_endorsements(members: Members, blobs: Mapping[str, bytes]) -> NvidiaEndorsements:
    rims, ocsp = (_parse_named(members, name, blobs) for name in ("rims", "ocsp"))
    members.end()
    return NvidiaEndorsements(
        tuple(RimDocument(name, xml) for name, xml in rims),
        tuple(OcspAnswer(name, der) for name, der in ocsp),
    )


def _parse_named(
    members: Members, name: str, blobs: Mapping[str, bytes]
) -> tuple[tuple[str, bytes], ...]:
    table = members.value(name)
    if not isinstance(table, dict) or len(table) > _MAX_ENDORSEMENTS:
        members.refuse(f"{name} is not a table of at most {_MAX_ENDORSEMENTS}")
    found: list[tuple[str, bytes]] = []
    for label, digest in table.items():
        if not isinstance(digest, str):
            members.refuse(f"{name} names something that is not a blob")
        found.append((label, _blob(blobs, digest)))
    return tuple(found)


def encode_evidence_file(bundle: EvidenceBundle) -> bytes:
    """Return one self-contained JSON document: evidence and blobs."""
    return jcs(evidence_document(bundle))


def evidence_document(bundle: EvidenceBundle) -> dict[str, JsonValue]:
    """Return that document as a value, to stand in another one."""
    blobs: dict[str, bytes] = {}
    document = encode_evidence(bundle, blobs)
    return {"evidence": document, "blobs": encode_blobs(blobs)}


def decode_evidence(raw: bytes) -> EvidenceBundle:
    """Parse what `encode_evidence_file` writes."""
    return parse_evidence_file(parse_json(raw, what="evidence", reason=_REASON))


def parse_evidence_file(value: JsonValue) -> EvidenceBundle:
    """Parse the document that `encode_evidence_file` writes: evidence, and blobs beside it."""
    top = Members(value, what="evidence file", reason=_REASON)
    blobs = parse_blobs(top.value("blobs"))
    bundle = parse_evidence(top.value("evidence"), blobs)
    top.end()
    return bundle
