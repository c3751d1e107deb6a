"""Sealed states over HTTP: routes, refusals, receipts, the node's half. state.md §4."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from state_world import RESOURCE, WALL_SECONDS, FailingStore, World, save_body

from confide.adapters.state_http import StateAction, StateAnswer, StateHttp
from confide.broker.lease import GRACE_SECONDS, refuse_state
from confide.broker.state_wire import (
    MAX_CLOSE_BYTES,
    MAX_SAVE_BYTES,
    SaveAnswer,
    parse_open_answer,
)
from confide.crypto.ed25519 import Ed25519Signer
from confide.errors import (
    ConfideError,
    FormatError,
    LocalProtocolError,
    Reason,
    ReleaseRefused,
    RemoteProtocolError,
    Unavailable,
)
from confide.node.broker_state import PIECE_BYTES
from confide.node.broker_state_app import Authorised, state_routes
from confide.node.broker_state_link import StateLink
from confide.wire.dsse import Envelope, pae
from confide.wire.json import b64decode, jcs, parse_json
from confide.wire.release_receipt import NO_STATE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence

    from starlette.requests import Request

    from confide.wire.json import JsonValue
    from confide.wire.release_receipt import StateStep

SIGNER = Ed25519Signer(bytes(range(32)))
PATH = f"/confide/v1/state/{RESOURCE}"


def wrap(raw: bytes) -> bytes:
    """Stands for a JWE: what is sealed here is sealed elsewhere, and tested there."""
    return b"sealed:" + raw[::-1]


def unwrap(raw: bytes) -> bytes:
    if not raw.startswith(b"sealed:"):
        raise FormatError("JWE: not one", reason=Reason.BROKER_FORMAT, clause="RFC 7516 §7.2")
    return raw.removeprefix(b"sealed:")[::-1]


def receipt_of(body_sha256: bytes, step: StateStep) -> bytes:
    return jcs({"jwe": body_sha256.hex(), "resource": RESOURCE, "state": step.document()})


def check(receipt: Envelope, body_sha256: bytes, step: StateStep) -> None:
    genuine = receipt.signatures == (("broker", SIGNER.sign(pae(receipt.payload))),)
    if not genuine or receipt.payload != receipt_of(body_sha256, step):
        raise refuse_state(Reason.SECRET_MISMATCH, "another receipt", clause="4.6")


@dataclass
class Broker:
    """The sessions, keys and log that belong to others, as simple as they can be."""

    world: World
    log: list[Mapping[str, JsonValue]] = field(default_factory=list)
    log_is_down: bool = False
    revoked: bool = False
    asked: int = 0
    forges: Callable[[bytes], bytes] = lambda payload: payload
    wraps: Callable[[bytes], bytes] = wrap

    async def authorise(self, request: Request, resource: str) -> Authorised | Response:
        session = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
        self.asked += 1
        if resource != RESOURCE:
            raise refuse_state(Reason.RESOURCE_UNKNOWN, "no such state", clause="4.1")
        if not session:
            return Response(jcs({"reason": "session-unknown"}), 401)
        if self.revoked:
            raise refuse_state(Reason.RELEASE_REVOKED, "the release was revoked", clause="4.1")
        return Authorised(session, WALL_SECONDS, self.wraps, self.finish)

    async def finish(self, body_sha256: bytes, step: StateStep) -> Envelope:
        if self.log_is_down:
            raise Unavailable("no log")
        self.log.append(step.document())
        payload = self.forges(receipt_of(body_sha256, step))
        return Envelope(payload, (("broker", SIGNER.sign(pae(payload))),))


class Waited:
    """Nobody waits in a test; somebody may do something meanwhile."""

    def __init__(self, then: Callable[[], None] = lambda: None) -> None:
        self.seconds: list[float] = []
        self._then = then

    async def sleep(self, seconds: float) -> None:
        self.seconds.append(seconds)
        self._then()


@dataclass
class Node:
    broker: Broker
    http: httpx2.AsyncClient
    url: str

    def link(self, session: str, waited: Waited | None = None) -> StateLink:
        headers = {"authorization": f"Bearer {session}"}
        http = StateHttp(self.http, self.url, RESOURCE, headers=headers)
        return StateLink(http, RESOURCE, unwrap=unwrap, check=check, sleeper=waited or Waited())


@asynccontextmanager
async def serving(app: Starlette) -> AsyncIterator[str]:
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn offers no event
        await asyncio.sleep(0)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


@asynccontextmanager
async def served(world: World | None = None) -> AsyncIterator[Node]:
    broker = Broker(world or World(piece_bytes=PIECE_BYTES))
    app = Starlette(routes=state_routes(broker.world.desk(), broker.authorise))
    async with serving(app) as url, httpx2.AsyncClient(trust_env=False) as http:
        yield Node(broker, http, url)


def run(work: Coroutine[None, None, None]) -> None:
    asyncio.run(work)


async def refused(work: Coroutine[None, None, object]) -> Reason | None:
    """The reason for which `work` was refused; an error of another kind is the test's."""
    try:
        await work
    except (ReleaseRefused, RemoteProtocolError) as error:
        return error.reason
    pytest.fail("it was not refused")


