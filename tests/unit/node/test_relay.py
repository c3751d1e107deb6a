"""The relay towards nodes that are bytes on a socket. docs/protocols/relay.md §2 and §3."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from relay_world import KEYSET, RawNode, RunningRelay, entry, relay, response

from confide.adapters.relay_http import RelayTimes
from confide.channel.carriage import (
    PROBLEM_MEDIA_TYPE,
    REQUEST_MEDIA_TYPE,
    RESPONSE_MEDIA_TYPE,
    problem_reason,
    problem_type,
)
from confide.errors import Reason
from confide.node.relay_table import RelayLimits
from confide.wire.json import jcs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

SEALED = {"content-type": REQUEST_MEDIA_TYPE}
ASKING = {"nonce": "00" * 32, "expectation": "11" * 32}


@contextlib.asynccontextmanager
async def world(
    *, limits: RelayLimits | None = None, times: RelayTimes | None = None
) -> AsyncIterator[tuple[RawNode, RunningRelay, httpx2.AsyncClient]]:
    node = RawNode()
    await node.start()
    async with (
        relay([entry(node.url)], limits=limits, times=times) as running,
        httpx2.AsyncClient(trust_env=False, timeout=60) as http,
    ):
        yield node, running, http
    await node.stop()


def answering(node: RawNode, raw: bytes) -> Callable[..., Awaitable[None]]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await node.body(reader)
        writer.write(raw)
        await writer.drain()

    return serve


def sealed_answer(body: bytes, more: str = "") -> bytes:
    return response(body, kind=RESPONSE_MEDIA_TYPE, more=more)


async def post(http: httpx2.AsyncClient, relay: RunningRelay, body: Any = b"sealed") -> Any:
    return await http.post(f"{relay.node_url()}/confide/v1/ohttp", content=body, headers=SEALED)


def reason_of(answer: Any) -> Reason | None:
    assert answer.headers["content-type"] == PROBLEM_MEDIA_TYPE
    return problem_reason(answer.json()["type"])


def run(work: Callable[[], Any]) -> None:
    asyncio.run(work())


# --- what goes on, and what does not --------------------------------------------------------------


def test_the_node_sees_the_sealed_bytes_and_nothing_of_the_client() -> None:
    async def work() -> None:
        async with world() as (node, running, http):
            node.serve = answering(
                node, sealed_answer(b"answer", "set-cookie: a=b\r\nserver: x\r\n")
            )
            identifying = {
                "user-agent": "canary-agent",
                "cookie": "canary-cookie",
                "x-forwarded-for": "canary-address",
                "forwarded": "for=canary-address",
                "authorization": "canary-key",
                "x-request-id": "canary-id",
                "traceparent": "canary-trace",
                "accept-language": "canary-language",
            }
            answer = await http.post(
                f"{running.node_url()}/confide/v1/ohttp",
                content=b"sealed",
                headers={**SEALED, **identifying},
            )
            assert (answer.status_code, answer.content) == (200, b"answer")
            assert node.bodies == [b"sealed"]
            head = node.heads[0].decode()
            names = {line.partition(":")[0].lower() for line in head.split("\r\n")[1:] if line}
            assert names == {
                *("host", "content-type", "accept", "accept-encoding", "incremental"),
                *("user-agent", "transfer-encoding"),
            }
            assert "canary" not in head
            assert "user-agent: confide-relay" in head.lower()
            assert head.startswith("POST /confide/v1/ohttp HTTP/1.1")
            assert KEYSET.hex() not in head
            # Nor does the client see anything of the node but its answer.
            assert set(answer.headers) <= {
                *("content-type", "cache-control", "incremental"),
                *("transfer-encoding", "date", "server"),
            }
            assert answer.headers["server"] == "uvicorn"

    run(work)


def test_a_request_for_evidence_is_a_nonce_and_a_digest() -> None:
    async def work() -> None:
        async with world() as (node, running, http):
            node.serve = answering(node, response(b"{}", kind="application/json"))
            url = f"{running.node_url()}/confide/v1/evidence"
            spaced = b'{ "expectation": "%b", "nonce": "%b" }' % (b"11" * 32, b"00" * 32)
            headers = {"content-type": "application/json; canary=1"}
            answer = await http.post(url, content=spaced, headers=headers)
            assert (answer.status_code, answer.content) == (200, b"{}")
            assert node.bodies == [jcs(ASKING)]
            assert b"canary" not in node.heads[0]
            more = jcs({**ASKING, "who": "canary"})
            for body in (more, b"", b"[]", jcs({**ASKING, "nonce": "00"})):
                refused = await http.post(url, content=body, headers=headers)
                assert refused.status_code == 400
            assert (await http.post(url, content=b" " * 5000, headers=headers)).status_code == 413
            assert len(node.bodies) == 1

    run(work)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/confide/v1/ohttp", 404),
        ("POST", "/v1/chat/completions", 404),
        ("POST", "/confide/v1/nodes/{k}/v1/chat/completions", 404),
        ("POST", "/confide/v1/nodes/{k}/confide/v1/ohttp?a=b", 404),
        ("POST", "/confide/v1/nodes/{k}/confide/v1/%6fhttp", 404),
        ("POST", "/confide/v1/nodes/{k}/../{k}/confide/v1/ohttp", 404),
        ("POST", "/confide/v1/nodes/{k}/confide/v1/health", 404),
        ("GET", "/confide/v1/nodes/{k}/confide/v1/ohttp", 405),
        ("POST", "/confide/v1/directory", 404),
    ],
)
def test_there_is_no_other_way_through(method: str, path: str, status: int) -> None:
    async def work() -> None:
        async with world() as (node, running, _):
            # By hand: a client would spell the path anew.
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", int(running.url[-5:].strip("/:"))
            )
            target = path.replace("{k}", KEYSET.hex())
            kind = REQUEST_MEDIA_TYPE
            writer.write(
                f"{method} {target} HTTP/1.1\r\nhost: r\r\ncontent-type: {kind}\r\n"
                "content-length: 0\r\nconnection: close\r\n\r\n".encode()
            )
            line = await reader.readline()
            assert int(line.split()[1]) == status
            writer.close()
            assert node.heads == []

    run(work)


def test_another_media_type_is_not_forwarded() -> None:
    async def work() -> None:
        async with world() as (node, running, http):
            url = f"{running.node_url()}/confide/v1/ohttp"
            answer = await http.post(url, json={"prompt": "canary"})
            assert answer.status_code == 415
            assert node.heads == []

    run(work)


def test_both_directions_stream() -> None:
    async def work() -> None:
        async with world() as (node, running, http):
            came, answered = asyncio.Event(), asyncio.Event()

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                size = int(await reader.readline(), 16)
                assert await reader.readexactly(size) == b"first"
                came.set()
                await reader.readuntil(b"0\r\n\r\n")
                head = f"HTTP/1.1 200 OK\r\ncontent-type: {RESPONSE_MEDIA_TYPE}\r\n"
                writer.write(f"{head}transfer-encoding: chunked\r\n\r\n3\r\none\r\n".encode())
                await answered.wait()
                writer.write(b"3\r\ntwo\r\n0\r\n\r\n")

            node.serve = serve

            async def body() -> AsyncIterator[bytes]:
                yield b"first"
                await came.wait()
                yield b"second"

            url = f"{running.node_url()}/confide/v1/ohttp"
            async with http.stream("POST", url, content=body(), headers=SEALED) as answer:
                pieces = answer.aiter_raw()
                assert await anext(pieces) == b"one"
                answered.set()
                assert b"".join([piece async for piece in pieces]) == b"two"

    run(work)


# --- where it goes, once --------------------------------------------------------------------------


def test_a_keyset_that_nobody_has() -> None:
    async def work() -> None:
        async with world() as (node, running, http):
            url = f"{running.node_url(b'?' * 32)}/confide/v1/ohttp"
            answer = await http.post(url, content=b"x", headers=SEALED)
            assert answer.status_code == 404
            assert reason_of(answer) is Reason.KEYSET_MISMATCH
            assert node.heads == []

    run(work)


def test_a_node_that_is_down_and_one_that_goes_down() -> None:
    async def work() -> None:
        limits = RelayLimits(retry_seconds=0.05, max_health_seconds=0.05)
        async with world(limits=limits) as (node, running, http):
            await node.stop()
            for _ in range(2):
                answer = await post(http, running)
                assert answer.status_code == 503
                assert reason_of(answer) is Reason.NODE_BUSY
                assert answer.headers["retry-after"] == "5"
            assert running.table.hint(KEYSET) == "down"
            node.serve = answering(node, sealed_answer(b"back"))
            await node.start()
            while running.table.hint(KEYSET) == "down":  # noqa: ASYNC110 - the same
                await asyncio.sleep(0.02)
            assert (await post(http, running)).content == b"back"

    run(work)


def test_a_request_that_may_have_arrived_is_never_sent_again() -> None:
    async def work() -> None:
        async with world() as (node, running, http):

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await node.body(reader)
                writer.close()

            node.serve = serve
            answer = await post(http, running)
            assert answer.status_code == 502
            assert reason_of(answer) is Reason.CHANNEL_FORMAT
            assert len(node.heads) == 1

    run(work)


def test_a_connection_that_died_while_idle_loses_the_request_and_nothing_else() -> None:
    async def work() -> None:
        async with world() as (node, running, http):
            node.serve = answering(node, sealed_answer(b"one"))
            assert (await post(http, running)).content == b"one"

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                del reader
                writer.close()

            node.serve = serve
            assert (await post(http, running)).status_code == 502
            assert len(node.heads) == 2

    run(work)


def test_two_nodes_cannot_have_one_keyset() -> None:
    async def work() -> None:
        first, second = RawNode(), RawNode()
        await first.start()
        await second.start()
        first.serve = answering(first, sealed_answer(b"first"))
        # The second says that it is the first.
        entries = [entry(first.url, pinned=KEYSET), entry(second.url)]
        async with relay(entries) as running, httpx2.AsyncClient(trust_env=False) as http:
            assert (await post(http, running)).content == b"first"
            assert second.heads == []
            assert [node.keyset for node in running.table.listed()] == [KEYSET]
        await first.stop()
        await second.stop()

    run(work)


def test_after_a_rotation_both_keysets_lead_to_the_node() -> None:
    async def work() -> None:
        async with world() as (node, running, http):
            node.serve = answering(node, sealed_answer(b"yes"))
            before = running.directory.current()
            node.keyset = b"\xb2" * 32
            await running.table.look()
            for keyset in (KEYSET, node.keyset):
                url = f"{running.node_url(keyset)}/confide/v1/ohttp"
                assert (await http.post(url, content=b"x", headers=SEALED)).content == b"yes"
            after = running.directory.current()
            assert before is not None
            assert after is not None
            assert [each.keyset for each in after.directory.nodes] == [node.keyset]
            assert after.directory.sequence > before.directory.sequence

    run(work)


# --- limits ---------------------------------------------------------------------------------------


def test_what_is_too_long_is_cut_off_at_the_limit() -> None:
    async def work() -> None:
        async with world(limits=RelayLimits(request_bytes=1000)) as (node, running, http):
            seen = 0

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                nonlocal seen
                while piece := await reader.read(65536):
                    seen += len(piece)
                writer.close()

            node.serve = serve

            async def body() -> AsyncIterator[bytes]:
                for _ in range(20):
                    yield b"x" * 100
                    await asyncio.sleep(0)

            answer = await post(http, running, body())
            assert answer.status_code == 413
            assert reason_of(answer) is Reason.LIMIT_EXCEEDED
            await node.closed.wait()
            assert seen < 1500
            assert running.table.in_progress == 0

    run(work)


def test_a_client_that_sends_a_byte_now_and_then_is_not_waited_for() -> None:
    async def work() -> None:
        limits = RelayLimits(receive_seconds=0.3, piece_seconds=0.2)
        async with world(limits=limits) as (node, running, http):

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                while await reader.read(65536):
                    pass
                writer.close()

            node.serve = serve

            async def drip() -> AsyncIterator[bytes]:
                while True:
                    yield b"x"
                    await asyncio.sleep(0.05)

            with contextlib.suppress(httpx2.HTTPError):
                answer = await post(http, running, drip())
                assert answer.status_code == 408
            await node.closed.wait()
            assert running.table.in_progress == 0

    run(work)


def test_more_than_fits_is_refused_at_once() -> None:
    async def work() -> None:
        for limits, status in ((RelayLimits(node_requests=1), 429), (RelayLimits(requests=1), 503)):
            async with world(limits=limits) as (node, running, http):
                go = asyncio.Event()

                async def serve(
                    reader: asyncio.StreamReader, writer: asyncio.StreamWriter,
                    node: RawNode = node, go: asyncio.Event = go,
                ) -> None:  # fmt: skip
                    await node.body(reader)
                    await go.wait()
                    writer.write(sealed_answer(b"first"))

                node.serve = serve
                first = asyncio.ensure_future(post(http, running))
                while not node.bodies:  # noqa: ASYNC110 - it tells no event
                    await asyncio.sleep(0.01)
                second = await post(http, running)
                assert second.status_code == status
                assert second.headers["retry-after"] == "1"
                assert reason_of(second) is Reason.NODE_BUSY
                go.set()
                assert (await first).content == b"first"
                assert len(node.heads) == 1

    run(work)


def test_draining_takes_nothing_new_and_ends_what_is_there() -> None:
    async def work() -> None:
        async with world() as (node, running, http):
            node.serve = answering(node, sealed_answer(b"x"))
            running.table.drain()
            assert (await post(http, running)).status_code == 503
            health = await http.get(running.url + "/confide/v1/health")
            assert health.json() == {"role": "relay", "ready": False}
            assert node.heads == []

    run(work)


def test_a_client_that_leaves_ends_the_request_at_the_node() -> None:
    async def work() -> None:
        async with world() as (node, running, http):

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await node.body(reader)
                head = f"HTTP/1.1 200 OK\r\ncontent-type: {RESPONSE_MEDIA_TYPE}\r\n"
                writer.write(f"{head}transfer-encoding: chunked\r\n\r\n3\r\none\r\n".encode())
                await reader.readexactly(1)

            node.serve = serve
            url = f"{running.node_url()}/confide/v1/ohttp"
            async with http.stream("POST", url, content=b"x", headers=SEALED) as answer:
                assert await anext(answer.aiter_raw()) == b"one"
            await node.closed.wait()
            while running.table.in_progress:  # noqa: ASYNC110 - the same
                await asyncio.sleep(0.01)

    run(work)


# --- answers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        (Reason.KEYSET_MISMATCH, 422),
        (Reason.REPLAYED, 409),
        (Reason.NODE_BUSY, 503),
        (Reason.CHANNEL_FORMAT, 400),
    ],
)
def test_a_refusal_of_the_node_is_said_in_our_words(reason: Reason, status: int) -> None:
    async def work() -> None:
        async with world() as (node, running, http):
            body = jcs({"type": problem_type(reason), "status": 499, "detail": "canary"})
            raw = response(body, kind=PROBLEM_MEDIA_TYPE, status="499 canary")
            node.serve = answering(node, raw)
            answer = await post(http, running)
            assert (answer.status_code, reason_of(answer)) == (status, reason)
            assert b"canary" not in answer.content

    run(work)


@pytest.mark.parametrize(
    "raw",
    [
        response(b"canary", kind="text/html"),
        response(b"canary", kind=RESPONSE_MEDIA_TYPE, status="302 Found", more="location: /\r\n"),
        response(b"{}", kind=PROBLEM_MEDIA_TYPE, status="400 no"),
        response(b'{"type":"urn:canary"}', kind=PROBLEM_MEDIA_TYPE, status="400 no"),
        response(b"x" * 5000, kind=PROBLEM_MEDIA_TYPE, status="400 no"),
        response(
            gzip.compress(b"canary"), kind=RESPONSE_MEDIA_TYPE, more="content-encoding: gzip\r\n"
        ),
        b"canary\r\n\r\n",
    ],
)
def test_what_no_node_answers_is_not_passed_on(raw: bytes) -> None:
    async def work() -> None:
        async with world() as (node, running, http):
            node.serve = answering(node, raw)
            answer = await post(http, running)
            assert answer.status_code == 502
            assert b"canary" not in answer.content

    run(work)


def test_an_answer_that_breaks_or_is_too_long_never_ends_in_order() -> None:
    async def work() -> None:
        async with world(limits=RelayLimits(answer_bytes=100)) as (node, running, http):

            async def breaks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await node.body(reader)
                head = f"HTTP/1.1 200 OK\r\ncontent-type: {RESPONSE_MEDIA_TYPE}\r\n"
                writer.write(f"{head}content-length: 50\r\n\r\nonly this".encode())
                await writer.drain()
                writer.close()

            for serve in (breaks, answering(node, sealed_answer(b"x" * 101))):
                node.serve = serve
                with pytest.raises(httpx2.HTTPError):
                    await post(http, running)

    run(work)


def test_an_answer_whose_chunks_are_none_is_cut_at_once() -> None:
    """With ten minutes to wait: such a request must not hold its place at the node."""

    async def work() -> None:
        async with world() as (node, running, http):
            begun = asyncio.Event()

            async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await node.body(reader)
                head = f"HTTP/1.1 200 OK\r\ncontent-type: {RESPONSE_MEDIA_TYPE}\r\n"
                writer.write(f"{head}transfer-encoding: chunked\r\n\r\n4\r\nthis\r\n".encode())
                await begun.wait()
                writer.write(b"zz\r\n")
                await reader.read()

            node.serve = garbage
            async with asyncio.timeout(60):
                with pytest.raises(httpx2.HTTPError):
                    await _post_until(http, running, begun)

    run(work)


async def _post_until(
    http: httpx2.AsyncClient, running: RunningRelay, begun: asyncio.Event
) -> None:
    url = f"{running.node_url()}/confide/v1/ohttp"
    headers = {"content-type": REQUEST_MEDIA_TYPE}
    async with http.stream("POST", url, content=b"sealed", headers=headers) as answer:
        async for _piece in answer.aiter_raw():
            begun.set()


def test_a_node_that_never_answers_is_given_up() -> None:
    async def work() -> None:
        async with world(times=RelayTimes(idle=0.2)) as (node, running, http):

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                del writer
                await node.body(reader)
                await reader.readexactly(1)

            node.serve = serve
            assert (await post(http, running)).status_code == 502
            await node.closed.wait()

    run(work)
