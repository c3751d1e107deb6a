"""Strict JSON and its RFC 8785 form in one reading, for documents that come by the million.

Most documents hold nothing on which a shorter way could differ from `parse_json` and `jcs`. What
holds more goes the long way, and so does whatever is refused: a verdict and its words have one
source. tests/properties/test_json_canonical_properties.py compares both ways.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from json.encoder import c_make_encoder, encode_basestring  # type: ignore[attr-defined]
from typing import TYPE_CHECKING, Final, NoReturn, TypeAlias

from confide.wire.json import JsonLimits, is_plain, jcs, limit_depth, parse_json

if TYPE_CHECKING:
    from confide.errors import Reason
    from confide.wire.json import JsonValue

__all__ = ["Quote", "canonical_json", "read_plain"]

Quote: TypeAlias = Callable[[str], str]

_BACKSLASH: Final = 0x5C
# White space of JSON (RFC 8259 §2), which is less than that of Python.
_WHITE: Final = " \t\n\r"
# The canonical form may be longer: 1e20 has 21 digits there.
_LONGER: Final = 6


def canonical_json(
    raw: bytes,
    plain: tuple[JsonValue, Quote] | None,
    *,
    what: str,
    reason: Reason,
    limits: JsonLimits,
) -> tuple[JsonValue, bytes]:
    """
    Parse `raw` strictly; return what it says when its RFC 8785 form is read, and that form.

    `plain` is what `read_plain` returned for `raw`. The value is that of the form but for the order
    of members, which may be that of `raw`. Raises `FormatError`, also for what is a number in `raw`
    and too large an integer in the form.
    """
    if plain is not None and is_plain(plain[0]):
        value, quote = plain
        write = _write_escaped if quote is encode_basestring else _write_unescaped
        # Half a surrogate pair has no UTF-8: the long way says so.
        with suppress(UnicodeEncodeError):
            return value, "".join(write(value, 0)).encode()
    record = jcs(parse_json(raw, what=what, reason=reason, limits=limits))
    longer = JsonLimits(_LONGER * limits.max_bytes, limits.max_depth)
    return parse_json(record, what=what, reason=reason, limits=longer), record


def read_plain(
    raw: bytes, *, what: str, reason: Reason, limits: JsonLimits
) -> tuple[JsonValue, Quote] | None:
    """
    Return what `raw` says, and what writes its texts as RFC 8785 has them; None: the long way.

    Of the value, names alone may be other than `is_plain` wants them, and texts may hold half of a
    surrogate pair. None says nothing about `raw`. Raises `FormatError` where it is nested too deep.
    """
    if len(raw) > limits.max_bytes:
        return None
    limit_depth(raw, limits.max_depth, what=what, reason=reason)
    try:
        text = raw.decode().strip(_WHITE)
        value, end = _read(text)
    except ValueError:
        return None
    if end != len(text):
        return None
    return value, encode_basestring if _BACKSLASH in raw else _quote_unescaped


def _once(items: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    found = dict(items)
    if len(found) != len(items):
        raise ValueError("a member twice")
    return found


def _refuse(_text: str) -> NoReturn:
    raise ValueError("a number that may be written otherwise")


def _integer(text: str) -> int:
    # Length first: int() on a long digit string is quadratic.
    if len(text) > 17:
        raise ValueError("a number too large")
    return int(text)


_read: Final = json.JSONDecoder(
    object_pairs_hook=_once, parse_constant=_refuse, parse_float=_refuse, parse_int=_integer
).raw_decode


def _writer(quote: Quote) -> Callable[[JsonValue, int], tuple[str, ...]]:
    # What `json.JSONEncoder` makes anew for every document, made once: sorted, without white space.
    return c_make_encoder(None, None, quote, None, ":", ",", True, False, False)  # type: ignore[no-any-return]  # noqa: FBT003


_write_escaped: Final = _writer(encode_basestring)
# Without a backslash there was no escape: each text is written as it was read.
_quote_unescaped: Final[Quote] = '"%s"'.__mod__
_write_unescaped: Final = _writer(_quote_unescaped)
