"""A model node of several workers, as processes: one replay window, one identity, many hands.

Clauses: docs/protocols/workers.md. Connections of a client spread over the workers; a receipt says
which one answered.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections import defaultdict
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
from deployment import AGENTS, Installation, until
from engine_peers import Engine, Peer, routed
from shifted_node import ShiftedClock

from confide.adapters.answer_transport import Request
from confide.adapters.entropy import SystemEntropy
from confide.adapters.http_client import ask_health
from confide.adapters.image_build import read_agent_manifest
from confide.adapters.prove import SealedNode, prove_node
from confide.adapters.receipt_db import UnsafeKeepNone
from confide.adapters.software import running_kernel
from confide.appraisal.binding import closing_nonce
from confide.appraisal.node import appraise_node
from confide.channel.carriage import CHANNEL_PATH, REQUEST_MEDIA_TYPE
from confide.channel.keys import key_config, recipient_key
from confide.channel.message import ClientMessages, MessageLimits, Stamp
from confide.channel.padding import PaddingPolicy
from confide.client.expect import expectation_for
from confide.client.held import TrustPolicy
from confide.client.local import local_reference
from confide.client.session import Session
from confide.node.identity import ROTATE_AFTER
from confide.receipts.inference import InferenceStatement, parse_inference_statement
from confide.receipts.inline import RECEIPT_HEADER, decode_inline
from confide.receipts.issue import session_claim
from confide.wire.evidence import decode_evidence

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from confide.expectation import Expectation
    from confide.trust.roots import Roots
    from confide.wire.dsse import Envelope

_PATH = "/v1/chat/completions"
_JSON = (("content-type", "application/json"),)
_ASKED = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]}).encode()
_STREAMED = json.dumps({**json.loads(_ASKED), "stream": True}).encode()
_EVENT = b'data: {"choices":[]}\n\n'
_WORKERS = 2
_ROTATING = int(ROTATE_AFTER.total_seconds())
_AGE = 3601


class Gate:
    """An engine that answers at once; streams begin, and go on when the gate is open."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.begun = 0

    async def answer(self, peer: Peer, body: bytes) -> None:
        if b'"stream": true' not in body:
            await peer.answer(b"{}", head="content-type: application/json\r\n")
            return
        head = b"HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\n"
        await peer.send(head + b"content-length: %d\r\n\r\n" % (2 * len(_EVENT)) + _EVENT)
        self.begun += 1
        await self.open.wait()
        await peer.send(_EVENT)

    async def has_begun(self, count: int) -> None:
        while self.begun < count:  # noqa: ASYNC110 - counted on many connections
            await asyncio.sleep(0.01)


@dataclass
class Crowd:
    """A node of two workers, and what a client needs to ask it."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path
    clock: ShiftedClock
    roots: Roots
    expectation: Expectation
    gate: Gate

    @property
    def workers(self) -> list[int]:
        """The processes that serve."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(child) for child in children]

    async def prove(self) -> SealedNode:
        async with httpx2.AsyncClient(trust_env=False) as http:
            return await self.prove_over(http)

    async def prove_over(self, http: httpx2.AsyncClient) -> SealedNode:
        return await prove_node(
            self.url, role="model", expectation=self.expectation, roots=self.roots,
            http=http, clock=self.clock, entropy=SystemEntropy(),
        )  # fmt: skip

    def session(self) -> Session:
        return Session(
            [self.url], TrustPolicy(self.expectation, self.roots), keeper=UnsafeKeepNone(),
            clock=self.clock, entropy=SystemEntropy(),
        )  # fmt: skip

    async def receipts(self, count: int) -> list[Envelope]:
        """Ask `count` times, each on a connection of its own."""
        first = await self.prove()

        async def one() -> Envelope:
            async with httpx2.AsyncClient(trust_env=False) as http:
                first_over = _over(first, http)
                async with await first_over.request("POST", _PATH, _JSON, _ASKED) as answer:
                    await answer.aread()
                return decode_inline(dict(answer.headers)[RECEIPT_HEADER])

        return [await one() for _ in range(count)]


def _over(proven: SealedNode, http: httpx2.AsyncClient) -> Any:
    sealed = proven.sealed
    return type(sealed)(
        sealed._url.removesuffix(CHANNEL_PATH), key_config(proven.node.keyset.keys[0]),
        http=http, clock=sealed._clock, entropy=sealed._entropy,
    )  # fmt: skip


def stated(envelope: Envelope) -> InferenceStatement:
    return parse_inference_statement(envelope.payload)


