"""What stands around a broker fails, lies or floods: nothing is released, nothing is lost."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import httpx2
import pytest
from broker_world import (
    KEYS,
    NAME,
    RELEASE,
    RESOURCE,
    VALUE,
    Broker,
    Guest,
    Naps,
    World,
    expectation,
    receipt_of,
    run,
)
from test_broker_answers import logged, nothing_released, refusal, with_broker

from confide.broker.holdings import Held
from confide.broker.keys import BrokerKeys
from confide.broker.receipt import issue_release_receipt
from confide.crypto.jwe import JweSecrets, seal_jwe
from confide.errors import Reason, ReleaseRefused, RemoteProtocolError, Unavailable
from confide.node.broker_audit import PENDING, RELEASED, SETTLED, AuditLimits, parse_kept
from confide.node.broker_gate import LoadLimits
from confide.wire.dsse import Envelope, parse_envelope
from confide.wire.json import b64encode, parse_json
from confide.wire.jwe import parse_wrapping_key
from confide.wire.release_receipt import parse_release_receipt

if TYPE_CHECKING:
    from collections.abc import Callable

    from confide.node.broker_link import BrokerLink

OTHER = "acme/secret/other"


# --- store and log --------------------------------------------------------------------------------


def test_a_full_disk_releases_nothing_and_refuses_nothing() -> None:
    async def work(world: World, broker: Broker) -> None:
        link, guest = await broker.link(), Guest(broker)
        await guest.attest()
        world.store.fails = True
        with pytest.raises(Unavailable):
            await link.secret(NAME)
        # Nor is a refusal told that could not be kept.
        refusal(await guest.get(), 503, None)
        assert not world.store.kept
        assert not world.log.digests
        world.store.fails = False
        assert (await link.secret(NAME)).value == VALUE
        refusal(await guest.get(), 403, Reason.RELEASE_MISSING)

    with_broker(work)


def test_a_database_that_is_locked_is_an_outage() -> None:
    async def work(world: World, broker: Broker) -> None:
        link = await broker.link()
        world.owners.fails = Unavailable("database is locked")
        with pytest.raises(Unavailable):
            await link.secret(NAME)
        nothing_released(world)

    with_broker(work)


def test_without_the_log_nothing_is_released_and_refusals_wait_for_it() -> None:
    async def work(world: World, broker: Broker) -> None:
        link, guest = await broker.link(), Guest(broker)
        await guest.attest()
        world.log.down = True
        with pytest.raises(Unavailable):
            await link.secret(NAME)
        answer = await guest.get()
        refusal(answer, 403, Reason.RELEASE_MISSING)
        assert len(world.sealed().entries(PENDING)) == broker.audit.pending == 1
        assert not world.log.digests
        world.log.down = False
        await broker.settled(1)
        assert world.log.digests == [receipt_of(answer).digest]
        assert not world.sealed().entries(PENDING)
        # What was decided and never answered is kept as that, and is no release of the log's.
        nothing_released(world)
        assert sorted(_settled(world)) == [(False, True), (True, False)]

    with_broker(work)


def _settled(world: World) -> list[tuple[bool, bool]]:
    """Of each settled decision: whether it was a release, whether it is logged."""
    found = [parse_kept(entry.value) for entry in world.sealed().entries(SETTLED)]
    return [(kept.release, kept.proof is not None) for kept in found]


def test_what_waits_for_the_log_is_logged_after_a_restart() -> None:
    async def work() -> None:
        world = World()
        world.log.down = True
        async with world.serving() as first:
            guest = Guest(first)
            await guest.attest()
            answers = [await guest.get(), await guest.get(OTHER)]
            # Power is cut while a release waits for the log.
            link = await first.link()
            with pytest.raises(Unavailable):
                await link.secret(NAME)
        world.log.down = False
        async with world.serving() as second:
            await second.settled(2)
        assert sorted(world.log.digests) == sorted(receipt_of(one).digest for one in answers)
        nothing_released(world)

    run(work())


def test_a_release_that_a_crash_cut_off_is_never_logged_as_one() -> None:
    async def work() -> None:
        world = World()
        async with world.serving() as broker:
            receipt = (await (await broker.link()).secret(NAME)).receipt
        audit = world.audit()
        # The record of a release whose proof never came to stand beside it.
        [entry] = world.sealed().entries(RELEASED)
        kept = replace(parse_kept(entry.value), proof=None)
        await audit._keep(kept, world.clock.now())
        world.log.digests.clear()
        async with world.serving() as again:
            await again.settled(0)
            assert not world.sealed().entries(PENDING)
        assert world.log.digests == []
        assert (True, False) in _settled(world)
        assert kept.envelope == receipt

    run(work())


def test_what_waits_is_bounded_and_what_is_settled_too() -> None:
    async def work(world: World, broker: Broker) -> None:
        guest = Guest(broker)
        await guest.attest()
        world.log.down = True
        answers = [await guest.get(OTHER) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [404, 404, 404, 503]
        world.log.down = False
        await broker.settled(3)
        refusal(await guest.get(OTHER), 404, Reason.RESOURCE_UNKNOWN)
        await broker.settled(4)
        assert len(world.sealed().entries(SETTLED)) == 2
        assert len(set(world.log.digests)) >= 1

    with_broker(work, limits=AuditLimits(max_pending=3, max_settled=2, retry_seconds=0.01))


# --- in the path ----------------------------------------------------------------------------------


@dataclass(slots=True)
class InPath(httpx2.AsyncBaseTransport):
    """Somebody between node and broker: `change` sees each answer that carries a secret."""

    change: Callable[[int, bytes, str], tuple[bytes, str]]
    inner: httpx2.AsyncHTTPTransport = field(default_factory=httpx2.AsyncHTTPTransport)
    seen: list[tuple[bytes, str]] = field(default_factory=list)
    attested: list[bytes] = field(default_factory=list)

    async def aclose(self) -> None:
        await self.inner.aclose()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.path.endswith("/attest"):
            self.attested.append(await request.aread())
        answer = await self.inner.handle_async_request(request)
        body = await answer.aread()
        receipt = answer.headers.get("confide-receipt", "")
        if "resource" in request.url.path and answer.status_code == 200:
            self.seen.append((body, receipt))
            body, receipt = self.change(len(self.seen) - 1, body, receipt)
        headers = {"confide-receipt": receipt}
        if "set-cookie" in answer.headers:
            headers["set-cookie"] = answer.headers["set-cookie"]
        return httpx2.Response(answer.status_code, headers=headers, content=body)


def _sealed_by_somebody(path: InPath) -> bytes:
    body = parse_json(path.attested[-1], what="body", reason=Reason.BROKER_FORMAT)
    assert isinstance(body, dict)
    runtime = body["runtime-data"]
    assert isinstance(runtime, dict)
    key = parse_wrapping_key(runtime["tee-pubkey"])
    return seal_jwe(
        key, b"not your secret", secrets=JweSecrets(b"k" * 32, b"i" * 12, b"e" * 96)
    ).encode()


def _resigned(receipt: str, jwe: bytes, keys: BrokerKeys) -> str:
    payload = _envelope(receipt).payload
    decision = replace(
        parse_release_receipt(payload), broker=keys.key, jwe=hashlib.sha256(jwe).digest()
    )
    return b64encode(issue_release_receipt(keys.signer, decision).encode())


def _envelope(receipt: str) -> Envelope:
    raw = base64.b64decode(receipt)
    return parse_envelope(parse_json(raw, what="receipt", reason=Reason.RECEIPT_FORMAT))


def _tried(change: Callable[[InPath, int, bytes, str], tuple[bytes, str]]) -> None:
    """A node that asks twice, once for each secret, never takes what `change` makes of it."""

    async def work(world: World, broker: Broker) -> None:
        world.owners.values[OTHER] = Held(b"2" * 32, b"another value")
        world.owners.releases[OTHER, "expectation", expectation().digest] = RELEASE
        path = InPath(lambda number, body, receipt: change(path, number, body, receipt))
        async with httpx2.AsyncClient(transport=path) as http:
            broker = replace(broker, http=http)
            link = await broker.link()
            with pytest.raises(RemoteProtocolError) as refused:
                await _both(link)
            assert refused.value.reason is Reason.SECRET_MISMATCH

    with_broker(work)


async def _both(link: BrokerLink) -> None:
    """Ask for one secret, and in a session of its own for the other."""
    await link.secret("other")
    await link.close()
    await link.secret(NAME)


@pytest.mark.parametrize(
    "change",
    [
        # An answer of somebody who knows the node's public key, as everybody does.
        lambda path, _number, _body, receipt: (_sealed_by_somebody(path), receipt),
        # The same, with a receipt of a broker of their own.
        lambda path, _number, _body, receipt: (
            (forged := _sealed_by_somebody(path)),
            _resigned(receipt, forged, BrokerKeys(b"e" * 32, b"e" * 32)),
        ),
        # Another broker's signature under this one's name, and a second signature beside it.
        lambda _path, _number, body, receipt: (body, _signature(receipt, lambda _raw: bytes(64))),
        lambda _path, _number, body, receipt: (body, _twice(receipt)),
        # The answer to another name, or of another session, with its own receipt.
        lambda path, number, body, receipt: path.seen[0] if number else (body, receipt),
        # No receipt, and no answer.
        lambda _path, _number, body, _receipt: (body, ""),
        lambda _path, _number, _body, receipt: (b"{}", receipt),
        lambda _path, _number, body, receipt: (body + b" ", receipt),
    ],
)  # fmt: skip
def test_whoever_sits_between_can_withhold_and_not_replace(
    change: Callable[[InPath, int, bytes, str], tuple[bytes, str]],
) -> None:
    _tried(change)


def _signature(receipt: str, make: Callable[[bytes], bytes]) -> str:
    envelope = _envelope(receipt)
    [(keyid, raw)] = envelope.signatures
    return b64encode(replace(envelope, signatures=((keyid, make(raw)),)).encode())


def _twice(receipt: str) -> str:
    envelope = _envelope(receipt)
    return b64encode(replace(envelope, signatures=envelope.signatures * 2).encode())


def test_a_broker_that_is_not_the_expectations_is_not_believed() -> None:
    async def work(_world: World, broker: Broker) -> None:
        link = await broker.link(key=BrokerKeys(b"e" * 32, b"e" * 32).key)
        with pytest.raises(RemoteProtocolError) as refused:
            await link.secret(NAME)
        assert refused.value.reason is Reason.SECRET_MISMATCH

    with_broker(work)


def test_an_answer_that_is_none_is_one_of_our_errors() -> None:
    async def work(_world: World, broker: Broker) -> None:
        class Silly(httpx2.AsyncBaseTransport):
            def __init__(self, status: int, body: bytes) -> None:
                self.answer = (status, body)

            async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
                del request
                return httpx2.Response(self.answer[0], content=self.answer[1])

        for status, body, error in (
            (200, b"", RemoteProtocolError),
            (200, b"<html>", RemoteProtocolError),
            (403, b"<html>", RemoteProtocolError),
            (403, b'{"detail":"","type":"x"}', RemoteProtocolError),
            (500, b"", Unavailable),
            (503, b"", Unavailable),
            (200, bytes(1 << 20), Unavailable),
        ):
            async with httpx2.AsyncClient(transport=Silly(status, body)) as http:
                link = await replace(broker, http=http).link()
                with pytest.raises(error):
                    await link.secret(NAME)
        link = await broker.link(url="http://127.0.0.1:9")
        with pytest.raises(Unavailable):
            await link.secret(NAME)

    with_broker(work)


# --- load -----------------------------------------------------------------------------------------


_NONSENSE = b'{"runtime-data":{"nonce":"' + b"A" * 2000
_BAD: tuple[tuple[str, str, bytes], ...] = (
    ("POST", "/kbs/v0/auth", _NONSENSE),
    ("POST", "/kbs/v0/attest", _NONSENSE),
    ("GET", f"/kbs/v0/resource/{RESOURCE}", b""),
    ("GET", "/confide/v1/state/a/state/b/blob", b""),
)


def _message(method: str, path: str, body: bytes) -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
    return (
        f"{head}authorization: Bearer e30.e30.AA\r\ncookie: kbs-session-id=AA\r\n\r\n".encode()
        + body
    )


async def _flood(broker: Broker, requests: int, *, at_once: int = 100) -> set[int]:
    """A bad client: every kind of message that is none, many at once; the statuses it saw."""
    seen: set[int] = set()
    port = int(broker.url.rpartition(":")[2])

    async def connection(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for at in range(requests // at_once):
            writer.write(_message(*_BAD[(number + at) % len(_BAD)]))
            status, length = await _answer(reader)
            seen.add(status)
            await reader.readexactly(length)
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(connection(number) for number in range(at_once)))
    return seen


async def _answer(reader: asyncio.StreamReader) -> tuple[int, int]:
    """The status of an answer, and how long its body is."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    length = head.partition("content-length: ")[2].partition("\r\n")[0]
    return int(head.split()[1]), int(length)


