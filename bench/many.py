"""The gateway under load beside its peers: latency, large bodies, idle streams, workers, memory.

As in `bench.gateway`: the node is the real one in its own process, requests are sealed before the
clock starts, the peer is the bare pass-through proxy, and all arms take turns. What is *added* is
what an arm takes beyond the engine asked directly, quantile by quantile.
"""

from __future__ import annotations

import asyncio
import statistics
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from bench.gateway import chat_body, sealed_chat, sealed_request
from bench.load import CLIENTS, drive, http_request, timed
from bench.nodes import MODEL
from bench.rows import MB, Row, cpu_seconds, family, quantile, resident_bytes, row
from bench.servers import HELD_PROMPT, LARGE_BYTES, LARGE_PROMPT

from confide.channel.carriage import CHANNEL_PATH, REQUEST_MEDIA_TYPE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bench.load import Timed
    from bench.nodes import Place, Server

_PATH = "/v1/chat/completions"
_UPLOADS = "/v1/audio/transcriptions"
_JSON = "application/json"
_FORM = "multipart/form-data; boundary=bench"
_ROUNDS = 7
_STREAMS = 1000


@dataclass(slots=True)
class _Arm:
    """One server, what is sent to it, and every time that was taken there."""

    server: Server
    requests: Callable[[int], Sequence[bytes]]
    turns: list[Timed] = field(default_factory=list)

    def turn(self, count: int, clients: int) -> None:
        self.turns.append(timed(self.server.url, self.requests(count), clients=clients))

    def lasts(self, part: float) -> float:
        """Seconds to the last byte, of the best round."""
        return min(quantile(turn.lasts, part) for turn in self.turns)

    def firsts(self, part: float) -> float:
        """Seconds to the first byte of the body, of the best round."""
        return min(quantile(turn.firsts, part) for turn in self.turns)


def _in_turns(arms: Sequence[_Arm], count: int, clients: int, rounds: int = _ROUNDS) -> None:
    for number in range(rounds + 1):
        for arm in arms:
            arm.turn(count, clients)
            if number == 0:
                arm.turns.clear()


def _three(place: Place, proxy: Server, body: bytes) -> tuple[_Arm, _Arm, _Arm]:
    """Return the engine asked directly, the bare proxy and the node, all asked the same."""
    recipient = place.recipient()
    plain = http_request(_PATH, body, media_type=_JSON)

    def same(count: int) -> list[bytes]:
        return [plain] * count

    def sealed(count: int) -> list[bytes]:
        return [sealed_request(recipient, body) for _ in range(count)]

    return _Arm(place.upstream, same), _Arm(proxy, same), _Arm(place.model, sealed)


def latency_rows(place: Place) -> Iterator[Row]:
    """Yield what the gateway adds at 1, 16 and 64 clients: to whole answers, to the first token."""
    proxy = place.start("-m", "bench.servers", "proxy", "PORT", place.upstream.url)
    for stream in (False, True):
        for clients in (1, 16, 64):
            direct, bare, node = _three(place, proxy, chat_body(stream=stream))
            _in_turns((direct, bare, node), (4 if stream else 8) * max(clients, 16), clients)
            what = "first token of a stream" if stream else "whole answer"
            for name, part in (("p50", 0.50), ("p99", 0.99)):
                take = partial(_Arm.firsts if stream else _Arm.lasts, part=part)
                yield row(
                    f"gateway adds to a {what}, {clients} clients, {name}; beside a bare proxy",
                    (take(node) - take(direct)) * 1000,
                    "ms",
                    peer=(take(bare) - take(direct)) * 1000,
                )


def _upload() -> bytes:
    parts = (
        f'--bench\r\nContent-Disposition: form-data; name="model"\r\n\r\n{MODEL}\r\n'
        '--bench\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n'
        "Content-Type: audio/wav\r\n\r\n"
    )
    return parts.encode() + bytes(LARGE_BYTES) + b"\r\n--bench--\r\n"


def large_rows(place: Place) -> Iterator[Row]:
    """Yield the time of 10 MB in either direction, one at a time."""
    proxy = place.start("-m", "bench.servers", "proxy", "PORT", place.upstream.url)
    recipient, upload = place.recipient(), _upload()

    def sealed_upload(count: int) -> list[bytes]:
        return [
            http_request(
                CHANNEL_PATH,
                sealed_chat(recipient, upload, path=_UPLOADS, media_type=_FORM),
                media_type=REQUEST_MEDIA_TYPE,
            )
            for _ in range(count)
        ]

    plain = http_request(_UPLOADS, upload, media_type=_FORM)
    ups = [
        _Arm(place.upstream, lambda count: [plain] * count),
        _Arm(proxy, lambda count: [plain] * count),
        _Arm(place.model, sealed_upload),
    ]
    downs = _three(place, proxy, chat_body(stream=False, prompt=LARGE_PROMPT))
    for what, arms in (("a request", ups), ("an answer", downs)):
        _in_turns(arms, 3, 1, rounds=5)
        direct, bare, node = (arm.lasts(0.5) * 1000 for arm in arms)
        yield row(f"gateway: {what} of 10 MB; beside a bare proxy", node, "ms", peer=bare)
        yield row(
            f"gateway: {what} of 10 MB: added, beside what a bare proxy adds",
            node - direct,
            "ms",
            peer=bare - direct,
        )


