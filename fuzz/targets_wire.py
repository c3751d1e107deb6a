"""Targets: the parsers of `wire`, `crypto` and `trust`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from confide.appraisal.binding import parse_statement
from confide.appraisal.eventlog import read_node_events, replay_ccel, replay_runtime
from confide.appraisal.steps import Refused
from confide.channel.succession import parse_succession
from confide.crypto.ocsp import cert_id, is_responder, parse_ocsp, verify_ocsp_signature
from confide.crypto.x509 import (
    Certificate,
    other_names,
    parse_certificate_der,
    parse_crl_der,
    parse_pem_chain,
    verify_crl,
    verify_issued_by,
)
from confide.crypto.xmldsig import parse_tree, verify_enveloped
from confide.errors import Reason
from confide.trust.nvidia import NVIDIA_ROOTS
from confide.trust.roots import parse_roots_file
from confide.wire.ccel import parse_ccel
from confide.wire.collateral import parse_collateral, parse_qe_identity, parse_tcb_info
from confide.wire.der import OID, SEQUENCE, DerReader
from confide.wire.dice import (
    COMPOSITE_DEVICE_ID,
    TCB_INFO,
    parse_composite_device_id,
)
from confide.wire.dice import parse_tcb_info as parse_dice_tcb_info
from confide.wire.dsse import parse_envelope
from confide.wire.evidence import decode_evidence
from confide.wire.frames import FrameDecoder, FrameKind, encode_frame
from confide.wire.json import jcs, parse_json
from confide.wire.keyset import parse_keyset
from confide.wire.pck import SGX_EXTENSION_OID, parse_pck_extension
from confide.wire.reader import Reader
from confide.wire.rim import parse_rim
from confide.wire.rtmr_log import RuntimeEvent, encode_log, parse_log
from confide.wire.spdm import GPU, parse_report, read_gpu_fields
from confide.wire.spdm_switch import SWITCH, read_switch_fields
from confide.wire.sse import SseParser, encode_event
from confide.wire.tdx import parse_quote
from confide.wire.varint import encode_varint, read_varint
from fuzz import seeds
from fuzz.driver import Target
from fuzz.pieces import cuts, document, fixed

if TYPE_CHECKING:
    from confide.wire.json import JsonValue

_SIGNED = Reason.RECEIPT_FORMAT


def _certificate(raw: bytes) -> None:
    found = parse_certificate_der(raw, what="input", reason=_SIGNED)
    _read_certificate(found)


def _read_certificate(found: Certificate) -> None:
    # Whatever an appraisal reads out of a certificate before it is believed.
    found.extension(SGX_EXTENSION_OID)
    found.names_of("2.5.4.5")
    other_names(found, COMPOSITE_DEVICE_ID)
    assert isinstance(found.issuer, str)
    cert_id(found, found)
    verify_issued_by(found, found)


def _chain(raw: bytes) -> None:
    for found in parse_pem_chain(raw, max_certificates=5, what="input", reason=_SIGNED):
        assert found.sha256


def _crl(raw: bytes) -> None:
    found = parse_crl_der(raw, what="input", reason=_SIGNED)
    found.contains(1)
    for der in seeds.certificates():
        verify_crl(found, parse_certificate_der(der, what="seed", reason=_SIGNED))


def _ocsp(raw: bytes) -> None:
    found = parse_ocsp(raw)
    signer = parse_certificate_der(NVIDIA_ROOTS.device, what="seed", reason=_SIGNED)
    for candidate in (signer, *found.certificates):
        is_responder(found, candidate)
        _ = found.cert_id == cert_id(candidate, signer)
        verify_ocsp_signature(found, candidate.public_key)


def _collateral(raw: bytes) -> None:
    found = parse_collateral(raw)
    parse_tcb_info(found.tcb_info)
    parse_qe_identity(found.qe_identity)


def _der(raw: bytes) -> None:
    # A certificate: to be signed (version, serial, algorithm, issuer …), algorithm, signature.
    outer = DerReader(raw, what="input", reason=_SIGNED).sequence()
    inner = outer.sequence()
    inner.read(0xA0)
    inner.unsigned(2**168)
    for _ in range(5):
        inner.read(SEQUENCE)
    inner.read(0xA3)
    inner.finish()
    outer.sequence().read(OID)
    outer.read(0x03)
    outer.finish()


def _log(value: JsonValue) -> None:
    entries = parse_log(value)
    replay = Refused
    try:
        replay_runtime(entries)
        read_node_events(entries)
    except replay:
        # The steps around these two turn it into a finding.
        return


def _measured(value: JsonValue) -> None:
    """A guest measures what it likes: the digests hold, the names and payloads are hostile."""
    if not isinstance(value, list):
        return
    events = [
        RuntimeEvent(str(item.get("name")), str(item.get("payload")).encode())
        for item in value
        if isinstance(item, dict)
    ]
    _log(encode_log(events))


def _measured_seeds() -> tuple[bytes, ...]:
    found: list[bytes] = []
    for bundle in (seeds.agent(), seeds.model()):
        entries = parse_log(bundle.runtime_log)
        found.append(
            jcs(
                [
                    {"name": entry.event.name, "payload": entry.event.payload.decode("latin-1")}
                    for entry in entries
                ]
            )
        )
    return tuple(found)


def _ccel(raw: bytes) -> None:
    try:
        replay_ccel(parse_ccel(raw))
    except Refused:
        return


def _report(raw: bytes) -> None:
    read_gpu_fields(parse_report(raw, GPU))


def _switch_reports() -> tuple[bytes, ...]:
    return (seeds.switch().report,)


def _switch_report(raw: bytes) -> None:
    read_switch_fields(parse_report(raw, SWITCH))


def _frames(raw: bytes) -> None:
    decoder = FrameDecoder()
    for piece in cuts(raw):
        list(decoder.feed(piece))
    decoder.finish()


def _sse(raw: bytes) -> None:
    parser = SseParser()
    whole = b"".join(item.raw for piece in cuts(raw) for item in parser.feed(piece))
    whole += b"".join(item.raw for item in parser.close()) + parser.tail
    assert whole == raw


def _varint(raw: bytes) -> None:
    reader = Reader(raw, what="input", clause="RFC 9000 §16", truncated=_SIGNED)
    while reader.remaining:
        read_varint(reader)


def _extensions(oid: str) -> tuple[bytes, ...]:
    found = (
        parse_certificate_der(der, what="seed", reason=_SIGNED).extension(oid)
        for der in seeds.certificates()
    )
    return tuple(value for value in found if value is not None)


def _rims() -> tuple[bytes, ...]:
    known = tuple(rim.xml for rim in seeds.model().endorsements.rims)
    return (*known, *seeds.vectors("nvidia/rims/*.xml"))


def _rim(raw: bytes) -> None:
    parse_rim(parse_tree(raw))


def _signed_rim(raw: bytes) -> None:
    signed = verify_enveloped(raw)
    parse_rim(signed.root)


def _crls() -> tuple[bytes, ...]:
    return seeds.collateral().root_crl, seeds.collateral().pck_crl


def _ocsp_answers() -> tuple[bytes, ...]:
    known = tuple(answer.der for answer in seeds.model().endorsements.ocsp)
    return (*known, *seeds.vectors("nvidia/ocsp/*.der"))


_XML = (b'<a xmlns:x="y"/>', b' xmlns:x="y"', b' xmlns="relative"', b"<!DOCTYPE a>", b"<!--x-->")
_XML_MORE = (b"<?a b?>", b"&lt;", b"&x;", b"<a>", b"</a>", b' xml:id="a"', b"<![CDATA[a]]>")
_DER = (b"\x30\x80", b"\x30\x84\xff\xff\xff\xff", b"\x05\x00", b"\x02\x01\xff", b"\x1e\x01a")
_JSON = (b"[" * 40, b'{"a":' * 40, b"\\ud800", b"\\u0000", b"1e400", b"NaN", b"1" * 5000, b"\xff")

WIRE_TARGETS: tuple[Target, ...] = (
    Target(
        "tdx-quote",
        parse_quote,
        lambda: (seeds.agent().quote, *seeds.vectors("tdx/*/quote-*.bin")),
    ),
    Target("pck-extension", parse_pck_extension, lambda: _extensions(SGX_EXTENSION_OID)),
    Target(
        "collateral",
        _collateral,
        lambda: (seeds.agent().collateral, *seeds.vectors("tdx/*/collateral-*.json")),
        json_values=True,
    ),
    Target("tcb-info", parse_tcb_info, lambda: (seeds.collateral().tcb_info,), json_values=True),
    Target(
        "qe-identity",
        parse_qe_identity,
        lambda: (seeds.collateral().qe_identity,),
        json_values=True,
    ),
    Target("der", _der, seeds.certificates, tokens=_DER),
    Target("certificate", _certificate, seeds.certificates, tokens=_DER),
    Target("pem-chain", _chain, seeds.chains, tokens=(b"-----BEGIN CERTIFICATE-----\n", b"\0")),
    Target("crl", _crl, _crls, tokens=_DER),
    Target("ocsp", _ocsp, _ocsp_answers, tokens=_DER),
    Target(
        "ccel",
        _ccel,
        lambda: (seeds.agent().firmware_log, *seeds.vectors("eventlog/ccel-*.bin")),
    ),
    Target(
        "rtmr-log",
        document(_log),
        lambda: (*seeds.documents("runtime_log"), *seeds.vectors("eventlog/dstack-*.json")),
        json_values=True,
    ),
    Target("measured-events", document(_measured), _measured_seeds, json_values=True),
    Target("spdm-report", _report, lambda: (seeds.model().devices[0].report,)),
    Target("spdm-switch-report", _switch_report, _switch_reports),
    Target("rim", _rim, _rims, tokens=(*_XML, *_XML_MORE)),
    Target("xmldsig", _signed_rim, _rims, tokens=(*_XML, *_XML_MORE)),
    Target(
        "dice-composite",
        parse_composite_device_id,
        lambda: _extensions(COMPOSITE_DEVICE_ID),
        tokens=_DER,
    ),
    Target("dice-tcb-info", parse_dice_tcb_info, lambda: _extensions(TCB_INFO), tokens=_DER),
    Target("varint", _varint, fixed(b"".join(encode_varint(1 << n) for n in range(0, 62, 7)))),
    Target(
        "sse",
        _sse,
        fixed(
            encode_event(b'{"a":1}\nb', name="x", event_id="1") + b": c\r\n\r\ndata\r\rid:2\n\n",
            b"\xef\xbb\xbfdata: a\n\n",
        ),
        tokens=(b"\r", b"\n", b"\r\n", b"data:", b"\xef\xbb\xbf", b"id: \0"),
    ),
    Target(
        "frames",
        _frames,
        fixed(encode_frame(FrameKind.HEADER, b"{}") + encode_frame(FrameKind.END)),
    ),
    Target(
        "dsse",
        document(parse_envelope),
        lambda: (seeds.receipt().run.encode(),),
        json_values=True,
    ),
    Target("evidence", decode_evidence, seeds.evidence_files, json_values=True),
    Target("keyset", document(parse_keyset), lambda: seeds.documents("keyset"), json_values=True),
    Target(
        "statement",
        document(parse_statement),
        lambda: seeds.documents("statement"),
        json_values=True,
    ),
    Target(
        "succession",
        document(parse_succession),
        fixed(
            jcs(
                {
                    "type": "confide/succession/v1",
                    "old": "0" * 64,
                    "new": "1" * 64,
                    "overlap_until": "2026-11-22T12:00:00Z",
                    "signature": "A" * 88,
                }
            )
        ),
        json_values=True,
    ),
    Target("roots-file", parse_roots_file, lambda: (seeds.receipt().roots,), json_values=True),
    Target(
        "json",
        lambda raw: jcs(parse_json(raw, what="input", reason=_SIGNED)),
        lambda: (seeds.expectation(), b'[1,1.5e3,"\\u00e9\\ud83d\\ude00",null,true,{"a":[]}]'),
        tokens=_JSON,
    ),
)
