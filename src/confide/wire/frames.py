"""Frames of the run protocol inside the sealed channel: kind, length, payload.

Clause: docs/protocols/agent-run.md §1. `kind(1) ‖ length(4, big-endian) ‖ payload`. The channel
below already guarantees order and completeness; frames only tell parts of one message apart.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from confide.errors import FormatError, Reason
from confide.wire.json import jcs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from confide.wire.json import JsonValue

__all__ = [
    "MAX_FRAME_BYTES",
    "FrameDecoder",
    "FrameKind",
    "encode_frame",
    "json_frame",
]

# Larger than any data frame either side writes; a receipt with eight GPUs is about 2 MiB.
MAX_FRAME_BYTES = 64 * 1024 * 1024
_CLAUSE = "docs/protocols/agent-run.md#1"


class FrameKind(IntEnum):
    """What a frame carries."""

    HEADER = 1  # client to node: the run header, JSON, exactly once and first
    FILE = 2  # either way: JSON {path, bytes} that announces a file
    DATA = 3  # either way: bytes of the announced file
    END = 4  # either way: nothing follows
    PROGRESS = 5  # node to client: JSON, for people
    TURN = 6  # either way: the text of one chat turn, UTF-8
    RECEIPT = 7  # node to client: the receipt file, JSON
    REFUSED = 8  # node to client: JSON {reason, step, detail, findings}; nothing follows
    CONSOLE = 9  # node to client: JSON {stream, bytes} that announces console text


_KINDS = frozenset(int(kind) for kind in FrameKind)


def encode_frame(kind: FrameKind, payload: bytes = b"") -> bytes:
    """Return one frame."""
    return bytes((kind,)) + len(payload).to_bytes(4, "big") + payload


def json_frame(kind: FrameKind, value: JsonValue) -> bytes:
    """Return one frame with canonical JSON."""
    return encode_frame(kind, jcs(value))


class FrameDecoder:
    """Incremental decoder with a bounded buffer."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[FrameKind, bytes]]:
        """Yield the frames that `data` completes. Raises `FormatError` for what is no frame."""
        self._buffer += data
        while len(self._buffer) >= 5:
            kind, size = self._buffer[0], int.from_bytes(self._buffer[1:5], "big")
            if kind not in _KINDS or size > MAX_FRAME_BYTES:
                raise FormatError(
                    f"frame of kind {kind} with {size} bytes",
                    reason=Reason.RECEIPT_FORMAT,
                    clause=_CLAUSE,
                )
            if len(self._buffer) < 5 + size:
                return
            payload = bytes(self._buffer[5 : 5 + size])
            del self._buffer[: 5 + size]
            yield FrameKind(kind), payload

    def finish(self) -> None:
        """Raise `FormatError` when the stream ended inside a frame."""
        if self._buffer:
            raise FormatError(
                "the stream ends inside a frame", reason=Reason.RECEIPT_FORMAT, clause=_CLAUSE
            )
