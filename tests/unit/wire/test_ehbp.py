"""EHBP's bytes: lengths that no frame has, and limits that hold over many frames."""

from __future__ import annotations

import pytest

from confide.channel.ehbp import RequestOpening, seal_request_body
from confide.channel.keys import key_config, recipient_key
from confide.crypto.kem import load_private_key
from confide.errors import FormatError, LocalProtocolError, Reason, RemoteProtocolError
from confide.wire.ehbp import MAX_FRAMES, FrameDecoder, encode_frame
from confide.wire.keyset import KeysetKey
from confide.wire.ohttp import Kem

KEY = load_private_key(Kem.X25519, bytes(range(32)))
RECIPIENT = recipient_key(key_config(KeysetKey(0, "X25519", KEY.public_key.raw)))


@pytest.mark.parametrize("length", range(1, 16))
def test_no_frame_is_shorter_than_a_tag(length: int) -> None:
    with pytest.raises(FormatError) as caught:
        FrameDecoder().feed(length.to_bytes(4, "big"))
    assert caught.value.reason is Reason.CHANNEL_FORMAT


def test_a_length_above_the_limit_is_refused_before_anything_follows() -> None:
    FrameDecoder(64).feed((64).to_bytes(4, "big"))
    with pytest.raises(FormatError) as caught:
        FrameDecoder(64).feed((65).to_bytes(4, "big"))
    assert caught.value.reason is Reason.LIMIT_EXCEEDED


def test_empty_frames_count_towards_the_number_of_frames() -> None:
    decoder = FrameDecoder()
    assert decoder.feed(bytes(4 * (MAX_FRAMES - 1)) + encode_frame(bytes(16))) == (bytes(16),)
    with pytest.raises(FormatError) as caught:
        decoder.feed(bytes(4))
    assert caught.value.reason is Reason.LIMIT_EXCEEDED


def test_many_small_frames_are_together_as_long_as_one_large() -> None:
    enc, body, _ = seal_request_body(RECIPIENT, [b"x"] * 10, ephemeral=bytes(range(32)))
    opening = RequestOpening(enc, ((0, KEY),), max_bytes=len(body) - 1)
    opening.receive(body[:-1])
    with pytest.raises(RemoteProtocolError) as caught:
        opening.receive(body[-1:])
    assert (caught.value.reason, caught.value.status_hint) == (Reason.LIMIT_EXCEEDED, 413)


def test_before_its_first_frame_a_request_has_no_key() -> None:
    enc, _, _ = seal_request_body(RECIPIENT, [b"x"], ephemeral=bytes(range(32)))
    opening = RequestOpening(enc, ((0, KEY),), max_bytes=100)
    assert not opening.opened
    with pytest.raises(LocalProtocolError):
        _ = opening.key_id
    with pytest.raises(LocalProtocolError):
        opening.response(bytes(32))
