"""The exchange as a state machine: order, refusals, limits, transcripts. Attacks on whole
messages over HTTP are in tests/unit/node/test_sealed_gateway.py."""

from __future__ import annotations

import pytest

from confide.channel.events import (
    ChunkOpened,
    ExchangeLimits,
    FinalOpened,
    RequestOpened,
    State,
)
from confide.channel.exchange import Exchange
from confide.channel.keys import (
    GatewayKey,
    KeyRing,
    key_config,
    key_ring,
    recipient_key,
)
from confide.crypto.kem import load_private_key
from confide.errors import (
    ConfigurationError,
    FormatError,
    LocalProtocolError,
    Reason,
    RemoteProtocolError,
)
from confide.wire.keyset import KeysetKey
from confide.wire.ohttp import Aead, Kdf, Kem, KeyConfig, encode_chunk

KEY = load_private_key(Kem.X_WING, bytes(range(32)))
RING = key_ring(((1, KEY),))
RECIPIENT = recipient_key(RING.configs[0])


def client(limits: ExchangeLimits | None = None) -> Exchange:
    return Exchange.client(RECIPIENT, ephemeral=bytes(range(32)), limits=limits)


def node(limits: ExchangeLimits | None = None) -> Exchange:
    return Exchange.node(RING, response_nonce=bytes(range(32)), limits=limits)


def deliver(receiver: Exchange, wire: bytes) -> None:
    receiver.receive(wire)
    receiver.receive_end()


def pair() -> tuple[Exchange, Exchange]:
    """Both ends after a whole request."""
    c, n = client(), node()
    n.receive(c.seal(b"request", final=True))
    n.receive_end()
    return c, n


def test_events_and_states_of_a_whole_exchange() -> None:
    c, n = client(), node()
    assert (c.sending, n.receiving) == (State.IDLE, State.IDLE)
    started, first = n.receive(c.seal(b"one", final=False))
    assert isinstance(started, RequestOpened)
    assert started.channel_id == c.channel_id == n.channel_id
    assert (started.header.key_id, n.key_id, c.key_id) == (1, 1, 1)
    assert first == ChunkOpened(b"one")
    assert n.receive(c.seal(b"", final=True)) == ()
    assert n.receive_end() == (FinalOpened(b""),)
    assert c.receive(n.seal(b"two", final=False)) == (ChunkOpened(b"two"),)
    assert c.receive(n.seal(b"three", final=True)) == ()
    assert c.receive_end() == (FinalOpened(b"three"),)
    assert {c.sending, c.receiving, n.sending, n.receiving} == {State.DONE}
    assert c.transcript == n.transcript


def test_a_response_may_begin_before_the_request_ends() -> None:
    c, n = client(), node()
    n.receive(c.seal(b"one", final=False))
    assert c.receive(n.seal(b"early", final=True)) == ()
    assert c.receive_end() == (FinalOpened(b"early"),)
    with pytest.raises(LocalProtocolError):
        _ = n.transcript


def test_long_plaintext_is_cut_into_chunks_every_receiver_takes() -> None:
    c, n = client(), node()
    body = bytes(40000)
    events = n.receive(c.seal(body, final=True))
    assert [len(e.data) for e in events if isinstance(e, ChunkOpened)] == [16384, 16384]
    (final,) = n.receive_end()
    assert isinstance(final, FinalOpened)
    assert len(final.data) == 40000 - 2 * 16384


@pytest.mark.parametrize("cut", [0, 1, 6, 7, 500, 1126, 1127, 1128, 1150])
def test_a_request_cut_at_any_place_is_refused(cut: int) -> None:
    c, n = client(), node()
    wire = c.seal(b"x" * 30, final=False) + c.seal(b"y" * 30, final=True)
    with pytest.raises(RemoteProtocolError):
        deliver(n, wire[:cut])
    assert n.receiving is State.FAILED


def test_after_a_refusal_the_exchange_is_dead_in_both_directions() -> None:
    c, n = pair()
    wire = bytearray(n.seal(b"one", final=False))
    wire[-1] ^= 1
    with pytest.raises(RemoteProtocolError) as caught:
        c.receive(bytes(wire))
    assert caught.value.reason is Reason.CHANNEL_OPEN
    for use in (lambda: c.receive(b"x"), c.receive_end, lambda: c.seal(b"x", final=True)):
        with pytest.raises(LocalProtocolError):
            use()
    with pytest.raises(LocalProtocolError):
        _ = c.response_sha256


def test_an_empty_chunk_that_is_not_final_is_refused() -> None:
    _, n = client(), node()
    c = client()
    first = c.seal(b"x", final=False)
    assert c._context is not None
    n.receive(first)
    with pytest.raises(RemoteProtocolError):
        n.receive(encode_chunk(c._context.seal(b"", b""), final=False))


