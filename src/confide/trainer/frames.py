"""Frames between a training process and whoever started it. docs/protocols/training.md §10."""

from __future__ import annotations

from enum import IntEnum
from typing import IO, TYPE_CHECKING

from confide.errors import Reason, RemoteProtocolError
from confide.wire.json import JsonLimits, JsonValue, jcs, parse_json

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "MAX_FRAME_BYTES",
    "Frame",
    "read_frame",
    "read_json",
    "write_data",
    "write_frame",
    "write_json",
]

# Larger than a row (dataset.md 1.2) and than the batch of any step.
MAX_FRAME_BYTES = 64 * 1024 * 1024
_HEAD_BYTES = 5
_PIECE_BYTES = 1024 * 1024
_LIMITS = JsonLimits(max_bytes=MAX_FRAME_BYTES, max_depth=32)


class Frame(IntEnum):
    """What a frame carries."""

    # To the process: the job, its secrets, its rows, then commands.
    JOB = 1  # JSON, first
    SECRETS = 2  # salt of the data set, key of the checkpoints, session; 32 bytes each
    ROW = 3  # one record of the data set
    VALIDATION = 4  # one record of the validation rows
    START = 5  # there are no more rows
    PAUSE = 6
    CANCEL = 7
    GO = 8  # after PREPARED: what has to be proven before the first step is proven
    STRETCH = 9  # in place of GO, and again after its last step: JSON {start, last}
    # From the process.
    PREPARED = 16  # JSON {plan, steps, held_out, environment}
    STEP = 17  # JSON {record, batch, progress}
    CHECKPOINT = 18  # JSON, the entry
    EVALUATION = 19  # JSON {step, model, rows, count, loss, accuracy}
    FILE = 20  # JSON {output, name, bytes}; DATA follows
    DATA = 21
    ENDED = 22  # JSON {outcome, step, chain, epsilon}; nothing follows
    FAILED = 23  # JSON {code, message, resumable}; nothing follows


def write_frame(file: IO[bytes], kind: Frame, payload: bytes = b"") -> None:
    """Write one frame and flush. Raises `OSError` where nobody reads any more."""
    file.write(bytes((kind,)) + len(payload).to_bytes(4, "big") + payload)
    file.flush()


def write_json(file: IO[bytes], kind: Frame, value: JsonValue) -> None:
    """Write one frame with canonical JSON."""
    write_frame(file, kind, jcs(value))


def write_data(file: IO[bytes], data: bytes) -> None:
    """Write `data` as one DATA frame or several."""
    for at in range(0, len(data), _PIECE_BYTES):
        write_frame(file, Frame.DATA, data[at : at + _PIECE_BYTES])


def read_frame(file: IO[bytes]) -> tuple[Frame, bytes] | None:
    """Return the next frame, None at the end. Raises `RemoteProtocolError` for what is none."""
    head = b"".join(_exactly(file, _HEAD_BYTES))
    if not head:
        return None
    kind, size = head[0], int.from_bytes(head[1:], "big")
    if len(head) < _HEAD_BYTES or kind not in set(Frame) or size > MAX_FRAME_BYTES:
        raise RemoteProtocolError("what came through the pipe is no frame")
    payload = b"".join(_exactly(file, size))
    if len(payload) < size:
        raise RemoteProtocolError("the pipe ended inside a frame")
    return Frame(kind), payload


def read_json(payload: bytes) -> JsonValue:
    """Parse the payload of a JSON frame. Raises `FormatError`."""
    return parse_json(payload, what="frame", reason=Reason.TRAINING_FORMAT, limits=_LIMITS)


def _exactly(file: IO[bytes], size: int) -> Iterator[bytes]:
    """Yield `size` bytes, or fewer where the file ends: a pipe gives what it has."""
    while size:
        piece = file.read(size)
        if not piece:
            return
        size -= len(piece)
        yield piece
