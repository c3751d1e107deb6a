"""TOML that people write, and TOML that should exhaust the reader."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from confide.agents.manifest import parse_agent_manifest
from confide.errors import FormatError, Reason
from confide.expectation import parse_expectation_toml
from confide.wire.toml import parse_toml

if TYPE_CHECKING:
    from confide.wire.json import JsonValue


def _parse(text: str) -> dict[str, JsonValue]:
    return parse_toml(text, what="x", reason=Reason.AGENT_FORMAT, max_chars=100_000)


def test_every_spelling_of_a_document_is_read() -> None:
    text = """
a.b = "dots.in.a.string.do.not.count" # nor. in. a. comment
c = '''[[[' "'''
d = \"\"\"{{{\\" ""\"\"\"
e = [ "1.2.3.4", '5.6', { f = "]" } ]
"""
    assert _parse(text) == {
        "a": {"b": "dots.in.a.string.do.not.count"},
        "c": "[[[' \"",
        "d": '{{{" ""',
        "e": ["1.2.3.4", "5.6", {"f": "]"}],
    }


def test_nesting_and_key_parts_up_to_the_limit_are_read() -> None:
    assert _parse("a = " + "[" * 32 + "]" * 32)
    assert _parse(".".join("a" * 33) + " = 1")
    # Dots of strings are as many as somebody likes.
    assert _parse("a = [" + '"1.2.3.4",' * 200 + "]")


_EXHAUSTING = [
    pytest.param("a = " + "[" * 33 + "]" * 33, id="arrays"),
    pytest.param("a = " + "[" * 10_000, id="arrays-that-never-end"),
    pytest.param("a = " + "{a = " * 5_000, id="inline-tables"),
    pytest.param("a = [\n" * 40, id="arrays-over-lines"),
    pytest.param(".".join("a" * 34) + " = 1", id="key-parts"),
    pytest.param(".".join("a" * 20_000) + " = 1", id="very-many-key-parts"),
    pytest.param("[" + " . ".join(['"a"'] * 9_000) + "]", id="quoted-header-parts"),
    pytest.param('a = {b = """c"""", ' + "c." * 9_000 + 'd = "x"}', id="parts-behind-quotes"),
    pytest.param("a = " + "1" * 5_000, id="integer"),
    pytest.param("a = '" + "b" * 100_000 + "'", id="size"),
]


@pytest.mark.parametrize("text", _EXHAUSTING)
def test_a_document_that_would_exhaust_the_reader_is_refused(text: str) -> None:
    with pytest.raises(FormatError) as caught:
        _parse(text)
    assert caught.value.reason is Reason.AGENT_FORMAT
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("text", _EXHAUSTING[:-1])
def test_both_documents_that_people_write_are_bounded(text: str) -> None:
    with pytest.raises(FormatError):
        parse_expectation_toml(text)
    with pytest.raises(FormatError):
        parse_agent_manifest(text.encode())
