"""Frames of the run protocol: one meaning however the bytes arrive. agent-run.md §1."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.errors import FormatError, Reason
from confide.wire.frames import (
    MAX_FRAME_BYTES,
    FrameDecoder,
    FrameKind,
    encode_frame,
    json_frame,
)

FRAMES = st.lists(st.tuples(st.sampled_from(FrameKind), st.binary(max_size=30)), max_size=6)


def decode(pieces: list[bytes]) -> list[tuple[FrameKind, bytes]]:
    decoder = FrameDecoder()
    found = [frame for piece in pieces for frame in decoder.feed(piece)]
    decoder.finish()
    return found


@given(FRAMES, st.lists(st.integers(0, 200), max_size=8))
def test_any_split_gives_the_same_frames(
    frames: list[tuple[FrameKind, bytes]], cuts: list[int]
) -> None:
    raw = b"".join(encode_frame(kind, payload) for kind, payload in frames)
    edges = sorted({0, len(raw), *(cut for cut in cuts if cut < len(raw))})
    pieces = [raw[start:end] for start, end in itertools.pairwise(edges)]
    assert decode(pieces) == frames
    assert decode([raw[at : at + 1] for at in range(len(raw))]) == frames


@given(FRAMES.filter(bool), st.data())
def test_a_stream_that_ends_inside_a_frame_is_refused(
    frames: list[tuple[FrameKind, bytes]], data: st.DataObject
) -> None:
    last = encode_frame(*frames[-1])
    cut = data.draw(st.integers(1, len(last) - 1))
    raw = b"".join(encode_frame(*frame) for frame in frames[:-1]) + last[:cut]
    with pytest.raises(FormatError, match="inside a frame"):
        decode([raw])


@pytest.mark.parametrize("kind", [0, 10, 255])
def test_an_unknown_kind_is_refused_before_its_payload(kind: int) -> None:
    with pytest.raises(FormatError) as error:
        decode([bytes((kind, 0, 0, 0, 5))])
    assert error.value.reason is Reason.RECEIPT_FORMAT


def test_a_frame_above_the_limit_is_refused_before_its_payload() -> None:
    with pytest.raises(FormatError):
        decode([b"\x03" + (MAX_FRAME_BYTES + 1).to_bytes(4, "big")])


def test_a_frame_comes_out_as_soon_as_it_is_complete() -> None:
    decoder = FrameDecoder()
    frame = encode_frame(FrameKind.DATA, b"abc")
    assert list(decoder.feed(frame[:-1])) == []
    assert list(decoder.feed(frame[-1:] + frame[:2])) == [(FrameKind.DATA, b"abc")]


def test_json_frames_are_canonical() -> None:
    assert json_frame(FrameKind.FILE, {"b": 1, "a": 2}) == encode_frame(
        FrameKind.FILE, b'{"a":2,"b":1}'
    )


@given(st.binary(max_size=60))
def test_garbage_parses_or_raises_the_format_error(raw: bytes) -> None:
    try:
        found = decode([raw])
    except FormatError:
        return
    assert b"".join(encode_frame(kind, payload) for kind, payload in found) == raw
