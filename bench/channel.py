"""What the sealed channel costs by itself, in this process: no server, no model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.rows import Row, rate, rates, row

from confide.adapters.entropy import SystemEntropy
from confide.channel.exchange import Exchange
from confide.channel.keys import key_ring, recipient_key
from confide.crypto.aead import SealingKey
from confide.crypto.kem import load_private_key
from confide.wire.ohttp import Aead, Kem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_RING = key_ring(((1, load_private_key(Kem.X_WING, bytes(range(32)))),))
_RECIPIENT = recipient_key(_RING.configs[0])
_KIB = bytes(range(256)) * 4
_EVENT = b"data: " + b"x" * 240 + b"\n\n"
_STREAMS = 16
_CHUNKS = 100
_ENTROPY = SystemEntropy()


def _request() -> bytes:
    return Exchange.client(_RECIPIENT, ephemeral=_ENTROPY.token(32)).seal(_KIB, final=True)


def _answering(request: bytes) -> Exchange:
    exchange = Exchange.node(_RING, response_nonce=bytes(32))
    exchange.receive(request)
    exchange.receive_end()
    return exchange


def _streaming(requests: list[bytes]) -> Callable[[], None]:
    def action() -> None:
        exchanges = [_answering(request) for request in requests]
        for _ in range(_CHUNKS):
            for exchange in exchanges:
                exchange.seal(_EVENT, final=False)
        for exchange in exchanges:
            exchange.seal(b"", final=True)

    return action


def _bare_aead() -> Callable[[], None]:
    keys = [SealingKey(Aead.AES_256_GCM, bytes([index]) * 32) for index in range(_STREAMS)]

    def action() -> None:
        for number in range(_CHUNKS):
            nonce = number.to_bytes(12, "big")
            for key in keys:
                key.seal(nonce, b"", _EVENT)

    return action


def channel_rows() -> Iterator[Row]:
    """Yield the channel's rows: calls a CPU second, best of five."""
    request = _request()
    node = rate(lambda: _answering(request).seal(_KIB, final=True))
    yield row(
        "channel: node opens 1 KiB and seals 1 KiB, X-Wing",
        node,
        "exchanges/s",
        budget=">= 4000 (0.25 ms)",
        met=node >= 4000,
    )
    yield row("channel: client seals 1 KiB, X-Wing", rate(_request), "requests/s")
    ours, bare = rates(_streaming([_request() for _ in range(_STREAMS)]), _bare_aead())
    chunks = _STREAMS * _CHUNKS
    yield row(
        "channel: node seals 16 streams of 100 chunks, beside AES-256-GCM alone",
        ours * chunks,
        "chunks/s",
        peer=bare * chunks,
    )
