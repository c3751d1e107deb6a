"""A relay that drops, reorders, doubles and repeats, between a program and a node, as processes.

`InPath` stands before the real `confide relay` and does what a hostile one would. relay.md §1.4;
channel.md §2 and §4.
"""

from __future__ import annotations

import json
import signal
import socket
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx2
import pytest
from deployment import WAIT_SECONDS
from fault_world import (
    DONE,
    EVENTS_HEAD,
    QUESTION,
    STREAMED,
    WHOLE,
    Gate,
    Heard,
    chunk,
    hear,
    running_world,
    says,
    well,
)
from in_path import Cut, InPath, Meddler, SealedResponses

from confide.channel.carriage import CHANNEL_PATH, REQUEST_MEDIA_TYPE, problem_type
from confide.errors import Reason
from confide.inference.digest import Finish

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterable, Iterator

    from deployment import Node
    from fault_world import Proxy, World

# As long as several sealed chunks, however it is read.
LONG = b'data: {"choices":[],"long":"' + b"x" * 80_000 + b'"}\n\n'
ANSWER = says(EVENTS_HEAD + chunk(LONG) + chunk(DONE) + b"0\r\n\r\n")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running_world(tmp_path_factory.mktemp("relayed")) as made:
        yield made


@pytest.fixture(scope="module")
def node(world: World) -> Node:
    return world.node()


Relay = tuple[str, str, "subprocess.Popen[bytes]"]


@pytest.fixture(scope="module")
def relay(world: World, node: Node) -> Relay:
    return world.relay(node)


@pytest.fixture(scope="module")
def path(world: World, relay: Relay) -> InPath:
    return world.stack.enter_context(InPath(relay[0]))


@pytest.fixture(scope="module")
def proxy(world: World, relay: Relay, path: InPath) -> Proxy:
    return world.proxy("--relay", path.url, "--directory-key", relay[1])


def still_served(world: World, proxy: Proxy, path: InPath) -> None:
    world.engine.answer, path.meddler = well, Meddler()
    heard = hear(proxy.url, QUESTION)
    assert (heard.status, heard.body) == (200, WHOLE)
    assert world.record(proxy.told()["receipt"]).finish is Finish.COMPLETE


class Chunks(SealedResponses):
    """Changes the sealed chunks of an answer."""

    def __init__(self, change: Callable[[list[bytes]], Iterable[bytes]]) -> None:
        self._change = change

    def chunks(self, chunks: Iterator[bytes]) -> Iterable[bytes]:
        return self._change(list(chunks))


def flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def cut(chunks: list[bytes]) -> Iterator[bytes]:
    yield from chunks[:3]
    raise Cut


ANSWERS: dict[str, Callable[[list[bytes]], Iterable[bytes]]] = {
    "drops the first piece": lambda c: [c[0], *c[2:]],
    "drops a later piece": lambda c: [*c[:2], *c[3:]],
    "drops the last": lambda c: c[:-1],
    "exchanges two": lambda c: [*c[:2], c[3], c[2], *c[4:]],
    "doubles one": lambda c: [*c[:3], c[2], *c[3:]],
    "flips a bit": lambda c: [*c[:2], flipped(c[2]), *c[3:]],
    "adds to the end": lambda c: [*c, b"more"],
    "closes in the middle": cut,
    "answers nothing": lambda _: [],
}


@pytest.mark.parametrize("fault", ANSWERS)
def test_an_answer_that_a_relay_changed_is_not_taken(
    world: World, proxy: Proxy, path: InPath, fault: str
) -> None:
    """An error in place of an end, no receipt, and nobody is asked a second time."""
    world.engine.answer, path.meddler = ANSWER, Chunks(ANSWERS[fault])
    before = world.engine.calls, world.kept()
    heard = hear(proxy.url, STREAMED)
    assert (heard.status, heard.whole) in ((200, False), (502, True))
    assert heard.code in ("channel-truncated", "channel-format", "channel-open")
    assert DONE not in heard.body
    line = proxy.told()
    assert (line["problem"], line["receipt"]) == (heard.code, None)
    assert (world.engine.calls, world.kept()) == (before[0] + 1, before[1])
    still_served(world, proxy, path)


class Requests(Meddler):
    """Changes sealed requests on their way."""

    def __init__(self, change: Callable[[bytes], bytes]) -> None:
        self._change = change

    def request(self, path: str, pieces: Iterable[bytes]) -> Iterable[bytes]:
        return [self._change(b"".join(pieces))] if path.endswith(CHANNEL_PATH) else pieces


# Of several sealed chunks: what is wrong with the first one is a wrong key (channel.md 7.4).
LENGTHY = {**QUESTION, "messages": [{"role": "user", "content": "x" * 80_000}]}
REQUESTS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "drops its end": (lambda raw: raw[:-1], "channel-format"),
    "flips its last bit": (flipped, "channel-format"),
    "adds to it": (lambda raw: raw + b"more", "channel-format"),
    "flips a bit of the key": (lambda raw: flipped(raw[:1000]) + raw[1000:], "keyset-mismatch"),
    "names another key": (lambda raw: bytes([raw[0] ^ 1]) + raw[1:], "keyset-mismatch"),
}


