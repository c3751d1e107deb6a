"""A session over nodes that change, lie, stop and come back, over real HTTP on loopback."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from in_path import Cut, InPath, Meddler, SealedResponses
from proven_place import MODEL

from confide.adapters.answer_transport import Request
from confide.adapters.evidence_http import EVIDENCE_PATH
from confide.adapters.receipt_db import UnsafeKeepNone, list_rows
from confide.adapters.sealed_http import RefusedOutside
from confide.channel.carriage import (
    CHANNEL_PATH,
    PROBLEM_MEDIA_TYPE,
    REQUEST_MEDIA_TYPE,
    problem_type,
)
from confide.errors import (
    EvidenceRejected,
    PolicyRejected,
    Reason,
    Rejected,
    RemoteProtocolError,
    Unavailable,
)
from confide.node.identity import OVERLAP, ROTATE_AFTER
from confide.wire.json import jcs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
    from pathlib import Path

    from proven_place import Place

    from confide.client.answer import Answer
    from confide.client.session import Session

HEADERS = (("content-type", "application/json"),)


def question(*, stream: bool = False, text: str = "What colour?") -> Request:
    body: Any = {"model": MODEL, "messages": [{"role": "user", "content": text}], "stream": stream}
    return Request("POST", "/v1/chat/completions", HEADERS, jcs(body))


async def ask(session: Session, *, stream: bool = False) -> Answer:
    answer = await session.send(question(stream=stream))
    assert b"blue" in await answer.aread()
    await answer.aclose()
    return answer


@contextlib.asynccontextmanager
async def opened(
    place: Place, urls: Any, store: Any = None, **trust: Any
) -> AsyncIterator[Session]:
    session = place.session(urls, store or UnsafeKeepNone(), **trust)
    try:
        yield session
    finally:
        await session.close()


def scenario(work: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        await work()

    asyncio.run(run())


# --- once, then again in time ---------------------------------------------------------------------


def test_a_node_is_proven_once_for_many_requests(place: Place) -> None:
    async def work() -> None:
        with InPath(place.node().url) as path:
            async with opened(place, [path.url]) as session:
                await asyncio.gather(*(ask(session) for _ in range(8)))
            assert path.paths.count(EVIDENCE_PATH) == 1
            assert path.paths.count(CHANNEL_PATH) == 8

    scenario(work)


def test_evidence_above_its_age_is_never_used(place: Place) -> None:
    async def work() -> None:
        with InPath(place.node().url) as path:
            age = timedelta(minutes=10)
            async with opened(place, [path.url], max_evidence_age=age) as session:
                await ask(session)
                place.clock.time += timedelta(minutes=10, seconds=1)
                await ask(session)
                assert path.paths == [EVIDENCE_PATH, CHANNEL_PATH] * 2
                # A clock that goes back says nothing about age either.
                place.clock.time -= timedelta(minutes=5)
                await ask(session)
                assert path.paths == [EVIDENCE_PATH, CHANNEL_PATH] * 3

    scenario(work)


def test_it_is_refreshed_ahead_of_its_end_while_requests_go_on(place: Place) -> None:
    async def work() -> None:
        with InPath(place.node().url) as path:
            async with opened(place, [path.url], max_evidence_age=timedelta(minutes=8)) as session:
                await ask(session)
                place.clock.time += timedelta(minutes=7)
                await ask(session)
                # The request did not wait for it.
                refreshing = session._nodes[0]._proving
                assert refreshing is not None
                await refreshing
                assert session.preferred.proven_at == place.clock.time
                assert path.paths.count(EVIDENCE_PATH) == 2
                place.clock.time += timedelta(minutes=5)
                await ask(session)
            assert path.paths.count(EVIDENCE_PATH) == 2

    scenario(work)


def test_a_refresh_that_finds_nobody_leaves_the_proof_to_its_end(place: Place) -> None:
    async def work() -> None:
        node = place.node()
        with InPath(node.url) as path:
            path.meddler = _RefuseEvidence()
            path.meddler.refusing = False
            async with opened(place, [path.url], max_evidence_age=timedelta(minutes=8)) as session:
                await ask(session)
                path.meddler.refusing = True
                place.clock.time += timedelta(minutes=7)
                await ask(session)
                await ask(session)
                place.clock.time += timedelta(minutes=2)
                with pytest.raises(EvidenceRejected) as refusal:
                    await ask(session)
                assert refusal.value.reason is Reason.EVIDENCE_STALE

    scenario(work)


class _RefuseEvidence(Meddler):
    refusing = True

    def refuse(self, path: str) -> tuple[int, str, bytes] | None:
        return (503, "text/plain", b"no") if self.refusing and path == EVIDENCE_PATH else None


# --- keysets that change --------------------------------------------------------------------------


def test_a_rotation_under_64_streams_fails_none_of_them(place: Place, store: Path) -> None:
    async def work() -> None:
        node = place.node()
        async with opened(place, [node.url], store, continuity=True) as session:
            await session.prove()

            async def one(number: int) -> None:
                if number == 20:
                    await asyncio.to_thread(node.rotate)
                answer = await session.send(question(stream=True))
                pieces = [piece async for piece in answer.aiter_bytes()]
                assert pieces[-1].endswith(b"data: [DONE]\n\n")
                assert answer.receipt is not None
                await answer.aclose()

            await asyncio.gather(*(one(number) for number in range(64)))
            # Well within the overlap, and time to refresh: the successor is met under 64 more.
            place.clock.time += timedelta(minutes=50)
            await asyncio.gather(*(one(number) for number in range(100, 164)))
            changes = session.preferred.changes
        assert [change.reason for change in changes] == [None]
        assert len(list_rows(store, limit=200)) == 128

    scenario(work)


def test_a_stream_that_outlives_its_keyset_is_receipted_by_it(place: Place, store: Path) -> None:
    """Rotation and the end of the overlap pass under it; binding.md §1.6."""

    async def work() -> None:
        node = place.node()
        async with opened(place, [node.url], store) as session:
            released = place.engine.held = asyncio.Event()
            answer = await session.send(question(stream=True))
            pieces = answer.aiter_bytes()
            begun = await anext(pieces)
            old = session.preferred.keyset
            for step in (ROTATE_AFTER, OVERLAP + timedelta(minutes=1)):
                place.clock.time += step
                await ask(session)
            assert session.preferred.keyset != old
            assert old not in {who.keys.keyset.digest for who in node.identity.owners().values()}
            place.loop.call_soon_threadsafe(released.set)
            whole = begun + b"".join([piece async for piece in pieces])
            assert whole.endswith(b"data: [DONE]\n\n")
            assert answer.receipt is not None
            assert answer.receipt.inference.statement.keyset == old
            await answer.aclose()
        assert len(list_rows(store, limit=9)) == 3

    scenario(work)


def test_a_node_that_was_restarted_is_proven_anew_and_said_to_be(place: Place) -> None:
    async def work() -> None:
        node = place.node()
        async with opened(place, [node.url]) as session:
            await ask(session)
            await asyncio.to_thread(node.restart)
            await ask(session, stream=True)
            [change] = session.preferred.changes
            assert change.reason is Reason.KEYSET_MISMATCH

    scenario(work)


def test_with_continuity_a_restarted_node_stays_refused(place: Place) -> None:
    async def work() -> None:
        node = place.node()
        async with opened(place, [node.url], continuity=True) as session:
            await ask(session)
            await asyncio.to_thread(node.restart)
            for _ in range(2):
                with pytest.raises(EvidenceRejected) as refusal:
                    await ask(session)
                assert refusal.value.reason is Reason.KEYSET_MISMATCH

    scenario(work)


def test_with_continuity_a_gap_after_the_overlap_is_revoked(place: Place) -> None:
    async def work() -> None:
        node = place.node()
        async with opened(place, [node.url], continuity=True) as session:
            await ask(session)
            await asyncio.to_thread(node.rotate)
            place.clock.time += OVERLAP + timedelta(minutes=1)
            with pytest.raises(EvidenceRejected) as refusal:
                await ask(session)
            assert refusal.value.reason is Reason.KEYSET_REVOKED

    scenario(work)


def test_past_its_end_a_keyset_is_expired(place: Place) -> None:
    async def work() -> None:
        node = place.node()
        async with opened(place, [node.url]) as session:
            await ask(session)
            await asyncio.to_thread(node.stop)
            place.clock.time += timedelta(hours=25)
            with pytest.raises(EvidenceRejected) as refusal:
                await ask(session)
            assert refusal.value.reason is Reason.KEYSET_EXPIRED
            assert isinstance(refusal.value.__cause__, Unavailable)

    scenario(work)


def test_without_continuity_each_of_them_is_followed_and_told_apart(place: Place) -> None:
    async def work() -> None:
        node = place.node()
        async with opened(place, [node.url]) as session:
            await ask(session)
            await asyncio.to_thread(node.rotate)
            place.clock.time += OVERLAP + timedelta(minutes=1)
            await ask(session)
            await asyncio.to_thread(node.restart)
            await ask(session)
            reasons = [change.reason for change in session.preferred.changes]
            assert reasons == [Reason.KEYSET_REVOKED, Reason.KEYSET_MISMATCH]

    scenario(work)


# --- several candidates ---------------------------------------------------------------------------


def test_another_proven_node_takes_over(place: Place, store: Path) -> None:
    async def work() -> None:
        first, second = place.node(), place.node(seed=b"the other")
        async with opened(place, [first.url, second.url], store) as session:
            await ask(session)
            await asyncio.to_thread(first.stop)
            await ask(session)
            await ask(session)
        assert [row.url for row in list_rows(store, limit=9)] == [second.url] * 2 + [first.url]

    scenario(work)


def test_a_node_that_is_refused_is_passed_over_and_never_used(place: Place) -> None:
    async def work() -> None:
        bad, good = place.node(fault="devtools"), place.node(seed=b"the other")
        with InPath(bad.url) as path:
            async with opened(place, [path.url, good.url]) as session:
                await ask(session)
                assert session.preferred.url == good.url
                await asyncio.to_thread(good.stop)
                with pytest.raises(Rejected) as refusal:
                    await ask(session)
                assert any(good.url in note for note in refusal.value.__notes__)
            assert CHANNEL_PATH not in path.paths

    scenario(work)


# --- whoever stands in the path -------------------------------------------------------------------


class _Unknown(Meddler):
    """Says for the node that it does not know the key."""

    reason = Reason.KEYSET_MISMATCH

    def refuse(self, path: str) -> tuple[int, str, bytes] | None:
        if path != CHANNEL_PATH:
            return None
        return 422, PROBLEM_MEDIA_TYPE, jcs({"type": problem_type(self.reason)})


def test_a_refusal_outside_the_seal_counts_once(place: Place) -> None:
    async def work() -> None:
        with InPath(place.node().url, _Unknown()) as path:
            async with opened(place, [path.url]) as session:
                with pytest.raises(EvidenceRejected) as refusal:
                    await ask(session)
                assert refusal.value.reason is Reason.KEYSET_MISMATCH
            assert path.paths == [EVIDENCE_PATH, CHANNEL_PATH, EVIDENCE_PATH]

    scenario(work)


class _Busy(_Unknown):
    reason = Reason.NODE_BUSY


class _Odd(_Unknown):
    reason = Reason.REPLAYED


def test_a_busy_node_is_left_for_another_and_no_other_refusal_is_retried(place: Place) -> None:
    async def work() -> None:
        other = place.node(seed=b"the other")
        with InPath(place.node().url, _Busy()) as path:
            async with opened(place, [path.url, other.url]) as session:
                await ask(session)
                assert session.preferred.url == other.url
            path.meddler = _Odd()
            async with opened(place, [path.url, other.url]) as session:
                with pytest.raises(RefusedOutside) as refusal:
                    await ask(session)
                assert refusal.value.reason is Reason.REPLAYED

    scenario(work)


class _Cutting(SealedResponses):
    def __init__(self, after: int) -> None:
        self._after = after

    def chunks(self, chunks: Iterator[bytes]) -> Iterable[bytes]:
        for number, chunk in enumerate(chunks):
            if number == self._after:
                raise Cut
            yield chunk


class _Dropping(SealedResponses):
    def chunks(self, chunks: Iterator[bytes]) -> Iterable[bytes]:
        return (chunk for number, chunk in enumerate(chunks) if number != 2)


class _Doubling(SealedResponses):
    def chunks(self, chunks: Iterator[bytes]) -> Iterable[bytes]:
        for number, chunk in enumerate(chunks):
            yield from (chunk, chunk) if number == 2 else (chunk,)


class _Reordering(SealedResponses):
    def chunks(self, chunks: Iterator[bytes]) -> Iterable[bytes]:
        found = list(chunks)
        found[1], found[2] = found[2], found[1]
        return found


@pytest.mark.parametrize(
    "meddler",
    [_Cutting(2), _Dropping(), _Doubling(), _Reordering()],
    ids=lambda m: type(m).__name__,
)
def test_a_stream_that_was_meddled_with_ends_with_an_error(
    place: Place, store: Path, meddler: Meddler
) -> None:
    async def work() -> None:
        with InPath(place.node().url, meddler) as path:
            async with opened(place, [path.url], store) as session:
                with pytest.raises(RemoteProtocolError):
                    await ask(session, stream=True)
        assert list_rows(store, limit=1) == ()
        assert len(place.engine.seen) == 1, "it is not asked again"

    scenario(work)


class _Recording(Meddler):
    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def request(self, path: str, pieces: Iterable[bytes]) -> Iterable[bytes]:
        raw = b"".join(pieces)
        if path == CHANNEL_PATH:
            self.sent.append(raw)
        return [raw]


def test_a_replayed_request_is_refused_and_the_client_has_its_answer(place: Place) -> None:
    async def work() -> None:
        meddler = _Recording()
        node = place.node()
        with InPath(node.url, meddler) as path:
            async with opened(place, [path.url]) as session:
                await ask(session)
        [sealed] = meddler.sent
        async with httpx2.AsyncClient() as http:
            again = await http.post(
                node.url + CHANNEL_PATH,
                content=sealed,
                headers={"content-type": REQUEST_MEDIA_TYPE},
            )
        assert again.status_code == 409
        assert len(place.engine.seen) == 1

    scenario(work)


def test_nothing_of_a_prompt_or_an_answer_is_on_the_wire(place: Place) -> None:
    async def work() -> None:
        meddler = _Recording()
        with InPath(place.node().url, meddler) as path:
            async with opened(place, [path.url]) as session:
                answer = await session.send(question(text="a very secret prompt"))
                await answer.aread()
        assert meddler.sent
        assert not any(b"secret" in raw or MODEL.encode() in raw for raw in meddler.sent)

    scenario(work)


def test_a_policy_that_no_node_meets_sends_nothing(place: Place) -> None:
    async def work() -> None:
        with InPath(place.node().url) as path:
            expectation = place.policy_without_tolerance()
            async with opened(place, [path.url], expectation=expectation) as session:
                with pytest.raises(PolicyRejected):
                    await session.prove()
                with pytest.raises(PolicyRejected):
                    await ask(session)
            assert CHANNEL_PATH not in path.paths

    scenario(work)
