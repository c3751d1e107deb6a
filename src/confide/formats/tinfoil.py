"""Tinfoil attestation documents, version 2 and 3, and the bundle of its attestation service.

Clauses: docs/protocols/tinfoil.md, which names the sources. The reader recomputes report data;
quotes, certificates and Sigstore bundles are judged elsewhere.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from confide.appraisal.claim_names import ClaimName
from confide.errors import FormatError, Reason, Unsupported
from confide.formats.format import Format, Request
from confide.formats.parts import gunzip, only_document, parse_object, refuse
from confide.formats.snp_json import REPORT_BYTES
from confide.formats.tinfoil_collateral import Platform, read_statement, subject_digest
from confide.formats.tinfoil_v3 import ATTESTATION_V3, read_v3
from confide.wire.json import Members, b64decode, jcs
from confide.wire.service import (
    Attester,
    Evidence,
    LaunchDocument,
    PresentedKey,
    Remark,
    ReportBinding,
    SnpPart,
    TdxPart,
)
from confide.wire.tdx import parse_quote

if TYPE_CHECKING:
    from confide.wire.json import JsonValue
    from confide.wire.service import Capture, ReferenceRegisters

__all__ = ["FORMAT", "NAME"]

NAME: Final = "tinfoil"
_CLAUSE: Final = "docs/protocols/tinfoil.md"
_REASON: Final = Reason.SERVICE_FORMAT
# From: tinfoil-python src/tinfoil/attestation/types.py, PredicateType.
_PREDICATES: Final = "https://tinfoil.sh/predicate/"
_PLATFORMS: Final[dict[str, Platform]] = {
    _PREDICATES + "sev-snp-guest/v2": "snp",
    _PREDICATES + "tdx-guest/v2": "tdx",
}
# From: tinfoil-python src/tinfoil/attestation/attestation.py, ATTESTATION_ENDPOINT.
_PATH: Final = "/.well-known/tinfoil-attestation"
# Names in a capture: the document, and what a relying party may add to it.
_DOCUMENT, _SIGSTORE, _CONFIG = "attestation", "sigstore", "config"
# Precedent: a quote has 8,000 bytes, a report 1,184.
_MAX_BODY: Final = 64 * 1024
_BUNDLE: Final = "enclaveAttestationReport"
_SCHEME_V2: Final = "tinfoil/v2"
# From: AMD 56860: where report data stands in a report.
_SNP_REPORT_DATA: Final = (80, 144)


def _recognise(document: bytes) -> bool:
    if b"tinfoil.sh" not in document:
        return False
    try:
        value = parse_object(document, what="document")
    except FormatError:
        return False
    if isinstance(value.get(_BUNDLE), dict):
        return True
    name = value.get("format")
    known = isinstance(name, str) and name.startswith(_PREDICATES)
    return known and ("body" in value or "cpu_evidence" in value)


def _plan(nonce: bytes) -> tuple[Request, ...]:
    # An enclave of version 2 ignores the query and answers without a nonce.
    return (Request(document=_DOCUMENT, path=f"{_PATH}?nonce={nonce.hex()}"),)


def _read(capture: Capture) -> Evidence:
    extras = {name: capture.documents[name] for name in _EXTRAS if name in capture.documents}
    main = {name: raw for name, raw in capture.documents.items() if name not in extras}
    raw = only_document(replace(capture, documents=main), (_DOCUMENT,), what="Tinfoil")
    value = parse_object(raw, what="Tinfoil attestation")
    if _BUNDLE in value:
        attester = _read_bundle(value)
    elif value.get("format") == ATTESTATION_V3:
        attester = read_v3(value)
    else:
        attester = _read_v2(value)
    attester = _with_extras(attester, extras)
    remarks = [*_REMARKS, *(_NO_NONCE if attester.binding.nonce is None else ())]
    if attester.devices is None:
        remarks += _NO_DEVICES
    return Evidence(
        format=NAME,
        attesters=(replace(attester, remarks=(*attester.remarks, *remarks)),),
        nonce=capture.nonce,
        tls_spki_sha256=capture.tls_spki_sha256,
        limits=_LIMITS,
    )


_EXTRAS: Final = (_SIGSTORE, _CONFIG)


def _with_extras(attester: Attester, extras: dict[str, bytes]) -> Attester:
    if _SIGSTORE in extras:
        bundle = parse_object(extras[_SIGSTORE], what="Sigstore bundle")
        platform: Platform = "tdx" if attester.tdx is not None else "snp"
        # What the relying party fetched itself goes before what the service passed along.
        attester = replace(attester, references=read_statement(extras[_SIGSTORE], bundle, platform))
    if _CONFIG in extras:
        attester = replace(
            attester, launch=LaunchDocument(kind="tinfoil-config", raw=extras[_CONFIG])
        )
    return attester


def _read_v2(value: JsonValue) -> Attester:
    """Read `{format, body}`; `FormatError`, `Unsupported` for another predicate."""
    members = Members(value, what="Tinfoil attestation", reason=_REASON)
    form = members.text("format", max_chars=256)
    platform = _PLATFORMS.get(form)
    if platform is None:
        if form.startswith(_PREDICATES):
            raise Unsupported(
                "a Tinfoil attestation of another version; this verifier reads sev-snp-guest/v2, "
                "tdx-guest/v2 and attestation/v3"
            )
        members.refuse("format is no Tinfoil predicate")
    packed = b64decode(
        members.text("body", max_chars=2 * _MAX_BODY), what="Tinfoil body", reason=_REASON
    )
    members.end()
    raw = gunzip(packed, what="Tinfoil body", max_bytes=_MAX_BODY)
    if platform == "tdx":
        # Version 2 has nowhere else to look for its keys than inside the quote.
        report_data = parse_quote(raw).body.report_data
    elif len(raw) == REPORT_BYTES:
        start, end = _SNP_REPORT_DATA
        report_data = raw[start:end]
    else:
        refuse(f"SNP report: {len(raw)} bytes instead of {REPORT_BYTES}", clause=f"{_CLAUSE}#2")
    keys = _keys_v2(report_data)
    return Attester(
        name="enclave",
        tdx=TdxPart(quote=raw) if platform == "tdx" else None,
        snp=SnpPart(report=raw) if platform == "snp" else None,
        binding=ReportBinding(
            scheme=_SCHEME_V2,
            expected=b"".join(key.value for key in keys).ljust(64, b"\0"),
            nonce=None,
            covers=frozenset(key.name for key in keys),
        ),
        keys=keys,
    )


def _keys_v2(report_data: bytes) -> tuple[PresentedKey, ...]:
    tls, hpke = report_data[:32], report_data[32:]
    found = [PresentedKey(name="tls", use="tls", algorithm="spki-sha256", value=tls)]
    if any(hpke):
        found.append(PresentedKey(name="hpke", use="hpke", algorithm="x25519", value=hpke))
    return tuple(found)


def _read_bundle(value: JsonValue) -> Attester:
    """Read what the attestation service gives out: report, release, statement, certificates."""
    members = Members(value, what="Tinfoil bundle", reason=_REASON)
    members.text("domain", max_chars=256)
    attester = _read_v2(members.value(_BUNDLE))
    digest = members.hexes("digest", 32)
    bundle = members.value("sigstoreBundle")
    vcek = members.text("vcek", max_chars=1 << 16) if members.has("vcek") else ""
    if members.has("enclaveCert"):
        members.text("enclaveCert", max_chars=1 << 16)
    members.end()
    if not isinstance(bundle, dict):
        members.refuse("sigstoreBundle is not an object")
    platform: Platform = "tdx" if attester.tdx is not None else "snp"
    references: ReferenceRegisters | None = read_statement(jcs(bundle), bundle, platform)
    remarks: tuple[Remark, ...] = ()
    if subject_digest(bundle) != digest:
        text = "the signed statement is about another release"
        remarks = (Remark(claim=ClaimName.LAUNCH, text=text, clause=f"{_CLAUSE}#4", failed=True),)
    snp = attester.snp
    if snp is not None and vcek:
        snp = replace(snp, leaf_der=b64decode(vcek, what="vcek", reason=_REASON))
    return replace(attester, snp=snp, references=references, remarks=remarks)


def _open(claim: ClaimName, text: str) -> Remark:
    return Remark(claim=claim, text=text, clause=f"{_CLAUSE}#6")


_NO_NONCE: Final = (
    _open(ClaimName.FRESHNESS, "version 2 binds no nonce: a recorded document looks the same"),
)
_NO_DEVICES: Final = (
    _open(ClaimName.GPU, "measured code looks at the GPUs at boot and shows nothing of it"),
    _open(ClaimName.GPU_BINDING, "no evidence of devices came along"),
)
# Only what no launch document and no policy could prove: a remark lowers and never raises.
_REMARKS: Final = (
    _open(ClaimName.MODEL_WEIGHTS, "the weights stand in the configuration, which is not shown"),
    _open(ClaimName.RESPONSE_SIGNATURE, "answers are not signed"),
)
_LIMITS: Final = (
    "Tinfoil says what runs through registers that its build signed: the rest is not known.",
    "MRTD and RTMR0 stand in a second statement, about platforms, which is not read here.",
)

FORMAT: Final = Format(
    name=NAME,
    title="Tinfoil attestation document (v2, v3)",
    recognise=_recognise,
    read=_read,
    plan=_plan,
)
