"""The sealed channel between a real client and a real HTTP server on loopback, and every attack
on the path. `inpath.InPath` keeps HTTP well-formed, so each refusal is the seal's."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
import uvicorn

from confide.adapters.clock import SystemClock
from confide.adapters.entropy import SystemEntropy
from confide.adapters.sealed_http import SealedClient, SealedTransport
from confide.channel.keys import KeyRing, key_ring, recipient_key
from confide.channel.message import ClientMessages, MessageLimits, Stamp
from confide.channel.padding import PaddingPolicy
from confide.channel.replay import ReplayPolicy, ReplayWindow
from confide.crypto.kem import load_private_key
from confide.errors import LocalProtocolError, Reason, RemoteProtocolError, Unavailable
from confide.node.sealed import SCOPE_KEY, ChannelRecord, SealedGateway
from confide.wire.bhttp import BhttpLimits
from confide.wire.ohttp import Kem

sys.path.insert(0, str(Path(__file__).parent))
from inpath import Frames, InPath

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

    from starlette.types import Message, Receive, Scope, Send

    from confide.ports import Clock

CANARY = b"the canary sings at midnight"


def ring(seed: int = 1, key_id: int = 1) -> KeyRing:
    return key_ring(((key_id, load_private_key(Kem.X_WING, bytes([seed] * 32))),))


@dataclass
class Inner:
    """The application inside: echoes, counts, streams. Records what had an effect."""

    calls: list[tuple[str, bytes]] = field(default_factory=list)
    records: list[ChannelRecord] = field(default_factory=list)
    disconnected: asyncio.Event = field(default_factory=asyncio.Event)
    called: asyncio.Event = field(default_factory=asyncio.Event)
    scopes: list[Scope] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.records.append(scope[SCOPE_KEY])
        self.scopes.append(scope)
        if scope["path"] == "/silent":
            self.calls.append((scope["path"], b""))
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"done"})
            return
        if scope["path"].startswith(("/fail", "/stop")):
            await self._fail(scope["path"], send)
            return
        if scope["path"] == "/wait":
            await self._wait(receive, send)
            return
        if scope["path"] == "/echo-stream":
            await self._echo(receive, send)
            return
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                if scope["path"] == "/strict":
                    raise ConnectionError("the client went away")
                return
            body += message["body"]
            if not message["more_body"]:
                break
        self.calls.append((scope["path"], body))
        await self._answer(scope["path"], body, send)

    async def _answer(self, path: str, body: bytes, send: Send) -> None:
        start: Message = {"type": "http.response.start", "status": 200, "headers": []}
        start["headers"] = [(b"content-type", b"text/plain"), (b"connection", b"close")]
        if path == "/stream":
            await send(start)
            for index in range(5):
                piece = b"%d:" % index + body
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        elif path == "/trailers":
            await send({**start, "trailers": True})
            await send({"type": "http.response.body", "body": body})
            receipt = [(b"x-receipt", b"r1")]
            await send({"type": "http.response.trailers", "headers": receipt})
        else:
            await send(start)
            await send({"type": "http.response.body", "body": b"got " + body})

    async def _echo(self, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            self.calls.append(("/echo-stream", message["body"]))
            self.called.set()
            await send(
                {
                    "type": "http.response.body",
                    "body": message["body"],
                    "more_body": message["more_body"],
                }
            )
            if not message["more_body"]:
                return

    async def _fail(self, path: str, send: Send) -> None:
        if path.endswith("late"):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
        if path.startswith("/fail"):
            raise RuntimeError(path)

    async def _wait(self, receive: Receive, send: Send) -> None:
        while (await receive())["type"] == "http.request":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"first", "more_body": True})
        self.disconnected.set()


@dataclass
class Node:
    inner: Inner
    gateway: SealedGateway
    url: str
    port: int

    @property
    def effects(self) -> int:
        return len(self.inner.calls)


@asynccontextmanager
async def serving(app: Callable[..., Awaitable[None]]) -> AsyncIterator[int]:
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn offers no event
        await asyncio.sleep(0)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await task


@asynccontextmanager
async def node(
    keys: KeyRing | None = None, *, max_entries: int = 1 << 20, limits: MessageLimits | None = None
) -> AsyncIterator[Node]:
    inner = Inner()
    gateway = SealedGateway(
        inner,
        keys=keys or ring(),
        clock=SystemClock(),
        entropy=SystemEntropy(),
        window=ReplayWindow(ReplayPolicy(max_entries=max_entries), secret=bytes(32)),
        limits=limits,
    )
    async with serving(gateway) as port:
        yield Node(inner, gateway, f"http://127.0.0.1:{port}", port)


class ShiftedClock:
    def __init__(self, seconds: int) -> None:
        self._shift = timedelta(seconds=seconds)

    def now(self) -> datetime:
        return datetime.now(UTC) + self._shift


@asynccontextmanager
async def client(
    url: str, keys: KeyRing | None = None, clock: Clock | None = None
) -> AsyncIterator[SealedClient]:
    async with httpx2.AsyncClient(trust_env=False, timeout=60) as http:
        config = (keys or ring()).configs[0]
        clock = clock or SystemClock()
        yield SealedClient(url, config, http=http, clock=clock, entropy=SystemEntropy())


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(coroutine)


async def pieces(*items: bytes) -> AsyncIterator[bytes]:
    for item in items:
        yield item


async def refused(url: str, path: str = "/v1/echo", **options: Any) -> RemoteProtocolError:
    """One request that must be refused, while sending or while reading."""
    async with client(url, **options) as sealed:
        with pytest.raises(RemoteProtocolError) as caught:
            async with await sealed.request("POST", path, body=CANARY) as response:
                await response.aread()
    return caught.value


# --- it works -------------------------------------------------------------------------------------


def test_a_request_arrives_and_its_response_comes_back() -> None:
    async def scenario() -> None:
        async with node() as n, client(n.url) as sealed:
            headers = {"Content-Type": "text/plain", "Connection": "keep-alive", "X-Name": "é"}
            async with await sealed.request(
                "POST", "/v1/echo?a=%20b", headers, b"hello"
            ) as response:
                assert response.status == 200
                assert await response.aread() == b"got hello"
                with pytest.raises(LocalProtocolError):
                    await response.aread()
                assert ("content-type", "text/plain") in response.headers
                assert "connection" not in dict(response.headers)
                assert response.trailers == ()
            (scope,) = n.inner.scopes
            assert (scope["path"], scope["query_string"]) == ("/v1/echo", b"a=%20b")
            assert scope["client"] is None
            names = [name for name, _ in scope["headers"]]
            assert names == [b"content-type", b"x-name", b"host"]
            assert (b"host", b"confide.invalid") in scope["headers"]

    run(scenario())


def test_both_ends_have_the_same_transcript_and_channel_id() -> None:
    async def scenario() -> None:
        async with node() as n, InPath(n.port) as path, client(path.url) as sealed:
            async with await sealed.request("POST", "/stream", body=b"x") as response:
                with pytest.raises(LocalProtocolError):
                    _ = response.transcript
                await response.aread()
            (record,) = n.inner.records
            assert response.transcript.request_sha256 == record.request_sha256
            assert response.transcript.response_sha256 == record.response_sha256
            assert response.channel_id == record.channel_id
            assert record.request_sha256 == hashlib.sha256(path.seen_requests[0]).digest()
            assert record.response_sha256 == hashlib.sha256(path.seen_responses[0]).digest()

    run(scenario())


def test_both_directions_stream_one_sealed_chunk_for_each_piece() -> None:
    async def scenario() -> None:
        async with node() as n, InPath(n.port) as path, client(path.url) as sealed:
            body = pieces(b"one", b"two", b"three")
            async with await sealed.request("POST", "/stream", body=body) as response:
                got = [piece async for piece in response.aiter_bytes()]
            assert got == [b"%d:onetwothree" % i for i in range(5)]
            assert n.inner.calls == [("/stream", b"onetwothree")]

    run(scenario())


def test_the_inner_application_reads_while_the_client_still_writes() -> None:
    async def scenario() -> None:
        async with node() as n, client(n.url) as sealed:

            async def body() -> AsyncIterator[bytes]:
                yield b"first"
                await n.inner.called.wait()
                assert n.inner.calls == [("/echo-stream", b"first")]
                yield b"second"

            async with await sealed.request("POST", "/echo-stream", body=body()) as response:
                assert await response.aread() == b"firstsecond"

    run(scenario())


def test_trailers_and_large_bodies_travel() -> None:
    async def scenario() -> None:
        large = bytes(range(256)) * 1000
        async with node() as n, client(n.url) as sealed:
            response = await sealed.request("POST", "/trailers", body=large)
            assert await response.aread() == large
            assert response.trailers == (("x-receipt", "r1"),)

    run(scenario())


def test_cells_make_every_chunk_of_a_stream_the_same_length() -> None:
    async def scenario() -> None:
        async with node() as n, InPath(n.port, response=sizes.remember) as path:
            async with client(path.url) as sealed:
                response = await sealed.request("POST", "/stream", body=b"y" * 90, cell_bytes=128)
                assert await response.aread() == b"".join(b"%d:" % i + b"y" * 90 for i in range(5))
                assert "confide-cells" not in dict(response.headers)
            assert len(set(sizes.seen[2:-1])) == 1

    class sizes:  # noqa: N801 - a namespace
        seen: list[int] = []  # noqa: RUF012

        @classmethod
        def remember(cls, items: Frames) -> Frames:
            cls.seen = [len(item) for item in items]
            return items

    run(scenario())


def test_lengths_of_whole_messages_fall_into_buckets() -> None:
    async def scenario() -> None:
        async with node() as n, InPath(n.port) as path, client(path.url) as sealed:
            for body in (b"", b"x", b"x" * 300):
                async with await sealed.request("POST", "/v1/echo", body=body) as response:
                    await response.aread()
            assert len({len(raw) for raw in path.seen_requests}) == 1
            assert len({len(raw) for raw in path.seen_responses}) == 1

    run(scenario())


def test_nothing_readable_is_on_the_path() -> None:
    async def scenario() -> None:
        async with node() as n, InPath(n.port) as path, client(path.url) as sealed:
            async with await sealed.request(
                "POST", "/v1/echo", {"x": "canary"}, CANARY
            ) as response:
                assert CANARY in await response.aread()
            wire = path.seen_requests[0] + path.seen_responses[0]
            assert CANARY not in wire
            assert b"canary" not in wire
            assert b"/v1/echo" not in wire

    run(scenario())


def test_the_transport_carries_an_ordinary_http_client() -> None:
    async def scenario() -> None:
        async with node() as n, client(n.url) as sealed:
            transport = SealedTransport(sealed)
            async with httpx2.AsyncClient(transport=transport) as http:
                answer = await http.post("https://anywhere.example/v1/echo", content=b"via httpx2")
                assert answer.text == "got via httpx2"
                assert answer.extensions["confide.sealed"].transcript is not None
                async with http.stream("POST", "https://a/stream", content=pieces(b"z")) as stream:
                    assert [p async for p in stream.aiter_raw()] == [b"%d:z" % i for i in range(5)]

    run(scenario())


# --- the path attacks -----------------------------------------------------------------------------


@pytest.mark.parametrize("kept", range(7))
def test_a_response_cut_at_a_frame_boundary_is_refused(kept: int) -> None:
    # Nonce, four chunks of content after the first with the head, final: seven frames.
    async def scenario() -> None:
        async with node() as n, InPath(n.port, response=lambda items: items[:kept]) as path:
            error = await refused(path.url, "/stream")
            assert error.reason in {Reason.CHANNEL_TRUNCATED, Reason.CHANNEL_OPEN}
            assert n.effects == 1

    run(scenario())


@pytest.mark.parametrize("kept", range(5))
def test_a_request_cut_at_a_frame_boundary_has_no_effect(kept: int) -> None:
    async def scenario() -> None:
        async with node() as n, InPath(n.port, request=lambda items: items[:kept]) as path:
            async with client(path.url) as sealed:
                with pytest.raises(RemoteProtocolError) as caught:
                    await sealed.request("POST", "/v1/echo", body=pieces(b"one", b"two"))
            assert caught.value.status_hint in {400, 422}
            assert n.effects == 0

    run(scenario())


def test_a_bodyless_request_starts_only_when_it_is_whole() -> None:
    async def scenario() -> None:
        async with node() as n, InPath(n.port, request=lambda items: items[:2]) as path:
            async with client(path.url) as sealed:
                with pytest.raises(RemoteProtocolError):
                    await sealed.request("GET", "/silent", body=pieces(b"x"))
            assert n.effects == 0

    run(scenario())


def test_an_application_that_ignores_its_request_gets_no_success_for_a_cut_one() -> None:
    async def scenario() -> None:
        async with node() as n, InPath(n.port, request=lambda items: items[:2]) as path:
            async with client(path.url) as sealed:
                with pytest.raises(RemoteProtocolError) as caught:
                    await sealed.request("POST", "/silent", body=pieces(b"x"))
            assert caught.value.reason is Reason.CHANNEL_FORMAT

    run(scenario())


async def in_process(inner: Inner, path: str, *then: Message) -> list[Message]:
    """What the gateway sends when a request for `path` starts and `then` follows."""
    gateway = SealedGateway(
        inner,
        keys=ring(),
        clock=SystemClock(),
        entropy=SystemEntropy(),
        window=ReplayWindow(ReplayPolicy(), secret=bytes(32)),
    )
    messages = ClientMessages(
        recipient_key(ring().configs[0]),
        ephemeral=bytes(range(32)),
        stamp=Stamp(bytes(32), SystemClock().now()),
        padding=PaddingPolicy(),
        limits=MessageLimits(),
    )
    head = messages.seal_head("POST", path, ())
    incoming = [{"type": "http.request", "body": head, "more_body": True}, *then]
    sent: list[Message] = []

    async def receive() -> Message:
        return incoming.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {},
        "method": "POST",
        "path": "/confide/v1/ohttp",
        "headers": [(b"content-type", b"message/ohttp-chunked-req")],
    }
    await gateway(scope, receive, send)
    return sent


@pytest.mark.parametrize("path", ["/strict", "/v1/echo", "/silent"])
def test_a_request_that_breaks_after_its_start_is_answered_for(path: str) -> None:
    # Whether the application raises, returns or answers when its client seems to go away.
    async def scenario() -> None:
        end = {"type": "http.request", "body": b"", "more_body": False}
        start, body = await in_process(Inner(), path, end)
        assert start["status"] == 400
        assert b"urn:confide:problem:channel" in body["body"]

    run(scenario())


def test_nothing_is_sealed_for_a_client_that_left_in_the_middle_of_its_request() -> None:
    async def scenario() -> None:
        for path in ("/silent", "/v1/echo"):
            inner = Inner()
            start, body = await in_process(inner, path, {"type": "http.disconnect"})
            # Perhaps it is there after all: a server tells garbage for chunks in the same words.
            assert start["status"] == 400
            assert b"urn:confide:problem:channel" in body["body"]
            assert all(record.response_sha256 is None for record in inner.records)

    run(scenario())


def test_a_connection_cut_in_the_middle_is_refused() -> None:
    async def scenario() -> None:
        async with node() as n:
            for cut in (250, 400, 1200):
                async with InPath(n.port, cut_response_at=cut) as path:
                    error = await refused(path.url, "/stream")
                    assert error.reason is Reason.CHANNEL_TRUNCATED

    run(scenario())


def swap(items: Frames) -> Frames:
    return [items[0], items[2], items[1], *items[3:]]


def drop(items: Frames) -> Frames:
    return [items[0], *items[2:]]


def double(items: Frames) -> Frames:
    return [*items[:2], items[1], *items[2:]]


def flip(items: Frames) -> Frames:
    changed = items[1][:-1] + bytes([items[1][-1] ^ 1])
    return [items[0], changed, *items[2:]]


def append(items: Frames) -> Frames:
    return [*items, b"\0"]


def oversize(items: Frames) -> Frames:
    length = (16384 + 17) | 0x8000_0000
    return [items[0], length.to_bytes(4, "big") + bytes(16384 + 17), *items[1:]]


_TAMPERS = [swap, drop, double, flip, append, oversize]


@pytest.mark.parametrize("tamper", _TAMPERS)
def test_a_changed_response_is_refused(tamper: Callable[[Frames], Frames]) -> None:
    async def scenario() -> None:
        async with node() as n, InPath(n.port, response=tamper) as path:
            error = await refused(path.url, "/stream")
            assert error.reason in {Reason.CHANNEL_OPEN, Reason.CHANNEL_FORMAT}

    run(scenario())


@pytest.mark.parametrize("tamper", _TAMPERS)
def test_a_changed_request_has_no_effect(tamper: Callable[[Frames], Frames]) -> None:
    async def scenario() -> None:
        async with node() as n, InPath(n.port, request=tamper) as path:
            async with client(path.url) as sealed:
                with pytest.raises(RemoteProtocolError):
                    await sealed.request("POST", "/v1/echo", body=pieces(b"a", b"b", b"c"))
            assert n.effects == 0

    run(scenario())


def test_a_replayed_request_has_no_effect() -> None:
    async def scenario() -> None:
        async with node() as n, InPath(n.port) as path:
            async with client(path.url) as sealed:
                await sealed.request("POST", "/v1/echo", body=b"pay 10")
            assert n.effects == 1
            head = (
                b"POST /confide/v1/ohttp HTTP/1.1\r\nhost: a\r\n"
                b"content-type: message/ohttp-chunked-req"
            )
            answer_head, answer = await path.forward(head, path.seen_requests[0])
            assert answer_head.startswith(b"HTTP/1.1 409")
            assert b"urn:confide:problem:replayed" in answer
            assert n.effects == 1
            assert len(n.inner.scopes) == 1

    run(scenario())


@pytest.mark.parametrize("seconds", [-320, 320])
def test_a_request_outside_the_window_is_refused(seconds: int) -> None:
    async def scenario() -> None:
        async with node() as n:
            error = await refused(n.url, clock=ShiftedClock(seconds))
            assert error.reason is Reason.REQUEST_TIME
            assert n.effects == 0

    run(scenario())


def test_a_full_window_refuses_and_forgets_nothing() -> None:
    async def scenario() -> None:
        async with node(max_entries=1) as n:
            async with client(n.url) as sealed:
                await sealed.request("POST", "/v1/echo", body=b"1")
            assert (await refused(n.url)).reason is Reason.NODE_BUSY
            assert n.effects == 1

    run(scenario())


@pytest.mark.parametrize("other", [ring(seed=2, key_id=1), ring(seed=2, key_id=9)])
def test_a_keyset_swapped_on_the_path_is_told_apart(other: KeyRing) -> None:
    # The client sealed to the attested key; whoever answers has another one.
    async def scenario() -> None:
        async with node(other) as n:
            error = await refused(n.url)
            assert error.reason is Reason.KEYSET_MISMATCH
            assert n.effects == 0

    run(scenario())


def test_a_stand_in_node_with_its_own_key_cannot_answer() -> None:
    # It can open nothing; the best it can do is to answer with bytes of its own.
    async def scenario() -> None:
        async def stand_in(_scope: Scope, receive: Receive, send: Send) -> None:
            while (await receive()).get("more_body"):
                pass
            headers = [(b"content-type", b"message/ohttp-chunked-res")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": bytes(32) + b"\0" + bytes(40)})

        async with serving(stand_in) as port:
            assert (await refused(f"http://127.0.0.1:{port}")).reason is Reason.CHANNEL_OPEN

    run(scenario())


def test_rotation_keeps_old_and_new_keys_apart() -> None:
    async def scenario() -> None:
        old, new = ring(1, 1), ring(2, 2)
        both = key_ring(tuple((i, load_private_key(Kem.X_WING, bytes([i] * 32))) for i in (1, 2)))
        async with node(old) as n:
            n.gateway.rotate(both)
            for keys in (old, new):
                async with client(n.url, keys) as sealed:
                    response = await sealed.request("POST", "/v1/echo", body=b"r")
                    assert await response.aread() == b"got r"
            n.gateway.rotate(new)
            assert (await refused(n.url, keys=old)).reason is Reason.KEYSET_MISMATCH

    run(scenario())


# --- the edges ------------------------------------------------------------------------------------


def test_a_request_beyond_the_limit_is_refused() -> None:
    async def scenario() -> None:
        limits = MessageLimits(message=BhttpLimits(max_content_bytes=16))
        async with node(limits=limits) as n:
            error = await refused(n.url)
            assert (error.reason, error.status_hint) == (Reason.LIMIT_EXCEEDED, 413)
            assert n.effects == 0

    run(scenario())


def test_a_get_with_a_large_body_is_refused_before_it_starts() -> None:
    async def scenario() -> None:
        async with node() as n, client(n.url) as sealed:
            with pytest.raises(RemoteProtocolError) as caught:
                await sealed.request("GET", "/silent", body=bytes(70000))
            assert caught.value.reason is Reason.LIMIT_EXCEEDED
            assert n.effects == 0

    run(scenario())


def test_an_application_that_ignores_a_large_request_can_still_answer() -> None:
    async def scenario() -> None:
        async with node() as n, client(n.url) as sealed:
            response = await sealed.request("POST", "/silent", body=bytes(300000))
            assert await response.aread() == b"done"

    run(scenario())


def test_an_application_that_fails_answers_outside_the_seal() -> None:
    async def scenario() -> None:
        async with node() as n, client(n.url) as sealed:
            with pytest.raises(RemoteProtocolError) as caught:
                await sealed.request("POST", "/fail-early")
            assert caught.value.status_hint == 500
            for path in ("/fail-late", "/stop-late"):
                response = await sealed.request("POST", path)
                with pytest.raises(RemoteProtocolError) as caught:
                    await response.aread()
                assert caught.value.reason is Reason.CHANNEL_TRUNCATED

    run(scenario())


def test_a_client_that_goes_away_is_seen_inside() -> None:
    async def scenario() -> None:
        async with node() as n, client(n.url) as sealed:
            async with await sealed.request("POST", "/wait", body=b"x") as response:
                body = response.aiter_bytes()
                assert await anext(body) == b"first"
            async with asyncio.timeout(60):
                await n.inner.disconnected.wait()

    run(scenario())


def test_no_node_is_unavailable_and_not_a_refusal() -> None:
    async def scenario() -> None:
        async with client("http://127.0.0.1:9") as sealed:
            with pytest.raises(Unavailable):
                await sealed.request("POST", "/v1/echo")

    run(scenario())


@pytest.mark.parametrize(
    ("method", "path", "media_type", "status"),
    [
        ("GET", "/confide/v1/ohttp", "message/ohttp-chunked-req", 405),
        ("POST", "/confide/v1/ohttp", "message/ohttp-req", 415),
        ("POST", "/v1/echo", "application/json", 404),
        ("POST", "/confide/v1/ohttp", "message/ohttp-chunked-req", 400),
    ],
)
def test_the_door_opens_for_sealed_requests_only(
    method: str, path: str, media_type: str, status: int
) -> None:
    async def scenario() -> None:
        async with node() as n, httpx2.AsyncClient(trust_env=False) as http:
            headers = {"content-type": media_type}
            answer = await http.request(method, n.url + path, headers=headers)
            assert answer.status_code == status
            assert n.effects == 0

    run(scenario())