async def _held(url: str, requests: Sequence[bytes], measure: Callable[[], float]) -> float:
    """Open one connection for each of `requests`, wait for all first bytes, measure, let go."""
    parts = urlsplit(url)

    async def hold(request: bytes) -> asyncio.StreamWriter:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"the answer was {head[:20]!r}")
        await reader.readexactly(64)
        return writer

    writers: list[asyncio.StreamWriter] = []
    try:
        for at in range(0, len(requests), 50):
            writers += await asyncio.gather(*(hold(each) for each in requests[at : at + 50]))
        return measure()
    finally:
        for writer in writers:
            writer.close()


def idle_rows(place: Place) -> Iterator[Row]:
    """Yield the memory of 1,000 streams that have begun and are silent."""
    proxy = place.start("-m", "bench.servers", "proxy", "PORT", place.upstream.url)
    node = place.start_model("--max-calls", str(_STREAMS + 24))
    recipient = place.recipient(node)
    body = chat_body(stream=True, prompt=HELD_PROMPT)
    warm = chat_body(stream=False)
    plain = http_request(_PATH, body, media_type=_JSON)

    def grown(server: Server, requests: Sequence[bytes]) -> float:
        before = resident_bytes(server.pid)

        def measure() -> float:
            return (resident_bytes(server.pid) - before) / len(requests) / 1000

        return asyncio.run(_held(server.url, requests, measure))

    drive(node.url, [sealed_request(recipient, warm) for _ in range(256)])
    drive(proxy.url, [http_request(_PATH, warm, media_type=_JSON)] * 256)
    ours = grown(node, [sealed_request(recipient, body) for _ in range(_STREAMS)])
    theirs = grown(proxy, [plain] * _STREAMS)
    yield row(
        f"gateway: {_STREAMS:,} idle streams, memory of each; beside a bare proxy",
        ours,
        "KB",
        peer=theirs,
    )
    # Whoever let go is forgotten: the node answers as before.
    drive(node.url, [sealed_request(recipient, warm) for _ in range(64)])


def worker_rows(place: Place) -> Iterator[Row]:
    """Yield what two workers do beside one, in wall time and in processor time."""
    what = "whole answers"
    yield from _two_beside_one(
        place, what, (place.model, ""), (place.start_model("--workers", "2"), "")
    )
    one, two = place.start_keyed_model(), place.start_keyed_model("--workers", "2")
    yield from _two_beside_one(place, f"{what}, with API keys, budgets and metrics on", one, two)


def _two_beside_one(
    place: Place, what: str, alone: tuple[Server, str], pair: tuple[Server, str]
) -> Iterator[Row]:
    body = chat_body(stream=False)
    found: dict[str, tuple[list[float], list[float], list[float]]] = {}
    for _ in range(_ROUNDS):
        for name, (server, key) in (("one", alone), ("two", pair)):
            recipient = place.recipient(server)
            requests = [sealed_request(recipient, body, key=key) for _ in range(640)]
            pids = family(server.pid)
            before = [cpu_seconds(pid) for pid in pids]
            rate = drive(server.url, requests)
            spent = [cpu_seconds(pid) - was for pid, was in zip(pids, before, strict=True)]
            rates, costs, shares = found.setdefault(name, ([], [], []))
            rates.append(rate)
            costs.append(sum(spent) / len(requests))
            # Of the workers alone: the parent serves nobody.
            shares.append(min(spent[1:], default=1.0) / max(spent[1:], default=1.0))
    one, both = found["one"], found["two"]
    name = f"gateway: two workers beside one, {what}, {CLIENTS} clients"
    yield row(name, max(both[0]), "requests/s", peer=max(one[0]))
    yield row(f"{name}: per core second", 1 / min(both[1]), "requests/s", peer=1 / min(one[1]))
    yield row(
        f"{name}: the less busy worker's part of the busier one's", statistics.median(both[2]), ""
    )


def flat_rows(place: Place, total: int = 100_000) -> Iterator[Row]:
    """Yield the memory of a node over 100,000 requests. Minutes."""
    node = place.start_model()
    body, batch, sizes = chat_body(stream=False), 2500, list[tuple[int, float]]()
    for done in range(0, total, batch):
        recipient = place.recipient(node)
        drive(node.url, [sealed_request(recipient, body) for _ in range(batch)])
        sizes.append((done + batch, resident_bytes(node.pid) / MB))
    at = dict(sizes)
    yield row(
        f"memory: model node after {total:,} requests, beside after {total // 2:,}",
        at[total],
        "MB",
        peer=at[total // 2],
        budget="<= 150, ratio <= 1.05",
        met=at[total] <= 150 and at[total] <= 1.05 * at[total // 2],
    )
    yield row(
        f"memory: model node after {total:,} requests, beside after {total // 10:,}",
        at[total],
        "MB",
        peer=at[total // 10],
    )
