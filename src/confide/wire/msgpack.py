"""A strict reader for the subset of MessagePack in which attestation envelopes are written.

nil, booleans, unsigned integers, text, binary, arrays and maps with text keys. Negative numbers,
floats, extension types, reserved heads and a key that stands twice are refused. Rust writers put a
plain vector of bytes down as an array of small numbers: `as_bytes` reads both forms.

Specification: MessagePack, "Formats". `raw` is hostile; sizes, counts and depth are capped. A
general library would build extension types, timestamps and repeated keys before we could look.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from confide.wire.packed import PackedDecoder

if TYPE_CHECKING:
    from confide.errors import Reason

__all__ = ["MsgpackValue", "as_bytes", "parse_msgpack"]

MsgpackValue: TypeAlias = (
    "bool | int | bytes | str | list[MsgpackValue] | dict[str, MsgpackValue] | None"
)
# From: reference of the envelope: at most 10 MiB.
_MAX_BYTES: Final = 10 * 1024 * 1024
_MAX_DEPTH: Final = 16
# A quote of 8 KiB and a log with payloads, all written as arrays of numbers, is below 100,000.
_MAX_VALUES: Final = 1 << 19
_CLAUSE: Final = "MessagePack, Formats"
# From: MessagePack, "Formats": (first byte, bytes of the number or length).
_UINTS: Final = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}
_BINARIES: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4}
_TEXTS: Final = {0xD9: 1, 0xDA: 2, 0xDB: 4}
_ARRAYS: Final = {0xDC: 2, 0xDD: 4}
_MAPS: Final = {0xDE: 2, 0xDF: 4}


class _Decoder(PackedDecoder["MsgpackValue"]):
    __slots__ = ("_left",)

    def __init__(self, raw: bytes, what: str, reason: Reason) -> None:
        super().__init__(raw, what, reason, clause=_CLAUSE, max_bytes=_MAX_BYTES)
        self._left = _MAX_VALUES

    def value(self, depth: int) -> MsgpackValue:
        if depth > _MAX_DEPTH:
            self.refuse(f"nested deeper than {_MAX_DEPTH}")
        first = self._reader.u8()
        if first < 0x80:
            return first
        if first == 0xC0:
            return None
        if first in {0xC2, 0xC3}:
            return first == 0xC3
        if first in _UINTS:
            return self._reader.uint(_UINTS[first], "big")
        if first in _BINARIES:
            return self._reader.take(self._reader.uint(_BINARIES[first], "big"))
        return self.container(first, depth)

    def container(self, first: int, depth: int) -> MsgpackValue:
        if (size := self.size(first, 0xA0, 0x1F, _TEXTS)) is not None:
            return self.text(size)
        if (size := self.size(first, 0x90, 0x0F, _ARRAYS)) is not None:
            return [self.value(depth + 1) for _ in self.items(size)]
        if (size := self.size(first, 0x80, 0x0F, _MAPS)) is None:
            self.refuse("a negative number, float, extension or reserved head")
        return self.mapping(size, depth)

    def size(self, first: int, fixed: int, mask: int, wide: dict[int, int]) -> int | None:
        if first & ~mask == fixed:
            return first & mask
        if first in wide:
            return self._reader.uint(wide[first], "big")
        return None

    def items(self, count: int) -> range:
        # Every item takes a byte: what cannot be there is refused before anything is built.
        self._left -= count
        if count > self._reader.remaining or self._left < 0:
            self.refuse(f"{count} items announced, which cannot be there or are too many")
        return range(count)

    def key_size(self) -> int | None:
        return self.size(self._reader.u8(), 0xA0, 0x1F, _TEXTS)


def parse_msgpack(raw: bytes, *, what: str, reason: Reason) -> MsgpackValue:
    """
    Parse one value of the subset; nothing may follow it.

    `what` names the document in errors, `reason` is the closed identifier. Raises `FormatError`.
    """
    return _Decoder(raw, what, reason).decode()


def as_bytes(value: MsgpackValue) -> bytes | None:
    """Return `value` as bytes, from binary or from an array of numbers below 256; else None."""
    if isinstance(value, bytes):
        return value
    if not isinstance(value, list):
        return None
    numbers = [item for item in value if isinstance(item, int) and not isinstance(item, bool)]
    if len(numbers) != len(value) or any(number > 0xFF for number in numbers):
        return None
    return bytes(numbers)
