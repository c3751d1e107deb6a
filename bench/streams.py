"""What hiding lengths and moments costs a stream: bytes on the wire, and how late its events are.

One stream of 100 events, 5 ms apart, through the sealed gateway of a node in this process, without
a server: what an event waits is the channel's doing. Every arm runs in turns with the plain one,
whose chunks have the lengths of the events and whose messages have no padding.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from bench.rows import Row, row

from confide.adapters.clock import SystemClock
from confide.adapters.entropy import SystemEntropy
from confide.channel.carriage import CHANNEL_PATH, REQUEST_MEDIA_TYPE
from confide.channel.keys import key_ring, recipient_key
from confide.channel.message import ClientMessages, MessageLimits, Stamp
from confide.channel.padding import PaddingPolicy, StreamShape
from confide.channel.replay import ReplayPolicy, ReplayWindow
from confide.crypto.kem import load_private_key
from confide.node.sealed import SealedGateway
from confide.wire.bhttp import Content
from confide.wire.ohttp import Kem

if TYPE_CHECKING:
    from collections.abc import Iterator

_RING = key_ring(((1, load_private_key(Kem.X_WING, bytes(range(32)))),))
_EVENTS = 100
_APART = 0.005
_ROUNDS = 5
_ENTROPY = SystemEntropy()
_TEXT = [
    f"data: {json.dumps({'n': n, 'delta': 'word ' * (1 + n % 4)})}\n\n" for n in range(_EVENTS)
]
_BODY = "".join(_TEXT).encode()


class _NoPadding(PaddingPolicy):
    """What the other arms are compared with."""

    def bucket(self, length: int) -> int:
        return length


class _Stream:
    """One exchange: the bytes that went out, and how long each event took from node to client."""

    def __init__(self, padding: PaddingPolicy, shape: StreamShape | None) -> None:
        self._client = ClientMessages(
            recipient_key(_RING.configs[0]),
            ephemeral=_ENTROPY.token(32),
            stamp=Stamp(_ENTROPY.token(32), datetime.now(UTC)),  # noqa: TID251 - a benchmark has a clock
            padding=padding,
            limits=MessageLimits(),
            cell_bytes=None if shape is None else shape.cell_bytes,
            cadence_ms=None if shape is None else shape.cadence_ms,
        )
        self._request = self._client.seal_whole("POST", "/stream", (), b"{}")
        self._padding = padding
        self._given: list[float] = []
        self._opened = b""
        self.bytes = len(self._request)
        self.late: list[float] = []

    async def run(self) -> None:
        gateway = SealedGateway(
            self._app,
            keys=_RING,
            clock=SystemClock(),
            entropy=_ENTROPY,
            window=ReplayWindow(ReplayPolicy(), secret=bytes(32)),
            padding=self._padding,
        )
        headers = [(b"content-type", REQUEST_MEDIA_TYPE.encode())]
        scope = {
            "type": "http", "asgi": {}, "method": "POST", "path": CHANNEL_PATH, "headers": headers,
        }  # fmt: skip
        await gateway(scope, self._receive, self._send)
        if self._opened != _BODY:
            raise RuntimeError("another stream came out than went in")

    async def _receive(self) -> dict[str, Any]:
        return {"type": "http.request", "body": self._request, "more_body": False}

    async def _app(self, _scope: Any, receive: Any, send: Any) -> None:
        await receive()
        kind = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": kind})
        for text in _TEXT:
            await asyncio.sleep(_APART)
            self._given.append(time.perf_counter())
            await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, message: Any) -> None:
        if message["type"] != "http.response.body":
            return
        self.bytes += len(message["body"])
        for event in self._client.receive(message["body"]):
            if isinstance(event, Content):
                self._opened += event.data
        now = time.perf_counter()
        for number in range(len(self.late), self._opened.count(b"\n\n")):
            self.late.append(now - self._given[number])


def _measure(arms: dict[str, tuple[PaddingPolicy, StreamShape | None]]) -> dict[str, Any]:
    sizes: dict[str, int] = {}
    late: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(_ROUNDS):
        for name, (padding, shape) in arms.items():
            stream = _Stream(padding, shape)
            asyncio.run(stream.run())
            sizes[name] = stream.bytes
            late[name] += stream.late
    return {name: (sizes[name], statistics.median(late[name])) for name in arms}


def stream_rows() -> Iterator[Row]:
    """Yield, for each way to hide, the bytes of one stream and the median wait of its events."""
    default = PaddingPolicy()
    arms: dict[str, tuple[PaddingPolicy, StreamShape | None]] = {
        "plain": (_NoPadding(), None),
        "padding (the default)": (default, None),
        "padding, cells of 256": (default, StreamShape(256)),
        "padding, cells of 256, every 20 ms": (default, StreamShape(256, 20)),
        "padding, cells of 512, every 100 ms": (default, StreamShape(512, 100)),
    }
    found = _measure(arms)
    plain_bytes, plain_late = found.pop("plain")
    for name, (size, late) in found.items():
        what = f"stream of {_EVENTS} events, {_APART * 1000:.0f} ms apart, {name}"
        yield row(f"{what}: bytes both ways", size, "bytes", peer=plain_bytes)
        yield row(f"{what}: an event waits", late * 1000, "ms", peer=plain_late * 1000)
