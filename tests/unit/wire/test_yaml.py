"""YAML as JSON values: bounded, and nothing in a document selects a type."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from confide.errors import ConfigurationError, FormatError, Reason
from confide.wire.yaml import parse_yaml

if TYPE_CHECKING:
    from confide.wire.json import JsonValue

REASON = Reason.SERVICE_FORMAT


def parse(text: str | bytes) -> JsonValue:
    raw = text if isinstance(text, bytes) else text.encode()
    return parse_yaml(raw, what="document", reason=REASON)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 1", {"a": 1}),
        ("80: x", {"80": "x"}),
        ("a: [1, -2, 0x1F, 0o17, 1.5, .5, 1e3]", {"a": [1, -2, 31, 15, 1.5, 0.5, 1000.0]}),
        ("a: [true, False, null, ~, ]", {"a": [True, False, None, None]}),
        ("a: [yes, no, on, off, y]", {"a": ["yes", "no", "on", "off", "y"]}),
        ("a: ['true', \"1\", !!str 2, ! 3]", {"a": ["true", "1", "2", "3"]}),
        ("a: [2026-11-22, 12:30, 0755, .inf, .nan]",
         {"a": ["2026-11-22", "12:30", 755, ".inf", ".nan"]}),
        ("a: 99999999999999999999", {"a": "99999999999999999999"}),
        ("a: |\n  b: c\n", {"a": "b: c\n"}),
        ("- a\n- b: c\n", ["a", {"b": "c"}]),
        ("a: &x {b: 1}\nc: *x", {"a": {"b": 1}, "c": {"b": 1}}),
        ("x: &x {a: 1, b: 2}\ny: {<<: *x, b: 3}", {"x": {"a": 1, "b": 2}, "y": {"a": 1, "b": 3}}),
        ("<<: [{a: 1}, {a: 2, b: 2}]\nc: 3", {"a": 1, "b": 2, "c": 3}),
        ("'<<': 1", {"<<": 1}),
        ("text", "text"),
        ("---\na: 1\n...\n", {"a": 1}),
    ],
)  # fmt: skip
def test_what_is_written_is_what_is_read(text: str, value: JsonValue) -> None:
    assert parse(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing",
        "a: 1\na: 2",
        "a: 1\n'a': 2",
        "a: 1\n---\nb: 2",
        "? [a]\n: b",
        "? {a: b}\n: c",
        "~: a",
        "a: *unknown",
        "a: &x [*x]",
        "a: &x {b: *x}",
        "<<: 1",
        "<<: [1]",
        "<<: {a: 1}\n<<: {b: 2}",
        "a: !!python/object/apply:os.system [id]",
        "a: !!python/name:os.system",
        "a: !reset null",
        "a: !!binary AAAA",
        "a: !!timestamp 2026-11-22",
        "a: !!set {b}",
        "a: !!int text",
        "a: !!map [b]",
        "a: !!seq text",
        "!!int 1: b",
        "&x a: b",
        "a: [",
        "a: 'b",
        "a: \tb: c",
        "a: @b",
        'a: "\\ud800"',
        "%YAML 3.0\n---\na: 1",
        "[" * 33 + "]" * 33,
        "[" * 200_000,
        "{a: " * 33 + "1" + "}" * 33,
        "- " * 33 + "a",
        "a: " + "[0," * 40_000,
        "a: [" + "0," * 70_000 + "]",
        "x" * (256 * 1024 + 1),
        b"\xff\xfe",
        b"a: \x00",
        b"a: \x07",
    ],
)
def test_what_is_refused(text: str | bytes) -> None:
    with pytest.raises(FormatError) as refusal:
        parse(text)
    assert refusal.value.reason is REASON
    assert "document" in refusal.value.what


def test_a_bomb_of_aliases_is_refused_before_it_grows() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    with pytest.raises(FormatError, match="more than 65536 values"):
        parse("\n".join(lines))


def test_a_bomb_of_merges_is_refused_before_it_grows() -> None:
    lines = ["a0: &a0 {k: v}"]
    lines += [f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}], k{n}: *a{n - 1}}}" for n in range(1, 30)]
    with pytest.raises(FormatError, match=r"values|deeper"):
        parse("\n".join(lines))


def test_aliases_cannot_go_deeper_than_what_is_written() -> None:
    lines = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 40)]
    with pytest.raises(FormatError, match="deeper"):
        parse("\n".join(lines))


def test_without_pyyaml_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ConfigurationError, match=r"confide\[services\]"):
        parse("a: 1")
