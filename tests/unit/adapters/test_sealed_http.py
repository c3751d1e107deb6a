"""What the client makes of everything that is not a sealed answer. The rest is tested against a
real node in tests/unit/node/test_sealed_gateway.py."""

from __future__ import annotations

import asyncio
import inspect
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import httpx2
import pytest

from confide.adapters.carrier import NotSent
from confide.adapters.clock import SystemClock
from confide.adapters.entropy import SystemEntropy
from confide.adapters.sealed_http import RefusedOutside, SealedClient, SealedTransport
from confide.channel.carriage import problem_reason, problem_type
from confide.channel.keys import key_ring
from confide.crypto.kem import load_private_key
from confide.errors import LocalProtocolError, Reason, RemoteProtocolError, Unavailable
from confide.wire.ohttp import Kem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

CONFIG = key_ring(((1, load_private_key(Kem.X_WING, bytes(32))),)).configs[0]


class Drip(httpx2.AsyncByteStream):
    """A body that comes from the network: one piece, and perhaps a failure."""

    def __init__(self, piece: bytes, error: Exception | None = None) -> None:
        self._piece = piece
        self._error = error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._piece
        if self._error is not None:
            raise self._error


def ask(answer: Callable[[httpx2.Request], httpx2.Response]) -> None:
    async def scenario() -> None:
        async with httpx2.AsyncClient(transport=httpx2.MockTransport(answer)) as http:
            sealed = SealedClient(
                "http://node/", CONFIG, http=http, clock=SystemClock(), entropy=SystemEntropy()
            )
            await sealed.request("GET", "/")

    asyncio.run(scenario())


def refused(answer: httpx2.Response) -> RemoteProtocolError:
    with pytest.raises(RemoteProtocolError) as caught:
        ask(lambda _request: answer)
    return caught.value


def problem(status: int, body: bytes) -> httpx2.Response:
    headers = {"content-type": "application/problem+json; charset=utf-8"}
    return httpx2.Response(status, headers=headers, stream=Drip(body))


def test_the_request_on_the_outside_is_fixed() -> None:
    seen: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return httpx2.Response(500, stream=Drip(b""))

    with pytest.raises(RemoteProtocolError):
        ask(answer)
    assert (seen[0].method, str(seen[0].url)) == ("POST", "http://node/confide/v1/ohttp")
    assert seen[0].headers["content-type"] == "message/ohttp-chunked-req"
    assert seen[0].headers["incremental"] == "?1"


@pytest.mark.parametrize(
    "reason",
    [
        Reason.KEYSET_MISMATCH,
        Reason.REPLAYED,
        Reason.REQUEST_TIME,
        Reason.NODE_BUSY,
        Reason.LIMIT_EXCEEDED,
    ],
)
def test_problem_types_become_reasons(reason: Reason) -> None:
    error = refused(problem(422, b'{"type": "%s"}' % problem_type(reason).encode()))
    assert (error.reason, error.status_hint) == (reason, 422)
    assert problem_reason(problem_type(reason)) is reason


@pytest.mark.parametrize(
    "answer",
    [
        httpx2.Response(200, stream=Drip(b"plain text")),
        httpx2.Response(200, headers={"content-type": "message/ohttp-res"}, stream=Drip(bytes(80))),
        httpx2.Response(302, headers={"location": "http://elsewhere/"}, stream=Drip(b"")),
        problem(400, b'{"type": "urn:confide:problem:channel"}'),
        problem(400, b'{"type": 7}'),
        problem(400, b"not json"),
        problem(400, b" " * 100000),
        httpx2.Response(401, stream=Drip(b'{"type": "urn:confide:problem:replayed"}')),
    ],
)
def test_whatever_else_comes_unsealed_is_refused(answer: httpx2.Response) -> None:
    assert refused(answer).reason is Reason.CHANNEL_FORMAT


def test_a_sealed_answer_without_a_response_in_it_is_refused() -> None:
    headers = {"content-type": "message/ohttp-chunked-res"}
    answer = httpx2.Response(200, headers=headers, stream=Drip(b""))
    assert refused(answer).reason is Reason.CHANNEL_TRUNCATED


def _transport_errors() -> list[type[httpx2.HTTPError]]:
    found = [value for _, value in inspect.getmembers(httpx2, inspect.isclass)]
    return [error for error in found if issubclass(error, httpx2.TransportError)]


@pytest.mark.parametrize("error", _transport_errors())
def test_every_transport_error_is_unavailable_before_an_answer(error: type[Exception]) -> None:
    def answer(_request: httpx2.Request) -> httpx2.Response:
        raise error("x")

    with pytest.raises(Unavailable):
        ask(answer)


@pytest.mark.parametrize("error", _transport_errors())
def test_every_transport_error_within_an_answer_is_a_cut(error: type[Exception]) -> None:
    headers = {"content-type": "message/ohttp-chunked-res"}
    answer = httpx2.Response(200, headers=headers, stream=Drip(b"x", error("x")))
    expected = Unavailable if issubclass(error, httpx2.TimeoutException) else RemoteProtocolError
    with pytest.raises(expected):
        ask(lambda _request: answer)


def test_the_transport_wants_asynchronous_bodies() -> None:
    class SyncOnly(httpx2.SyncByteStream):
        pass

    async def scenario() -> None:
        sealed = SealedClient(
            "http://node",
            CONFIG,
            http=httpx2.AsyncClient(),
            clock=SystemClock(),
            entropy=SystemEntropy(),
        )
        with pytest.raises(LocalProtocolError):
            await SealedTransport(sealed).handle_async_request(
                httpx2.Request("POST", "http://a/", stream=SyncOnly())
            )

    asyncio.run(scenario())


def test_the_real_clock_and_entropy() -> None:
    before = datetime.now(UTC)
    now = SystemClock().now()
    assert before <= now
    assert now.tzinfo is UTC
    first, second = SystemEntropy().token(32), SystemEntropy().token(32)
    assert len(first) == 32
    assert first != second


_UNSENT = (
    httpx2.ConnectError,
    httpx2.ConnectTimeout,
    httpx2.PoolTimeout,
    httpx2.UnsupportedProtocol,
)


@pytest.mark.parametrize("error", _transport_errors())
def test_only_where_no_connection_was_made_nothing_was_sent(error: type[Exception]) -> None:
    def answer(_request: httpx2.Request) -> httpx2.Response:
        raise error("x")

    with pytest.raises(Unavailable) as caught:
        ask(answer)
    assert isinstance(caught.value, NotSent) == issubclass(error, _UNSENT)


def test_a_refusal_outside_the_seal_has_a_class_of_its_own() -> None:
    assert isinstance(refused(httpx2.Response(500, stream=Drip(b""))), RefusedOutside)
    headers = {"content-type": "message/ohttp-chunked-res"}
    sealed = refused(httpx2.Response(200, headers=headers, stream=Drip(bytes(80))))
    assert not isinstance(sealed, RefusedOutside)


def test_timeouts_of_one_request_go_with_it() -> None:
    seen: list[object] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request.extensions["timeout"])
        return httpx2.Response(500, stream=Drip(b""))

    async def scenario() -> None:
        async with httpx2.AsyncClient(transport=httpx2.MockTransport(answer)) as http:
            sealed = SealedClient(
                "http://node/", CONFIG, http=http, clock=SystemClock(), entropy=SystemEntropy()
            )
            for timeouts in ({"read": 0.5}, None):
                with pytest.raises(RefusedOutside):
                    await sealed.request("GET", "/", timeouts=timeouts)

    asyncio.run(scenario())
    assert seen[0] == {"read": 0.5}
    assert seen[1] != seen[0]