@asynccontextmanager
async def crowd(tmp: Path, *, workers: int = _WORKERS) -> AsyncIterator[Crowd]:
    async with AsyncExitStack() as stack:
        gate = Gate()
        upstream = await stack.enter_async_context(Engine(routed(gate.answer)).serving())
        installation = Installation(tmp, "")
        installation.paths.make_private()
        clock = ShiftedClock(tmp / "shift")
        clock.set(0)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        log = tmp / "node.log"
        words = (
            str(Path(__file__).with_name("shifted_node.py")), str(port), upstream,
            installation.engine.seed().hex(), str(clock.shift), str(workers),
        )  # fmt: skip
        process = _begin(words, log, installation.environment)
        stack.callback(_end, process)
        url = f"http://127.0.0.1:{port}"
        await asyncio.to_thread(until, lambda: ask_health(url) is not None, log.read_text)
        reference = local_reference(
            seed=installation.engine.seed(), roots=installation.roots,
            software=installation.software, kernel=running_kernel(), model="m", weights=None,
            now=clock.now(),
        )  # fmt: skip
        wanted = expectation_for(read_agent_manifest(AGENTS / "probe"), "00" * 32, reference)
        yield Crowd(process, url, log, clock, installation.roots, wanted, gate)


def _begin(words: tuple[str, ...], log: Path, environment: dict[str, str]) -> Any:
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, *words], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            env=environment, start_new_session=True,
        )  # fmt: skip


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
    process.wait(timeout=60)


def _by_worker(envelopes: Sequence[Envelope]) -> dict[int | None, list[int]]:
    found = defaultdict(list)
    for envelope in envelopes:
        found[stated(envelope).worker].append(stated(envelope).sequence)
    return found


def test_each_worker_numbers_its_receipts_without_gaps(tmp_path: Path) -> None:
    async def main() -> None:
        async with crowd(tmp_path) as node:
            found = _by_worker(await node.receipts(40))
            assert set(found) == {0, 1}
            for sequences in found.values():
                assert sequences == list(range(len(sequences)))

    asyncio.run(main())


def test_one_worker_names_none_in_its_receipts(tmp_path: Path) -> None:
    async def main() -> None:
        async with crowd(tmp_path, workers=1) as node:
            (envelope,) = await node.receipts(1)
            assert "worker" not in json.loads(envelope.payload)["predicate"]
            assert node.workers == []

    asyncio.run(main())


async def _send_raw(node: Crowd, sealed: bytes) -> int:
    headers = {"content-type": REQUEST_MEDIA_TYPE}
    async with httpx2.AsyncClient(trust_env=False) as http:
        answer = await http.post(node.url + CHANNEL_PATH, content=sealed, headers=headers)
    return answer.status_code


async def _sealed_once(node: Crowd) -> bytes:
    proven = await node.prove()
    messages = ClientMessages(
        recipient_key(key_config(proven.node.keyset.keys[0])),
        ephemeral=os.urandom(32),
        stamp=Stamp(os.urandom(32), node.clock.now()),
        padding=PaddingPolicy(),
        limits=MessageLimits(),
    )
    fields = ((b"content-type", b"application/json"),)
    return messages.seal_whole("POST", _PATH, fields, _ASKED)


def test_a_replay_is_refused_by_every_worker(tmp_path: Path) -> None:
    async def main() -> None:
        async with crowd(tmp_path) as node:
            sealed = await _sealed_once(node)
            assert await _send_raw(node, sealed) == 200
            assert {await _send_raw(node, sealed) for _ in range(40)} == {409}
            # Two at once are one request and one replay, whoever takes them.
            for _ in range(20):
                fresh = await _sealed_once(node)
                both = await asyncio.gather(*(_send_raw(node, fresh) for _ in range(2)))
                assert sorted(both) == [200, 409]

    asyncio.run(main())


def test_a_killed_worker_takes_nothing_with_it_but_its_own_calls(tmp_path: Path) -> None:
    async def main() -> None:
        async with crowd(tmp_path) as node:
            before = await node.receipts(20)
            sealed = await _sealed_once(node)
            assert await _send_raw(node, sealed) == 200
            first = node.workers
            assert len(first) == _WORKERS
            os.kill(first[0], signal.SIGKILL)
            await asyncio.to_thread(
                until, lambda: len(node.workers) == _WORKERS and first[0] not in node.workers,
                "another worker in its place",
            )  # fmt: skip
            assert first[1] in node.workers
            # What was admitted stays admitted, and what was issued stays issued.
            assert {await _send_raw(node, sealed) for _ in range(20)} == {409}
            after = await node.receipts(40)
            assert set(_by_worker(after)) == {1, 2}
            assert len({e.digest for e in before + after}) == 60
            assert await _close(node, before + after) == 200

    asyncio.run(main())


async def _close(node: Crowd, envelopes: Sequence[Envelope], *, extra: str = "") -> int:
    """Close a run over these receipts; what comes back is evidence about exactly them."""
    digests = [envelope.digest for envelope in envelopes]
    nonce, context = closing_nonce(b"o" * 32, b"t" * 32), b"t" * 32
    body = {
        "nonce": nonce.hex(),
        "expectation": node.expectation.digest.hex(),
        "context": context.hex(),
        "receipts": [digest.hex() for digest in digests] + ([extra] if extra else []),
    }
    async with httpx2.AsyncClient(trust_env=False) as http:
        proven = await node.prove_over(http)
        raw = json.dumps(body).encode()
        async with await proven.sealed.request("POST", "/confide/v1/closing", _JSON, raw) as answer:
            given = await answer.aread()
    if answer.status == 200:
        appraise_node(
            decode_evidence(given),
            subject="model-node", role="model", purpose="claim", nonce=nonce,
            claim=session_claim(context=context, receipts=digests),
            expectation=node.expectation, roots=node.roots, now=node.clock.now(),
        )  # fmt: skip
    return answer.status