def test_a_good_client_is_served_under_ten_thousand_bad_requests() -> None:
    async def work(world: World, broker: Broker) -> None:
        flood = asyncio.create_task(_flood(broker, 10_000))
        served = 0
        while not flood.done():
            link = await broker.link()
            assert (await link.secret(NAME)).value == VALUE
            served += 1
        assert await flood == {400, 401, 404}
        assert served == len(logged(world))
        assert all(parse_release_receipt(payload).released for payload in logged(world))
        assert not world.sealed().entries(PENDING)

    with_broker(work)


def test_more_appraisals_than_can_wait_are_turned_away_and_served_when_they_come_again() -> None:
    async def work(world: World, broker: Broker) -> None:
        guests = [Guest(broker) for _ in range(12)]
        answers = await asyncio.gather(*(guest.attest() for guest in guests))
        assert {answer.status_code for answer in answers} == {200, 503}
        for guest, answer in zip(guests, answers, strict=True):
            if answer.status_code == 503:
                refusal(answer, 503, Reason.NODE_BUSY)
                assert (await guest.attest()).status_code == 200
        assert not world.store.kept, "being busy says nothing about anybody"

    with_broker(work, load=LoadLimits(running=1, waiting=1))


class Turns(Naps):
    """Whoever was turned away comes again when nobody else is being served, one at a time."""

    def __init__(self, busy: int) -> None:
        super().__init__()
        self.busy = busy
        self._turns: list[asyncio.Event] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        turn = asyncio.Event()
        self._turns.append(turn)
        self.left()
        await turn.wait()
        self.busy += 1

    def left(self) -> None:
        self.busy -= 1
        if self.busy == 0 and self._turns:
            self._turns.pop(0).set()


