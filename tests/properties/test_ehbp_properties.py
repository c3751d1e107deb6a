"""Laws of EHBP: cuts do not matter, any changed bit is refused, a prefix is all there is."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.channel.ehbp import (
    RequestOpening,
    open_receipt,
    open_response_body,
    seal_receipt,
    seal_request_body,
    seal_response_body,
)
from confide.channel.keys import key_config, recipient_key
from confide.crypto.kem import load_private_key
from confide.errors import FormatError, Reason, RemoteProtocolError
from confide.wire.ehbp import FrameDecoder, encode_frame, encode_keys
from confide.wire.keyset import KeysetKey
from confide.wire.ohttp import Kem, parse_key_config

EHBP_KEY = load_private_key(Kem.X25519, bytes(range(32)))
OTHER_KEY = load_private_key(Kem.X25519, bytes(range(1, 33)))
RECIPIENT = recipient_key(key_config(KeysetKey(0, "X25519", EHBP_KEY.public_key.raw)))
bodies = st.lists(st.binary(max_size=60), min_size=1, max_size=6)
places = st.lists(st.integers(0, 10_000), max_size=12)


def pieces(raw: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(raw) + 1) for cut in cuts} | {0, len(raw)})
    return [raw[a:b] for a, b in pairwise(places)]


def opening(enc: bytes, *, max_bytes: int = 1 << 16) -> RequestOpening:
    return RequestOpening(enc, ((7, OTHER_KEY), (9, EHBP_KEY)), max_bytes=max_bytes)


def opened(enc: bytes, body: bytes, cuts: list[int]) -> tuple[bytes, RequestOpening]:
    request = opening(enc)
    plain = b"".join(request.receive(piece) for piece in pieces(body, cuts))
    request.receive_end()
    return plain, request


@given(chunks=bodies, cuts=places, empty=st.integers(0, 3))
def test_an_ehbp_request_opens_alike_however_it_is_cut(
    chunks: list[bytes], cuts: list[int], empty: int
) -> None:
    enc, body, context = seal_request_body(RECIPIENT, chunks, ephemeral=bytes(range(32)))
    plain, request = opened(enc, bytes(4 * empty) + body, cuts)
    assert plain == b"".join(chunks)
    assert request.key_id == 9
    ours, theirs = request.response(b"n" * 32), context.export(b"ehbp response", 32)
    sealed = seal_response_body(ours, chunks)
    again = request.response(b"n" * 32)
    assert open_response_body(again, sealed).data == plain
    assert open_receipt(again, seal_receipt(ours, plain)) == plain
    assert len(theirs) == 32


@given(chunks=bodies, at=st.integers(0), bit=st.integers(0, 7))
def test_no_bit_of_an_ehbp_request_may_change(chunks: list[bytes], at: int, bit: int) -> None:
    enc, body, _ = seal_request_body(RECIPIENT, chunks, ephemeral=bytes(range(32)))
    raw = bytearray(enc + body)
    raw[at % len(raw)] ^= 1 << bit
    with pytest.raises(RemoteProtocolError):
        opened(bytes(raw[:32]), bytes(raw[32:]), [])


@given(chunks=bodies, end=st.integers(0))
def test_an_ehbp_body_that_is_cut_is_a_prefix_of_whole_frames_or_refused(
    chunks: list[bytes], end: int
) -> None:
    enc, body, _ = seal_request_body(RECIPIENT, chunks, ephemeral=bytes(range(32)))
    ends = [sum(4 + len(chunk) + 16 for chunk in chunks[:n]) for n in range(len(chunks) + 1)]
    end %= len(body) + 1
    if end in ends[1:]:
        assert opened(enc, body[:end], [])[0] == b"".join(chunks[: ends.index(end)])
        return
    with pytest.raises(RemoteProtocolError):
        opened(enc, body[:end], [])


@given(enc=st.binary(min_size=32, max_size=32), raw=st.binary(max_size=200), cuts=places)
def test_garbage_is_only_refused_by_ehbp(enc: bytes, raw: bytes, cuts: list[int]) -> None:
    with pytest.raises(RemoteProtocolError):
        opened(enc, raw, cuts)


@given(raw=st.binary(max_size=200), cuts=places, limit=st.integers(16, 64))
def test_ehbp_frames_are_parsed_alike_however_they_are_cut(
    raw: bytes, cuts: list[int], limit: int
) -> None:
    def run(parts: list[bytes]) -> tuple[bytes, ...] | None:
        decoder = FrameDecoder(limit)
        try:
            found = tuple(frame for part in parts for frame in decoder.feed(part))
            decoder.end()
        except FormatError:
            return None
        assert all(16 <= len(frame) <= limit for frame in found)
        return found

    assert run([raw]) == run(pieces(raw, cuts))


@given(frames=st.lists(st.binary(min_size=16, max_size=40), max_size=6), cuts=places)
def test_ehbp_frames_come_out_as_they_went_in(frames: list[bytes], cuts: list[int]) -> None:
    decoder = FrameDecoder(40)
    raw = b"".join(map(encode_frame, frames))
    found = [frame for part in pieces(raw, cuts) for frame in decoder.feed(part)]
    decoder.end()
    assert found == frames


@given(limit=st.integers(0, 300))
def test_an_ehbp_body_above_the_limit_is_refused_before_it_is_held(limit: int) -> None:
    enc, body, _ = seal_request_body(RECIPIENT, [bytes(200)], ephemeral=bytes(range(32)))
    request = opening(enc, max_bytes=limit)
    if limit >= len(body):
        assert request.receive(body) == bytes(200)
        return
    with pytest.raises(RemoteProtocolError) as caught:
        request.receive(body)
    assert caught.value.reason is Reason.LIMIT_EXCEEDED


@given(key_id=st.integers(0, 255), public=st.binary(min_size=32, max_size=32))
def test_the_ehbp_key_is_one_configuration(key_id: int, public: bytes) -> None:
    config = parse_key_config(encode_keys(key_id, public))
    assert (config.key_id, config.public_key, config.algorithms) == (key_id, public, ((1, 2),))
