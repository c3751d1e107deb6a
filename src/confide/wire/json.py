"""The one place where hostile JSON is read, and the one place where canonical JSON is written.

Reading: UTF-8 only, no duplicate keys, no NaN or Infinity, integers within ±(2**53-1), size and
depth capped. Typed access goes through `Members`, which refuses unknown members: a document
means exactly what its reader understood. Writing: RFC 8785 (JCS) through the `rfc8785` package.

What is not done here: no schema, no policy; a well-formed document may still lie.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NoReturn, TypeAlias, TypeVar

import rfc8785

from confide.errors import FormatError, Reason

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = [
    "JsonLimits",
    "JsonValue",
    "Members",
    "b64decode",
    "b64encode",
    "is_hex",
    "is_plain",
    "jcs",
    "limit_depth",
    "parse_json",
]

Text = TypeVar("Text", bound=str)
JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"

# From: RFC 8785 §3.2.2.3 (I-JSON, RFC 7493 §2.2): integers outside do not survive a double.
_MAX_SAFE_INTEGER = 2**53 - 1
_CLAUSE = "RFC 7493 §2"
# Linear on any input: possessive, and a string that never ends goes to the end of the text.
_STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_NO_MARKS = bytes(byte for byte in range(256) if byte not in b'"[]{}')
# Opening brackets become 1, closing ones 0.
_DEPTHS = bytes(byte in b"[{" for byte in range(256))
# An escape that could be half of a surrogate pair: only then strings are looked at one by one.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_CONTAINERS = (dict, list, tuple)
# One class repeated: a repeated pair keeps a mark for each, sixty times the memory of the text.
_HEX = re.compile(r"[0-9a-f]*\Z")


@dataclass(frozen=True, slots=True)
class JsonLimits:
    """Caps on hostile JSON. A node evidence bundle with eight GPUs is about 1 MiB."""

    max_bytes: int = 16 * 1024 * 1024
    max_depth: int = 32


def _reject(what: str, *, offset: int = -1, reason: Reason = Reason.RECEIPT_FORMAT) -> NoReturn:
    raise FormatError(what, reason=reason, clause=_CLAUSE, offset=offset)


@dataclass(frozen=True, slots=True)
class _Strict:
    """What the standard parser lets through and we do not."""

    what: str
    reason: Reason

    def pairs(self, items: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
        found = dict(items)
        if len(found) != len(items):
            _reject(f"{self.what}: an object has a member twice", reason=self.reason)
        return found

    def constant(self, _name: str) -> NoReturn:
        _reject(f"{self.what}: NaN or Infinity", reason=self.reason)

    def integer(self, text: str) -> int:
        # Length first: int() on a long digit string is quadratic and capped by the interpreter.
        if len(text) > 17 or abs(int(text)) > _MAX_SAFE_INTEGER:
            _reject(f"{self.what}: an integer outside ±(2^53-1)", reason=self.reason)
        return int(text)

    def number(self, text: str) -> float:
        if math.isinf(value := float(text)):
            _reject(f"{self.what}: a number too large for a double", reason=self.reason)
        return value


@lru_cache(maxsize=128)
def _decoder(what: str, reason: Reason) -> json.JSONDecoder:
    """Return the strict decoder of one kind of document; making it costs as much as using it."""
    strict = _Strict(what, reason)
    return json.JSONDecoder(
        object_pairs_hook=strict.pairs,
        parse_constant=strict.constant,
        parse_int=strict.integer,
        parse_float=strict.number,
    )


def parse_json(
    raw: bytes, *, what: str, reason: Reason, limits: JsonLimits | None = None
) -> JsonValue:
    """
    Parse `raw` strictly.

    `what` names the document in errors, `reason` is the closed identifier to refuse with.
    Raises `FormatError`.
    """
    bounds = limits or JsonLimits()
    if len(raw) > bounds.max_bytes:
        _reject(f"{what}: {len(raw)} bytes, at most {bounds.max_bytes}", reason=reason)
    limit_depth(raw, bounds.max_depth, what=what, reason=reason)

    try:
        value: JsonValue = _decoder(what, reason).decode(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise FormatError(
            f"{what}: not UTF-8", reason=reason, clause=_CLAUSE, offset=error.start
        ) from error
    except json.JSONDecodeError as error:
        raise FormatError(
            f"{what}: not JSON", reason=reason, clause="RFC 8259 §2", offset=error.pos
        ) from error
    if _SURROGATE.search(raw):
        _refuse_lone_surrogates(value, what=what, reason=reason)
    return value


def _refuse_lone_surrogates(value: JsonValue, *, what: str, reason: Reason) -> None:
    # From: RFC 7493 §2.1: half a pair is no Unicode text and has no UTF-8 bytes to hash.
    if isinstance(value, str):
        if any("\ud800" <= char <= "\udfff" for char in value):
            _reject(f"{what}: half a surrogate pair", reason=reason)
    elif isinstance(value, list):
        for item in value:
            _refuse_lone_surrogates(item, what=what, reason=reason)
    elif isinstance(value, dict):
        for name, item in value.items():
            _refuse_lone_surrogates(name, what=what, reason=reason)
            _refuse_lone_surrogates(item, what=what, reason=reason)


def _brackets(raw: bytes) -> bytes:
    """Return the brackets of `raw` that stand outside strings, in order."""
    # An escaped quote ends no string. Backslashes stand in strings alone, or the text is no JSON
    # from there on.
    raw = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    # The other quotes come in pairs. A pair with nothing but ordinary characters between them
    # vanishes; if one held a bracket, its first quote stays, and the slow way is taken.
    marks = raw.translate(None, _NO_MARKS).replace(b'""', b"")
    if b'"' not in marks:
        return marks
    return _STRINGS.sub(b"", raw).translate(None, _NO_BRACKETS)


def limit_depth(raw: bytes, max_depth: int, *, what: str, reason: Reason) -> None:
    """Refuse what is nested deeper than `max_depth`. Raises `FormatError`."""
    # Counted before parsing: the recursive parser must never see a bomb. Strings are taken out
    # first, for they may hold brackets; most documents have too few to need even that.
    # Where marks are few, leaving them out takes a third of the time of `count`.
    without = len(raw.replace(b"[", b"")) + len(raw.replace(b"{", b""))
    if 2 * len(raw) - without <= max_depth:
        return
    depth = 0
    for bracket in _brackets(raw).translate(_DEPTHS):
        depth += 1 if bracket else -1
        if depth > max_depth:
            _reject(f"{what}: nested deeper than {max_depth}", reason=reason)


# Equal to RFC 8785 for what `is_plain` lets through; tests/properties/test_jcs_properties.py
# compares it with the `rfc8785` package.
_write_plain = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")
).encode


def is_plain(value: object) -> bool:
    """
    Whether `value` holds nothing on which the standard writer and RFC 8785 could differ.

    That is objects with ASCII names (RFC 8785 sorts UTF-16 units, Python code points), arrays,
    strings, integers that survive a double, true, false and null, of exactly these types.
    """
    items: Iterable[object]
    if type(value) is dict:
        for name in value:
            if type(name) is not str or not name.isascii():
                return False
        items = value.values()
    elif type(value) is list or type(value) is tuple:
        items = value
    else:
        items = (value,)
    for item in items:
        kind = type(item)
        if kind is str or kind is bool or item is None:
            continue
        if kind is int:
            if not -_MAX_SAFE_INTEGER <= item <= _MAX_SAFE_INTEGER:
                return False
        elif kind not in _CONTAINERS or not is_plain(item):
            return False
    return True


def jcs(value: JsonValue | Mapping[str, object] | Sequence[object]) -> bytes:
    """Return the RFC 8785 bytes of `value`; `ValueError` for what JSON cannot say."""
    if is_plain(value):
        # Half a surrogate pair has no UTF-8: the package says so in its own way.
        with suppress(UnicodeEncodeError):
            return _write_plain(value).encode()
    try:
        return rfc8785.dumps(value)  # type: ignore[arg-type]
    except (rfc8785.CanonicalizationError, UnicodeEncodeError) as error:
        raise ValueError("not representable in canonical JSON") from error


def is_hex(text: str, size: int) -> bool:
    """Whether `text` is `size` bytes in lower-case hex."""
    return len(text) == 2 * size and _HEX.match(text) is not None


def b64encode(raw: bytes) -> str:
    """Return standard base64 with padding (RFC 4648 §4)."""
    return base64.b64encode(raw).decode("ascii")


def b64decode(text: str, *, what: str, reason: Reason) -> bytes:
    """Decode standard base64 strictly: alphabet, padding and zero trailing bits (RFC 4648 §3.5)."""
    try:
        raw = base64.b64decode(text.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise FormatError(f"{what}: not base64", reason=reason, clause="RFC 4648 §4") from error
    if b64encode(raw) != text:
        raise FormatError(f"{what}: base64 is not canonical", reason=reason, clause="RFC 4648 §3.5")
    return raw


class Members:
    """
    Typed, exhaustive access to one JSON object.

    Every accessor consumes a member; `end()` refuses whatever nobody asked for. A missing or
    mistyped member is a `FormatError` with the reason given here, and with the `clause` that says
    what the document has to hold.
    """

    __slots__ = ("_clause", "_left", "_reason", "_what")

    def __init__(
        self, value: JsonValue, *, what: str, reason: Reason, clause: str = "RFC 8259 §4"
    ) -> None:
        self._what = what
        self._reason = reason
        self._clause = clause
        if not isinstance(value, dict):
            self.refuse("an object was expected")
        self._left: dict[str, JsonValue] = dict(value)

    def refuse(self, why: str) -> NoReturn:
        """Raise the `FormatError` of this document, for a rule the caller adds."""
        raise FormatError(f"{self._what}: {why}", reason=self._reason, clause=self._clause)

    def has(self, name: str) -> bool:
        """Whether `name` is present and not yet consumed."""
        return name in self._left

    def null(self, name: str) -> bool:
        """Whether member `name` is null; consumes it only then."""
        if name in self._left and self._left[name] is None:
            del self._left[name]
            return True
        return False

    def value(self, name: str) -> JsonValue:
        """Return member `name` of any type."""
        if name not in self._left:
            self.refuse(f"{name} is missing")
        return self._left.pop(name)

    def text(self, name: str, *, max_chars: int = 4096) -> str:
        """Return a string of at most `max_chars` characters."""
        value = self.value(name)
        if not isinstance(value, str) or len(value) > max_chars:
            self.refuse(f"{name} is not a string of at most {max_chars} characters")
        return value

    def choice(self, name: str, allowed: Sequence[Text]) -> Text:
        """Return the string out of `allowed`, with the type of `allowed` (a Literal, an enum)."""
        value = self.text(name)
        found = next((option for option in allowed if option == value), None)
        if found is None:
            self.refuse(f"{name} is not one of {', '.join(allowed)}")
        return found

    def integer(self, name: str, *, low: int = 0, high: int = _MAX_SAFE_INTEGER) -> int:
        """Return an integer in [`low`, `high`]; booleans are not integers."""
        value = self.value(name)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            self.refuse(f"{name} is not an integer from {low} to {high}")
        return value

    def number(self, name: str) -> float:
        """Return a number, whole or not, as a double; booleans are none."""
        value = self.value(name)
        if not isinstance(value, int | float) or isinstance(value, bool):
            self.refuse(f"{name} is not a number")
        return float(value)

    def boolean(self, name: str) -> bool:
        """Return a boolean."""
        value = self.value(name)
        if not isinstance(value, bool):
            self.refuse(f"{name} is not true or false")
        return value

    def hexes(self, name: str, size: int | None = None) -> bytes:
        """Return lower-case hex of exactly `size` bytes (any size when None)."""
        value = self.value(name)
        if not isinstance(value, str) or len(value) % 2 or not _HEX.match(value):
            self.refuse(f"{name} is not lower-case hex")
        if size is not None and len(value) != 2 * size:
            self.refuse(f"{name} is not {size} bytes of hex")
        return bytes.fromhex(value)

    def base64(self, name: str) -> bytes:
        """Return strictly decoded base64."""
        return b64decode(
            self.text(name, max_chars=1 << 30), what=f"{self._what}: {name}", reason=self._reason
        )

    def items(self, name: str, *, max_items: int = 4096) -> list[JsonValue]:
        """Return an array of at most `max_items` values."""
        value = self.value(name)
        if not isinstance(value, list) or len(value) > max_items:
            self.refuse(f"{name} is not an array of at most {max_items} values")
        return value

    def texts(self, name: str, *, max_items: int = 256) -> tuple[str, ...]:
        """Return an array of strings."""
        found: list[str] = []
        for value in self.items(name, max_items=max_items):
            if not isinstance(value, str):
                self.refuse(f"{name} holds something that is not a string")
            found.append(value)
        return tuple(found)

    def members(self, name: str) -> Members:
        """Return the object `name` as its own `Members`."""
        what = f"{self._what}: {name}"
        return Members(self.value(name), what=what, reason=self._reason, clause=self._clause)

    def end(self) -> None:
        """Refuse members that nobody consumed."""
        if self._left:
            # Only a count: the names are the peer's text.
            self.refuse(f"{len(self._left)} unknown member(s)")
