"""dstack: answers of the guest API, attestation envelopes, RA-TLS certificates.

Clauses: docs/protocols/dstack.md §1 to §3. One machine per capture. Report data is whatever the
caller of the guest asked for, so a bare answer binds no key; the certificate and the app key answer
do. `Info` is not evidence: only the compose document is taken from it, because a hash binds it.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from confide.appraisal.claim_names import ClaimName
from confide.errors import FormatError, Reason
from confide.formats.dstack_parts import (
    read_app_compose,
    read_event_log,
    read_gpu_bundles,
    read_vm_config,
)
from confide.formats.format import Format, Request
from confide.formats.parts import only_document, parse_object, pem_certificate, refuse
from confide.wire.dstack import (
    RATLS_ATTESTATION,
    RATLS_EVENT_LOG,
    RATLS_QUOTE,
    decode_log_extension,
    is_envelope,
    parse_envelope,
    parse_ratls_certificate,
)
from confide.wire.json import JsonValue, Members
from confide.wire.service import (
    Attester,
    Capture,
    Evidence,
    LaunchDocument,
    PresentedKey,
    Remark,
    ReportBinding,
    SnpPart,
    TdxPart,
)

if TYPE_CHECKING:
    from confide.wire.dstack import RatlsCertificate

__all__ = ["FORMAT", "NAME", "ratls_report_data", "read_app_compose", "read_event_log"]

NAME: Final = "dstack"
_CLAUSE: Final = "docs/protocols/dstack.md"
_REASON: Final = Reason.SERVICE_FORMAT
_WHAT: Final = "dstack answer"
_MAX_QUOTE_BYTES: Final = 64 * 1024
_MAX_COMPOSE_BYTES: Final = 256 * 1024
_HEX: Final = re.compile(rb"[0-9a-f]+\Z")
_PEM: Final = re.compile(
    rb"\s*-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]{1,1500000})-----END CERTIFICATE-----"
)
# From: docs/protocols/dstack.md §3: the arc of dstack's extensions, as DER holds it.
_ARC: Final = bytes.fromhex("2b0601040183e73d01")
# From: docs/protocols/dstack.md §1.4: report data that names the app's own key.
_APP_KEY: Final = re.compile(rb"dip1::(ed25519|secp256k1c)-pk:([A-Za-z0-9_-]{43,44})\x00*\Z")
_KEY_BYTES: Final = {b"ed25519": 32, b"secp256k1c": 33}
# Answers of services that embed dstack's and have readers of their own.
_FOREIGN: Final = frozenset({"intel_quote", "signing_address", "nvidia_payload"})


@dataclass(slots=True)
class _Found:
    """What the main document held."""

    tdx: TdxPart | None = None
    snp: SnpPart | None = None
    runtime_log: JsonValue = None
    vm_config: JsonValue = None
    binding: ReportBinding | None = None
    keys: tuple[PresentedKey, ...] = ()


def ratls_report_data(spki: bytes) -> bytes:
    """Return the 64 bytes of report data that bind an RA-TLS certificate to its key (DER)."""
    return hashlib.sha512(b"ratls-cert:" + spki).digest()


def _certificate(document: bytes) -> bytes | None:
    """Return the DER of the first certificate, None where `document` is none of dstack's."""
    der = document
    if (match := _PEM.match(document)) is not None:
        text = b"".join(match.group(1).split())
        try:
            der = base64.b64decode(text, validate=True)
        except ValueError:
            return None
    return der if der[:1] == b"\x30" and _ARC in der else None


def _recognise(document: bytes) -> bool:
    if is_envelope(document):
        try:
            parse_envelope(document)
        except FormatError:
            return False
        return True
    if document.lstrip()[:1] != b"{":
        return _certificate(document) is not None
    try:
        value = parse_object(document, what=_WHAT)
    except FormatError:
        return False
    if value.keys() & _FOREIGN:
        return False
    quoted = isinstance(value.get("quote"), str) and isinstance(value.get("event_log"), str | list)
    # Trustee and others say `attestation` too: ours is one hex string that holds an envelope.
    sealed = value.get("attestation")
    return quoted or (
        isinstance(sealed, str)
        and bool(_HEX.match(sealed[:4].encode()))
        and sealed[:1] in {"0", "8", "d"}
    )


