"""Tinfoil attestation documents, version 3: one machine with a nonce, its keys and its devices.

Clauses: docs/protocols/tinfoil.md §3. The two endorsed sections are hashed as the exact bytes that
travelled; report data is recomputed from them and from the nonce, never taken from the document.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from confide.appraisal.claim_names import ClaimName
from confide.errors import Reason, Unsupported
from confide.formats.parts import MAX_DEVICES, parse_device, parse_object
from confide.formats.snp_json import REPORT_BYTES
from confide.formats.tinfoil_collateral import (
    Platform,
    read_intel_responses,
    read_statement,
    subject_digest,
)
from confide.wire.json import JsonValue, Members, b64decode, jcs
from confide.wire.service import (
    Attester,
    Devices,
    PresentedKey,
    Remark,
    ReportBinding,
    SnpPart,
    TdxPart,
)

if TYPE_CHECKING:
    from confide.wire.evidence import GpuEvidence
    from confide.wire.service import ReferenceRegisters

__all__ = ["ATTESTATION_V3", "REPORT_DATA_V1", "read_v3"]

_CLAUSE: Final = "docs/protocols/tinfoil.md"
_REASON: Final = Reason.SERVICE_FORMAT
# From: tinfoil-python src/tinfoil/v3/envelope.py, "Format registry (v3)".
_BASE: Final = "https://tinfoil.sh/"
ATTESTATION_V3: Final = _BASE + "predicate/attestation/v3"
REPORT_DATA_V1: Final = _BASE + "report-data/v1"
_CRYPTO_V1: Final = _BASE + "crypto-material/v1"
_DEVICES_V1: Final = _BASE + "device-evidence/v1"
_SNP_REPORT: Final = _BASE + "format/sev-snp-report/v1"
_TDX_QUOTE: Final = _BASE + "format/tdx-quote/v1"
_GPU: Final = _BASE + "format/nvidia-gpu-evidence/v1"
_SWITCH: Final = _BASE + "format/nvidia-nvswitch-evidence/v1"
_SPKI: Final = _BASE + "key/spki-fp-sha256/v1"
_X25519: Final = _BASE + "key/x25519-hpke/v1"
_VCEK: Final = _BASE + "collateral/amd-vcek/v1"
_INTEL: Final = _BASE + "collateral/intel-pcs/v1"
_CODE: Final = _BASE + "collateral/sigstore-code/v1"
_ROLES: Final = ("endorsement", "reference-values")
_MAX_ITEMS: Final = 64


def _section(text: str, what: str) -> tuple[bytes, Members]:
    raw = b64decode(text, what=what, reason=_REASON)
    return hashlib.sha256(raw).digest(), Members(
        parse_object(raw, what=what), what=what, reason=_REASON
    )


def _keys(members: Members) -> tuple[PresentedKey, ...]:
    members.choice("format", (_CRYPTO_V1,))
    found: list[PresentedKey] = []
    seen: set[str] = set()
    for value in members.items("items", max_items=_MAX_ITEMS):
        item = Members(value, what="crypto material", reason=_REASON)
        name, form = item.text("id", max_chars=256), item.text("format", max_chars=256)
        known = form in (_SPKI, _X25519)
        data = item.hexes("data", 32 if known else None)
        item.end()
        if not name or not form or not data or name in seen:
            item.refuse("an item is empty or stands twice")
        seen.add(name)
        # From: envelope.py, "Conventional identifiers": only these two have a meaning here.
        if name == "tls" and form == _SPKI:
            found.append(PresentedKey(name="tls", use="tls", algorithm="spki-sha256", value=data))
        elif name == "hpke" and form == _X25519:
            found.append(PresentedKey(name="hpke", use="hpke", algorithm="x25519", value=data))
        elif name in ("tls", "hpke"):
            item.refuse("a TLS or HPKE key of another kind")
    members.end()
    return tuple(found)


def _devices(members: Members, nonce: bytes) -> tuple[Devices | None, tuple[Remark, ...]]:
    members.choice("format", (_DEVICES_V1,))
    found: list[GpuEvidence] = []
    nonces: set[bytes | None] = set()
    seen: set[str] = set()
    unread = False
    for value in members.items("items", max_items=_MAX_ITEMS):
        item = Members(value, what="device evidence", reason=_REASON)
        name = item.text("id", max_chars=256)
        item.text("kind", max_chars=256)
        item.text("vendor", max_chars=256)
        form, evidence = item.text("format", max_chars=256), item.value("evidence")
        item.end()
        if not name or name in seen:
            item.refuse("an item has no id, or one that stands twice")
        seen.add(name)
        if form == _GPU:
            device, own = parse_device(evidence, what="device evidence", kind="gpu")
            found.append(device)
            nonces.add(own)
        elif form == _SWITCH:
            for device, own in _switches(evidence):
                found.append(device)
                nonces.add(own)
        else:
            unread = True
    members.end()
    if len(found) > MAX_DEVICES:
        members.refuse(f"{len(found)} devices, at most {MAX_DEVICES}")
    remarks: list[Remark] = []
    if nonces - {nonce}:
        remarks.append(
            _failed(ClaimName.GPU_FRESHNESS, "a device names another nonce than the challenge")
        )
    if unread:
        remarks.append(_open(ClaimName.GPU, "devices in a format that is not judged here"))
    return (Devices(devices=tuple(found), nonce=nonce) if found else None), tuple(remarks)


def _switches(evidence: JsonValue) -> list[tuple[GpuEvidence, bytes | None]]:
    # From: cvmimage inference/internal/gpuattestation/gpu.go: the output of `nvattest`.
    members = Members(evidence, what="switch evidence", reason=_REASON)
    return [
        parse_device(value, what="switch evidence", kind="switch")
        for value in members.items("evidences", max_items=MAX_DEVICES)
    ]


def _failed(claim: ClaimName, text: str) -> Remark:
    return Remark(claim=claim, text=text, clause=f"{_CLAUSE}#3", failed=True)


def _open(claim: ClaimName, text: str) -> Remark:
    return Remark(claim=claim, text=text, clause=f"{_CLAUSE}#3")


def read_v3(value: JsonValue) -> Attester:
    """
    Read one document of version 3.

    What the document says about its own hashes is compared with what was recomputed: a difference
    becomes a failed remark. Raises `FormatError`, and `Unsupported` for another processor.
    """
    top = Members(value, what="Tinfoil attestation", reason=_REASON)
    top.choice("format", (ATTESTATION_V3,))
    challenge = top.members("challenge")
    challenge.choice("report_data_algorithm", (REPORT_DATA_V1,))
    nonce, told = challenge.hexes("nonce", 32), challenge.hexes("report_data", 64)
    challenge.end()
    evidence = top.members("cpu_evidence")
    form, quote = evidence.text("format", max_chars=256), evidence.base64("report_base64")
    endorsed = evidence.members("endorsed")
    told_keys = endorsed.hexes("crypto_material_hash", 32)
    told_devices = endorsed.hexes("device_evidence_hash", 32)
    endorsed.end()
    evidence.end()
    text = [top.text(name, max_chars=1 << 24) for name in ("crypto_material", "device_evidence")]
    keys_hash, keys_section = _section(text[0], "crypto_material")
    devices_hash, devices_section = _section(text[1], "device_evidence")
    keys = _keys(keys_section)
    devices, remarks = _devices(devices_section, nonce)
    platform = _platform(form)
    collateral = _Collateral(top, platform)
    top.end()
    digest = hashlib.sha256(REPORT_DATA_V1.encode() + nonce + keys_hash + devices_hash).digest()
    expected = digest + bytes(32)
    contradictions = (
        _contradiction(told_keys, keys_hash, ClaimName.KEYS, "hash of its keys"),
        _contradiction(told_devices, devices_hash, ClaimName.GPU_BINDING, "hash of its devices"),
        _contradiction(told, expected, ClaimName.KEYS, "report data"),
    )
    if platform == "snp" and len(quote) != REPORT_BYTES:
        evidence.refuse(f"a report of {len(quote)} bytes")
    covers = {key.name for key in keys} | ({"gpu-evidence"} if devices is not None else set())
    return Attester(
        name="enclave",
        tdx=TdxPart(quote=quote, collateral=collateral.tdx) if platform == "tdx" else None,
        snp=(
            SnpPart(report=quote, leaf_der=collateral.leaf, chain_pem=collateral.chain)
            if platform == "snp"
            else None
        ),
        binding=ReportBinding(
            scheme=REPORT_DATA_V1, expected=expected, nonce=nonce, covers=frozenset(covers)
        ),
        keys=keys,
        devices=devices,
        references=collateral.references,
        remarks=(
            *remarks,
            *(remark for remark in contradictions if remark is not None),
            *collateral.remarks,
        ),
    )


def _contradiction(told: bytes, found: bytes, claim: ClaimName, what: str) -> Remark | None:
    if told == found:
        return None
    return _failed(claim, f"the document contradicts itself about the {what}")


def _platform(form: str) -> Platform:
    if form == _TDX_QUOTE:
        return "tdx"
    if form == _SNP_REPORT:
        return "snp"
    raise Unsupported("a Tinfoil document whose processor is neither TDX nor SEV-SNP")


class _Collateral:
    """What came along in `collateral`, as far as this verifier uses it."""

    def __init__(self, top: Members, platform: Platform) -> None:
        self.tdx: bytes | None = None
        self.leaf: bytes | None = None
        self.chain: bytes | None = None
        self.references: ReferenceRegisters | None = None
        self.remarks: tuple[Remark, ...] = ()
        self._platform = platform
        seen: set[str] = set()
        for value in top.items("collateral", max_items=_MAX_ITEMS):
            entry = Members(value, what="collateral", reason=_REASON)
            name, form = entry.text("id", max_chars=256), entry.text("format", max_chars=256)
            role = entry.choice("role", _ROLES)
            if entry.has("subjects") and not entry.null("subjects"):
                entry.texts("subjects")
            data = entry.value("data")
            entry.end()
            if not name or not form or name in seen:
                entry.refuse("an entry is empty or stands twice")
            seen.add(name)
            self._take(role, form, data)

    def _take(self, role: str, form: str, data: JsonValue) -> None:
        # From: envelope.py: the first entry of a format wins.
        if role == "endorsement" and form == _VCEK and self.leaf is None:
            members = Members(data, what="amd-vcek collateral", reason=_REASON)
            self.leaf = members.base64("vcek_der_base64")
            self.chain = members.text("cert_chain_pem", max_chars=1 << 16).encode() or None
            members.end()
        elif role == "endorsement" and form == _INTEL and self.tdx is None:
            self.tdx = read_intel_responses(data)
        elif role == "reference-values" and form == _CODE and self.references is None:
            self._code(Members(data, what="sigstore-code collateral", reason=_REASON))

    def _code(self, members: Members) -> None:
        members.text("repo", max_chars=256)
        members.text("tag", max_chars=256)
        digest = members.hexes("digest", 32)
        bundle = members.value("sigstore_bundle")
        members.end()
        if not isinstance(bundle, dict):
            members.refuse("sigstore_bundle is not an object")
        self.references = read_statement(jcs(bundle), bundle, self._platform)
        if subject_digest(bundle) != digest:
            self.remarks = (
                _failed(ClaimName.LAUNCH, "the signed statement is about another release"),
            )