def test_a_run_saves_and_another_session_opens_the_same() -> None:
    async def work() -> None:
        async with served() as node:
            first = node.link("one")
            opened = await first.open()
            assert (opened.counter, opened.digest, opened.sealed) == (0, NO_STATE, b"")
            # Larger than a piece, and not a number of them.
            sealed = b"s" * (2 * PIECE_BYTES + 5)
            receipt = await first.save(sealed)
            second = await node.link("two").open()
            assert (second.counter, second.sealed, second.key) == (1, sealed, opened.key)
            digest = hashlib.sha256(sealed).hexdigest()
            saved = {"action": "save", "outcome": "released", "reason": None, "counter": 1}
            assert b'"action":"save"' in receipt.payload
            # 5.1: the chain that the owner compares.
            assert node.broker.log == [
                {**saved, "action": "open", "counter": 0, "digest": "00" * 32},
                {**saved, "digest": digest},
                {**saved, "action": "open", "digest": digest},
            ]

    run(work())


def test_of_two_runs_the_second_is_refused_and_says_why() -> None:
    async def work() -> None:
        async with served() as node:
            first = node.link("one")
            await first.open()
            assert await refused(node.link("two").open()) is Reason.STATE_IN_USE
            assert node.broker.log[-1] == {
                "action": "open", "outcome": "refused", "reason": "state-in-use",
                "counter": None, "digest": None,
            }  # fmt: skip
            await first.close()
            assert (await node.link("two").open()).counter == 0

    run(work())


def test_a_run_that_crashed_is_waited_for_and_its_late_save_is_refused() -> None:
    async def work() -> None:
        async with served() as node:
            crashed = node.link("one")
            await crashed.open()
            node.broker.world.clock.move(WALL_SECONDS + GRACE_SECONDS)
            second = node.link("two")
            await second.open()
            await second.save(b"of the second")
            before = dict(node.broker.world.memory.rows)
            assert await refused(crashed.save(b"late")) is Reason.STATE_FORK
            assert node.broker.world.memory.rows == before
            assert node.broker.log[-1]["reason"] == "state-fork"
            await crashed.close()

    run(work())


def test_a_refusal_is_one_line_with_a_receipt() -> None:
    async def work() -> None:
        async with served() as node:
            await node.link("one").open()
            headers = {"authorization": "Bearer two"}
            answer = await node.http.post(f"{node.url}{PATH}/open", headers=headers)
            assert answer.status_code == 409
            assert answer.json() == {
                "type": "https://github.com/confidential-containers/kbs/errors/StateInUse",
                "detail": "another run holds the lease",
                "reason": "state-in-use",
            }
            raw = b64decode(
                answer.headers["confide-receipt"], what="test", reason=Reason.RECEIPT_FORMAT
            )
            value = parse_json(raw, what="test", reason=Reason.RECEIPT_FORMAT)
            assert isinstance(value, dict)
            payload = b64decode(str(value["payload"]), what="x", reason=Reason.RECEIPT_FORMAT)
            assert hashlib.sha256(answer.content).hexdigest().encode() in payload

    run(work())


