"""Proof files: an inclusion proof with the checkpoint that it leads to. Verifies nothing.

Sources: C2SP tlog-proof; docs/protocols/log.md §6. `raw` is hostile.
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
from confide.wire.json import b64decode, b64encode
from confide.wire.note import MAX_NOTE_BYTES

__all__ = ["MAX_HASHES", "MAX_PROOF_BYTES", "TlogProof", "parse_tlog_proof"]

# A tree of fewer than 2^63 leaves is at most this high. From: log.md 4.2, 6.1.
MAX_HASHES = 63
_MAX_EXTRA_BYTES: Final = 4096
MAX_PROOF_BYTES = MAX_NOTE_BYTES + 16 * 1024
_TYPE: Final = "c2sp.org/tlog-proof@v1"
_CLAUSE: Final = "docs/protocols/log.md#6.1"
_REASON: Final = Reason.TLOG_FORMAT


@dataclass(frozen=True, slots=True)
class TlogProof:
    """Where an entry is said to stand, and what is said to prove it. Nothing is verified."""

    index: int
    hashes: tuple[bytes, ...]
    checkpoint: SignedCheckpoint
    extra: bytes | None = None

    def encode(self) -> bytes:
        """Return the file."""
        extra = () if self.extra is None else (f"extra {b64encode(self.extra)}",)
        lines = (_TYPE, *extra, f"index {self.index}", *(b64encode(each) for each in self.hashes))
        head = "".join(f"{line}\n" for line in lines)
        return head.encode() + b"\n" + self.checkpoint.encode()


def _refuse(what: str) -> NoReturn:
    raise FormatError(what, reason=_REASON, clause=_CLAUSE)


def parse_tlog_proof(raw: bytes) -> TlogProof:
    """Parse a proof file. Raises `FormatError`."""
    if len(raw) > MAX_PROOF_BYTES:
        _refuse(f"log proof: {len(raw)} bytes, at most {MAX_PROOF_BYTES}")
    head, separator, rest = raw.partition(b"\n\n")
    if not separator:
        _refuse("log proof: no empty line before the checkpoint")
    try:
        lines = head.decode("ascii").split("\n")
    except UnicodeDecodeError as error:
        raise FormatError("log proof: not ASCII", reason=_REASON, clause=_CLAUSE) from error
    if lines.pop(0) != _TYPE:
        _refuse("log proof: not of this type and version")
    extra = _extra(lines)
    if not lines or not lines[0].startswith("index "):
        _refuse("log proof: no index line")
    index = parse_decimal(lines.pop(0).removeprefix("index "), what="log proof index")
    if len(lines) > MAX_HASHES:
        _refuse(f"log proof: more than {MAX_HASHES} hashes")
    hashes = tuple(parse_hash_line(line, what="log proof") for line in lines)
    return TlogProof(index, hashes, parse_checkpoint(rest), extra)


def _extra(lines: list[str]) -> bytes | None:
    if not lines or not lines[0].startswith("extra "):
        return None
    extra = b64decode(lines.pop(0).removeprefix("extra "), what="log proof", reason=_REASON)
    if len(extra) > _MAX_EXTRA_BYTES:
        _refuse(f"log proof: more than {_MAX_EXTRA_BYTES} bytes of extra")
    return extra
