"""A strict reader for the subset of CBOR (RFC 8949) that measurement files use.

Unsigned integers, byte strings, text strings, arrays and maps with text keys, every head in its
shortest form (RFC 8949 §4.2.1). Tags, floats, simple values, negative numbers, indefinite lengths
and a key that stands twice are refused. `raw` is hostile; sizes and depth are capped.

Why no library: general decoders accept tags, indefinite lengths and repeated keys, build what a
four-byte head announces, and know no cap on nesting. The subset is shorter than bounding them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from confide.wire.packed import PackedDecoder

if TYPE_CHECKING:
    from confide.errors import Reason

__all__ = ["CborValue", "parse_cbor"]

CborValue: TypeAlias = "int | bytes | str | list[CborValue] | dict[str, CborValue]"
# A genuine measurement file has 384 bytes, three levels and twelve values.
_MAX_BYTES: Final = 64 * 1024
_MAX_DEPTH: Final = 8
_MAX_VALUES: Final = 1024
_CLAUSE: Final = "RFC 8949 §3"
# From: RFC 8949 §3.1: major types.
_UNSIGNED, _BYTES, _TEXT, _ARRAY, _MAP = 0, 2, 3, 4, 5


class _Decoder(PackedDecoder["CborValue"]):
    __slots__ = ("_values",)

    def __init__(self, raw: bytes, what: str, reason: Reason) -> None:
        super().__init__(raw, what, reason, clause=_CLAUSE, max_bytes=_MAX_BYTES)
        self._values = 0

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

    def key_size(self) -> int | None:
        major, size = self.head()
        return size if major == _TEXT else None


def parse_cbor(raw: bytes, *, what: str, reason: Reason) -> CborValue:
    """
    Parse one value of the subset; nothing may follow it.

    `what` names the document in errors, `reason` is the closed identifier. Raises `FormatError`.
    """
    return _Decoder(raw, what, reason).decode()