@pytest.mark.parametrize(
    ("method", "path", "session", "status"),
    [
        ("POST", f"{PATH}/open", "", 401),
        ("POST", "/confide/v1/state/acme/state/other/open", "one", 404),
        ("POST", "/confide/v1/state/Acme/state/notes/open", "one", 400),
        ("POST", "/confide/v1/state/acme/state/%2e%2e/open", "one", 400),
        ("POST", f"/confide/v1/state/{'a' * 65}/state/notes/open", "one", 400),
        ("POST", "/confide/v1/state/acme/secret/notes/open", "one", 404),
        ("GET", f"{PATH}/open", "one", 405),
        ("GET", f"{PATH}/blob", "one", 401),
        ("POST", f"{PATH}/save", "one", 409),
        ("POST", f"{PATH}/close", "one", 401),
    ],
)
def test_what_nobody_may_ask(method: str, path: str, session: str, status: int) -> None:
    async def work() -> None:
        async with served() as node:
            headers = {"authorization": f"Bearer {session}"} if session else {}
            body = (2).to_bytes(4, "big") + b"{}"
            content = body if method == "POST" and "open" not in path else None
            answer = await node.http.request(
                method, node.url + path, headers=headers, content=content
            )
            assert answer.status_code == status
            assert not node.broker.world.memory.kept

    run(work())


