"""Secrets in what an agent prints: found in every listed spelling, across pieces. state.md 2.4."""

from __future__ import annotations

import base64
import json
import urllib.parse
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.agents.scrub import MIN_BYTES, Scrubber, spellings

if TYPE_CHECKING:
    from collections.abc import Callable

TOKEN = b'tok "5f0c2d/91<&> \\\xc3\xa9'
BINARY = bytes(range(240, 256)) * 2
PLACE = b"[secret token]"

SPELLINGS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "base64": base64.b64encode,
    "base64url": base64.urlsafe_b64encode,
    "base64 without padding": lambda value: base64.b64encode(value).rstrip(b"="),
    "hex": lambda value: value.hex().encode(),
    "HEX": lambda value: value.hex().upper().encode(),
    "percent": lambda value: urllib.parse.quote_from_bytes(value).encode(),
    "percent, every reserved": lambda value: urllib.parse.quote_from_bytes(value, "").encode(),
    "form": lambda value: urllib.parse.quote_plus(value).encode(),
    "every byte": lambda value: b"".join(b"%%%02x" % byte for byte in value),
}
OF_TEXT: dict[str, Callable[[str], str]] = {
    "json": lambda text: json.dumps(text)[1:-1],
    "json in UTF-8": lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
    "json with slashes": lambda text: json.dumps(text)[1:-1].replace("/", "\\/"),
}


def scrub(data: bytes, **values: bytes) -> bytes:
    return Scrubber(values or {"token": TOKEN}).scrub(data).data


@pytest.mark.parametrize("how", SPELLINGS)
@pytest.mark.parametrize("value", [TOKEN, BINARY, b"12345678"])
def test_every_spelling_is_found(how: str, value: bytes) -> None:
    spelt = SPELLINGS[how](value)
    assert scrub(b"a" + spelt + b"z", token=value) == b"a" + PLACE + b"z"


@pytest.mark.parametrize("how", OF_TEXT)
def test_every_spelling_inside_json_is_found(how: str) -> None:
    spelt = OF_TEXT[how](TOKEN.decode()).encode()
    assert scrub(b'{"key": "' + spelt + b'"}') == b'{"key": "' + PLACE + b'"}'


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
@pytest.mark.parametrize("before", range(3))
@pytest.mark.parametrize("after", range(3))
def test_base64_of_a_larger_text_is_found(
    encode: Callable[[bytes], bytes], before: int, after: int
) -> None:
    found = scrub(encode(b"x" * before + TOKEN + b"y" * after))
    assert PLACE in found
    # At most one character on each side holds a few bits of a neighbour and of the value.
    assert len(found) - len(PLACE) <= 4 * 3


def test_one_byte_less_is_not_it() -> None:
    for form in spellings(TOKEN):
        assert scrub(form[:-1]) == form[:-1]


def test_the_value_between_two_others_is_named() -> None:
    found = scrub(b"first, second!", a=b"first, s", b=b"second!!", c=b"second! ")
    assert found == b"[secret a]econd!"


def test_the_longest_is_taken_first() -> None:
    values = {"short": b"password", "long": b"password-of-may"}
    assert scrub(b"x password-of-may password", **values) == b"x [secret long] [secret short]"


def test_a_short_value_is_not_looked_for() -> None:
    short = b"x" * (MIN_BYTES - 1)
    assert scrub(short, pin=short) == short
    assert scrub(short + b"x", pin=short + b"x") == b"[secret pin]"


def test_nothing_is_looked_for_where_nothing_is_long_enough() -> None:
    assert scrub(b"any text", pin=b"1") == b"any text"


_VALUES = {"a": b"aaaaaaaa", "ab": b"aaaaabaaaab", "token": TOKEN}
_TEXTS = st.lists(
    st.sampled_from(
        [b"a", b"aaaa", b"b", TOKEN, TOKEN[:7], base64.b64encode(TOKEN), _VALUES["ab"], b"\n"]
    ),
    max_size=60,
).map(b"".join)


@given(_TEXTS, st.lists(st.integers(0, 600), max_size=12))
def test_it_does_not_matter_how_the_text_is_cut(text: bytes, cuts: list[int]) -> None:
    whole = Scrubber(_VALUES).scrub(text)
    stream = Scrubber(_VALUES, window_bytes=1).stream()
    at, pieces = 0, []
    for cut in (*sorted(cuts), len(text)):
        pieces.append(stream.feed(text[at:cut]))
        at = max(at, cut)
    pieces.append(stream.finish())
    assert b"".join(pieces) == whole.data
    assert stream.count == whole.count
    assert whole.data == _naive(text)


def _naive(text: bytes) -> bytes:
    """The rule in its plainest words: at each place the longest form that stands there."""
    forms = {form: name for name, value in _VALUES.items() for form in spellings(value)}
    out, at = b"", 0
    while at < len(text):
        found = max((form for form in forms if text.startswith(form, at)), key=len, default=None)
        out += text[at : at + 1] if found is None else f"[secret {forms[found]}]".encode()
        at += 1 if found is None else len(found)
    return out


@given(st.integers(1, 1 << 18), st.integers(0, 3))
def test_a_value_across_windows_is_found(before: int, piece: int) -> None:
    """Longer than any window: pieces are decided before the end is seen."""
    filler = b"." * before
    text = (filler + TOKEN + b"." * (1 << 19) + TOKEN[: len(TOKEN) // 2], TOKEN[len(TOKEN) // 2 :])
    whole = b"".join(text)
    stream = Scrubber({"token": TOKEN}).stream()
    size = (1 << 16) + piece
    given_out = [stream.feed(whole[at : at + size]) for at in range(0, len(whole), size)]
    assert any(given_out), "nothing was given out before the end"
    assert b"".join((*given_out, stream.finish())) == filler + PLACE + b"." * (1 << 19) + PLACE
    assert stream.count == 2


def test_the_longest_form_is_found_wherever_a_window_ends() -> None:
    """Byte by byte, so that a window ends at every place of it."""
    form = max(spellings(TOKEN), key=len)
    for before in range(2 * len(form)):
        text = b"." * before + form + b"." * 3 * len(form)
        stream = Scrubber({"token": TOKEN}, window_bytes=1).stream()
        found = b"".join(stream.feed(text[at : at + 1]) for at in range(len(text)))
        assert found + stream.finish() == b"." * before + PLACE + b"." * 3 * len(form)


@pytest.mark.parametrize("kept", range(MIN_BYTES, len(TOKEN)))
def test_where_the_text_was_cut_no_beginning_is_left(kept: int) -> None:
    found = Scrubber({"token": TOKEN}).scrub(b"so far " + TOKEN[:kept], cut=True)
    assert found.data == b"so far "
    assert scrub(b"so far " + TOKEN[:kept]) == b"so far " + TOKEN[:kept]


def test_many_values_in_a_long_text_are_found() -> None:
    values = {f"s{number}": b"value-%03d-" % number + bytes([number]) * 90 for number in range(64)}
    text = b"".join(b"line of text\n" * 1000 + value for value in values.values())
    found = Scrubber(values).scrub(text)
    assert found.count == 64
    assert not any(value in found.data for value in values.values())


def test_a_value_full_of_repetition_is_no_trap() -> None:
    """What compares at every place takes hours for this one."""
    value = b"a" * 200_000 + b"b" + b"a" * 200_000
    text = b"a" * 4_000_000
    assert Scrubber({"v": value}).scrub(text) == Scrubber({"v": b"unrelated"}).scrub(text)
    assert scrub(b"x" + value + b"y", v=value) == b"x[secret v]y"
