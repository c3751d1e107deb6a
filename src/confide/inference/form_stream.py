"""A `multipart/form-data` body as its bytes come, in the one form of `multipart`. Pure.

docs/protocols/inference.md §7.2. For files that are too large to be held: nothing is kept but what
may be the beginning of a boundary. The body is hostile.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final, NoReturn, TypeAlias

from confide.inference.multipart import (
    MAX_HEAD_BYTES,
    MAX_PARTS,
    parse_boundary,
    parse_part_head,
)
from confide.inference.plan import refuse

__all__ = ["FormEvent", "FormReader", "PartBegin", "PartData", "PartEnd"]

_LINE_END: Final = b"\r\n"
_HEAD_END: Final = b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class PartBegin:
    """A part begins; `filename` is None for a plain field."""

    name: str
    filename: str | None


@dataclass(frozen=True, slots=True)
class PartData:
    """The next bytes of the part's value; never empty."""

    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class PartEnd:
    """The part is whole."""


FormEvent: TypeAlias = "PartBegin | PartData | PartEnd"


class _Where(Enum):
    START = auto()
    HEAD = auto()
    VALUE = auto()
    MARKED = auto()
    AFTER = auto()


class FormReader:
    """Bytes in, events out; `RequestRefused` (`invalid_multipart`) for a body of another form."""

    __slots__ = ("_held", "_mark", "_parts", "_where")

    def __init__(self, content_type: str) -> None:
        self._mark = parse_boundary(content_type)
        self._held = b""
        self._parts = 0
        self._where = _Where.START

    def feed(self, data: bytes) -> list[FormEvent]:
        """Take the next bytes; return what they complete."""
        self._held += data
        events: list[FormEvent] = []
        while self._step(events):
            pass
        return events

    def end(self) -> None:
        """The body has no more bytes: refuse one that is cut."""
        if self._where is not _Where.AFTER or self._held not in {b"", _LINE_END}:
            _bad("it is cut, or something follows the last boundary")

    def _step(self, events: list[FormEvent]) -> bool:
        """Advance by one state, if what is held suffices."""
        match self._where:
            case _Where.START:
                return self._start()
            case _Where.HEAD:
                return self._head(events)
            case _Where.VALUE:
                return self._value(events)
            case _Where.MARKED:
                return self._marked()
            case _Where.AFTER:
                if len(self._held) > len(_LINE_END):
                    _bad("something follows the last boundary")
                return False

    def _start(self) -> bool:
        first = self._mark + _LINE_END
        if not first.startswith(self._held[: len(first)]):
            _bad("it does not begin with its boundary")
        if len(self._held) < len(first):
            return False
        self._held = self._held[len(first) :]
        self._where = _Where.HEAD
        return True

    def _head(self, events: list[FormEvent]) -> bool:
        cut = self._held.find(_HEAD_END, 0, MAX_HEAD_BYTES)
        if cut < 0:
            if len(self._held) >= MAX_HEAD_BYTES:
                _bad("a part has no header, or a long one")
            return False
        if self._mark in self._held[:cut]:
            _bad("a part has no value")
        if self._parts == MAX_PARTS:
            _bad(f"it has more than {MAX_PARTS} parts")
        self._parts += 1
        events.append(PartBegin(*parse_part_head(self._held[:cut])))
        # The line end stays: it may be the one before a boundary.
        self._held = self._held[cut + 2 :]
        self._where = _Where.VALUE
        return True

    def _value(self, events: list[FormEvent]) -> bool:
        # What is held begins with the two bytes before what was not given out yet.
        at = self._held.find(self._mark, 2)
        if at < 0:
            keep = len(self._mark) + 1
            if len(self._held) > 2 + keep:
                events.append(PartData(self._held[2:-keep]))
                self._held = self._held[:2] + self._held[-keep:]
            return False
        # Wherever the boundary stands it must separate, or a lenient reader would see more parts.
        if self._held[at - 2 : at] != _LINE_END:
            _bad("a part does not end with the boundary on a line of its own")
        if at > 4:
            events.append(PartData(self._held[2 : at - 2]))
        elif at < 4:
            _bad("a part has no value")
        events.append(PartEnd())
        self._held = self._held[at + len(self._mark) :]
        self._where = _Where.MARKED
        return True

    def _marked(self) -> bool:
        if len(self._held) < 2:
            return False
        after, self._held = self._held[:2], self._held[2:]
        if after == b"--":
            self._where = _Where.AFTER
        elif after == _LINE_END:
            self._where = _Where.HEAD
        else:
            _bad("a boundary is followed by something else than a line end")
        return True


def _bad(why: str) -> NoReturn:
    refuse("invalid_multipart", f"The multipart body is refused: {why}.")