def test_a_node_that_was_turned_away_comes_again() -> None:
    turns = Turns(busy=8)

    async def work(_world: World, broker: Broker) -> None:
        async def fetch(link: BrokerLink) -> bytes:
            try:
                return (await link.secret(NAME)).value
            finally:
                turns.left()

        links = [await broker.link() for _ in range(8)]
        assert set(await asyncio.gather(*map(fetch, links))) == {VALUE}
        assert turns.slept, "somebody was turned away"

    with_broker(work, load=LoadLimits(running=1, waiting=2), naps=turns)


def test_bodies_that_do_not_end_hold_neither_memory_nor_time() -> None:
    async def work(_world: World, broker: Broker) -> None:
        guest = Guest(broker)
        await guest.auth()
        port = int(broker.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = "POST /kbs/v0/attest HTTP/1.1\r\nhost: x\r\ncontent-length: 4000000\r\n"
        writer.write(f"{head}cookie: kbs-session-id={guest.cookie}\r\n\r\n".encode() + b"{" * 100)
        assert (await (await broker.link()).secret(NAME)).value == VALUE
        assert (await _answer(reader))[0] == 503
        writer.close()
        await writer.wait_closed()

    with_broker(work, load=LoadLimits(body_seconds=0.05))


def test_memory_for_bodies_is_bounded_and_given_back() -> None:
    async def work(_world: World, broker: Broker) -> None:
        guest = Guest(broker)
        await guest.auth()
        refusal(await guest.send(bytes(20_000)), 503, Reason.NODE_BUSY)
        assert (await guest.attest()).status_code == 200

    with_broker(work, load=LoadLimits(body_bytes=16_000))


def test_a_refusal_is_for_the_next_request_of_the_same_node_too() -> None:
    async def work(_world: World, broker: Broker) -> None:
        link = await broker.link()
        for _ in range(2):
            with pytest.raises(ReleaseRefused) as refused:
                await link.secret("none")
            assert refused.value.reason is Reason.RESOURCE_UNKNOWN
        assert (await link.secret(NAME)).value == VALUE
        assert KEYS.key

    with_broker(work)
