"""Callers that leave, drip, lie about lengths and send what no request may be: over real sockets.

Through `confide proxy` and straight at the node's own port. inference.md §2, §3.8; client.md §7.
"""

from __future__ import annotations

import contextlib
import json
import socket
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from deployment import WAIT_SECONDS
from fault_world import (
    CHAT,
    EVENT,
    EVENTS_HEAD,
    JSON_HEAD,
    QUESTION,
    STREAMED,
    WHOLE,
    Gate,
    chunk,
    digest,
    hear,
    running_world,
    well,
)

from confide.inference.digest import Finish

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deployment import Node
    from fault_world import Proxy, World


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running_world(tmp_path_factory.mktemp("caller")) as made:
        yield made


@pytest.fixture(scope="module")
def node(world: World) -> Node:
    return world.node()


@pytest.fixture(scope="module")
def proxy(world: World, node: Node) -> Proxy:
    return world.proxy("--node", node.url)


def connected(url: str) -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname, parts.port), timeout=WAIT_SECONDS)


def sequence(world: World, proxy: Proxy) -> int:
    """Ask once more, which is served; return the number of its receipt."""
    world.engine.answer = well
    heard = hear(proxy.url, QUESTION)
    assert (heard.status, heard.body) == (200, WHOLE)
    statement = world.statement(proxy.told()["receipt"])
    return int(statement["sequence"])


PHASES = {
    "before an answer": (QUESTION, Gate()),
    "within an answer": (QUESTION, Gate(JSON_HEAD + b"content-length: 99\r\n\r\n{")),
    "before a stream": (STREAMED, Gate()),
    "within a stream": (STREAMED, Gate(EVENTS_HEAD + chunk(EVENT))),
}


@pytest.mark.parametrize("phase", PHASES)
def test_a_program_that_leaves_ends_the_call_at_the_engine(
    world: World, proxy: Proxy, phase: str
) -> None:
    """The engine is left at once, and the node has a receipt of it that nobody collected."""
    body, gate = PHASES[phase]
    before = sequence(world, proxy)
    world.engine.answer = gate.answer
    raw = json.dumps(body).encode()
    with connected(proxy.url) as program:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: {urlsplit(proxy.url).netloc}\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(raw)}\r\n\r\n"
        program.sendall(head.encode() + raw)
        assert gate.reached.wait(WAIT_SECONDS)
        if phase == "within a stream":
            heard = b""
            while b"blue" not in heard:
                heard += program.recv(65536) or b"the end, which is not blue"
    assert gate.left.wait(WAIT_SECONDS)
    assert proxy.told()["problem"] == "left"
    assert sequence(world, proxy) == before + 2


# --- what no request may be -----------------------------------------------------------------------

_ROLE = b'"messages":[{"role":"user","content":"a"}]'
BODIES = {
    "nothing": b"",
    "no text": b"\xff\xfe",
    "no text inside": b'{"model":"%m","messages":[{"role":"user","content":"\xff\xc3("}]}',
    "a byte order mark": b'\xef\xbb\xbf{"model":"%m",' + _ROLE + b"}",
    "an array": b"[]",
    "two documents": b'{"model":"%m",' + _ROLE + b"}{}",
    "a member twice": b'{"model":"%m","model":"other",' + _ROLE + b"}",
    "a member twice inside": b'{"model":"%m","messages":[{"role":"user","role":"system"}]}',
    "a number that is none": b'{"model":"%m","temperature":NaN,' + _ROLE + b"}",
    "a number beyond all": b'{"model":"%m","temperature":1e999,' + _ROLE + b"}",
    "5,000 digits": b'{"model":"%m","seed":' + b"9" * 5000 + b"," + _ROLE + b"}",
    "half a character": b'{"model":"%m","messages":[{"role":"\\ud800"}]}',
    "too deep": b'{"model":"%m","messages":' + b"[" * 100_000,
}


@pytest.mark.parametrize("fault", BODIES)
@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/messages"])
def test_what_no_request_may_be_reaches_no_engine(
    world: World, proxy: Proxy, path: str, fault: str
) -> None:
    """400 in the shape of its API; receipted, except where the proxy itself refuses."""
    calls = world.engine.calls
    heard = hear(proxy.url, BODIES[fault].replace(b"%m", QUESTION["model"].encode()), path=path)
    line = proxy.told()
    assert (heard.status, heard.whole, world.engine.calls) == (400, True, calls)
    assert json.loads(heard.body)["error"]["type"] == "invalid_request_error"
    if path == "/v1/messages":
        assert line["receipt"] is None
        return
    assert heard.code == "invalid_json"
    record = world.record(line["receipt"])
    assert (record.status, record.finish) == (400, Finish.COMPLETE)
    assert (record.forwarded_digest, record.upstream_digest) == (None, None)
    assert record.response_digest == digest(heard.body)


