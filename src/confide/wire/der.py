"""A strict reader and a small writer for DER (ITU-T X.690), for what X.509 leaves opaque.

Reading: definite lengths in their shortest form, single-byte tags, minimal integers, booleans
00 or FF, nothing left over. Bytes are hostile; every refusal is a `FormatError` with the
reason the caller gives. No ASN.1 schema and no cryptography.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NoReturn

from confide.errors import FormatError
from confide.wire.reader import Reader

if TYPE_CHECKING:
    from confide.errors import Reason

__all__ = [
    "BOOLEAN",
    "ENUMERATED",
    "INTEGER",
    "OCTET_STRING",
    "OID",
    "SEQUENCE",
    "DerReader",
    "encode_boolean",
    "encode_integer",
    "encode_oid",
    "encode_tlv",
]

# From: X.690 §8, X.680 §8.4: universal tags.
BOOLEAN: Final = 0x01
INTEGER: Final = 0x02
OCTET_STRING: Final = 0x04
OID: Final = 0x06
ENUMERATED: Final = 0x0A
SEQUENCE: Final = 0x30


class DerReader(Reader):
    """A cursor over the contents of one DER value."""

    __slots__ = ("_reason",)

    def __init__(self, raw: bytes, *, what: str, reason: Reason) -> None:
        super().__init__(raw, what=what, clause="X.690 §8.1", truncated=reason)
        self._reason = reason

    def _refuse(self, why: str, clause: str) -> NoReturn:
        raise FormatError(
            f"{self._what}: {why}", reason=self._reason, clause=clause, offset=self.offset
        )

    def read(self, tag: int) -> bytes:
        """Return the contents of the next value, which must carry `tag`."""
        found, first = self.take(2)
        if found != tag:
            self._refuse(f"tag {tag:#04x} was expected", "X.690 §8.1.2")
        if first < 0x80:
            return self.take(first)
        size = first & 0x7F
        if not 1 <= size <= 3:
            self._refuse("indefinite or oversized length", "X.690 §10.1")
        length = self.uint(size, "big")
        # From: X.690 §10.1: the length takes the fewest octets.
        if length < 0x80 or length >> (8 * (size - 1)) == 0:
            self._refuse("length is not in its shortest form", "X.690 §10.1")
        return self.take(length)

    def sequence(self) -> DerReader:
        """Return a reader over the next SEQUENCE."""
        return DerReader(self.read(SEQUENCE), what=self._what, reason=self._reason)

    def octets(self, size: int) -> bytes:
        """Return the next OCTET STRING of exactly `size` bytes."""
        value = self.read(OCTET_STRING)
        if len(value) != size:
            self._refuse(f"an octet string of {size} bytes was expected", "X.690 §8.7")
        return value

    def unsigned(self, maximum: int, tag: int = INTEGER) -> int:
        """Return the next INTEGER (or ENUMERATED), from 0 to `maximum`."""
        value = self.read(tag)
        # From: X.690 §8.3.2: the first nine bits are neither all ones nor all zero.
        if not value or value[0] >= 0x80 or (len(value) > 1 and value[0] == 0 and value[1] < 0x80):
            self._refuse("not a minimal unsigned integer", "X.690 §8.3.2")
        number = int.from_bytes(value, "big")
        if number > maximum:
            self._refuse(f"an integer above {maximum}", "X.690 §8.3")
        return number

    def boolean(self) -> bool:
        """Return the next BOOLEAN."""
        value = self.read(BOOLEAN)
        if value not in {b"\x00", b"\xff"}:
            self._refuse("a boolean is neither 00 nor FF", "X.690 §11.1")
        return value == b"\xff"

    def finish(self) -> None:
        """Refuse when bytes are left."""
        self.end(self._reason)


def encode_tlv(tag: int, *contents: bytes) -> bytes:
    """Return one DER value with the concatenated `contents`."""
    body = b"".join(contents)
    if len(body) < 0x80:
        return bytes([tag, len(body)]) + body
    length = len(body).to_bytes((len(body).bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + body


def encode_integer(value: int, tag: int = INTEGER) -> bytes:
    """Return a non-negative INTEGER (or ENUMERATED)."""
    return encode_tlv(tag, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def encode_boolean(value: bool) -> bytes:  # noqa: FBT001 - the value itself
    """Return a BOOLEAN."""
    return encode_tlv(BOOLEAN, b"\xff" if value else b"\x00")


def encode_oid(dotted: str) -> bytes:
    """Return an OBJECT IDENTIFIER."""
    arcs = [int(part) for part in dotted.split(".")]
    out = bytearray([arcs[0] * 40 + arcs[1]])
    for arc in arcs[2:]:
        groups = [arc & 0x7F]
        rest = arc >> 7
        while rest:
            groups.append((rest & 0x7F) | 0x80)
            rest >>= 7
        out += bytes(reversed(groups))
    return encode_tlv(OID, bytes(out))
