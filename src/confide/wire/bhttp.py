"""Binary HTTP (RFC 9292): requests and responses as bytes, known and indeterminate length.

The values and their encoding; `wire/bhttp_decoder.py` reads both forms. The profile is
docs/protocols/channel.md §3: lower-case token names, no connection-specific
or pseudo-fields, no control bytes in values, zero padding only. Field names and values are
bytes; method, scheme, authority and path are ASCII text.

Not done here: no meaning of fields, no routing, no content coding.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto
from typing import TypeAlias

from confide.errors import FormatError, Reason
from confide.wire.varint import encode_varint

__all__ = [
    "AUTHORITY",
    "METHOD",
    "PATH",
    "SCHEME",
    "BhttpEvent",
    "BhttpLimits",
    "Content",
    "End",
    "Fields",
    "MessageKind",
    "RequestHead",
    "ResponseHead",
    "ascii_text",
    "bhttp_error",
    "checked_field",
    "encode_content",
    "encode_end",
    "encode_known_request",
    "encode_known_response",
    "encode_request_head",
    "encode_response_head",
    "too_large",
]

Fields: TypeAlias = "tuple[tuple[bytes, bytes], ...]"

_CLAUSE = "RFC 9292 §3"
# From: RFC 9110 §5.1 (token), narrowed to lower case by RFC 9292 §3.6.
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+\Z")
# From: RFC 9110 §5.5: no control bytes but tab, no space at the ends.
_VALUE = re.compile(rb"(?:[!-~\x80-\xff](?:[\t -~\x80-\xff]*[!-~\x80-\xff])?)?\Z")
METHOD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,32}\Z")
SCHEME = re.compile(rb"[a-z][a-z0-9+.\-]{0,15}\Z")
AUTHORITY = re.compile(rb"[!-~]{0,255}\Z")
PATH = re.compile(rb"(?:/[!-~]*|\*)\Z")
# From: RFC 9113 §8.2.2, the fields that belong to a connection; `te` has no use here.
_CONNECTION_FIELDS = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade", b"te"}
)


class MessageKind(Enum):
    """What a decoder expects; the other kind is malformed."""

    REQUEST = auto()
    RESPONSE = auto()


@dataclass(frozen=True, slots=True)
class BhttpLimits:
    """Caps on one message. Precedents: 64 KiB of fields is granian's and nginx's order of size."""

    max_field_bytes: int = 65536
    max_fields: int = 128
    # From: channel.md 2.6. Content is handed on as it comes: what one exchange may carry.
    max_content_bytes: int = 1 << 30
    max_padding_bytes: int = 16 * 1024 * 1024
    max_informational: int = 8


@dataclass(frozen=True, slots=True)
class RequestHead:
    """Control data and fields of a request."""

    method: str
    scheme: str
    authority: str
    path: str
    fields: Fields


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """Status and fields of a response; `status` below 200 is informational and precedes another."""

    status: int
    fields: Fields


@dataclass(frozen=True, slots=True)
class Content:
    """Bytes of the content, in order; the cuts carry no meaning."""

    data: bytes


@dataclass(frozen=True, slots=True)
class End:
    """The message is whole."""

    trailers: Fields


BhttpEvent: TypeAlias = "RequestHead | ResponseHead | Content | End"


def bhttp_error(
    what: str, clause: str = _CLAUSE, reason: Reason = Reason.CHANNEL_FORMAT
) -> FormatError:
    """Return the refusal of a malformed message."""
    return FormatError(f"binary HTTP: {what}", reason=reason, clause=clause)


def too_large(what: str) -> FormatError:
    """Return the refusal of a part beyond its cap."""
    return bhttp_error(f"{what} beyond the limit", "channel.md 2.6", Reason.LIMIT_EXCEEDED)


def checked_field(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    """Return the field when it may stand in a message (RFC 9292 §3.6); raises `FormatError`."""
    if not _NAME.match(name):
        raise bhttp_error("a field name is not a lower-case token", "RFC 9292 §3.6")
    if name in _CONNECTION_FIELDS:
        raise bhttp_error("a connection-specific field", "RFC 9292 §3.6")
    if not _VALUE.match(value):
        raise bhttp_error("a field value with control bytes or outer space", "RFC 9292 §3.6")
    return name, value


def ascii_text(pattern: re.Pattern[bytes], raw: bytes, what: str) -> str:
    """Return `raw` as text when it has the shape of `pattern`; raises `FormatError`."""
    if not pattern.match(raw):
        raise bhttp_error(f"{what} is not allowed", "RFC 9292 §3.4")
    return raw.decode("ascii")


def _string(raw: bytes) -> bytes:
    return encode_varint(len(raw)) + raw


def _lines(fields: Fields) -> bytes:
    try:
        return b"".join(
            _string(part) for name, value in fields for part in checked_field(name, value)
        )
    except FormatError as error:
        raise ValueError("a field that binary HTTP does not carry") from error


def _request_control(head: RequestHead) -> bytes:
    try:
        parts = tuple(
            _string(ascii_text(pattern, text.encode("ascii"), what).encode("ascii"))
            for pattern, text, what in (
                (METHOD, head.method, "method"),
                (SCHEME, head.scheme, "scheme"),
                (AUTHORITY, head.authority, "authority"),
                (PATH, head.path, "path"),
            )
        )
    except (FormatError, UnicodeEncodeError) as error:
        raise ValueError("a request that binary HTTP does not carry") from error
    return b"".join(parts)


def _status(head: ResponseHead) -> bytes:
    if not 100 <= head.status <= 599:
        raise ValueError("a status is 100 to 599")
    return encode_varint(head.status)


def encode_known_request(head: RequestHead, content: bytes, trailers: Fields = ()) -> bytes:
    """Return a known-length request; `ValueError` for a head outside the profile."""
    lines = _string(_lines(head.fields)) + _string(content) + _string(_lines(trailers))
    return b"\x00" + _request_control(head) + lines


def encode_known_response(head: ResponseHead, content: bytes, trailers: Fields = ()) -> bytes:
    """Return a known-length response; `ValueError` for a head outside the profile."""
    lines = _string(_lines(head.fields)) + _string(content) + _string(_lines(trailers))
    return b"\x01" + _status(head) + lines


def encode_request_head(head: RequestHead) -> bytes:
    """Return the start of an indeterminate-length request, up to its content."""
    return b"\x02" + _request_control(head) + _lines(head.fields) + b"\x00"


def encode_response_head(head: ResponseHead) -> bytes:
    """Return the start of an indeterminate-length response, up to its content."""
    return b"\x03" + _status(head) + _lines(head.fields) + b"\x00"


def encode_content(data: bytes) -> bytes:
    """Return one content chunk; empty `data` encodes to nothing, for a zero length ends content."""
    return _string(data) if data else b""


def encode_end(trailers: Fields = ()) -> bytes:
    """Return the end of content and the trailers of an indeterminate-length message."""
    return b"\x00" + _lines(trailers) + b"\x00"