@pytest.mark.parametrize(
    ("size", "status", "code"),
    [(8 * 1024 * 1024 + 1, 413, "request_too_large"), (65 * 1024 * 1024, 413, "request_too_large")],
    ids=["for the node", "for the proxy"],
)
def test_a_body_above_the_limits(
    world: World, proxy: Proxy, size: int, status: int, code: str
) -> None:
    heard = hear(proxy.url, b" " * size)
    assert (heard.status, heard.code) == (status, code)
    if size < 64 * 1024 * 1024:
        assert world.record(proxy.told()["receipt"]).upstream_digest is None
    assert sequence(world, proxy) > 0


def test_a_route_that_nobody_has_is_not_found_and_receipted(world: World, proxy: Proxy) -> None:
    """A 404 of the node, not a failed proof: its receipt does not repeat the caller's path."""
    heard = hear(proxy.url, QUESTION, path="/v1/files/../sleep")
    assert (heard.status, heard.code) == (404, "not_found")
    record = world.record(proxy.told()["receipt"])
    assert (record.endpoint, record.status, record.upstream_digest) == ("unlisted", 404, None)


# --- HTTP that is none ----------------------------------------------------------------------------

_POST = b"POST %p HTTP/1.1\r\nhost: %h\r\ncontent-type: %t\r\n"
HEADS = {
    "a header of 300 kB": b"GET / HTTP/1.1\r\nhost: %h\r\nlong: " + b"a" * 300_000 + b"\r\n\r\n",
    "5,000 headers": b"GET / HTTP/1.1\r\nhost: %h\r\n" + b"a: b\r\n" * 5000 + b"\r\n",
    "a path of 300 kB": b"GET /" + b"a" * 300_000 + b" HTTP/1.1\r\nhost: %h\r\n\r\n",
    "two lengths": _POST + b"content-length: 1\r\ncontent-length: 2\r\n\r\nab",
    "a length and chunks": _POST
    + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "a length below nothing": _POST + b"content-length: -1\r\n\r\n",
    "garbage for chunks": _POST + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
    "a chunk beyond all": _POST + b"transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
    "a folded header": b"GET / HTTP/1.1\r\nhost: %h\r\na: b\r\n c\r\n\r\n",
    "another version": b"GET / HTTP/9.9\r\nhost: %h\r\n\r\n",
    "zeros": b"\x00\xff\r\n\r\n",
    "TLS": bytes.fromhex("16030100c8010000c40303") + bytes(200),
}


@pytest.mark.parametrize("fault", HEADS)
@pytest.mark.parametrize("port", ["node", "proxy"])
def test_http_that_is_none_is_refused_and_the_next_served(
    world: World, node: Node, proxy: Proxy, port: str, fault: str
) -> None:
    url, path, kind = {
        "node": (node.url, "/confide/v1/ohttp", "message/ohttp-chunked-req"),
        "proxy": (proxy.url, CHAT, "application/json"),
    }[port]
    raw = HEADS[fault].replace(b"%h", urlsplit(url).netloc.encode())
    raw = raw.replace(b"%p", path.encode()).replace(b"%t", kind.encode())
    calls = world.engine.calls
    with connected(url) as stranger:
        stranger.sendall(raw)
        status = stranger.recv(65536).split(b" ")[1]
    assert status in (b"400", b"431")
    assert world.engine.calls == calls
    assert sequence(world, proxy) > 0


def test_a_body_shorter_than_its_length_is_no_request(
    world: World, node: Node, proxy: Proxy
) -> None:
    head = (
        b"POST /confide/v1/ohttp HTTP/1.1\r\nhost: x\r\ncontent-type: message/ohttp-chunked-req\r\n"
    )
    calls = world.engine.calls
    with connected(node.url) as stranger:
        stranger.sendall(head + b"content-length: 100\r\n\r\nhalf")
        stranger.shutdown(socket.SHUT_WR)
        heard = stranger.recv(65536)
    assert heard.split(b" ")[1] == b"400"
    assert b"urn:confide:problem:channel" in heard
    assert world.engine.calls == calls
    assert sequence(world, proxy) > 0


def test_strangers_that_drip_do_not_keep_the_others_waiting(
    world: World, node: Node, proxy: Proxy
) -> None:
    """Heads and bodies that never end, on more connections than 9.4 lets wait: §2.9."""
    head = b"POST /confide/v1/ohttp HTTP/1.1\r\nhost: x\r\n"
    body = head + b"content-type: message/ohttp-chunked-req\r\ncontent-length: 1000\r\n\r\nx"
    with contextlib.ExitStack() as stack:
        for begun in [head, body] * 200:
            stack.enter_context(connected(node.url)).sendall(begun)
        for _ in range(3):
            assert sequence(world, proxy) > 0
