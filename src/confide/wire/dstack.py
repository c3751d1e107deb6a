"""Attestation envelopes and RA-TLS certificates of dstack: bytes to one shape.

Clauses: docs/protocols/dstack.md §2 and §3. An envelope whose first byte is 0 is SCALE (V0), one
that starts with a MessagePack map is V1. Everything is hostile; nothing here verifies a quote, a
log or the binding of a certificate. Logs come out as the JSON array of eventlog.md §1, so that one
parser reads them wherever they come from.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn

from confide.errors import FormatError, Reason, Unsupported
from confide.wire.der import BOOLEAN, INTEGER, OCTET_STRING, OID, SEQUENCE, DerReader, encode_tlv
from confide.wire.json import JsonValue, parse_json
from confide.wire.msgpack import MsgpackValue, as_bytes, parse_msgpack
from confide.wire.rtmr_log import RUNTIME_EVENT_TYPE
from confide.wire.scale import ScaleReader

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "RATLS_ATTESTATION",
    "RATLS_EVENT_LOG",
    "RATLS_QUOTE",
    "DstackAttestation",
    "RatlsCertificate",
    "decode_log_extension",
    "is_envelope",
    "parse_envelope",
    "parse_ratls_certificate",
]

# From: docs/protocols/dstack.md §3: arcs under 1.3.6.1.4.1.62397.1.
RATLS_QUOTE: Final = "1.3.6.1.4.1.62397.1.1"
RATLS_EVENT_LOG: Final = "1.3.6.1.4.1.62397.1.2"
RATLS_ATTESTATION: Final = "1.3.6.1.4.1.62397.1.8"
_REASON: Final = Reason.SERVICE_FORMAT
_ENVELOPE: Final = "docs/protocols/dstack.md#2"
_RATLS: Final = "docs/protocols/dstack.md#3"
_WHAT: Final = "dstack attestation"
_MAX_ENVELOPE_BYTES: Final = 10 * 1024 * 1024
_MAX_CERTIFICATE_BYTES: Final = 1024 * 1024
_MAX_LOG_BYTES: Final = 16 * 1024
_MAX_EXTENSIONS: Final = 64
# From: docs/protocols/dstack.md §2: variants of the first envelope.
_V0_TDX, _V0_SNP = 0, 3
_COMPRESSED: Final = b"ELGZv1"
# From: X.509 (RFC 5280 §4.1): context tags of version, unique ids and extensions.
_VERSION, _ISSUER_ID, _SUBJECT_ID, _EXTENSIONS = 0xA0, 0x81, 0x82, 0xA3


@dataclass(frozen=True, slots=True, kw_only=True)
class DstackAttestation:
    """
    One envelope, whatever its encoding.

    Either `quote` (TDX) with `event_log`, or `snp_report` with `snp_certificates` (DER, leaf first)
    and `mr_config` is set. `report_data` (64 bytes) is what the envelope says was asked for,
    `config` the machine description as JSON text, both unproven.
    """

    quote: bytes | None
    event_log: JsonValue
    snp_report: bytes | None
    snp_certificates: tuple[bytes, ...]
    mr_config: str
    runtime_events: tuple[tuple[str, bytes], ...]
    report_data: bytes
    config: str


@dataclass(frozen=True, slots=True)
class RatlsCertificate:
    """
    What a certificate says: its key (`spki`, exact DER) and extensions by dotted OID.

    An extension is the content of the OCTET STRING inside its value.
    """

    spki: bytes
    extensions: Mapping[str, bytes]


def _refuse(why: str, clause: str = _ENVELOPE) -> NoReturn:
    raise FormatError(f"{_WHAT}: {why}", reason=_REASON, clause=clause)


def is_envelope(raw: bytes) -> bool:
    """Whether `raw` starts like an envelope; says nothing about the rest."""
    return raw[:2] in {b"\x00\x00", b"\x00\x03"} or (
        bool(raw) and (0x80 <= raw[0] <= 0x8F or raw[0] in {0xDE, 0xDF})
    )


def parse_envelope(raw: bytes) -> DstackAttestation:
    """
    Parse a V0 (SCALE) or V1 (MessagePack) envelope; nothing may follow it.

    The runtime events that stand beside the log must be those of its register 3: there is one log,
    not two. Raises `FormatError`, or `Unsupported` for a platform that is not judged here.
    """
    if len(raw) > _MAX_ENVELOPE_BYTES:
        _refuse(f"{len(raw)} bytes, at most {_MAX_ENVELOPE_BYTES}")
    found = _parse_v0(raw) if raw[:1] == b"\x00" else _parse_v1(raw)
    if len(found.report_data) != 64:
        _refuse("report data of another length than 64")
    if found.quote is not None and found.runtime_events != _runtime_part(found.event_log):
        _refuse("the runtime events are not those of the log")
    return found


def _runtime_part(log: JsonValue) -> tuple[tuple[str, bytes], ...]:
    entries = log if isinstance(log, list) else []
    return tuple(
        (str(entry["event"]), bytes.fromhex(str(entry["event_payload"])))
        for entry in entries
        if isinstance(entry, dict) and entry["imr"] == 3
    )


def _parse_v0(raw: bytes) -> DstackAttestation:
    reader = ScaleReader(raw, what=_WHAT, reason=_REASON)
    reader.take(1)
    kind = reader.u8()
    quote = report = None
    log: list[JsonValue] = []
    certificates: tuple[bytes, ...] = ()
    mr_config = ""
    if kind == _V0_TDX:
        quote = reader.octets()
        log = [_v0_entry(reader) for _ in range(reader.count())]
    elif kind == _V0_SNP:
        report = reader.octets()
        certificates = tuple(reader.octets() for _ in range(reader.count()))
        mr_config = reader.text()
    else:
        raise Unsupported("dstack attestation of another platform than TDX and SEV-SNP")
    events = tuple((reader.text(), reader.octets()) for _ in range(reader.count()))
    found = DstackAttestation(
        quote=quote,
        event_log=log if quote is not None else None,
        snp_report=report,
        snp_certificates=certificates,
        mr_config=mr_config,
        runtime_events=events,
        report_data=reader.take(64),
        config=reader.text(),
    )
    reader.finish()
    return found


def _v0_entry(reader: ScaleReader) -> JsonValue:
    register, event_type = reader.u32le(), reader.u32le()
    digest, name, payload = reader.octets(), reader.text(), reader.octets()
    return _entry(register, event_type, digest, name, payload)


def _entry(
    register: int, event_type: int, digest: bytes, name: str, payload: bytes
) -> dict[str, JsonValue]:
    return {
        "imr": register,
        "event_type": event_type,
        "digest": digest.hex(),
        "event": name,
        "event_payload": payload.hex(),
    }


class _Map:
    """One MessagePack map, exhaustively read."""

    def __init__(self, value: MsgpackValue, what: str) -> None:
        if not isinstance(value, dict):
            _refuse(f"{what} is not a map")
        self._left = dict(value)
        self._what = what

    def value(self, name: str) -> MsgpackValue:
        if name not in self._left:
            _refuse(f"{self._what} lacks {name}")
        return self._left.pop(name)

    def has(self, name: str) -> bool:
        # Nil is another way to write that there is none.
        if self._left.get(name, 0) is None:
            del self._left[name]
        return name in self._left

    def octets(self, name: str) -> bytes:
        found = as_bytes(self.value(name))
        if found is None:
            _refuse(f"{self._what}: {name} is not bytes")
        return found

    def text(self, name: str) -> str:
        found = self.value(name)
        if not isinstance(found, str):
            _refuse(f"{self._what}: {name} is not text")
        return found

    def number(self, name: str) -> int:
        found = self.value(name)
        if not isinstance(found, int) or isinstance(found, bool) or found > 0xFFFFFFFF:
            _refuse(f"{self._what}: {name} is not a number of 32 bits")
        return found

    def items(self, name: str) -> list[MsgpackValue]:
        found = self.value(name)
        if not isinstance(found, list):
            _refuse(f"{self._what}: {name} is not an array")
        return found

    def end(self) -> None:
        if self._left:
            _refuse(f"{self._what}: {len(self._left)} unknown member(s)")


def _tagged(value: MsgpackValue, what: str) -> tuple[str, _Map]:
    outer = _Map(value, what)
    kind, data = outer.text("kind"), _Map(outer.value("data"), what)
    outer.end()
    return kind, data


def _parse_v1(raw: bytes) -> DstackAttestation:
    top = _Map(parse_msgpack(raw, what=_WHAT, reason=_REASON), "the envelope")
    if top.number("version") != 1:
        raise Unsupported("dstack attestation of another version than 1")
    platform, data = _tagged(top.value("platform"), "platform")
    if platform not in {"tdx", "sev-snp"}:
        raise Unsupported("dstack attestation of another platform than TDX and SEV-SNP")
    quote = report = None
    log: JsonValue = None
    certificates: tuple[bytes, ...] = ()
    mr_config = ""
    if platform == "tdx":
        quote = data.octets("quote")
        log = [_v1_entry(item) for item in data.items("event_log")]
    else:
        report, mr_config = data.octets("report"), data.text("mr_config")
        certificates = tuple(_octets(item) for item in data.items("cert_chain"))
    data.end()
    stack, said = _tagged(top.value("stack"), "stack")
    top.end()
    if stack not in {"dstack", "dstack-pod"}:
        raise Unsupported("attestation of another stack than dstack")
    found = DstackAttestation(
        quote=quote,
        event_log=log,
        snp_report=report,
        snp_certificates=certificates,
        mr_config=mr_config,
        runtime_events=tuple(_v1_event(item) for item in said.items("runtime_events")),
        report_data=said.octets("report_data"),
        config=said.text("config"),
    )
    # A preimage may be named for report data: nothing here says how it is hashed.
    _ = said.has("report_data_payload") and said.value("report_data_payload")
    said.end()
    return found


def _octets(value: MsgpackValue) -> bytes:
    found = as_bytes(value)
    if found is None:
        _refuse("a certificate is not bytes")
    return found


def _version(entry: _Map, out: dict[str, JsonValue]) -> None:
    # Entries of version 2 carry how their digest was made; the log parser judges both.
    if entry.has("version"):
        out["version"] = entry.number("version")
    if entry.has("preimage"):
        out["preimage"] = entry.octets("preimage").hex()


def _v1_entry(value: MsgpackValue) -> JsonValue:
    entry = _Map(value, "a log entry")
    out = _entry(
        entry.number("imr"),
        entry.number("event_type"),
        entry.octets("digest"),
        entry.text("event"),
        entry.octets("event_payload"),
    )
    _version(entry, out)
    entry.end()
    return out


def _v1_event(value: MsgpackValue) -> tuple[str, bytes]:
    event = _Map(value, "a runtime event")
    found = event.text("event"), event.octets("payload")
    _version(event, _entry(3, RUNTIME_EVENT_TYPE, b"", *found))
    event.end()
    return found


def parse_ratls_certificate(der: bytes) -> RatlsCertificate:
    """
    Return key and dstack extensions of a version 3 certificate.

    **Does not check** its signature or period: a self-issued certificate is bound by report data
    alone (docs/protocols/dstack.md#3). Raises `FormatError`.
    """
    if len(der) > _MAX_CERTIFICATE_BYTES:
        _refuse(f"a certificate of {len(der)} bytes", _RATLS)
    reader = DerReader(der, what="RA-TLS certificate", reason=_REASON)
    outer = reader.sequence()
    reader.finish()
    body = outer.sequence()
    outer.read(SEQUENCE)
    outer.read(0x03)
    outer.finish()
    body.read(_VERSION)
    body.read(INTEGER)
    for _ in range(4):  # signature algorithm, issuer, validity, subject
        body.read(SEQUENCE)
    spki = encode_tlv(SEQUENCE, body.read(SEQUENCE))
    body = _skip(_skip(body, _ISSUER_ID), _SUBJECT_ID)
    extensions = DerReader(body.read(_EXTENSIONS), what="RA-TLS certificate", reason=_REASON)
    body.finish()
    return RatlsCertificate(spki, _extensions(extensions))


def _skip(reader: DerReader, tag: int) -> DerReader:
    """Return a reader past an optional value of `tag`."""
    left = reader.rest()
    found = DerReader(left, what="RA-TLS certificate", reason=_REASON)
    if left[:1] == bytes([tag]):
        found.read(tag)
    return found


def _extensions(reader: DerReader) -> dict[str, bytes]:
    items = reader.sequence()
    reader.finish()
    found: dict[str, bytes] = {}
    for _ in range(_MAX_EXTENSIONS + 1):
        if not items.remaining:
            return found
        item = items.sequence()
        name = _dotted(item.read(OID))
        item = _skip(item, BOOLEAN)
        value = item.read(OCTET_STRING)
        item.finish()
        if name in found:
            _refuse("an extension stands twice", _RATLS)
        if name in {RATLS_QUOTE, RATLS_EVENT_LOG, RATLS_ATTESTATION}:
            inner = DerReader(value, what="RA-TLS extension", reason=_REASON)
            value = inner.read(OCTET_STRING)
            inner.finish()
        found[name] = value
    _refuse(f"more than {_MAX_EXTENSIONS} extensions", _RATLS)


def _dotted(raw: bytes) -> str:
    arcs: list[int] = []
    number = 0
    for octet in raw[:64]:
        number = number << 7 | octet & 0x7F
        if not octet & 0x80:
            arcs.append(number)
            number = 0
    if not arcs or number or len(raw) > 64:
        _refuse("an object identifier cannot be read", _RATLS)
    first = min(arcs[0] // 40, 2)
    return ".".join(str(arc) for arc in (first, arcs[0] - 40 * first, *arcs[1:]))


def decode_log_extension(raw: bytes) -> JsonValue:
    """
    Return the log of an RA-TLS extension: JSON, or `ELGZv1` and a gzip of at most 16 KiB inflated.

    Raises `FormatError`.
    """
    if raw.startswith(_COMPRESSED):
        raw = _inflate(raw.removeprefix(_COMPRESSED))
    if len(raw) > _MAX_LOG_BYTES:
        _refuse(f"a log of {len(raw)} bytes, at most {_MAX_LOG_BYTES}", _RATLS)
    return parse_json(raw, what="RA-TLS event log", reason=Reason.LOG_FORMAT)


def _inflate(raw: bytes) -> bytes:
    # One gzip member with its checksum; stops one byte past the limit, whatever it announces.
    stream = zlib.decompressobj(wbits=31)
    try:
        found = stream.decompress(raw, _MAX_LOG_BYTES + 1)
    except zlib.error as error:
        raise FormatError("RA-TLS event log: not gzip", reason=_REASON, clause=_RATLS) from error
    if len(found) > _MAX_LOG_BYTES or not stream.eof or stream.unused_data:
        _refuse("a compressed log that is too long, cut, or followed by something", _RATLS)
    return found
