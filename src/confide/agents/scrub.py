"""Secrets taken out of what leaves a run by accident. Pure.

Clause: docs/protocols/state.md 2.4. A net for accidents: a value is found as it is and in the
spellings that software makes without meaning to. An agent that means to can write it in another
way, and values shorter than `MIN_BYTES` are not looked for.

Every search is `bytes.find`, which is linear in the text for any needle, so that a hostile text
takes no longer than an honest one.
"""

from __future__ import annotations

import base64
import heapq
import json
import urllib.parse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["MIN_BYTES", "ScrubStream", "Scrubbed", "Scrubber", "spellings"]

MIN_BYTES: Final = 8
# What is gathered before it is searched, at least: a search costs a little before it begins.
_WINDOW_BYTES: Final = 256 * 1024
# From: RFC 3986 §2.2, §2.3, and what JavaScript's encodeURIComponent and encodeURI leave alone.
_LEFT_ALONE: Final = ("", "/", "!*'()", ";,/?:@&=+$#!*'()")


def spellings(value: bytes) -> frozenset[bytes]:
    """
    Return the forms in which `value` is looked for.

    As it is; base64 and base64url at each of the three alignments; hex in both cases; inside a
    JSON string; percent-encoded.
    """
    found = {value, value.hex().encode(), value.hex().upper().encode()}
    found.update(_base64(value))
    found.update(_json(value))
    found.update(_percent(value))
    return frozenset(found)


def _base64(value: bytes) -> Iterator[bytes]:
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        whole = encode(value)
        yield from (whole, whole.rstrip(b"="))
        for before in range(3):
            # Characters that hold bits of a neighbour are left out at both ends.
            start = -(-8 * before // 6)
            end = 8 * (before + len(value)) // 6
            yield encode(bytes(before) + value)[start:end]


def _json(value: bytes) -> Iterator[bytes]:
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        return
    for ascii_only in (True, False):
        written = json.dumps(text, ensure_ascii=ascii_only)[1:-1]
        # Some writers escape the slash, some what HTML would read as markup.
        markup = written.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
        for form in (written, written.replace("/", "\\/"), markup):
            yield form.encode()


def _percent(value: bytes) -> Iterator[bytes]:
    yield b"".join(b"%%%02X" % byte for byte in value)
    yield b"".join(b"%%%02x" % byte for byte in value)
    for kept in _LEFT_ALONE:
        form = urllib.parse.quote_from_bytes(value, safe=kept)
        low = "%".join(part[:2].lower() + part[2:] for part in f"00{form}".split("%"))[2:]
        for spelt in (form, low):
            yield from (spelt.encode(), spelt.replace("%20", "+").encode())


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """What is left, and how many places were changed."""

    data: bytes
    count: int


class Scrubber:
    """Looks for the values of one run, by name. Not printable."""

    __slots__ = ("forms", "longest", "window")

    def __init__(self, values: Mapping[str, bytes], *, window_bytes: int = _WINDOW_BYTES) -> None:
        """
        Take `values` by the name that stands in their place; short ones are left out.

        `window_bytes`: so much new text is gathered, at least, before it is searched.
        """
        forms: dict[bytes, bytes] = {}
        for name, value in values.items():
            if len(value) >= MIN_BYTES:
                for form in spellings(value):
                    forms.setdefault(form, f"[secret {name}]".encode())
        # Longest first: where two begin at one place, the first of them is taken.
        self.forms = tuple(sorted(forms.items(), key=lambda item: (-len(item[0]), item[0])))
        self.longest = max(map(len, forms), default=0)
        # Each byte is then searched twice at most.
        self.window = self.longest + max(self.longest, window_bytes)

    def stream(self) -> ScrubStream:
        """Return what scrubs one text that comes in pieces."""
        return ScrubStream(self)

    def scrub(self, data: bytes, *, cut: bool = False) -> Scrubbed:
        """Return all of `data`, scrubbed; `cut` as in `ScrubStream.finish`."""
        stream = self.stream()
        whole = stream.feed(data) + stream.finish(cut=cut)
        return Scrubbed(whole, stream.count)


class ScrubStream:
    """One text, piece by piece; what comes out does not depend on how it was cut into pieces."""

    __slots__ = ("_held", "_scrubber", "count")

    def __init__(self, scrubber: Scrubber) -> None:
        self._scrubber = scrubber
        self._held = bytearray()
        self.count = 0

    def feed(self, data: bytes) -> bytes:
        """Take the next piece; return what is decided."""
        self._held += data
        if len(self._held) < self._scrubber.window:
            return b""
        # A value may have begun in what comes after, and end in the next piece.
        return self._advance(len(self._held) - self._scrubber.longest + 1)

    def finish(self, *, cut: bool = False) -> bytes:
        """Return the rest. `cut`: the text goes on unseen, so no beginning of a value is left."""
        rest = self._advance(len(self._held))
        return rest[: self._first_beginning(rest)] if cut else rest

    def _advance(self, decided: int) -> bytes:
        """Scrub what begins before `decided`, and forget it."""
        data = self._held
        found = [
            (at, order)
            for order, (form, _) in enumerate(self._scrubber.forms)
            if (at := data.find(form)) >= 0
        ]
        heapq.heapify(found)
        pieces: list[bytes] = []
        done = 0
        while found and found[0][0] < decided:
            at, order = found[0]
            form, name = self._scrubber.forms[order]
            if at >= done:
                pieces += (bytes(data[done:at]), name)
                done = at + len(form)
                self.count += 1
            if (at := data.find(form, done)) >= 0:
                heapq.heapreplace(found, (at, order))
            else:
                heapq.heappop(found)
        end = max(done, decided)
        pieces.append(bytes(data[done:end]))
        del data[:end]
        return b"".join(pieces)

    def _first_beginning(self, rest: bytes) -> int:
        # Any `MIN_BYTES` that could begin a value are taken for one: rather too much is left out.
        first = len(rest)
        for form, _ in self._scrubber.forms:
            at = rest.find(form[:MIN_BYTES], max(0, len(rest) - len(form) + 1))
            if at >= 0:
                first = min(first, at)
        return first
