"""The end of a stream is held back, everything else passes at once: client.md 3.4."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.inference.stream_end import EndHolder

CHAT = b'data: {"a": 1}\n\n: a comment\n\ndata: {"b": 2}\n\n'
DONE = b"data: [DONE]\n\n"
COMPLETED = b'event: response.completed\ndata: {"type": "response.completed"}\n\n'


@pytest.mark.parametrize("end", [DONE, COMPLETED, b"data: [DONE]\r\n\r\n", DONE + b": tail\n\n"])
def test_only_the_end_is_held(end: bytes) -> None:
    holder = EndHolder()
    assert holder.feed(CHAT) == CHAT
    # A lone CR could still belong to it; nothing of the end comes out either way.
    assert holder.feed(end) == b""
    assert holder.finish() == end


def test_a_stream_without_an_end_passes_whole() -> None:
    holder = EndHolder()
    assert holder.feed(CHAT + b"data: half") == CHAT
    assert holder.finish() == b"data: half"


@given(st.lists(st.integers(min_value=0, max_value=len(CHAT + DONE)), max_size=6))
def test_no_byte_is_lost_or_moved_however_it_is_cut(cuts: list[int]) -> None:
    whole = CHAT + DONE
    bounds = [0, *sorted(cuts), len(whole)]
    holder = EndHolder()
    early = b"".join(holder.feed(whole[a:b]) for a, b in itertools.pairwise(bounds))
    assert b"[DONE]" not in early
    assert early + holder.finish() == whole


@given(st.binary(max_size=300))
def test_any_bytes_come_out_as_they_went_in(raw: bytes) -> None:
    holder = EndHolder()
    assert holder.feed(raw) + holder.finish() == raw