def _read(capture: Capture) -> Evidence:
    main = only_document(capture, ("quote", "report", "attestation"), what="dstack")
    found = _main(main)
    info_bytes = capture.documents.get("info")
    info = None if info_bytes is None else parse_object(info_bytes, what="dstack Info")
    if found.runtime_log is None and found.tdx is not None and info is not None:
        found.runtime_log = _log_of(info)
    gpu = capture.documents.get("gpu")
    attester = Attester(
        name="machine",
        tdx=found.tdx,
        snp=found.snp,
        binding=found.binding or ReportBinding(scheme="none", expected=None, nonce=None),
        keys=found.keys,
        devices=None if gpu is None else read_gpu_bundles(gpu, nonce=capture.nonce),
        runtime_log=found.runtime_log,
        vm_config=found.vm_config,
        launch=_launch(capture, info),
        remarks=_REMARKS,
    )
    return Evidence(
        format=NAME,
        attesters=(attester,),
        nonce=capture.nonce,
        tls_spki_sha256=capture.tls_spki_sha256,
        limits=_LIMITS,
    )


def _main(document: bytes) -> _Found:
    if is_envelope(document):
        return _from_envelope(document)
    if document.lstrip()[:1] == b"{":
        return _from_answer(document)
    der = _certificate(document)
    if der is not None:
        return _from_certificate(der)
    text = document.strip()
    raw = bytes.fromhex(text.decode()) if _HEX.match(text) and len(text) % 2 == 0 else document
    if raw[:2] not in {b"\x04\x00", b"\x05\x00"}:
        refuse(f"{_WHAT}: neither an answer, an envelope, a certificate nor a quote")
    return _Found(tdx=TdxPart(quote=_bounded(raw)))


def _bounded(quote: bytes) -> bytes:
    if not 0 < len(quote) <= _MAX_QUOTE_BYTES:
        refuse(f"{_WHAT}: a quote of {len(quote)} bytes, at most {_MAX_QUOTE_BYTES}")
    return quote


def _from_answer(document: bytes) -> _Found:
    # Members that are not read are no evidence; newer guests may add some.
    value = parse_object(document, what=_WHAT)
    members = Members(value, what=_WHAT, reason=_REASON)
    sealed, quoted = value.get("attestation"), value.get("quote")
    if sealed and quoted:
        # Two pieces of evidence in one answer: whoever reads the other one is told another story.
        refuse(f"{_WHAT}: a quote next to an attestation", clause=f"{_CLAUSE}#1")
    if sealed:
        return _from_envelope(members.hexes("attestation"))
    quote = _bounded(members.hexes("quote"))
    log = value.get("event_log")
    found = _Found(
        tdx=TdxPart(quote=quote),
        runtime_log=None if log is None else read_event_log(log),
        vm_config=read_vm_config(value.get("vm_config")),
    )
    if value.get("report_data"):
        _bind(found, members.hexes("report_data"))
    return found


def _from_envelope(raw: bytes) -> _Found:
    envelope = parse_envelope(raw)
    found = _Found(
        runtime_log=envelope.event_log,
        vm_config=read_vm_config(envelope.config, mr_config=envelope.mr_config),
    )
    if envelope.quote is not None:
        found.tdx = TdxPart(quote=_bounded(envelope.quote))
    elif envelope.snp_report is not None:
        leaf, chain = envelope.snp_certificates[:1], envelope.snp_certificates[1:]
        pem = b"".join(pem_certificate(der) for der in chain)
        found.snp = SnpPart(
            report=envelope.snp_report, leaf_der=leaf[0] if leaf else None, chain_pem=pem or None
        )
    _bind(found, envelope.report_data)
    return found


def _bind(found: _Found, report_data: bytes) -> None:
    if len(report_data) > 64:
        refuse(f"{_WHAT}: report data of {len(report_data)} bytes", clause=f"{_CLAUSE}#1")
    data = report_data.ljust(64, b"\0")
    named = _app_key(data)
    if named is not None:
        found.keys = (named,)
        found.binding = ReportBinding(
            scheme="dstack-app-key", expected=data, nonce=None, covers=frozenset({named.name})
        )
        return
    # A caller who asked for 32 bytes of nonce finds them in front and zeros behind.
    nonce = data[:32] if data[:32].strip(b"\0") and not data[32:].strip(b"\0") else None
    found.binding = ReportBinding(scheme="dstack-report-data", expected=data, nonce=nonce)


