"""Forms as they come are read as whole ones are, and refused as whole ones are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.inference.faults import RequestRefused
from confide.inference.form_stream import FormReader, PartBegin, PartData, PartEnd
from confide.inference.multipart import parse_multipart

TYPE = "multipart/form-data; boundary=b0"


def form(*parts: tuple[str, bytes], boundary: bytes = b"b0") -> bytes:
    """A form; a name with a dot is that of a file."""
    found = b""
    for name, value in parts:
        more = f'; filename="{name}"' if "." in name else ""
        head = f'Content-Disposition: form-data; name="{name}"{more}'.encode()
        found += b"--" + boundary + b"\r\n" + head + b"\r\n\r\n" + value + b"\r\n"
    return found + b"--" + boundary + b"--\r\n"


def streamed(body: bytes, widths: list[int]) -> list[tuple[str, bool, bytes]]:
    """What a reader makes of `body`, cut into pieces of these widths, again and again."""
    reader, at, turn = FormReader(TYPE), 0, 0
    found: list[tuple[str, bool, bytes]] = []
    while at < len(body):
        width = widths[turn % len(widths)]
        for event in reader.feed(body[at : at + width]):
            match event:
                case PartBegin(name=name, filename=filename):
                    found.append((name, filename is not None, b""))
                case PartData(data=data):
                    assert data
                    found[-1] = (*found[-1][:2], found[-1][2] + data)
                case PartEnd():
                    pass
        at, turn = at + width, turn + 1
    reader.end()
    return found


def whole(body: bytes) -> list[tuple[str, bool, bytes]]:
    return [
        (part.name, part.is_file, body[part.start : part.end])
        for part in parse_multipart(body, TYPE)
    ]


_VALUES = st.one_of(
    st.binary(max_size=40),
    st.lists(st.sampled_from([b"\r\n", b"--", b"b0", b"-", b"\r", b"\n", b"x"]), max_size=12).map(
        b"".join
    ),
)
_BODIES = st.lists(st.tuples(st.sampled_from(["a", "b.c"]), _VALUES), min_size=1, max_size=4).map(
    lambda parts: form(*parts)
)
_WIDTHS = st.lists(st.integers(min_value=1, max_value=60), min_size=1, max_size=4)


@given(_BODIES, _WIDTHS)
def test_a_form_is_read_as_a_whole_one(body: bytes, widths: list[int]) -> None:
    try:
        wanted = whole(body)
    except RequestRefused:
        with pytest.raises(RequestRefused):
            streamed(body, widths)
    else:
        assert streamed(body, widths) == wanted


@given(_BODIES, _WIDTHS, st.data())
def test_a_form_that_was_changed_is_read_or_refused_alike(
    body: bytes, widths: list[int], data: st.DataObject
) -> None:
    at = data.draw(st.integers(min_value=0, max_value=len(body) - 1))
    changed = body[:at] + data.draw(st.binary(max_size=3)) + body[at + 1 :]
    try:
        wanted = whole(changed)
    except RequestRefused:
        with pytest.raises(RequestRefused):
            streamed(changed, widths)
    else:
        assert streamed(changed, widths) == wanted


@pytest.mark.parametrize("cut", range(1, len(form(("a", b"1"), ("f.x", b"2"))) - 2))
def test_a_form_that_is_cut_is_refused(cut: int) -> None:
    with pytest.raises(RequestRefused):
        streamed(form(("a", b"1"), ("f.x", b"2"))[:cut], [7])


def test_little_is_held_of_a_large_part() -> None:
    reader = FormReader(TYPE)
    reader.feed(form(("f.x", b""))[:-10])
    for _ in range(100):
        reader.feed(b"x" * 65536)
        assert len(reader._held) < 16


def test_a_head_that_never_ends_is_refused() -> None:
    reader = FormReader(TYPE)
    with pytest.raises(RequestRefused):
        reader.feed(b"--b0\r\n" + b"x" * 5000)


def test_too_many_parts_are_refused() -> None:
    with pytest.raises(RequestRefused):
        streamed(form(*[("a", b"")] * 65), [1000])
