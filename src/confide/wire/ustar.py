"""A tar archive as its bytes come: plain regular files, and nothing else. Sans-IO.

POSIX.1-2017, pax, "ustar Interchange Format", of which training results use one form
(docs/protocols/training-node.md 3.1). The bytes are hostile. Links, directories, devices, extended
headers and sparse files are refused, so an archive never unpacks to more than its own length.
Names are given as they stand: whoever writes files judges them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NoReturn, TypeAlias

from confide.errors import FormatError, Reason

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["TarBegin", "TarData", "TarEnd", "TarEvent", "UstarReader"]

_BLOCK: Final = 512
_CLAUSE: Final = "docs/protocols/training-node.md#3.1"
_MAGIC: Final = b"ustar\x0000"
_REGULAR: Final = b"0"
# From: weights.md: the largest published checkpoints have a few thousand files.
_MAX_FILES: Final = 20_000
# Writers fill the last record: 20 blocks unless they are told otherwise.
_MAX_END_BLOCKS: Final = 40


@dataclass(frozen=True, slots=True)
class TarBegin:
    """A file begins, of exactly `size` bytes. `name` is hostile."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class TarData:
    """The next bytes of the file; never empty."""

    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class TarEnd:
    """The file is whole."""


TarEvent: TypeAlias = "TarBegin | TarData | TarEnd"


class UstarReader:
    """Bytes in, events out. Raises `FormatError`, and is of no use afterwards."""

    __slots__ = ("_data", "_ends", "_files", "_held", "_pad")

    def __init__(self) -> None:
        self._held = bytearray()
        # What is left of the present file, and of the zeros that fill its last block.
        self._data = 0
        self._pad = 0
        self._ends = 0
        self._files = 0

    def feed(self, data: bytes) -> Iterator[TarEvent]:
        """Take the next bytes; yield what they complete."""
        rest = memoryview(data)
        while rest:
            if self._data:
                piece, rest = bytes(rest[: self._data]), rest[self._data :]
                self._data -= len(piece)
                yield TarData(piece)
                if not self._data:
                    yield TarEnd()
                continue
            room = (self._pad or _BLOCK) - len(self._held)
            self._held += rest[:room]
            rest = rest[room:]
            if len(self._held) == (self._pad or _BLOCK):
                block, self._held = bytes(self._held), bytearray()
                yield from self._block(block)

    def end(self) -> None:
        """The archive has no more bytes: refuse one that is cut."""
        if self._data or self._pad or self._held or self._ends < 2:
            _refuse("it is cut")

    def _block(self, block: bytes) -> Iterator[TarEvent]:
        if self._pad:
            if any(block):
                _refuse("something stands behind a file")
            self._pad = 0
            return
        if not any(block):
            self._ends += 1
            if self._ends > _MAX_END_BLOCKS:
                _refuse("it does not end")
            return
        if self._ends:
            _refuse("something follows its end")
        self._files += 1
        if self._files > _MAX_FILES:
            _refuse(f"more than {_MAX_FILES} files")
        begin = _header(block)
        self._data, self._pad = begin.size, -begin.size % _BLOCK
        yield begin
        if not begin.size:
            yield TarEnd()


def _header(block: bytes) -> TarBegin:
    blank = block[:148] + b" " * 8 + block[156:]
    if block[257:265] != _MAGIC or block[148:156] != b"%06o\0 " % sum(blank):
        _refuse("a header is not ustar, or was changed")
    if block[156:157] != _REGULAR or any(block[157:257]):
        _refuse("an entry is no regular file")
    prefix, name = _text(block[345:500]), _text(block[:100])
    return TarBegin(f"{prefix}/{name}" if prefix else name, _octal(block[124:136]))


def _octal(raw: bytes) -> int:
    digits = raw.rstrip(b" \0")
    if not digits or not all(digit in b"01234567" for digit in digits):
        _refuse("a number is not octal")
    return int(digits, 8)


def _text(raw: bytes) -> str:
    text, _, rest = raw.partition(b"\0")
    if any(rest):
        _refuse("something stands behind a name")
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        _refuse("a name is not UTF-8")


def _refuse(why: str) -> NoReturn:
    raise FormatError(f"archive of results: {why}", reason=Reason.TRAINING_FORMAT, clause=_CLAUSE)
