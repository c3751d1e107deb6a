"""A receipt that travels with the response it is about. Pure.

Clause: docs/protocols/receipt.md §3.4. A response that is not a stream carries it in the header
`confide-receipt`; an event stream ends with one comment line, which every SSE client ignores:
`: confide-receipt <base64>` and a blank line. The digest in the receipt covers the bytes before
that line.
"""

from __future__ import annotations

from confide.errors import Reason
from confide.wire.dsse import Envelope, parse_envelope
from confide.wire.json import b64decode, b64encode, parse_json

__all__ = ["RECEIPT_HEADER", "ReceiptStripper", "decode_inline", "encode_inline", "inline_comment"]

RECEIPT_HEADER = "confide-receipt"
_MARK = b": confide-receipt "
# An inference receipt is about 2 KiB; more than this is not one.
_MAX_INLINE_BYTES = 64 * 1024


def encode_inline(envelope: Envelope) -> str:
    """Return the header value of `envelope`."""
    return b64encode(envelope.encode())


def inline_comment(envelope: Envelope) -> bytes:
    """Return the last bytes of an event stream that carries `envelope`."""
    return _MARK + encode_inline(envelope).encode() + b"\n\n"


def decode_inline(text: str) -> Envelope:
    """Parse a header value. Raises `FormatError`; verifies nothing."""
    raw = b64decode(text, what="inline receipt", reason=Reason.RECEIPT_FORMAT)
    return parse_envelope(parse_json(raw, what="inline receipt", reason=Reason.RECEIPT_FORMAT))


class ReceiptStripper:
    """
    Separates the inline receipt from the event stream it ends, without delaying an event.

    Bytes are held back only while they could be the beginning of the mark at the start of a
    line. What follows the mark is the receipt, whatever it is.
    """

    __slots__ = ("_at_line_start", "_found", "_held", "_tail")

    def __init__(self) -> None:
        self._held = b""
        self._tail = b""
        self._found = False
        self._at_line_start = True

    def feed(self, data: bytes) -> bytes:
        """Return the bytes of the stream that `data` completes."""
        if self._found:
            self._keep(data)
            return b""
        data = self._held + data
        self._held = b""
        start = 0 if self._at_line_start and data.startswith(_MARK) else data.find(b"\n" + _MARK)
        if start >= 0:
            cut = start if data.startswith(_MARK, start) else start + 1
            self._found = True
            self._keep(data[cut + len(_MARK) :])
            return data[:cut]
        held = self._possible_start(data)
        if held:
            self._held = data[len(data) - held :]
            data = data[: len(data) - held]
        if data:
            self._at_line_start = data.endswith(b"\n")
        return data

    def _possible_start(self, data: bytes) -> int:
        # How many bytes at the end could become the mark at the start of a line.
        for size in range(min(len(_MARK) - 1, len(data)), 0, -1):
            if data.endswith(_MARK[:size]):
                before = len(data) - size
                if data[before - 1 : before] == b"\n" if before else self._at_line_start:
                    return size
        return 0

    def _keep(self, data: bytes) -> None:
        # One byte above the cap is kept, so that `finish` sees that there was too much.
        room = _MAX_INLINE_BYTES + 1 - len(self._tail)
        self._tail += data[: max(room, 0)]

    def finish(self) -> tuple[bytes, str | None]:
        """Return bytes still held, and the text of the receipt or None where there was none."""
        held, self._held = self._held, b""
        if not self._found:
            return held, None
        if len(self._tail) > _MAX_INLINE_BYTES:
            return held, ""
        return held, self._tail.strip(b"\n").decode("ascii", "replace")
