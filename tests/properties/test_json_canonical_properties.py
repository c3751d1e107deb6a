"""`canonical_json` says what strict parsing, RFC 8785 and parsing again say: of every text.

docs/protocols/dataset.md 1.2, 2.1. The long way is spelt out here; verdict, words and place of each
refusal are compared as well as values, and numbers by how they are written (1 is not 1.0).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from confide.errors import FormatError, Reason
from confide.wire.json import JsonLimits, jcs, parse_json
from confide.wire.json_canonical import canonical_json, read_plain

if TYPE_CHECKING:
    from collections.abc import Callable

    from confide.wire.json import JsonValue

Read: TypeAlias = "Callable[[bytes], tuple[JsonValue, bytes]]"

_LIMITS = JsonLimits(max_bytes=300, max_depth=6)
_LONGER = JsonLimits(max_bytes=1800, max_depth=6)


def _short_way(raw: bytes) -> tuple[JsonValue, bytes]:
    plain = read_plain(raw, what="row", reason=Reason.ROW_FORMAT, limits=_LIMITS)
    return canonical_json(raw, plain, what="row", reason=Reason.ROW_FORMAT, limits=_LIMITS)


def _long_way(raw: bytes) -> tuple[JsonValue, bytes]:
    record = jcs(parse_json(raw, what="row", reason=Reason.ROW_FORMAT, limits=_LIMITS))
    return parse_json(record, what="row", reason=Reason.ROW_FORMAT, limits=_LONGER), record


def _verdict(read: Read, raw: bytes) -> object:
    try:
        value, record = read(raw)
    except FormatError as error:
        return error.what, error.reason, error.clause, error.offset
    # As text: 1, 1.0 and true are equal in Python. The order of members may be that of `raw`.
    return json.dumps(value, sort_keys=True), record


def _require_one_verdict(raw: bytes) -> None:
    assert _verdict(_short_way, raw) == _verdict(_long_way, raw)


# Pieces of JSON, right and wrong: what one of two readers could take for something else.
_TOKENS = st.sampled_from(
    [
        *("{", "}", "[", "]", ",", ":", '"', "\\", " ", "\t", "\r", "\n", "\v", "\x85", "\ufeff"),
        *("0", "-0", "00", "1", "1.0", "1e2", "1e400", "-1E-3", "NaN", "-Infinity", "+1", ".5"),
        *("9007199254740991", "9007199254740992", "-9007199254740992", "1e20", "9" * 40),
        *("true", "false", "null", "True", "nul"),
        *('"a"', '"\\u0061"', '"b":1', '"b":', '"":', '"\\u0000"', '"\0"', '"\x1f"', '"\x7f"'),
        *('"\\ud83d\\ude00"', '"\\ud83d"', '"\\ude00"', '"\\uD800\\u0041"', '"é"', '"\\u00e9"'),
        *('"\\/"', '"\\""', '"\\\\"', '"\\x"', '"\\u12"', '"[{"', '"\u2028"', '"\ufffe":1'),
        *('{"a":1,"a":2}', '{"a":1,"\\u0061":2}', '{"\U00010000":1,"\uffff":2}', "[[[[[", "]]]]]"),
    ]
)
_NAMES = st.sampled_from(["a", "b", "B", "role", "", "é", "\uffff", "\U00010000"]) | st.text()
_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**54), 2**54)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_NAMES, inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(
    _VALUES, st.booleans(), st.sampled_from([None, 0, 1]), st.sampled_from(["", " ", "\r", "\f"])
)
def test_a_value_as_anybody_would_write_it(
    value: Any, ascii_only: bool, indent: int | None, after: str
) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent) + after
    _require_one_verdict(text.encode("utf-8", "surrogatepass"))


@settings(deadline=None)
@given(st.lists(_TOKENS, max_size=12).map("".join))
@example('{"a":1,"b":{"c":[],"c":[]}}')
@example('{"a":1,"\\u0061":2}')
@example('{"\U00010000":1,"\uffff":2}')
@example('{"\\ud800\\udc00":1,"\\uffff":2}')
@example("[1,1.0,-0,1e20]")
@example('["\\ud800"]')
@example("[[[[[[[]]]]]]]")
@example("[" * 150 + "]" * 150)
@example('{"a":' + "9" * 200 + "}")
@example('"\\u2028\\/"')
@example("[]\x0b")
@example("")
def test_pieces_in_any_order(text: str) -> None:
    _require_one_verdict(text.encode("utf-8", "surrogatepass"))


@settings(deadline=None)
@given(_VALUES, st.data())
def test_a_text_with_a_byte_changed_put_in_or_taken_out(value: Any, data: st.DataObject) -> None:
    raw = json.dumps(value, ensure_ascii=data.draw(st.booleans())).encode()
    at = data.draw(st.integers(0, len(raw)))
    put = data.draw(st.binary(max_size=2) | _TOKENS.map(str.encode))
    _require_one_verdict(raw[:at] + put + raw[at + data.draw(st.integers(0, 2)) :])


@settings(deadline=None)
@given(st.binary(max_size=40))
@example(b'"\xed\xa0\x80"')
@example(b'"\xc0\x80"')
@example(b'["\xff"]')
@example(b"\xff\xfe[\0]\0")
@example(b"\0[]")
def test_bytes_of_any_kind(raw: bytes) -> None:
    _require_one_verdict(raw)


@pytest.mark.parametrize("size", [299, 300, 301])
def test_a_text_about_as_long_as_is_allowed(size: int) -> None:
    _require_one_verdict(b'"' + b"x" * (size - 2) + b'"')


def test_the_order_of_members_does_not_show_in_the_form() -> None:
    value, record = _short_way(b' {"role": "user", "content": "a\\nb", "n": 1}\r')
    assert record == rb'{"content":"a\nb","n":1,"role":"user"}'
    assert value == {"role": "user", "content": "a\nb", "n": 1}
