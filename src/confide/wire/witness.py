"""What is said between a log and a witness. Bytes to value and back; verifies nothing.

Sources: C2SP tlog-witness; docs/protocols/log.md §4.2. `raw` is hostile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NoReturn

from confide.errors import FormatError, Reason
from confide.wire.checkpoint import (
    SignedCheckpoint,
    parse_checkpoint,
    parse_decimal,
    parse_hash_line,
)
from confide.wire.json import b64encode
from confide.wire.note import MAX_NOTE_BYTES, NoteSignature
from confide.wire.tlog_proof import MAX_HASHES

__all__ = [
    "ADD_CHECKPOINT",
    "MAX_REQUEST_BYTES",
    "SIZE_TYPE",
    "AddCheckpoint",
    "WitnessReply",
    "parse_add_checkpoint",
    "parse_size_body",
]

ADD_CHECKPOINT = "add-checkpoint"
# From: tlog-witness, the content type of a 409.
SIZE_TYPE = "text/x.tlog.size"
MAX_REQUEST_BYTES = MAX_NOTE_BYTES + 16 * 1024
_CLAUSE: Final = "docs/protocols/log.md#4.2"
_REASON: Final = Reason.TLOG_FORMAT


def _refuse(what: str) -> NoReturn:
    raise FormatError(what, reason=_REASON, clause=_CLAUSE)


@dataclass(frozen=True, slots=True)
class AddCheckpoint:
    """A request: the size last cosigned, the proof from there, the new checkpoint."""

    old: int
    proof: tuple[bytes, ...]
    checkpoint: SignedCheckpoint

    def encode(self) -> bytes:
        """Return the body of the request."""
        lines = (f"old {self.old}", *(b64encode(each) for each in self.proof))
        return "".join(f"{line}\n" for line in lines).encode() + b"\n" + self.checkpoint.encode()


@dataclass(frozen=True, slots=True)
class WitnessReply:
    """
    An answer: lines of signature, not verified; or the size that the witness cosigned last.

    `size` is None where it cosigned.
    """

    signatures: tuple[NoteSignature, ...]
    size: int | None = None


def parse_add_checkpoint(raw: bytes) -> AddCheckpoint:
    """Parse the body of a request. Raises `FormatError`."""
    if len(raw) > MAX_REQUEST_BYTES:
        _refuse(f"add-checkpoint: {len(raw)} bytes, at most {MAX_REQUEST_BYTES}")
    head, separator, rest = raw.partition(b"\n\n")
    if not separator:
        _refuse("add-checkpoint: no empty line before the checkpoint")
    try:
        old, *lines = head.decode("ascii").split("\n")
    except UnicodeDecodeError as error:
        raise FormatError("add-checkpoint: not ASCII", reason=_REASON, clause=_CLAUSE) from error
    if not old.startswith("old "):
        _refuse("add-checkpoint: no old size line")
    if len(lines) > MAX_HASHES:
        _refuse(f"add-checkpoint: more than {MAX_HASHES} hashes")
    return AddCheckpoint(
        parse_decimal(old.removeprefix("old "), what="add-checkpoint old size"),
        tuple(parse_hash_line(line, what="add-checkpoint") for line in lines),
        parse_checkpoint(rest),
    )


def parse_size_body(raw: bytes) -> int:
    """Parse the body of a 409: a size and a newline. Raises `FormatError`."""
    text = raw[:32].decode("ascii", "replace")
    if len(raw) > 32 or not text.endswith("\n"):
        _refuse("witness: a conflict without a size")
    return parse_decimal(text[:-1], what="witness size")