@pytest.mark.parametrize(
    ("action", "size"),
    [("save", MAX_SAVE_BYTES + 1), ("close", MAX_CLOSE_BYTES + 1), ("open", MAX_CLOSE_BYTES + 1)],
)
def test_a_body_without_end_is_cut(action: str, size: int) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(size // 65536 + 1):
            yield bytes(min(size, 65536))

    async def work() -> None:
        async with served() as node:
            answer = await node.http.post(
                f"{node.url}{PATH}/{action}",
                headers={"authorization": "Bearer one"},
                content=endless(),
            )
            assert answer.status_code == 413
            assert answer.json()["reason"] == "limit-exceeded"
            assert not node.broker.world.memory.kept

    run(work())


def test_a_mac_of_another_form_is_no_mac() -> None:
    async def work() -> None:
        async with served() as node:
            headers = {"authorization": "Bearer one"}
            answer = await node.http.post(f"{node.url}{PATH}/open", headers=headers)
            opened = parse_open_answer(unwrap(answer.content))
            body, mac = save_body(opened, b"sealed")
            before = dict(node.broker.world.memory.rows)
            for given in ("", "zz", mac.hex().upper(), mac.hex()[:-2], "00" * 32):
                answer = await node.http.post(
                    f"{node.url}{PATH}/save",
                    headers={**headers, "confide-lease": given},
                    content=body,
                )
                assert (answer.status_code, answer.json()["reason"]) == (409, "state-fork")
            assert node.broker.world.memory.rows == before
            # The MAC says whose it is: the session of the opening may be over (4.2).
            answer = await node.http.post(
                f"{node.url}{PATH}/save",
                headers={"authorization": "Bearer later", "confide-lease": mac.hex()},
                content=body,
            )
            assert answer.status_code == 200

    run(work())


def test_without_the_log_nothing_is_told_and_the_lease_is_free_again() -> None:
    async def work() -> None:
        async with served() as node:
            node.broker.log_is_down = True
            waited = Waited()
            with pytest.raises(Unavailable):
                await node.link("one", waited).open()
            assert waited.seconds == [1.0, 4.0]
            node.broker.log_is_down = False
            assert (await node.link("two").open()).counter == 0

    run(work())


def test_a_save_that_the_log_could_not_take_at_once_is_sent_again_and_taken_once() -> None:
    async def work() -> None:
        async with served() as node:

            def the_log_comes_back() -> None:
                node.broker.log_is_down = False

            link = node.link("one", Waited(the_log_comes_back))
            await link.open()
            node.broker.log_is_down = True
            await link.save(b"sealed")
            assert [(each["action"], each["counter"]) for each in node.broker.log] == [
                ("open", 0),
                ("save", 1),
            ]
            assert (await node.link("two").open()).counter == 1

    run(work())


def test_a_store_that_fails_is_unavailable_and_the_save_comes_again() -> None:
    async def work() -> None:
        store = FailingStore()
        async with served(World(memory=store)) as node:
            link = node.link("one")
            await link.open()
            store.at = store.changes + 2
            await link.save(b"sealed, in pieces")
            assert (await node.link("two").open()).sealed == b"sealed, in pieces"

    run(work())


def test_a_release_that_was_revoked_saves_nothing_more() -> None:
    async def work() -> None:
        async with served() as node:
            link = node.link("one")
            await link.open()
            node.broker.revoked = True
            assert await refused(link.save(b"sealed")) is Reason.RELEASE_REVOKED

    run(work())


def test_whoever_stands_between_changes_nothing() -> None:
    async def work() -> None:
        async with served() as node:
            first = node.link("one")
            await first.open()
            await first.save(b"sealed")
            node.broker.forges = lambda payload: payload.replace(b"open", b"save")
            between = node.link("two")
            assert await refused(between.open()) is Reason.SECRET_MISMATCH
            # What was opened without a receipt that holds is given back.
            await between.close()
            node.broker.forges = lambda payload: payload
            node.broker.wraps = lambda raw: raw
            assert await refused(node.link("three").open()) is Reason.BROKER_FORMAT

    run(work())


def test_a_blob_of_another_digest_is_a_rollback() -> None:
    async def work() -> None:
        async with served() as node:
            first = node.link("one")
            await first.open()
            await first.save(b"sealed")

            class Older(StateHttp):
                """A broker that opens the newest state and sends another one."""

                async def ask(
                    self,
                    action: StateAction,
                    *,
                    body: Sequence[bytes] = (),
                    headers: Mapping[str, str] | None = None,
                    max_bytes: int,
                ) -> StateAnswer:
                    found = await super().ask(
                        action, body=body, headers=headers, max_bytes=max_bytes
                    )
                    return replace(found, body=b"older!") if action == "blob" else found

            http = Older(node.http, node.url, RESOURCE, headers={"authorization": "Bearer two"})
            link = StateLink(http, RESOURCE, unwrap=unwrap, check=check, sleeper=Waited())
            assert await refused(link.open()) is Reason.STATE_ROLLBACK

    run(work())


def test_a_blob_whose_pieces_are_gone_is_cut_and_not_short() -> None:
    async def work() -> None:
        async with served(World()) as node:
            first = node.link("one")
            await first.open()
            await first.save(b"a state of some pieces")
            second = node.link("two")
            await second.open()
            rows = node.broker.world.memory.rows
            del rows[[place for place in rows if place[0] == "state-blob"][-1]]
            with pytest.raises(httpx2.RemoteProtocolError):
                await node.http.get(
                    f"{node.url}{PATH}/blob", headers={"authorization": "Bearer two"}
                )

    run(work())


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (200, b"{}", RemoteProtocolError),
        (200, b"", RemoteProtocolError),
        (403, b"<html>", RemoteProtocolError),
        (409, jcs({"reason": "tlog-fork"}), RemoteProtocolError),
        (409, jcs({"detail": "no reason"}), RemoteProtocolError),
        (302, b"", RemoteProtocolError),
        (403, jcs({"reason": "release-missing"}), ReleaseRefused),
        (503, jcs({"reason": "state-in-use"}), Unavailable),
        (200, b"x" * (64 * 1024 + 1), RemoteProtocolError),
    ],
)
def test_what_a_broker_may_answer(status: int, body: bytes, error: type[ConfideError]) -> None:
    async def work() -> None:
        transport = httpx2.ASGITransport(app=Response(body, status))
        async with httpx2.AsyncClient(transport=transport) as client:
            http = StateHttp(client, "http://broker", RESOURCE, headers={})
            link = StateLink(http, RESOURCE, unwrap=lambda raw: raw, check=check, sleeper=Waited())
            with pytest.raises(error):
                await link.open()

    run(work())