def test_wrong_order_is_our_own_mistake() -> None:
    c, n = client(), node()
    with pytest.raises(LocalProtocolError):
        n.seal(b"x", final=True)
    with pytest.raises(LocalProtocolError):
        c.receive(b"x")
    with pytest.raises(LocalProtocolError):
        c.seal(b"", final=False)
    for read in (lambda: n.channel_id, lambda: n.key_id, lambda: c.request_sha256):
        with pytest.raises(LocalProtocolError):
            read()
    c.seal(b"x", final=True)
    with pytest.raises(LocalProtocolError):
        c.seal(b"y", final=True)


def test_a_short_response_nonce_is_our_own_mistake() -> None:
    n = Exchange.node(RING, response_nonce=bytes(16))
    n.receive(client().seal(b"x", final=True))
    n.receive_end()
    with pytest.raises(LocalProtocolError):
        n.seal(b"x", final=True)


def test_limits_on_both_sides() -> None:
    tight = ExchangeLimits(max_message_bytes=1200, max_chunks=2)
    n = node(tight)
    with pytest.raises(RemoteProtocolError) as caught:
        n.receive(client().seal(bytes(100), final=True))
    assert (caught.value.reason, caught.value.status_hint) == (Reason.LIMIT_EXCEEDED, 413)
    with pytest.raises(LocalProtocolError):
        client(tight).seal(bytes(100), final=True)
    few = ExchangeLimits(max_chunks=2)
    c, n = client(), node(few)
    with pytest.raises(RemoteProtocolError) as caught:
        n.receive(b"".join(c.seal(b"x", final=False) for _ in range(3)))
    assert caught.value.reason is Reason.LIMIT_EXCEEDED
    with pytest.raises(LocalProtocolError):
        client(few).seal(bytes(16384 * 3), final=True)


@pytest.mark.parametrize(
    "header",
    [
        "02647a00010002",  # another key id
        "01002000010002",  # another KEM
        "01647a00010001",  # AES-128-GCM: offered, but the seal is for AES-256-GCM
        "01647a0001ffff",  # export-only
        "01647b00010002",  # unknown KEM
    ],
)
def test_the_header_is_bound_and_a_stale_key_is_told_apart(header: str) -> None:
    wire = client().seal(b"x", final=True)
    with pytest.raises(RemoteProtocolError) as caught:
        deliver(node(), bytes.fromhex(header) + wire[7:])
    assert caught.value.reason is Reason.KEYSET_MISMATCH
    assert caught.value.status_hint == 422


def test_a_suite_the_configuration_does_not_offer_is_refused() -> None:
    only = KeyConfig(1, Kem.X_WING, KEY.public_key.raw, ((Kdf.HKDF_SHA256, Aead.AES_256_GCM),))
    other = KeyConfig(
        1, Kem.X_WING, KEY.public_key.raw, ((Kdf.HKDF_SHA256, Aead.CHACHA20_POLY1305),)
    )
    n = Exchange.node(KeyRing((GatewayKey(only, KEY),)), response_nonce=bytes(32))
    c = Exchange.client(recipient_key(other), ephemeral=bytes(range(32)))
    with pytest.raises(RemoteProtocolError) as caught:
        n.receive(c.seal(b"x", final=True))
    assert caught.value.reason is Reason.KEYSET_MISMATCH


def test_an_encapsulation_without_a_secret_is_refused() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        node().receive(RECIPIENT.header.encode() + bytes(Kem.X_WING.enc_bytes))
    assert caught.value.reason is Reason.CHANNEL_OPEN


def test_a_node_key_without_secrets_is_refused_before_sealing() -> None:
    bad = KeyConfig(1, Kem.X25519, bytes(32), ((Kdf.HKDF_SHA256, Aead.AES_256_GCM),))
    with pytest.raises(FormatError):
        Exchange.client(recipient_key(bad), ephemeral=bytes(range(32)))


def test_keys_and_rings() -> None:
    with pytest.raises(ConfigurationError):
        KeyRing(())
    with pytest.raises(ConfigurationError):
        key_ring(((1, KEY), (1, KEY)))
    other = load_private_key(Kem.X_WING, bytes(32))
    with pytest.raises(ValueError, match="private"):
        GatewayKey(RING.configs[0], other)
    unknown = KeyConfig(1, Kem.X_WING, KEY.public_key.raw, ((2, 2), (1, 0xFFFF)))
    with pytest.raises(FormatError):
        recipient_key(unknown)


def test_a_keyset_key_becomes_its_configuration() -> None:
    key = KeysetKey(1, "MLKEM768-X25519", KEY.public_key.raw)
    assert key_config(key) == RING.configs[0]
    assert RECIPIENT.header.aead is Aead.AES_256_GCM
    with pytest.raises(ValueError, match="sealing"):
        key_config(KeysetKey(3, "Ed25519", bytes(32)))