@pytest.mark.parametrize("fault", REQUESTS)
def test_a_request_that_a_relay_changed_reaches_no_engine(
    world: World, proxy: Proxy, path: InPath, fault: str
) -> None:
    change, code = REQUESTS[fault]
    path.meddler = Requests(change)
    before = world.engine.calls, world.kept()
    heard = hear(proxy.url, LENGTHY)
    # Whoever does not have the key answers before all has come, and closes: where the relay is
    # still sending then, it can only say that the exchange broke.
    assert heard.status == 502
    assert heard.code in {code, "channel-format"}
    assert proxy.told()["problem"] == heard.code
    assert (world.engine.calls, world.kept()) == before
    still_served(world, proxy, path)


def test_chunks_that_are_none_are_no_request(
    world: World, node: Node, proxy: Proxy, path: InPath, relay: Relay
) -> None:
    keyset = httpx2.get(f"{node.url}/confide/v1/health", trust_env=False, timeout=60).json()[
        "keyset"
    ]
    at = urlsplit(relay[0])
    head = f"POST /confide/v1/nodes/{keyset}{CHANNEL_PATH} HTTP/1.1\r\nhost: x\r\n"
    head += f"content-type: {REQUEST_MEDIA_TYPE}\r\ntransfer-encoding: chunked\r\n\r\n"
    with socket.create_connection((at.hostname, at.port), timeout=WAIT_SECONDS) as stranger:
        stranger.sendall(head.encode() + b"4\r\nthis\r\nzz\r\n")
        heard = stranger.recv(65536)
    assert heard.split(b" ")[1] == b"400"
    assert b"urn:confide:problem:channel" in heard
    still_served(world, proxy, path)


class Keeps(Requests):
    """Keeps what passes, to send it again."""

    def __init__(self) -> None:
        self.kept: list[bytes] = []
        super().__init__(self._keep)

    def _keep(self, raw: bytes) -> bytes:
        self.kept.append(raw)
        return raw


def test_a_request_that_is_sent_again_is_refused(
    world: World, node: Node, proxy: Proxy, path: InPath, relay: Relay
) -> None:
    """By the relay, and straight at the node: `replayed`, and nothing has an effect."""
    path.meddler = keeps = Keeps()
    heard = hear(proxy.url, QUESTION)
    assert (heard.status, bool(proxy.told()["receipt"])) == (200, True)
    (raw,) = keeps.kept
    keyset = httpx2.get(f"{node.url}/confide/v1/health", trust_env=False, timeout=60).json()[
        "keyset"
    ]
    calls = world.engine.calls
    for url in (f"{relay[0]}/confide/v1/nodes/{keyset}", node.url):
        again = httpx2.post(
            url + CHANNEL_PATH, content=raw, headers={"content-type": REQUEST_MEDIA_TYPE}
        )
        assert (again.status_code, again.json()["type"]) == (409, problem_type(Reason.REPLAYED))
    # A relay that answers the next request with this one: the client hears what the node said.
    path.meddler = Requests(lambda _raw: raw)
    heard = hear(proxy.url, QUESTION)
    assert (heard.status, heard.code, proxy.told()["receipt"]) == (502, "replayed", None)
    assert world.engine.calls == calls
    still_served(world, proxy, path)


def test_a_relay_that_says_falsely_that_all_is_busy(
    world: World, proxy: Proxy, path: InPath
) -> None:
    class Busy(Meddler):
        def refuse(self, path: str) -> tuple[int, str, bytes] | None:
            if not path.endswith(CHANNEL_PATH):
                return None
            word = json.dumps({"type": problem_type(Reason.NODE_BUSY)}).encode()
            return 503, "application/problem+json", word

    path.meddler = Busy()
    calls = world.engine.calls
    heard = hear(proxy.url, QUESTION)
    assert (heard.status, heard.code) == (502, "node-busy")
    assert (proxy.told()["receipt"], world.engine.calls) == (None, calls)
    still_served(world, proxy, path)


def test_a_relay_that_is_told_to_stop_lets_a_stream_end(
    world: World, proxy: Proxy, relay: Relay
) -> None:
    """Last: this relay does not come back."""
    _url, _key, process = relay
    gate = Gate(EVENTS_HEAD + chunk(LONG), after=chunk(DONE) + b"0\r\n\r\n")
    world.engine.answer = gate.answer

    def stop() -> None:
        if not gate.opened.is_set():
            process.send_signal(signal.SIGTERM)
            refused = hear(proxy.url, QUESTION)
            assert (refused.status, refused.code) == (502, "node-busy")
            gate.opened.set()

    heard: Heard = hear(proxy.url, STREAMED, begun=stop)
    assert (heard.status, heard.body, heard.whole) == (200, LONG + DONE, True)
    assert {proxy.told()["problem"] for _ in range(2)} == {"node-busy", None}
    assert process.wait(WAIT_SECONDS) == 0
    assert (hear(proxy.url, QUESTION).status, proxy.told()["problem"]) == (503, "unavailable")
