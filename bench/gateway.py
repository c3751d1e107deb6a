"""The model node's gateway beside its peers: throughput, streams, and the first verified token.

The node is the real one, its own process, with a receipt for every answer. Requests are sealed
before the clock starts and answers are counted, not opened; one exchange is opened and its receipt
found before and after. Peers run in the same run, in turns, under the same load generator.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import httpx2
from bench.load import CLIENTS, drive, http_request
from bench.nodes import MODEL
from bench.rows import MB, Row, cpu_seconds, rates, resident_bytes, row

from confide.adapters.clock import SystemClock
from confide.adapters.entropy import SystemEntropy
from confide.appraisal.known import Known
from confide.appraisal.node import appraise_node
from confide.channel.carriage import CHANNEL_PATH, REQUEST_MEDIA_TYPE
from confide.channel.message import ClientMessages, MessageLimits, Stamp
from confide.channel.padding import PaddingPolicy
from confide.node.model_link import ModelLink, ModelNodeAddress, open_model_link
from confide.receipts.inline import RECEIPT_HEADER, decode_inline

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from bench.nodes import Place, Server

    from confide.channel.keys import RecipientKey

_PATH = "/v1/chat/completions"
_JSON = "application/json"
_ENTROPY = SystemEntropy()
_ROUNDS = 7
_PROMPT = "Label this support note: the parcel arrived late and the box was open. " * 12


def chat_body(*, stream: bool, prompt: str = _PROMPT) -> bytes:
    """Return the request that every row of whole answers and streams sends."""
    request = {"model": MODEL, "messages": [{"role": "user", "content": prompt}], "stream": stream}
    return json.dumps(request, separators=(",", ":")).encode()


def sealed_chat(
    recipient: RecipientKey,
    body: bytes,
    *,
    path: str = _PATH,
    media_type: str = _JSON,
    key: str = "",
) -> bytes:
    """Return `body` as a sealed request, made before a clock starts."""
    messages = ClientMessages(
        recipient,
        ephemeral=_ENTROPY.token(32),
        stamp=Stamp(_ENTROPY.token(32), datetime.now(UTC)),  # noqa: TID251 - a benchmark has a clock
        padding=PaddingPolicy(),
        limits=MessageLimits(),
    )
    fields = [(b"content-type", media_type.encode())]
    if key:
        fields.append((b"authorization", f"Bearer {key}".encode()))
    return messages.seal_whole("POST", path, tuple(fields), body)


def sealed_request(recipient: RecipientKey, body: bytes, *, key: str = "") -> bytes:
    """Return `body`, sealed, as the HTTP request that carries it."""
    sealed = sealed_chat(recipient, body, key=key)
    return http_request(CHANNEL_PATH, sealed, media_type=REQUEST_MEDIA_TYPE)


class _Arm:
    """One side of a comparison: its rates, and its processor time for a request."""

    def __init__(self, server: Server, requests: Callable[[], list[bytes]]) -> None:
        self._server = server
        self._requests = requests
        self.rates: list[float] = []
        self.costs: list[float] = []

    def turn(self) -> None:
        requests = self._requests()
        before = cpu_seconds(self._server.pid)
        self.rates.append(drive(self._server.url, requests))
        self.costs.append((cpu_seconds(self._server.pid) - before) / len(requests))

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)

    @property
    def cost(self) -> float:
        """Seconds of processor time for one request, best round."""
        return min(self.costs)


def _in_turns(*arms: _Arm) -> None:
    for arm in arms:
        arm.turn()
        arm.rates.clear()
        arm.costs.clear()
    for _ in range(_ROUNDS):
        for arm in arms:
            arm.turn()


def gateway_rows(place: Place) -> Iterator[Row]:
    """Throughput of whole answers and of streams."""
    recipient = place.recipient()
    asyncio.run(_check(place))
    proxy = place.start("-m", "bench.servers", "proxy", "PORT", place.upstream.url)
    keyed_node, key = place.start_keyed_model()
    asyncio.run(_check(place, keyed_node, key=key))
    keyed_recipient = place.recipient(keyed_node)
    for stream, count in ((False, 640), (True, 4 * CLIENTS)):
        body = chat_body(stream=stream)
        plain = [http_request(_PATH, body, media_type=_JSON)] * count

        def sealed(body: bytes = body, count: int = count) -> list[bytes]:
            return [sealed_request(recipient, body) for _ in range(count)]

        def with_key(body: bytes = body, count: int = count) -> list[bytes]:
            return [sealed_request(keyed_recipient, body, key=key) for _ in range(count)]

        direct = _Arm(place.upstream, partial(list, plain))
        bare = _Arm(proxy, partial(list, plain))
        node = _Arm(place.model, sealed)
        keyed = _Arm(keyed_node, with_key)
        _in_turns(direct, bare, node, keyed)
        yield from _streams(direct, bare, node) if stream else _whole(bare, node)
        yield from _keyed(keyed, bare, stream=stream)
    asyncio.run(_check(place))
    resident = resident_bytes(place.model.pid) / MB
    served = _ROUNDS * (640 + 4 * CLIENTS)
    yield row(
        f"memory: model node without its engine, after {served} sealed requests",
        resident,
        "MB",
        budget="<= 150",
        met=resident <= 150,
    )


def _whole(bare: _Arm, node: _Arm) -> Iterator[Row]:
    name = "gateway: whole answers, sealed + receipted, 16 clients"
    yield row(
        name,
        node.rate,
        "requests/s",
        peer=bare.rate,
        budget=">= 1500 and >= 0.60 of a bare proxy",
        met=node.rate >= 1500 and node.rate >= 0.6 * bare.rate,
    )
    yield row(
        f"{name}: per core second",
        1 / node.cost,
        "requests/s",
        peer=1 / bare.cost,
        budget=">= 1500 and >= 0.60 of a bare proxy",
        met=1 / node.cost >= 1500 and bare.cost >= 0.6 * node.cost,
    )


def _streams(direct: _Arm, bare: _Arm, node: _Arm) -> Iterator[Row]:
    name = "gateway: streams of 100 chunks, sealed + receipted, 16 clients"
    yield row(
        name,
        node.rate,
        "streams/s",
        peer=direct.rate,
        budget=">= 0.70 of the upstream directly",
        met=node.rate >= 0.7 * direct.rate,
    )
    yield row(f"{name}: beside a bare proxy", node.rate, "streams/s", peer=bare.rate)
    yield row(
        f"{name}: per core second, beside a bare proxy",
        1 / node.cost,
        "streams/s",
        peer=1 / bare.cost,
    )


def _keyed(keyed: _Arm, bare: _Arm, *, stream: bool) -> Iterator[Row]:
    what, unit = (
        ("streams of 100 chunks", "streams/s") if stream else ("whole answers", "requests/s")
    )
    name = f"gateway: {what}, with API keys, budgets and metrics on, 16 clients"
    yield row(f"{name}: beside a bare proxy", keyed.rate, unit, peer=bare.rate)
    yield row(f"{name}: per core second", 1 / keyed.cost, unit, peer=1 / bare.cost)


async def _link(place: Place, http: httpx2.AsyncClient, node: Server | None = None) -> ModelLink:
    return await open_model_link(
        ModelNodeAddress((node or place.model).url, place.engine.roots()),
        expectation=place.expectation(),
        http=http,
        clock=SystemClock(),
        entropy=_ENTROPY,
    )


async def _check(place: Place, node: Server | None = None, *, key: str = "") -> None:
    """Open one whole answer and find its receipt, or there is nothing to measure."""
    async with httpx2.AsyncClient(trust_env=False) as http:
        link = await _link(place, http, node)
        headers = (("content-type", _JSON), *((("authorization", f"Bearer {key}"),) if key else ()))
        async with await link.request("POST", _PATH, headers, chat_body(stream=False)) as answer:
            await answer.aread()
        if answer.status != 200:
            raise RuntimeError(f"the node answered {answer.status}")
        decode_inline(dict(answer.headers)[RECEIPT_HEADER])


def first_token_rows(place: Place) -> Iterator[Row]:
    """Time to the first verified token beyond that of the upstream asked directly."""
    cold, warm = asyncio.run(_first_tokens(place))
    yield row(
        "first verified token beyond the upstream's own: cold, evidence of CPU and GPU",
        cold * 1000,
        "ms",
        budget="<= 150",
        met=cold <= 0.150,
    )
    yield row(
        "first verified token beyond the upstream's own: warm",
        warm * 1000,
        "ms",
        budget="<= 3",
        met=warm <= 0.003,
    )


def appraisal_rows(place: Place) -> Iterator[Row]:
    """The whole appraisal of the model node, and what keeping the verified parts spares."""

    async def prove() -> ModelLink:
        async with httpx2.AsyncClient(trust_env=False) as http:
            return await _link(place, http)

    link, expectation, roots = asyncio.run(prove()), place.expectation(), place.engine.roots()
    now = SystemClock().now()

    def appraise(known: Known) -> object:
        return appraise_node(
            link.before, subject="bench", role="model", purpose="channel", nonce=link.nonce,
            claim=None, expectation=expectation, roots=roots, now=now, known=known,
        )  # fmt: skip

    cold, warm = rates(lambda: appraise(Known()), lambda: appraise(link.node.known))
    yield row("appraise a model node, CPU, log and one GPU: nothing known", 1000 / cold, "ms")
    yield row(
        "appraise a model node: collateral, manifests and signatures known, beside nothing known",
        1000 / warm,
        "ms",
        peer=1000 / cold,
    )


async def _first_tokens(place: Place, rounds: int = 15) -> tuple[float, ...]:
    body, headers = chat_body(stream=True), (("content-type", _JSON),)
    expectation, roots = place.expectation(), place.engine.roots()
    address = ModelNodeAddress(place.model.url, roots)
    colds: list[tuple[float, float]] = []
    warms: list[tuple[float, float]] = []

    async def sealed(link: ModelLink) -> None:
        async with await link.request("POST", _PATH, headers, body) as answer:
            async for _ in answer.aiter_bytes():
                break

    async def direct(http: httpx2.AsyncClient) -> None:
        url = place.upstream.url + _PATH
        async with http.stream("POST", url, content=body, headers=dict(headers)) as answer:
            async for _ in answer.aiter_raw():
                break

    async def timed(work: Awaitable[object]) -> float:
        start = time.perf_counter()
        await work
        return time.perf_counter() - start

    for _ in range(rounds):
        async with (
            httpx2.AsyncClient(trust_env=False) as http,
            httpx2.AsyncClient(trust_env=False) as other,
        ):
            start = time.perf_counter()
            link = await open_model_link(
                address, expectation=expectation, http=http, clock=SystemClock(), entropy=_ENTROPY
            )
            await sealed(link)
            colds.append((time.perf_counter() - start, await timed(direct(other))))
            warms += [(await timed(sealed(link)), await timed(direct(other))) for _ in range(8)]
    return tuple(_beyond(pairs) for pairs in (colds, warms))


def _beyond(pairs: list[tuple[float, float]]) -> float:
    """Return the median of what the first of each pair takes beyond the second, in seconds."""
    return statistics.median(ours - theirs for ours, theirs in pairs)
