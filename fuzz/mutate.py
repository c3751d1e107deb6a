"""Structure-aware mutation: bytes as bytes, JSON as values. Deterministic for a `Random`."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from random import Random

# A mutated input is at most this much longer than its seed.
_MAX_GROWTH = 32 * 1024
_BYTES = (0, 1, 0x0A, 0x20, 0x22, 0x7F, 0x80, 0xFF)
_NUMBERS = (0, 1, 2, 3, 16, 63, 64, 127, 128, 255, 256, 16384, 65535, 65536, 2**24, 2**31, 2**32)
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 255, 256, 65536, 2**31, 2**53 - 1, 2**53, 10**40, 0.5, 1e308),
    *("", "0", "00", "zz", "A" * 64, "0" * 64, "\x00", "\ud800", "é", "9999-12-31T23:59:59Z"),
    *("0001-01-01T00:00:00Z", "=", "AA==", [], {}, [[]], [None], {"": None}),
)


class Mutator:
    """
    Makes inputs out of `seeds`.

    `tokens` are pieces of the format that mutation inserts as they are.
    """

    def __init__(self, random: Random, tokens: Sequence[bytes]) -> None:
        self._random = random
        self._tokens = tokens

    def mutate(self, seeds: Sequence[bytes], *, json_values: bool) -> bytes:
        """Return one input: a seed with one to four mutations, a few of them wholly without."""
        random = self._random
        data = random.choice(seeds)
        limit = len(data) + _MAX_GROWTH
        for _ in range(random.choice((0, 1, 1, 1, 2, 2, 3, 4))):
            if json_values and random.random() < 0.8:
                data = self._json(data, random.choice(seeds))
            else:
                data = random.choice(self._edits())(data, random.choice(seeds))
        return data[:limit]

    def _edits(self) -> tuple[Callable[[bytes, bytes], bytes], ...]:
        return (
            self._flip,
            self._set_byte,
            self._truncate,
            self._delete,
            self._duplicate,
            self._repeat,
            self._splice,
            self._integer,
            self._token,
        )

    def _span(self, data: bytes, most: int = 64) -> tuple[int, int]:
        start = self._random.randrange(len(data) + 1)
        return start, min(len(data), start + self._random.randrange(most + 1))

    def _flip(self, data: bytes, _other: bytes) -> bytes:
        if not data:
            return b"\0"
        at = self._random.randrange(len(data))
        return data[:at] + bytes([data[at] ^ (1 << self._random.randrange(8))]) + data[at + 1 :]

    def _set_byte(self, data: bytes, _other: bytes) -> bytes:
        start, _ = self._span(data)
        return data[:start] + bytes([self._random.choice(_BYTES)]) + data[start + 1 :]

    def _truncate(self, data: bytes, _other: bytes) -> bytes:
        return data[: self._random.randrange(len(data) + 1)]

    def _delete(self, data: bytes, _other: bytes) -> bytes:
        start, end = self._span(data)
        return data[:start] + data[end:]

    def _duplicate(self, data: bytes, _other: bytes) -> bytes:
        start, end = self._span(data, 512)
        return data[:end] + data[start:end] + data[end:]

    def _repeat(self, data: bytes, _other: bytes) -> bytes:
        start, end = self._span(data, 4)
        times = self._random.choice((2, 16, 40, 256, 4096))
        return data[:start] + data[start:end] * times + data[end:]

    def _splice(self, data: bytes, other: bytes) -> bytes:
        start, _ = self._span(data)
        at, end = self._span(other, len(other))
        return data[:start] + other[at:end] + (data[start:] if self._random.random() < 0.5 else b"")

    def _integer(self, data: bytes, _other: bytes) -> bytes:
        size = self._random.choice((1, 2, 3, 4, 8))
        start, _ = self._span(data)
        order: Literal["little", "big"] = "little" if self._random.random() < 0.5 else "big"
        old = int.from_bytes(data[start : start + size], order)
        new = self._random.choice((*_NUMBERS, old - 1, old + 1, -1)) % (1 << (8 * size))
        return data[:start] + new.to_bytes(size, order) + data[start + size :]

    def _token(self, data: bytes, _other: bytes) -> bytes:
        start, end = self._span(data, 8)
        token = self._random.choice(self._tokens) if self._tokens else b"\0"
        return data[:start] + token + data[self._random.choice((start, end)) :]

    def _json(self, data: bytes, other: bytes) -> bytes:
        try:
            value, donor = json.loads(data), json.loads(other)
        except (ValueError, RecursionError):
            return self._flip(data, other)
        places = list(_places(value))
        if not places:
            return json.dumps(self._random.choice(_VALUES)).encode()
        holder, key = self._random.choice(places)
        self._edit(holder, key, list(_places(donor)))
        # Canonical spelling: most of our formats refuse every other before looking further.
        return json.dumps(
            value, separators=(",", ":"), sort_keys=True, ensure_ascii=self._random.random() < 0.1
        ).encode("utf-8", "surrogatepass")

    def _edit(self, holder: Any, key: Any, donors: list[tuple[Any, Any]]) -> None:
        match self._random.randrange(6):
            case 0:
                del holder[key]
            case 1 if donors:
                other, name = self._random.choice(donors)
                holder[key] = other[name]
            case 2 if isinstance(holder, dict):
                holder[self._random.choice(("x", "", "type", f"{key}_"))] = holder[key]
            case 2:
                holder.insert(key, holder[key])
            case 3:
                holder[key] = self._random.choice(_VALUES)
            case _:
                holder[key] = self._leaf(holder[key])

    def _leaf(self, value: Any) -> Any:
        if isinstance(value, bool) or value is None:
            return not value
        if isinstance(value, int):
            return self._random.choice((*_NUMBERS, value - 1, value + 1, -value))
        if isinstance(value, str):
            if len(value) >= 64 and self._random.random() < 0.7 and (raw := _from_base64(value)):
                edit = self._random.choice(self._edits())
                return base64.b64encode(edit(raw, raw)).decode("ascii")
            edited = self._random.choice(self._edits())(
                value.encode("utf-8", "surrogatepass"), b"0123456789abcdef"
            )
            return edited.decode("utf-8", "replace")
        return self._random.choice(_VALUES)


def _from_base64(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return None


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return every (holder, key) below `value`, without recursion."""
    found: list[tuple[Any, Any]] = []
    left = [value]
    while left:
        holder = left.pop()
        if isinstance(holder, dict):
            keys: list[Any] = list(holder)
        elif isinstance(holder, list):
            keys = list(range(len(holder)))
        else:
            continue
        found += [(holder, key) for key in keys]
        left += [holder[key] for key in keys]
    return found
