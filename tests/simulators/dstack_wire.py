"""Writers for the encodings of dstack that this package only reads: SCALE, MessagePack, RA-TLS."""

from __future__ import annotations

import struct
from typing import Any

from confide.wire.der import encode_integer, encode_oid, encode_tlv
from confide.wire.rtmr_log import RUNTIME_EVENT_TYPE

_SEQUENCE, _SET, _BITS, _OCTETS, _TEXT, _TIME = 0x30, 0x31, 0x03, 0x04, 0x0C, 0x17
EVENT = ("app-id", b"\x11" * 20)
CONFIG = '{"memory_size":1}'


def compact(number: int) -> bytes:
    if number < 1 << 6:
        return bytes([number << 2])
    if number < 1 << 14:
        return struct.pack("<H", number << 2 | 1)
    return struct.pack("<I", number << 2 | 2)


def vector(raw: bytes) -> bytes:
    return compact(len(raw)) + raw


def v0_envelope(
    quote: bytes = b"\x04\x00quote", report_data: bytes = bytes(64), *, tail: bool = True
) -> bytes:
    name, payload = EVENT
    entries = [
        struct.pack("<II", 0, 10) + vector(b"\x22" * 48) + vector(b"") + vector(b""),
        struct.pack("<II", 3, RUNTIME_EVENT_TYPE)
        + vector(b"")
        + vector(name.encode())
        + vector(payload),
    ]
    raw = b"\x00\x00" + vector(quote) + compact(len(entries)) + b"".join(entries)
    if not tail:
        return raw
    raw += compact(1) + vector(name.encode()) + vector(payload)
    return raw + report_data + vector(CONFIG.encode())


def v1_document(quote: bytes = b"\x04\x00quote", report_data: bytes = bytes(64)) -> dict[str, Any]:
    name, payload = EVENT
    return {
        "version": 1,
        "platform": {
            "kind": "tdx",
            "data": {
                # A vector of bytes is an array of numbers where nobody asked for more.
                "quote": list(quote),
                "event_log": [
                    _entry(0, 10, b"\x22" * 48, "", b""),
                    _entry(3, RUNTIME_EVENT_TYPE, b"", name, payload),
                ],
            },
        },
        "stack": {
            "kind": "dstack",
            "data": {
                "report_data": list(report_data),
                "runtime_events": [{"event": name, "payload": payload}],
                "config": CONFIG,
            },
        },
    }


def _entry(register: int, kind: int, digest: bytes, name: str, payload: bytes) -> dict[str, Any]:
    return {
        "imr": register,
        "event_type": kind,
        "digest": digest,
        "event": name,
        "event_payload": payload,
    }


def msgpack(value: Any) -> bytes:
    """MessagePack in its shortest forms."""
    if value is None or isinstance(value, bool):
        return {None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value]
    if isinstance(value, int):
        return _uint(value)
    if isinstance(value, bytes):
        return _sized(len(value), ((0xC4, 1), (0xC5, 2), (0xC6, 4))) + value
    if isinstance(value, str):
        raw = value.encode()
        return _sized(len(raw), ((0xD9, 1), (0xDA, 2), (0xDB, 4)), 0xA0, 32) + raw
    if isinstance(value, list):
        head = _sized(len(value), ((0xDC, 2), (0xDD, 4)), 0x90, 16)
        return head + b"".join(map(msgpack, value))
    head = _sized(len(value), ((0xDE, 2), (0xDF, 4)), 0x80, 16)
    return head + b"".join(msgpack(name) + msgpack(item) for name, item in value.items())


def _uint(number: int) -> bytes:
    if number < 128:
        return bytes([number])
    return _sized(number, ((0xCC, 1), (0xCD, 2), (0xCE, 4), (0xCF, 8)))


def _sized(number: int, wide: tuple[tuple[int, int], ...], fixed: int = 0, below: int = 0) -> bytes:
    if number < below:
        return bytes([fixed | number])
    for head, size in wide:
        if number < 1 << 8 * size:
            return bytes([head]) + number.to_bytes(size, "big")
    raise ValueError(number)


def ratls_certificate(
    extensions: dict[str, bytes], key: bytes = b"\x05" * 65
) -> tuple[bytes, bytes]:
    """
    A version 3 certificate and its SubjectPublicKeyInfo, both DER.

    Nobody looks at its signature: report data bind it.
    """
    algorithm = encode_tlv(_SEQUENCE, encode_oid("1.2.840.10045.4.3.2"))
    curve = encode_oid("1.2.840.10045.2.1") + encode_oid("1.2.840.10045.3.1.7")
    spki = encode_tlv(_SEQUENCE, encode_tlv(_SEQUENCE, curve), encode_tlv(_BITS, b"\x00" + key))
    name = encode_tlv(
        _SEQUENCE,
        encode_tlv(
            _SET, encode_tlv(_SEQUENCE, encode_oid("2.5.4.3") + encode_tlv(_TEXT, b"made up"))
        ),
    )
    period = encode_tlv(
        _SEQUENCE, encode_tlv(_TIME, b"260101000000Z"), encode_tlv(_TIME, b"360101000000Z")
    )
    items = [
        encode_tlv(_SEQUENCE, encode_oid(oid), encode_tlv(_OCTETS, encode_tlv(_OCTETS, content)))
        for oid, content in extensions.items()
    ]
    body = encode_tlv(
        _SEQUENCE,
        encode_tlv(0xA0, encode_integer(2)),
        *(encode_integer(7), algorithm, name, period, name, spki),
        encode_tlv(0xA3, encode_tlv(_SEQUENCE, *items)),
    )
    return encode_tlv(_SEQUENCE, body, algorithm, encode_tlv(_BITS, b"\x00" + bytes(70))), spki
