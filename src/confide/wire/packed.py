"""What strict readers of packed formats (CBOR, MessagePack) share: text, maps, and refusing.

`raw` is hostile. A format says what a head is; that text is UTF-8, that a key is text and stands
once, and that nothing follows the value, is the same for all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Generic, NoReturn, TypeVar

from confide.errors import FormatError
from confide.wire.reader import Reader

if TYPE_CHECKING:
    from collections.abc import Iterable

    from confide.errors import Reason

__all__ = ["PackedDecoder"]

Value = TypeVar("Value")


class PackedDecoder(ABC, Generic[Value]):
    """
    Decodes one value of at most `max_bytes`; `clause` is where the format is specified.

    `what` names the document in errors, `reason` is the closed identifier.
    """

    __slots__ = ("_clause", "_reader", "_reason", "_what")

    def __init__(
        self, raw: bytes, what: str, reason: Reason, *, clause: str, max_bytes: int
    ) -> None:
        self._what = what
        self._reason = reason
        self._clause = clause
        # A document above the limit is not read at all, not even its beginning.
        self._reader = Reader(raw[:max_bytes], what=what, clause=clause, truncated=reason)
        if len(raw) > max_bytes:
            self.refuse(f"{len(raw)} bytes, at most {max_bytes}")

    def decode(self) -> Value:
        """Return the one value; nothing may follow it. Raises `FormatError`."""
        value = self.value(1)
        self._reader.end(self._reason)
        return value

    def refuse(self, why: str) -> NoReturn:
        """Raise the `FormatError` of this document at this place."""
        raise FormatError(
            f"{self._what}: {why}",
            reason=self._reason,
            clause=self._clause,
            offset=self._reader.offset,
        )

    @abstractmethod
    def value(self, depth: int) -> Value:
        """Return the value that begins here, at this depth."""

    @abstractmethod
    def items(self, count: int) -> Iterable[int]:
        """Return `count` places, or refuse a count that cannot be there."""

    @abstractmethod
    def key_size(self) -> int | None:
        """Return the bytes of the text whose head begins here; None where it is no text."""

    def text(self, size: int) -> str:
        """Return text of `size` bytes."""
        try:
            return self._reader.take(size).decode("utf-8")
        except UnicodeDecodeError:
            self.refuse("text that is not UTF-8")

    def mapping(self, count: int, depth: int) -> dict[str, Value]:
        """Return a map of `count` entries."""
        found: dict[str, Value] = {}
        for _ in self.items(count):
            size = self.key_size()
            if size is None:
                self.refuse("a key that is not text")
            name = self.text(size)
            if name in found:
                self.refuse("a key stands twice")
            found[name] = self.value(depth + 1)
        return found
