"""`confide proxy` beside a bare pass-through proxy: what a program waits longer for an answer.

The proxy is the real one, its own process: it seals, opens, verifies a receipt and writes it to
its store before an answer goes out. Behind it is the real model node, which seals and receipts.
The peer forwards the same bytes to the same engine. Both are asked in turns, one call at a time.
"""

from __future__ import annotations

import http.client
import statistics
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from bench.gateway import chat_body
from bench.rows import row

from confide.trust.roots import encode_roots_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.nodes import Place, Server
    from bench.rows import Row

_PATH = "/v1/chat/completions"
_CALLS = 60
_ROUNDS = 9
_BUDGET_MS = 3.0


class _Caller:
    """One kept-alive connection of a program; `seconds` of every call."""

    def __init__(self, server: Server, *, stream: bool) -> None:
        parts = urlsplit(server.url)
        self._host = f"{parts.hostname}:{parts.port}"
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port)
        self._body = chat_body(stream=stream)
        self.seconds: list[float] = []

    def turn(self) -> None:
        for _ in range(_CALLS):
            began = time.perf_counter()
            self._connection.request(
                "POST",
                _PATH,
                self._body,
                {"content-type": "application/json", "host": self._host},
            )
            answer = self._connection.getresponse()
            answer.read()
            self.seconds.append(time.perf_counter() - began)
            if answer.status != 200:
                raise RuntimeError(f"the proxy answered {answer.status}")

    @property
    def median_ms(self) -> float:
        return statistics.median(self.seconds) * 1000


def proxy_rows(place: Place) -> Iterator[Row]:
    """Latency of whole answers and of streams of 100 chunks, added by everything we do."""
    wanted, roots = place.root / "inference.json", place.root / "roots.json"
    wanted.write_bytes(place.inference_expectation().canonical())
    roots.write_bytes(encode_roots_file(place.engine.roots()))
    proxy = place.start(
        "-m", "confide", "proxy", "--node", place.model.url, "--expectation", str(wanted),
        "--roots", str(roots), "--port", "PORT", "--no-token",
    )  # fmt: skip
    bare = place.start("-m", "bench.servers", "proxy", "PORT", place.upstream.url)
    for stream in (False, True):
        ours, peer = _Caller(proxy, stream=stream), _Caller(bare, stream=stream)
        for caller in (ours, peer):
            caller.turn()
            caller.seconds.clear()
        for _ in range(_ROUNDS):
            ours.turn()
            peer.turn()
        what = "a stream of 100 chunks" if stream else "a whole answer"
        added = ours.median_ms - peer.median_ms
        yield row(
            f"confide proxy: {what}, sealed, verified, receipt kept, p50",
            ours.median_ms,
            "ms",
            peer=peer.median_ms,
        )
        if not stream:
            yield row(
                "confide proxy and model node: added to a bare proxy by both, p50",
                added,
                "ms",
                budget=f"<= {_BUDGET_MS:g}",
                met=added <= _BUDGET_MS,
            )
