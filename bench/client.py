"""`confide proxy` beside a bare pass-through proxy: what a program waits longer for an answer.

The proxy is the real one, its own process: it seals, opens, verifies a receipt and writes it to
its store before an answer goes out. Behind it is the real model node, which seals and receipts.
The peer forwards the same bytes to the same engine; the node is also asked directly, with requests
that were sealed before the clock started and answers that nobody opens. In turns, one at a time.
"""

from __future__ import annotations

import http.client
import statistics
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from bench.gateway import chat_body, sealed_chat
from bench.rows import cpu_seconds, row

from confide.channel.carriage import CHANNEL_PATH, REQUEST_MEDIA_TYPE
from confide.trust.roots import encode_roots_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.nodes import Place, Server
    from bench.rows import Row

_PATH = "/v1/chat/completions"
_JSON = "application/json"
_CALLS = 60
_ROUNDS = 9
_BUDGET_MS = 3.0


class _Caller:
    """One kept-alive connection of a program; `seconds` of every call."""

    def __init__(self, server: Server, path: str, media_type: str) -> None:
        parts = urlsplit(server.url)
        self._path = path
        self._headers = {"content-type": media_type, "host": f"{parts.hostname}:{parts.port}"}
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port)
        self._pid = server.pid
        self.seconds: list[float] = []
        self.costs: list[float] = []

    def turn(self, bodies: Sequence[bytes]) -> None:
        before = cpu_seconds(self._pid)
        for body in bodies:
            began = time.perf_counter()
            self._connection.request("POST", self._path, body, self._headers)
            answer = self._connection.getresponse()
            answer.read()
            self.seconds.append(time.perf_counter() - began)
            if answer.status != 200:
                raise RuntimeError(f"the server answered {answer.status}")
        self.costs.append((cpu_seconds(self._pid) - before) / len(bodies))

    @property
    def cost_ms(self) -> float:
        """Processor time of the server for one call, best round: the neighbours have no part."""
        return min(self.costs) * 1000

    @property
    def median_ms(self) -> float:
        return statistics.median(self.seconds) * 1000


def proxy_rows(place: Place) -> Iterator[Row]:
    """Latency of whole answers and of streams of 100 chunks, one call at a time."""
    wanted, roots = place.root / "inference.json", place.root / "roots.json"
    wanted.write_bytes(place.inference_expectation().canonical())
    roots.write_bytes(encode_roots_file(place.engine.roots()))
    proxy = place.start(
        "-m", "confide", "proxy", "--node", place.model.url, "--expectation", str(wanted),
        "--roots", str(roots), "--port", "PORT", "--no-token",
    )  # fmt: skip
    bare = place.start("-m", "bench.servers", "proxy", "PORT", place.upstream.url)
    recipient = place.recipient()
    for stream in (False, True):
        body = chat_body(stream=stream)
        ours, peer = _Caller(proxy, _PATH, _JSON), _Caller(bare, _PATH, _JSON)
        node = _Caller(place.model, CHANNEL_PATH, REQUEST_MEDIA_TYPE)
        for number in range(_ROUNDS + 1):
            sealed = [sealed_chat(recipient, body) for _ in range(_CALLS)]
            for caller, bodies in (
                (ours, [body] * _CALLS),
                (peer, [body] * _CALLS),
                (node, sealed),
            ):
                caller.turn(bodies)
                if number == 0:
                    caller.seconds.clear()
        what = "a stream of 100 chunks" if stream else "a whole answer"
        yield row(
            f"confide proxy: {what}, sealed, verified, receipt kept, p50; beside a bare proxy",
            ours.median_ms,
            "ms",
            peer=peer.median_ms,
        )
        yield row(
            f"confide proxy: {what}: processor time of the proxy, beside a bare proxy's",
            ours.cost_ms,
            "ms",
            peer=peer.cost_ms,
        )
        added = ours.median_ms - node.median_ms
        yield row(
            f"confide proxy: {what}: added to the node asked directly, p50",
            added,
            "ms",
            peer=peer.median_ms,
            budget="" if stream else f"<= {_BUDGET_MS:g}",
            met=None if stream else added <= _BUDGET_MS,
        )
