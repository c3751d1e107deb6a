"""Canonical JSON: our way of writing it is the `rfc8785` package's, byte for byte."""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Any

import pytest
import rfc8785
from hypothesis import example, given
from hypothesis import strategies as st

from confide.wire.json import jcs

_SAFE = 2**53 - 1
_TEXTS = st.text(st.characters(codec="utf-8"))
_LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-_SAFE, _SAFE)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _TEXTS
)
_VALUES = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner) | st.dictionaries(_TEXTS, inner) | st.tuples(inner, inner),
)
_PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-_SAFE, _SAFE) | _TEXTS,
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text(st.characters(max_codepoint=127)), inner)
    ),
)


class _Word(StrEnum):
    A = "a"


class _Number(IntEnum):
    ONE = 1


@given(_VALUES)
@example({"\U0001f600": 1, "\uffee": 2, "a": 3})
@example({"\ue000": 1, "\U00010000": 2})
@example([_Word.A, _Number.ONE, {_Word.A: True}])
@example({"a": {"b": 1e21, "c": -0.0}})
def test_any_value(value: Any) -> None:
    assert jcs(value) == rfc8785.dumps(value)


@given(_PLAIN)
@example("".join(map(chr, range(0x120))))
@example({chr(code): chr(code) for code in range(128)})
@example([_SAFE, -_SAFE, True, False, None, {}, [], ""])
@example({"": [], "A": {}, "a": "\u2028\u2029\ufeff\u007f/"})
def test_plain_value(value: Any) -> None:
    assert jcs(value) == rfc8785.dumps(value)


@pytest.mark.parametrize(
    "value",
    [
        _SAFE + 1,
        [-_SAFE - 1],
        {"a": float("nan")},
        [float("inf")],
        "\ud800",
        {"a": ["\udfff"]},
        {"\udfff": 1},
        {1: "a"},
        {None: "a"},
        {"a": b"bytes"},
        {"a": {1, 2}},
    ],
    ids=repr,
)
def test_what_canonical_json_cannot_say(value: Any) -> None:
    with pytest.raises(ValueError, match="not representable in canonical JSON"):
        jcs(value)
