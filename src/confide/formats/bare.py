"""Bare evidence, without a service around it: TDX quotes, SNP reports, NVIDIA evidence lists.

Clauses: docs/protocols/bare.md. Nothing says what report data should be, so nothing is bound: not
a key, not a nonce, not a workload.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import TYPE_CHECKING, Final

from confide.appraisal.claim_names import ClaimName
from confide.errors import FormatError, Unsupported
from confide.formats.format import Format
from confide.formats.parts import (
    MAX_DEVICES,
    optional_document,
    parse_device,
    refuse,
)
from confide.formats.snp_json import REPORT_BYTES, read_certificate_table
from confide.reasons import Reason
from confide.wire.json import JsonLimits, JsonValue, parse_json
from confide.wire.service import (
    Attester,
    Capture,
    Devices,
    Evidence,
    Remark,
    ReportBinding,
    SnpPart,
    TdxPart,
)

if TYPE_CHECKING:
    from confide.wire.evidence import GpuEvidence

__all__ = ["FORMAT", "NAME"]

NAME: Final = "bare"
_CLAUSE: Final = "docs/protocols/bare.md"
# Names of documents that come along and are not recognised by their bytes.
_COLLATERAL, _AUXBLOB, _CCEL = "collateral", "auxblob", "ccel"
_VCEK, _CHAIN = "vcek", "chain"
_ALONG: Final = frozenset((_COLLATERAL, _AUXBLOB, _CCEL, _VCEK, _CHAIN))
# From: Intel TDX DCAP Quoting Library API, Appendix 3.1: version, key type, TEE type.
_QUOTE_VERSIONS: Final = (3, 4, 5)
_TEE_SGX, _TEE_TDX = 0, 0x81
_MIN_QUOTE: Final = 48 + 384
_MAX_QUOTE: Final = 64 * 1024
_MAX_TABLE: Final = 64 * 1024
_LIST: Final = JsonLimits(max_bytes=4 << 20, max_depth=8)
_HEX: Final = re.compile(rb"(?:0x)?([0-9a-fA-F]+)\Z")
_BASE64: Final = re.compile(rb"[A-Za-z0-9+/\r\n]+={0,2}\Z")
_SPACE: Final = b" \t\r\n"
# Hex and base64 of something else can have 1,184 characters.
_TEXT: Final = re.compile(rb"[A-Za-z0-9+/=\s]+\Z")


def _binary(document: bytes) -> bytes:
    """Return the bytes of a quote or report that may be written as hex or base64."""
    if _is_quote(document) or _is_report(document) or len(document) > 2 * _MAX_QUOTE:
        return document
    text = document.strip(_SPACE)
    match = _HEX.match(text)
    if match is not None and len(match.group(1)) % 2 == 0:
        return bytes.fromhex(match.group(1).decode("ascii"))
    if _BASE64.match(text):
        try:
            return base64.b64decode(text.replace(b"\r", b"").replace(b"\n", b""), validate=True)
        except binascii.Error:
            return document
    return document


def _is_quote(raw: bytes) -> bool:
    return (
        len(raw) >= _MIN_QUOTE
        and int.from_bytes(raw[:2], "little") in _QUOTE_VERSIONS
        and int.from_bytes(raw[2:4], "little") in (2, 3)
        and int.from_bytes(raw[4:8], "little") in (_TEE_SGX, _TEE_TDX)
    )


def _is_report(raw: bytes) -> bool:
    # 1,184 bytes are a report, whatever version they claim; longer ones need a likely one.
    if len(raw) == REPORT_BYTES:
        return not _is_quote(raw) and raw[:1] not in b"{[" and not _TEXT.match(raw)
    return (
        REPORT_BYTES < len(raw) <= REPORT_BYTES + _MAX_TABLE
        and 2 <= int.from_bytes(raw[:4], "little") <= 5
    )


def _list_of(document: bytes) -> JsonValue:
    """Return the parsed evidence list, None where `document` is none."""
    head = document.lstrip(_SPACE)[:1]
    if head not in (b"[", b"{") or b'"evidence"' not in document:
        return None
    try:
        value = parse_json(
            document, what="evidence list", reason=Reason.SERVICE_FORMAT, limits=_LIST
        )
    except FormatError:
        return None
    if isinstance(value, list):
        first = value[0] if value else None
        return value if isinstance(first, dict) and first.keys() >= _ENTRY else None
    if isinstance(value, dict) and (_request_entries(value) is not None):
        return value
    return None


_ENTRY: Final = frozenset(("evidence", "certificate"))
# From: nvidia.md §6.1; `evidences` and its neighbours are what `nvattest collect-evidence` writes.
_REQUEST: Final = frozenset(("nonce", "arch", "evidence_list", "claims_version"))
_COLLECTED: Final = frozenset(("evidences", "result_code", "result_message"))


def _request_entries(value: dict[str, JsonValue]) -> list[JsonValue] | None:
    for name, allowed in (("evidence_list", _REQUEST), ("evidences", _COLLECTED)):
        entries = value.get(name)
        if isinstance(entries, list) and value.keys() <= allowed:
            return entries
    return None


def _recognise(document: bytes) -> bool:
    raw = _binary(document)
    return _is_quote(raw) or _is_report(raw) or _list_of(document) is not None


def _read(capture: Capture) -> Evidence:
    cpu: bytes | None = None
    devices: Devices | None = None
    remarks: tuple[Remark, ...] = ()
    for name, document in capture.documents.items():
        if name in _ALONG:
            continue
        entries = _list_of(document)
        if entries is not None:
            if devices is not None:
                refuse("bare evidence: two evidence lists", clause=f"{_CLAUSE}#4")
            devices, remarks = _devices(entries)
        elif cpu is not None:
            refuse("bare evidence: two quotes or reports", clause=f"{_CLAUSE}#4")
        else:
            cpu = _binary(document)
    tdx, snp = _processor(cpu, capture) if cpu is not None else (None, None)
    if tdx is None and snp is None and devices is None:
        refuse("bare evidence: neither quote nor report nor devices", clause=f"{_CLAUSE}#1")
    attester = Attester(
        name="machine",
        tdx=tdx,
        snp=snp,
        binding=ReportBinding(scheme="none", expected=None, nonce=None),
        devices=devices,
        firmware_log=optional_document(capture, _CCEL),
        remarks=(*_REMARKS, *remarks),
    )
    return Evidence(
        format=NAME,
        attesters=(attester,),
        nonce=capture.nonce,
        tls_spki_sha256=capture.tls_spki_sha256,
        limits=_LIMITS,
    )


def _processor(raw: bytes, capture: Capture) -> tuple[TdxPart | None, SnpPart | None]:
    if _is_quote(raw):
        if int.from_bytes(raw[4:8], "little") == _TEE_SGX:
            raise Unsupported("an SGX quote: this verifier judges TDX and SEV-SNP")
        if len(raw) > _MAX_QUOTE:
            refuse(f"TDX quote: {len(raw)} bytes, at most {_MAX_QUOTE}", clause=f"{_CLAUSE}#2")
        return TdxPart(quote=raw, collateral=optional_document(capture, _COLLATERAL)), None
    if not _is_report(raw):
        refuse("bare evidence: neither a TDX quote nor an SNP report", clause=f"{_CLAUSE}#1")
    report, table = raw[:REPORT_BYTES], raw[REPORT_BYTES:]
    auxblob = optional_document(capture, _AUXBLOB)
    if table and auxblob is not None:
        refuse("SNP report: two certificate tables", clause=f"{_CLAUSE}#3")
    part = read_certificate_table(report, table or auxblob or b"")
    return None, SnpPart(
        report=report,
        leaf_der=part.leaf_der or optional_document(capture, _VCEK),
        chain_pem=part.chain_pem or optional_document(capture, _CHAIN),
    )


def _devices(value: JsonValue) -> tuple[Devices, tuple[Remark, ...]]:
    shared: list[bytes | None] = []
    entries = value
    arch: JsonValue = None
    if isinstance(value, dict):
        entries, arch = _request_entries(value), value.get("arch")
        if "nonce" in value:
            # The nonce of a request speaks for each entry; it is read as an entry's is.
            shared.append(_nonce(value["nonce"]))
    if not isinstance(entries, list) or not 0 < len(entries) <= MAX_DEVICES:
        refuse(f"evidence list: not 1 to {MAX_DEVICES} devices", clause=f"{_CLAUSE}#4")
    found: list[GpuEvidence] = []
    for index, entry in enumerate(entries):
        # The architecture of a request speaks for each entry that names none.
        named = {"arch": arch, **entry} if isinstance(entry, dict) and arch is not None else entry
        device, nonce = parse_device(named, what=f"evidence list[{index}]")
        found.append(device)
        if nonce is not None:
            shared.append(nonce)
    nonces = {nonce for nonce in shared if nonce is not None}
    remarks: tuple[Remark, ...] = ()
    if len(nonces) > 1:
        remarks = (
            Remark(
                claim=ClaimName.GPU_FRESHNESS,
                text="the entries of the list name different nonces",
                clause=f"{_CLAUSE}#4",
                failed=True,
            ),
        )
    nonce = next((nonce for nonce in shared if nonce is not None), None)
    return Devices(devices=tuple(found), nonce=nonce), remarks


def _nonce(value: JsonValue) -> bytes:
    if not isinstance(value, str) or not re.fullmatch(r"(?:0x)?[0-9a-fA-F]{64}", value):
        refuse("evidence list: nonce is not 32 bytes of hex", clause=f"{_CLAUSE}#4")
    return bytes.fromhex(value.removeprefix("0x"))


def _unproven(claim: ClaimName, text: str) -> Remark:
    return Remark(claim=claim, text=text, clause=f"{_CLAUSE}#5")


# Only what no policy could prove: a remark lowers and never raises.
_REMARKS: Final = (
    _unproven(ClaimName.KEYS, "bare evidence names no keys"),
    _unproven(ClaimName.TLS, "bare evidence names no keys"),
    _unproven(ClaimName.GPU_BINDING, "nothing says that the report data commits to devices"),
    _unproven(ClaimName.MODEL_WEIGHTS, "nothing names weights"),
    _unproven(ClaimName.RESPONSE_SIGNATURE, "bare evidence signs no answers"),
)
_LIMITS: Final = (
    "Bare evidence shows what a machine is, not who is at the other end of a connection.",
)

FORMAT: Final = Format(
    name=NAME,
    title="Bare TDX quote, SEV-SNP report or NVIDIA evidence list",
    recognise=_recognise,
    read=_read,
)
