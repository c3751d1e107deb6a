"""DNS, as far as refusing needs it. Pure.

RFC 1035 §4.1. The agent's namespace has a name server that knows nothing: every question is
recorded and answered NXDOMAIN, so that a program fails at once instead of waiting for a timeout.
"""

from __future__ import annotations

from confide.errors import FormatError, Reason
from confide.wire.reader import Reader

__all__ = ["parse_question", "refuse_question"]

_CLAUSE = "RFC 1035 §4.1"
# From: RFC 1035 §4.1.1: QR, opcode 0, RD copied, RA, RCODE 3 (name error).
_FLAG_RESPONSE = 0x8080
_FLAG_RECURSION_DESIRED = 0x0100
_NAME_ERROR = 3


def parse_question(raw: bytes) -> str:
    """Return the name asked for, as text; bytes that are not ASCII become `?`. `FormatError`."""
    return _read(raw)[0]


def refuse_question(raw: bytes) -> bytes:
    """Return the answer "no such name" to `raw`. Raises `FormatError` for what is no question."""
    _name, end = _read(raw)
    flags = int.from_bytes(raw[2:4], "big") & _FLAG_RECURSION_DESIRED
    head = raw[:2] + (flags | _FLAG_RESPONSE | _NAME_ERROR).to_bytes(2, "big")
    return head + (1).to_bytes(2, "big") + bytes(6) + raw[12:end]


def _read(raw: bytes) -> tuple[str, int]:
    reader = Reader(raw, what="DNS question", clause=_CLAUSE, truncated=Reason.PROXY_FORMAT)
    reader.take(2)
    flags, questions = reader.uint(2, "big"), reader.uint(2, "big")
    reader.take(6)
    if flags & 0x8000 or questions != 1:
        raise _refusal("not one question", reader.offset)
    labels: list[str] = []
    while size := reader.u8():
        # From: RFC 1035 §4.1.4: 63 octets at most; a pointer has nothing to point at here.
        if size > 63 or len(labels) > 127:
            raise _refusal("a label above 63 bytes", reader.offset)
        labels.append(reader.take(size).decode("ascii", "replace").replace("\ufffd", "?"))
    reader.take(4)
    return ".".join(labels), reader.offset


def _refusal(why: str, offset: int) -> FormatError:
    return FormatError(
        f"DNS question: {why}", reason=Reason.PROXY_FORMAT, clause=_CLAUSE, offset=offset
    )
