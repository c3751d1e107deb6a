"""Checkpoints: the text of a tree head inside a signed note. Verifies nothing.

Sources: C2SP tlog-checkpoint, tlog-cosignature; docs/protocols/log.md §3.4, §4.1. `raw` is hostile.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, NoReturn

from confide.errors import FormatError, Reason
from confide.wire.json import b64decode, b64encode
from confide.wire.note import Note, parse_note

__all__ = [
    "HASH_BYTES",
    "MAX_SIZE",
    "Checkpoint",
    "SignedCheckpoint",
    "parse_checkpoint",
    "parse_decimal",
    "parse_hash_line",
    "parse_timestamped",
]

HASH_BYTES = 32
# From: log.md 3.4; a size and a POSIX time fit into a signed 64-bit integer.
MAX_SIZE = 2**63 - 1
_CLAUSE: Final = "docs/protocols/log.md#3.4"
_REASON: Final = Reason.TLOG_FORMAT
_DECIMAL: Final = re.compile(r"(?:0|[1-9][0-9]{0,18})\Z", re.ASCII)
_MAX_EXTENSIONS: Final = 16


def _refuse(what: str) -> NoReturn:
    raise FormatError(what, reason=_REASON, clause=_CLAUSE)


def parse_decimal(text: str, *, what: str) -> int:
    """Return the number that `text` is the one spelling of; at most `MAX_SIZE`."""
    if not _DECIMAL.match(text) or int(text) > MAX_SIZE:
        _refuse(f"{what}: not a decimal below 2^63")
    return int(text)


def parse_hash_line(text: str, *, what: str) -> bytes:
    """Return the 32 bytes of a base64 line."""
    raw = b64decode(text, what=what, reason=_REASON)
    if len(raw) != HASH_BYTES:
        _refuse(f"{what}: {len(raw)} bytes, a hash has {HASH_BYTES}")
    return raw


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A tree head: which log, how many leaves, which root."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    def text(self) -> str:
        """Return the text that is signed."""
        lines = (self.origin, str(self.size), b64encode(self.root), *self.extensions)
        return "".join(f"{line}\n" for line in lines)


@dataclass(frozen=True, slots=True)
class SignedCheckpoint:
    """A checkpoint with the note it came in; nothing about it is verified."""

    note: Note
    head: Checkpoint

    def encode(self) -> bytes:
        """Return the note."""
        return self.note.encode()


def parse_checkpoint(raw: bytes) -> SignedCheckpoint:
    """Parse a note whose text is a checkpoint. Raises `FormatError`."""
    note = parse_note(raw)
    lines = note.text[:-1].split("\n")
    if len(lines) < 3 or not all(lines):
        _refuse("checkpoint: not three or more lines, none of them empty")
    origin, size, root, *extensions = lines
    if len(extensions) > _MAX_EXTENSIONS:
        _refuse(f"checkpoint: more than {_MAX_EXTENSIONS} extension lines")
    head = Checkpoint(
        origin,
        parse_decimal(size, what="checkpoint size"),
        parse_hash_line(root, what="checkpoint root"),
        tuple(extensions),
    )
    return SignedCheckpoint(note, head)


def parse_timestamped(blob: bytes) -> tuple[int, bytes]:
    """Return the POSIX time and the signature of a cosignature. Raises `FormatError`."""
    if len(blob) <= 8:
        _refuse("cosignature: too short for a time and a signature")
    seconds = int.from_bytes(blob[:8], "big")
    if seconds > MAX_SIZE:
        _refuse("cosignature: a time of 2^63 or later")
    return seconds, blob[8:]
