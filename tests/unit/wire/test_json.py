"""Hostile JSON: what is refused, and that refusing is cheap."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest

from confide.errors import FormatError, Reason
from confide.wire.json import JsonLimits, JsonValue, Members, b64decode, jcs, parse_json

REASON = Reason.LOG_FORMAT


def parse(raw: bytes, limits: JsonLimits | None = None) -> JsonValue:
    return parse_json(raw, what="document", reason=REASON, limits=limits)


def members(value: JsonValue) -> Members:
    return Members(value, what="document", reason=REASON)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b" ",
        b"{",
        b'{"a":1}x',
        b'{"a":1,"a":1}',
        b'[{"a":{"b":1,"b":2}}]',
        b'{"a":1,"\\u0061":2}',
        b"NaN",
        b"[Infinity]",
        b"-Infinity",
        b"1e400",
        b"-1e400",
        b"9007199254740992",
        b"-9007199254740992",
        b"1" * 5000,
        b"01",
        b"'a'",
        b'"\xff"',
        b'"a\x00b"',
        b"\xef\xbb\xbf{}",
        '{"a":1}'.encode("utf-16"),
        b'"\\ud800"',
        b'["\\udc00\\ud800"]',
        b'{"\\ud800":1}',
        b"[1,]",
        b"// note\n1",
        b"True",
    ],
)
def test_what_is_not_strict_json_is_refused(raw: bytes) -> None:
    with pytest.raises(FormatError) as error:
        parse(raw)
    assert error.value.reason is REASON


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b"9007199254740991", 2**53 - 1),
        (b"-9007199254740991", -(2**53) + 1),
        (b'"\\ud83d\\ude00"', "\U0001f600"),
        (b' { "a" : [ null , true , 1.5 ] } ', {"a": [None, True, 1.5]}),
    ],
)
def test_what_is_strict_json_is_read(raw: bytes, value: JsonValue) -> None:
    assert parse(raw) == value


def test_size_is_capped_before_anything_is_read() -> None:
    assert parse(b'"12345678"', JsonLimits(max_bytes=10)) == "12345678"
    with pytest.raises(FormatError, match="11 bytes"):
        parse(b'"123456789"', JsonLimits(max_bytes=10))


@pytest.mark.parametrize("shape", [b"[%b]", b'{"a":%b}'])
def test_depth_is_capped(shape: bytes) -> None:
    def nested(depth: int) -> bytes:
        raw = b"1"
        for _ in range(depth):
            raw = shape.replace(b"%b", raw)
        return raw

    parse(nested(32))
    with pytest.raises(FormatError, match="deeper"):
        parse(nested(33))
    with pytest.raises(FormatError, match="deeper"):
        parse(b"[" * 1_000_000)


def test_brackets_inside_strings_do_not_count() -> None:
    text = '[[[[{{{{"' * 20
    assert parse(jcs([text, "\\"])) == [text, "\\"]


@pytest.mark.parametrize("tail", [b'\\"', b'"', b"\\", b'"\\'])
def test_a_string_without_end_costs_one_pass(tail: bytes) -> None:
    # Quadratic time would be minutes here; the depth walk runs because of the brackets.
    with pytest.raises(FormatError):
        parse(b"[]" * 40 + b'"' + tail * 1_000_000)


@pytest.mark.parametrize("text", ["QQ==", "", "QUJD"])
def test_base64_is_read(text: str) -> None:
    assert isinstance(b64decode(text, what="x", reason=REASON), bytes)


@pytest.mark.parametrize(
    "text", ["QQ", "QQ=", "QR==", "QQ==\n", " QQ==", "Q-==", "QQ===", "QUJDé", "QQ==QQ=="]
)
def test_base64_that_is_not_canonical_is_refused(text: str) -> None:
    with pytest.raises(FormatError):
        b64decode(text, what="x", reason=REASON)


@pytest.mark.parametrize("value", [[], "a", 1, None, True])
def test_members_are_those_of_an_object(value: JsonValue) -> None:
    with pytest.raises(FormatError):
        members(value)


BAD: list[tuple[str, Any, dict[str, Any]]] = [
    ("text", 1, {}),
    ("text", None, {}),
    ("text", "ab", {"max_chars": 1}),
    ("choice", "c", {"allowed": ("a", "b")}),
    ("choice", ["a"], {"allowed": ("a",)}),
    ("integer", True, {}),
    ("integer", 1.0, {}),
    ("integer", "1", {}),
    ("integer", -1, {}),
    ("integer", 6, {"high": 5}),
    ("integer", 0, {"low": 1}),
    ("number", True, {}),
    ("number", "1", {}),
    ("number", None, {}),
    ("boolean", 1, {}),
    ("boolean", "true", {}),
    ("hexes", "AA", {}),
    ("hexes", "a", {}),
    ("hexes", "aa\n", {}),
    ("hexes", "aa", {"size": 2}),
    ("hexes", 10, {}),
    ("base64", "QQ", {}),
    ("base64", None, {}),
    ("items", {}, {}),
    ("items", [1, 2], {"max_items": 1}),
    ("texts", ["a", 1], {}),
    ("texts", "a", {}),
    ("members", [], {}),
]


@pytest.mark.parametrize(("accessor", "value", "options"), BAD)
def test_a_member_of_another_type_is_refused(
    accessor: str, value: Any, options: dict[str, Any]
) -> None:
    with pytest.raises(FormatError) as error:
        getattr(members({"m": value}), accessor)("m", **options)
    assert error.value.reason is REASON


@pytest.mark.parametrize("accessor", sorted({accessor for accessor, _, _ in BAD} | {"value"}))
def test_a_member_that_is_absent_is_refused(accessor: str) -> None:
    options = {"allowed": ("a",)} if accessor == "choice" else {}
    with pytest.raises(FormatError, match="missing"):
        getattr(members({}), accessor)("m", **options)


def test_members_that_nobody_asked_for_are_refused_without_repeating_them() -> None:
    top = members({"a": 1, "ignore all rules": 2})
    assert top.integer("a") == 1
    with pytest.raises(FormatError) as error:
        top.end()
    assert "ignore" not in str(error.value)


def test_a_number_is_a_double_whole_or_not() -> None:
    top = members({"whole": 2, "part": 0.5})
    found = top.number("whole"), top.number("part")
    assert found == (2.0, 0.5)
    assert {type(each) for each in found} == {float}


def test_a_member_is_read_once() -> None:
    top = members({"a": None})
    assert top.has("a")
    assert top.null("a")
    assert not top.has("a")
    assert not top.null("a")
    top.end()


def test_what_json_cannot_say_is_not_written() -> None:
    with pytest.raises(ValueError, match="canonical"):
        jcs({"a": float("nan")})
    with pytest.raises(ValueError, match="canonical"):
        jcs(2**53)


def test_long_hex_takes_little_more_memory_than_it_has() -> None:
    text = "ab" * 500_000
    tracemalloc.start()
    try:
        assert len(Members({"a": text}, what="x", reason=Reason.LOG_FORMAT).hexes("a")) == 500_000
        assert tracemalloc.get_traced_memory()[1] < 2 * len(text)
    finally:
        tracemalloc.stop()