def _app_key(data: bytes) -> PresentedKey | None:
    match = _APP_KEY.match(data)
    if match is None:
        return None
    try:
        value = base64.urlsafe_b64decode(match.group(2) + b"=" * (-len(match.group(2)) % 4))
    except ValueError:
        return None
    if len(value) != _KEY_BYTES[match.group(1)]:
        return None
    algorithm = "ed25519" if match.group(1) == b"ed25519" else "secp256k1"
    return PresentedKey(name="app-key", use="signing", algorithm=algorithm, value=value)


def _from_certificate(der: bytes) -> _Found:
    certificate = parse_ratls_certificate(der)
    found = _attested_part(certificate)
    # The key is bound by the hash of its exact DER, whatever the attestation says beside it.
    found.keys = (
        PresentedKey(
            name="ra-tls",
            use="tls",
            algorithm="spki-sha256",
            value=hashlib.sha256(certificate.spki).digest(),
        ),
    )
    found.binding = ReportBinding(
        scheme="ratls-cert",
        expected=ratls_report_data(certificate.spki),
        nonce=None,
        covers=frozenset({"ra-tls"}),
    )
    return found


def _attested_part(certificate: RatlsCertificate) -> _Found:
    extensions = certificate.extensions
    sealed, quote = extensions.get(RATLS_ATTESTATION), extensions.get(RATLS_QUOTE)
    if sealed is not None and quote is not None:
        refuse("RA-TLS certificate: a quote next to an attestation", clause=f"{_CLAUSE}#3")
    if sealed is not None:
        return _from_envelope(sealed)
    if quote is None:
        refuse("RA-TLS certificate: no attestation in it", clause=f"{_CLAUSE}#3")
    log = extensions.get(RATLS_EVENT_LOG)
    return _Found(
        tdx=TdxPart(quote=_bounded(quote)),
        runtime_log=None if log is None else read_event_log(decode_log_extension(log)),
    )


def _log_of(info: dict[str, JsonValue]) -> JsonValue:
    """Return the log in an answer of `Info`, where the main document brought none."""
    inner = info.get("tcb_info", info)
    if isinstance(inner, str):
        inner = parse_object(inner.encode("utf-8"), what="dstack tcb_info")
    log = inner.get("event_log") if isinstance(inner, dict) else None
    return None if log is None else read_event_log(log)


def _launch(capture: Capture, info: dict[str, JsonValue] | None) -> LaunchDocument | None:
    given = capture.documents.get("app_compose")
    if given is not None and len(given) > _MAX_COMPOSE_BYTES:
        refuse(f"app-compose: {len(given)} bytes, at most {_MAX_COMPOSE_BYTES}")
    told = read_app_compose(info) if info is not None else None
    if given is not None and told is not None and given != told:
        refuse("app-compose: two documents that differ", clause=f"{_CLAUSE}#4")
    raw = given if given is not None else told
    return None if raw is None else LaunchDocument(kind="dstack-compose", raw=raw)


def _plan(_nonce: bytes) -> tuple[Request, ...]:
    # What the outside may ask: the quote over the app's key, which takes no nonce.
    return (
        Request(
            document="quote",
            path="/prpc/Worker.GetAttestationForAppKey",
            method="POST",
            body=b'{"algorithm":"ed25519"}',
            content_type="application/json",
        ),
        Request(document="info", path="/prpc/Worker.Info"),
    )


def _unproven(claim: ClaimName, text: str) -> Remark:
    return Remark(claim=claim, text=text, clause=f"{_CLAUSE}#10")


_REMARKS: Final = (
    _unproven(ClaimName.KEY_LIFETIME, "dstack gives any allowed version of the app the same keys"),
    _unproven(ClaimName.MODEL_WEIGHTS, "nothing in dstack's registers measures weights"),
    _unproven(ClaimName.GPU_BINDING, "report data does not commit to evidence of devices"),
    _unproven(ClaimName.RESPONSE_SIGNATURE, "the guest API signs no answers of the app"),
)
_LIMITS: Final = (
    "Whoever is in the guest can ask for a quote over any bytes: the app gives them their meaning.",
    "An app id may have been chosen by the operator; the compose hash is what was started.",
)

FORMAT: Final = Format(
    name=NAME,
    title="dstack guest answer, attestation envelope or RA-TLS certificate",
    recognise=_recognise,
    read=_read,
    plan=_plan,
)