def test_an_answer_without_end_is_not_read_to_it() -> None:
    async def work() -> None:
        async def endless() -> AsyncIterator[bytes]:
            while True:
                await asyncio.sleep(0)  # let the server see that nobody listens any more
                yield bytes(65536)

        async def opened(_request: Request) -> Response:
            return StreamingResponse(endless())

        app = Starlette(routes=[Route(f"{PATH}/open", opened, methods=["POST"])])
        async with serving(app) as url, httpx2.AsyncClient(trust_env=False) as client:
            http = StateHttp(client, url, RESOURCE, headers={})
            link = StateLink(http, RESOURCE, unwrap=unwrap, check=check, sleeper=Waited())
            with pytest.raises(RemoteProtocolError, match="an answer of more than"):
                await link.open()

    run(work())


def test_a_broker_that_signs_one_save_and_tells_another_is_not_believed() -> None:
    async def work() -> None:
        async with served() as node:

            class Other(StateHttp):
                """The answer to a save tells of another counter."""

                async def ask(
                    self,
                    action: StateAction,
                    *,
                    body: Sequence[bytes] = (),
                    headers: Mapping[str, str] | None = None,
                    max_bytes: int,
                ) -> StateAnswer:
                    found = await super().ask(
                        action, body=body, headers=headers, max_bytes=max_bytes
                    )
                    if action != "save":
                        return found
                    return replace(found, body=SaveAnswer(2, bytes(32)).encode())

            http = Other(node.http, node.url, RESOURCE, headers={"authorization": "Bearer one"})
            link = StateLink(http, RESOURCE, unwrap=unwrap, check=lambda *_: None, sleeper=Waited())
            await link.open()
            with pytest.raises(RemoteProtocolError, match="saved something else"):
                await link.save(b"sealed")

    run(work())


def test_of_many_saves_at_once_the_last_ones_come_again() -> None:
    async def work() -> None:
        async with served() as node:
            enough = asyncio.Event()

            async def slow() -> AsyncIterator[bytes]:
                yield bytes(16)
                await enough.wait()

            def save(content: AsyncIterator[bytes] | bytes) -> Coroutine[None, None, Any]:
                headers = {"authorization": "Bearer one"}
                return node.http.post(f"{node.url}{PATH}/save", headers=headers, content=content)

            waiting = [asyncio.create_task(save(slow())) for _ in range(8)]
            while node.broker.asked < 8:  # noqa: ASYNC110 - the broker offers no event
                await asyncio.sleep(0)
            turned_away = await save(bytes(16))
            assert (turned_away.status_code, turned_away.headers["retry-after"]) == (503, "1")
            enough.set()
            assert [(await task).status_code for task in waiting] == [409] * 8
            assert (await save(bytes(16))).status_code == 409

    run(work())


def test_a_broker_that_is_not_there_is_unavailable_and_a_close_never_raises() -> None:
    async def work() -> None:
        async with served() as node:
            url = node.url
        waited = Waited()
        async with httpx2.AsyncClient(trust_env=False) as client:
            gone = StateHttp(client, url, RESOURCE, headers={})
            alone = StateLink(gone, RESOURCE, unwrap=unwrap, check=check, sleeper=waited)
            with pytest.raises(Unavailable):
                await alone.open()
            assert waited.seconds == [1.0, 4.0]

    run(work())


def test_a_close_never_raises() -> None:
    async def work() -> None:
        async with httpx2.AsyncClient(trust_env=False) as client:
            async with served() as node:
                refused_one = node.link("one")
                await refused_one.open()
                node.broker.revoked = True
                await refused_one.close()
                node.broker.revoked = False
                node.broker.world.clock.move(WALL_SECONDS + GRACE_SECONDS)
                headers = {"authorization": "Bearer two"}
                http = StateHttp(client, node.url, RESOURCE, headers=headers)
                left = StateLink(http, RESOURCE, unwrap=unwrap, check=check, sleeper=Waited())
                await left.open()
            # The broker is gone.
            await left.close()
            await left.close()

    run(work())


def test_the_link_is_used_in_its_order() -> None:
    async def work() -> None:
        async with served() as node:
            link = node.link("one")
            with pytest.raises(LocalProtocolError):
                await link.save(b"sealed")
            await link.open()
            with pytest.raises(LocalProtocolError):
                await link.open()
            with pytest.raises(FormatError):
                await link.save(b"")
            await link.save(b"sealed")
            with pytest.raises(LocalProtocolError):
                await link.save(b"again")

    run(work())