def test_a_run_over_several_workers_is_closed_by_any(tmp_path: Path) -> None:
    async def main() -> None:
        async with crowd(tmp_path) as node:
            envelopes = await node.receipts(20)
            assert set(_by_worker(envelopes)) == {0, 1}
            for _ in range(6):
                assert await _close(node, envelopes) == 200
            for foreign in ("ab" * 32, "00" * 32):
                assert await _close(node, envelopes, extra=foreign) == 400
            proven = await node.prove()
            for envelope in envelopes:
                async with httpx2.AsyncClient(trust_env=False) as http:
                    path = f"/v1/receipts/{stated(envelope).id}"
                    async with await _over(proven, http).request("GET", path) as answer:
                        assert await answer.aread() == envelope.encode()

    asyncio.run(main())


def test_keys_rotate_under_64_streams_without_a_failed_request(tmp_path: Path) -> None:
    async def stream(session: Session) -> str:
        answer = await session.send(Request("POST", _PATH, _JSON, _STREAMED))
        assert await answer.aread() == _EVENT * 2
        assert answer.receipt is not None
        return answer.receipt.inference.statement.keyset.hex()

    async def main() -> None:
        async with crowd(tmp_path) as node:
            session = node.session()
            before = ask_health(node.url)
            streams = [asyncio.ensure_future(stream(session)) for _ in range(64)]
            await node.gate.has_begun(64)
            keysets: list[str] = []

            async def ask() -> None:
                answer = await session.send(Request("POST", _PATH, _JSON, _ASKED))
                assert answer.status == 200
                assert answer.receipt is not None
                keysets.append(answer.receipt.inference.statement.keyset.hex())

            async def ask_while(going_on: Callable[[], bool]) -> None:
                while going_on():
                    await asyncio.gather(*(ask() for _ in range(8)))

            # Time for new keys; the client goes on with those it proved. An hour later its proof
            # has ended, and it proves those that followed.
            node.clock.set(_ROTATING)
            await ask_while(lambda: ask_health(node.url) == before)
            await ask_while(lambda: len(keysets) < 100)
            after = ask_health(node.url)
            node.clock.set(_ROTATING + _AGE)
            await ask_while(lambda: len(keysets) < 200)
            assert set(keysets) == {before, after}
            assert keysets == sorted(keysets, key=lambda keyset: keyset == after)
            assert [change.reason for change in session.preferred.changes] == [None]
            node.gate.open.set()
            assert await asyncio.gather(*streams) == [before] * 64
            await session.close()

    asyncio.run(main())


def test_a_node_of_workers_drains_on_sigterm(tmp_path: Path) -> None:
    async def main() -> None:
        async with crowd(tmp_path) as node, httpx2.AsyncClient(trust_env=False) as http:
            proven = await node.prove_over(http)

            async def stream() -> bytes:
                async with await proven.sealed.request("POST", _PATH, _JSON, _STREAMED) as answer:
                    return await answer.aread()

            streams = [asyncio.ensure_future(stream()) for _ in range(16)]
            await node.gate.has_begun(16)
            node.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.5)
            assert not any(task.done() for task in streams)
            node.gate.open.set()
            for body in await asyncio.gather(*streams):
                assert body.startswith(_EVENT * 2)
            assert await asyncio.to_thread(node.process.wait) == 0

    asyncio.run(main())


def test_workers_do_not_outlive_their_parent(tmp_path: Path) -> None:
    async def main() -> None:
        async with crowd(tmp_path) as node:
            workers = node.workers
            assert len(workers) == _WORKERS
            node.process.kill()
            node.process.wait()
            gone = (lambda pid=pid: not Path(f"/proc/{pid}").exists() for pid in workers)
            for is_gone in gone:
                await asyncio.to_thread(until, is_gone, "the worker ended")

    asyncio.run(main())


def test_an_address_that_is_taken_is_said_at_once(tmp_path: Path) -> None:
    installation = Installation(tmp_path, "")
    installation.paths.make_private()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        async def main() -> str:
            async with Engine(routed(Gate().answer)).serving() as upstream:
                done = await asyncio.to_thread(
                    subprocess.run,
                    [sys.executable, "-m", "confide", "node", "model", "--port", str(port),
                     "--model", "m", "--upstream", upstream, "--workers", "2"],
                    capture_output=True, text=True, check=False, env=installation.environment,
                )  # fmt: skip
            assert done.returncode == 2
            return done.stderr

        assert "port" in asyncio.run(main())
