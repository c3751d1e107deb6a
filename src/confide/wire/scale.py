"""A strict cursor for SCALE, the encoding of the first attestation envelopes of dstack.

Specification: SCALE codec, "compact" integers in their shortest form, byte vectors and UTF-8
strings with a compact length, little-endian numbers. Bytes are hostile.
"""

from __future__ import annotations

from typing import NoReturn

from confide.errors import FormatError, Reason
from confide.wire.reader import Reader

__all__ = ["ScaleReader"]

_CLAUSE = "SCALE codec, compact"


class ScaleReader(Reader):
    """A cursor over one SCALE document; `reason` is used for whatever it refuses."""

    __slots__ = ("_reason",)

    def __init__(self, raw: bytes, *, what: str, reason: Reason) -> None:
        super().__init__(raw, what=what, clause=_CLAUSE, truncated=reason)
        self._reason = reason

    def refuse(self, why: str) -> NoReturn:
        """Raise the `FormatError` of this document."""
        raise FormatError(
            f"{self._what}: {why}", reason=self._reason, clause=_CLAUSE, offset=self.offset
        )

    def compact(self) -> int:
        """Return a compact integer below 2**30, which bounds every length here."""
        first = self.u8()
        mode = first & 3
        if mode == 3:
            self.refuse("a length of 2**30 or more")
        size = (1, 2, 4)[mode]
        number = (first | self.uint(size - 1, "little") << 8) >> 2
        if mode and number < (1 << 6 if mode == 1 else 1 << 14):
            self.refuse("a length is not in its shortest form")
        return number

    def octets(self) -> bytes:
        """Return a byte vector."""
        return self.take(self.compact())

    def text(self) -> str:
        """Return a UTF-8 string."""
        raw = self.octets()
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self.refuse("text that is not UTF-8")

    def count(self) -> int:
        """Return the number of items of a vector whose items take at least one byte each."""
        number = self.compact()
        if number > self.remaining:
            self.refuse(f"{number} items announced, {self.remaining} bytes left")
        return number

    def finish(self) -> None:
        """Refuse when bytes are left."""
        self.end(self._reason)
