"""A strict reader for the subset of CBOR (RFC 8949) that measurement files use.

Unsigned integers, byte strings, text strings, arrays and maps with text keys, every head in its
shortest form (RFC 8949 §4.2.1). Tags, floats, simple values, negative numbers, indefinite lengths
and a key that stands twice are refused. `raw` is hostile; sizes and depth are capped.

Why no library: general decoders accept tags, indefinite lengths and repeated keys, build what a
four-byte head announces, and know no cap on nesting. The subset is shorter than bounding them.
"""

from __future__ import annotations

from typing import Final, NoReturn, TypeAlias

from confide.errors import FormatError, Reason
from confide.wire.reader import Reader

__all__ = ["CborValue", "parse_cbor"]

CborValue: TypeAlias = "int | bytes | str | list[CborValue] | dict[str, CborValue]"
# A genuine measurement file has 384 bytes, three levels and twelve values.
_MAX_BYTES: Final = 64 * 1024
_MAX_DEPTH: Final = 8
_MAX_VALUES: Final = 1024
_CLAUSE: Final = "RFC 8949 §3"
# From: RFC 8949 §3.1: major types.
_UNSIGNED, _BYTES, _TEXT, _ARRAY, _MAP = 0, 2, 3, 4, 5


class _Decoder:
    __slots__ = ("_reader", "_reason", "_values", "_what")

    def __init__(self, raw: bytes, what: str, reason: Reason) -> None:
        self._what = what
        self._reason = reason
        self._values = 0
        self._reader = Reader(raw, what=what, clause=_CLAUSE, truncated=reason)

    def refuse(self, why: str) -> NoReturn:
        raise FormatError(
            f"{self._what}: {why}",
            reason=self._reason,
            clause=_CLAUSE,
            offset=self._reader.offset,
        )

    def head(self) -> tuple[int, int]:
        first = self._reader.u8()
        major, short = first >> 5, first & 0x1F
        if short < 24:
            return major, short
        if short > 27:
            self.refuse("indefinite length or reserved head")
        size = 1 << (short - 24)
        number = self._reader.uint(size, "big")
        # From: RFC 8949 §4.2.1: the shortest head that holds the number.
        if number < 24 or (size > 1 and number >> (4 * size) == 0):
            self.refuse("a head is not in its shortest form")
        return major, number

    def value(self, depth: int) -> CborValue:
        self._values += 1
        if depth > _MAX_DEPTH or self._values > _MAX_VALUES:
            self.refuse(f"nested deeper than {_MAX_DEPTH}, or more than {_MAX_VALUES} values")
        major, number = self.head()
        if major == _UNSIGNED:
            return number
        if major == _BYTES:
            return self._reader.take(number)
        if major == _TEXT:
            return self.text(number)
        if major == _ARRAY:
            return [self.value(depth + 1) for _ in self.items(number)]
        if major != _MAP:
            self.refuse("a negative number, tag, float or simple value")
        return self.mapping(number, depth)

    def items(self, count: int) -> range:
        # Every item takes a byte: what cannot be there is refused before anything is built.
        if count > self._reader.remaining:
            self.refuse(f"{count} items announced, {self._reader.remaining} bytes left")
        return range(count)

    def text(self, size: int) -> str:
        try:
            return self._reader.take(size).decode("utf-8")
        except UnicodeDecodeError:
            self.refuse("text that is not UTF-8")

    def mapping(self, count: int, depth: int) -> dict[str, CborValue]:
        found: dict[str, CborValue] = {}
        for _ in self.items(count):
            major, size = self.head()
            if major != _TEXT:
                self.refuse("a key that is not text")
            name = self.text(size)
            if name in found:
                self.refuse("a key stands twice")
            found[name] = self.value(depth + 1)
        return found

    def end(self) -> None:
        self._reader.end(self._reason)


def parse_cbor(raw: bytes, *, what: str, reason: Reason) -> CborValue:
    """
    Parse one value of the subset; nothing may follow it.

    `what` names the document in errors, `reason` is the closed identifier. Raises `FormatError`.
    """
    decoder = _Decoder(raw[: _MAX_BYTES + 1], what, reason)
    if len(raw) > _MAX_BYTES:
        decoder.refuse(f"{len(raw)} bytes, at most {_MAX_BYTES}")
    value = decoder.value(1)
    decoder.end()
    return value
