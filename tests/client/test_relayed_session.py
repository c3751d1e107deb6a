"""A session behind a relay that is honest, lies, or is not there. docs/protocols/relay.md §4."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from in_path import Cut, InPath, Meddler, SealedResponses
from nodes import roots
from proven_place import MODEL, inference_policy
from relay_world import SIGNER, RunningRelay, entry, relay
from test_session import ask, question

from confide.adapters.evidence_http import EVIDENCE_PATH
from confide.adapters.receipt_db import UnsafeKeepNone, list_rows
from confide.adapters.sealed_http import RefusedOutside
from confide.channel.carriage import CHANNEL_PATH
from confide.channel.directory import sign_directory
from confide.client.openai import async_openai_client
from confide.client.relayed import Relay, relay_of
from confide.crypto.cosign import NoteSigner
from confide.errors import (
    ConfideError,
    ConfigurationError,
    DirectoryRejected,
    EvidenceRejected,
    FormatError,
    Reason,
    RemoteProtocolError,
    Unavailable,
)
from confide.wire.directory import DIRECTORY_PATH, DirectoryAnswer, parse_directory_answer
from confide.wire.note import SignatureType

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator
    from pathlib import Path

    from proven_place import Place, PlacedNode

    from confide.client.session import Session


@contextlib.asynccontextmanager
async def behind(
    place: Place, nodes: list[PlacedNode], meddler: Meddler | None = None, **trust: Any
) -> AsyncIterator[tuple[Session, InPath, RunningRelay]]:
    """A session at a relay with `nodes`; `meddler` is what the relay does besides."""
    entries = [entry(node.url, model=MODEL, roots=roots().name) for node in nodes]
    keeper = trust.pop("keeper", None) or UnsafeKeepNone()
    async with relay(entries, clock=place.clock) as running:
        with InPath(running.url, meddler) as path:
            session = place.session([], keeper, relay=Relay(path.url, SIGNER.key), **trust)
            try:
                yield session, path, running
            finally:
                await session.close()


def run(work: Callable[[], Any]) -> None:
    asyncio.run(work())


def test_answers_come_through_it_proven_and_receipted(place: Place, store: Path) -> None:
    async def work() -> None:
        async with behind(place, [place.node()], keeper=store) as (session, path, _):
            for stream in (False, True):
                assert (await ask(session, stream=stream)).receipt is not None
            kinds = [p.partition("/confide/v1/nodes/")[2][64:] or p for p in path.paths]
            assert kinds == [DIRECTORY_PATH, EVIDENCE_PATH, CHANNEL_PATH, CHANNEL_PATH]
            assert session.preferred.keyset is not None
            assert session.preferred.keyset.hex() in path.paths[1]
        assert len(list_rows(store, limit=9)) == 2

    run(work)


def test_a_node_that_is_down_is_passed_over_for_another_proven_one(place: Place) -> None:
    async def work() -> None:
        nodes = [place.node(), place.node()]
        async with behind(place, nodes) as (session, path, _):
            await ask(session)
            first = session.preferred.url
            used = next(
                node for node in nodes if node.identity.current.keys.keyset.digest.hex() in first
            )
            await asyncio.to_thread(used.stop)
            await ask(session)
            assert session.preferred.url != first
            # Proven before it was asked.
            assert sum(p.endswith(EVIDENCE_PATH) for p in path.paths) == 2

    run(work)


def test_an_unproven_node_is_never_the_other_one(place: Place) -> None:
    async def work() -> None:
        nodes = [place.node(), place.node(fault="wrong-mrtd")]
        async with behind(place, nodes) as (session, path, _):
            await ask(session)
            await asyncio.to_thread(nodes[0].stop)
            bad = nodes[1].identity.current.keys.keyset.digest.hex()
            with pytest.raises(ConfideError):
                await ask(session)
            assert not [p for p in path.paths if bad in p and p.endswith(CHANNEL_PATH)]

    run(work)


def test_rotation_and_restart_are_followed_through_a_newer_directory(place: Place) -> None:
    async def work() -> None:
        node = place.node()
        async with behind(place, [node]) as (session, _, running):
            await ask(session)
            before = session.preferred.keyset
            await asyncio.to_thread(node.rotate)
            await running.table.look()
            # The keys of before still open, and their proof still counts.
            await ask(session)
            assert session.preferred.keyset == before
            await asyncio.to_thread(node.restart)
            await running.table.look()
            await ask(session)
            assert session.preferred.keyset == node.identity.current.keys.keyset.digest

    run(work)


# --- what a relay can do to sealed bytes ----------------------------------------------------------


class Reorders(SealedResponses):
    def chunks(self, chunks: Iterator[bytes]) -> Iterable[bytes]:
        nonce, first, second, *rest = chunks
        return [nonce, second, first, *rest]


class Doubles(SealedResponses):
    def chunks(self, chunks: Iterator[bytes]) -> Iterable[bytes]:
        nonce, first, *rest = chunks
        return [nonce, first, first, *rest]


class Drops(SealedResponses):
    def chunks(self, chunks: Iterator[bytes]) -> Iterable[bytes]:
        nonce, _, *rest = chunks
        return [nonce, *rest]


class Truncates(SealedResponses):
    def chunks(self, chunks: Iterator[bytes]) -> Iterable[bytes]:
        return list(chunks)[:-1]


class Breaks(SealedResponses):
    def chunks(self, chunks: Iterator[bytes]) -> Iterable[bytes]:
        yield next(chunks)
        raise Cut


class OldAnswer(SealedResponses):
    """Answers the second request with the answer of the first."""

    def __init__(self) -> None:
        self.first: list[bytes] = []

    def chunks(self, chunks: Iterator[bytes]) -> Iterable[bytes]:
        self.first = self.first or list(chunks)
        return self.first


@pytest.mark.parametrize("meddler", [Reorders, Doubles, Drops, Truncates, Breaks])
def test_an_answer_that_was_meddled_with_is_not_taken(
    place: Place, store: Path, meddler: type[Meddler]
) -> None:
    async def work() -> None:
        nodes = [place.node(), place.node()]
        async with behind(place, nodes, meddler(), keeper=store) as (session, path, _):
            with pytest.raises(RemoteProtocolError):
                await ask(session, stream=True)
            # The request was opened: nobody is asked a second time.
            assert sum(p.endswith(CHANNEL_PATH) for p in path.paths) == 1
        assert not list_rows(store, limit=9)

    run(work)


def test_the_answer_to_another_request_does_not_open(place: Place, store: Path) -> None:
    async def work() -> None:
        async with behind(place, [place.node()], OldAnswer(), keeper=store) as (session, _, _r):
            await ask(session)
            with pytest.raises(RemoteProtocolError):
                await ask(session)
        assert len(list_rows(store, limit=9)) == 1

    run(work)


def test_a_delayed_answer_is_an_answer(place: Place) -> None:
    class Delays(SealedResponses):
        def chunks(self, chunks: Iterator[bytes]) -> Iterable[bytes]:
            for chunk in chunks:
                for at in range(0, len(chunk), 7):
                    yield chunk[at : at + 7]

    async def work() -> None:
        async with behind(place, [place.node()], Delays()) as (session, _, _r):
            assert (await ask(session, stream=True)).receipt is not None

    run(work)


def test_a_request_that_is_sent_twice_is_opened_once(place: Place) -> None:
    class Keeps(Meddler):
        raw = b""

        def request(self, path: str, pieces: Iterable[bytes]) -> Iterable[bytes]:
            if not path.endswith(CHANNEL_PATH):
                return pieces
            self.raw = self.raw or b"".join(pieces)
            return [self.raw]

    async def work() -> None:
        async with behind(place, [place.node()], Keeps()) as (session, _, _r):
            await ask(session)
            asked = len(place.engine.seen)
            with pytest.raises(RefusedOutside) as caught:
                await ask(session)
            assert caught.value.reason is Reason.REPLAYED
            assert len(place.engine.seen) == asked

    run(work)


def test_requests_led_to_another_node_are_not_opened_there(place: Place) -> None:
    async def work() -> None:
        nodes = [place.node(), place.node()]
        async with behind(place, nodes) as (session, _, running):
            await session.prove()
            # From here on the relay leads each keyset to the other node.
            first, second = running.table._nodes
            first.entry, second.entry = second.entry, first.entry
            asked = len(place.engine.seen)
            with pytest.raises(ConfideError) as caught:
                await ask(session)
            assert getattr(caught.value, "reason", None) is Reason.KEYSET_MISMATCH
            assert len(place.engine.seen) == asked

    run(work)


def test_evidence_of_another_node_is_not_taken_though_that_is_proven(place: Place) -> None:
    async def work() -> None:
        nodes = [place.node(), place.node()]
        async with behind(place, nodes) as (session, path, running):
            first, second = running.table._nodes
            first.entry, second.entry = second.entry, first.entry
            with pytest.raises(EvidenceRejected) as caught:
                await session.prove()
            assert caught.value.reason is Reason.KEYSET_MISMATCH
            assert not [p for p in path.paths if p.endswith(CHANNEL_PATH)]

    run(work)


# --- the directory --------------------------------------------------------------------------------


class Directory(Meddler):
    """Changes the directory that is answered, once `on`."""

    def __init__(self, change: Callable[[bytes], bytes]) -> None:
        self.change = change
        self.on = True

    def response(self, path: str, pieces: Iterable[bytes]) -> Iterable[bytes]:
        raw = b"".join(pieces) if path == DIRECTORY_PATH else b""
        return [self.change(raw) if self.on else raw] if raw else pieces


def resigned(**changes: Any) -> Callable[[bytes], bytes]:
    """The directory with `changes`; `signer` is who signs it."""
    signer = changes.pop("signer", SIGNER)

    def change(raw: bytes) -> bytes:
        from confide.wire.directory import parse_directory  # noqa: PLC0415

        answer = parse_directory_answer(raw)
        found = parse_directory(answer.note).directory
        made = sign_directory(replace(found, **changes), signer)
        return DirectoryAnswer(made, answer.hints).encode()

    return change


OTHER = NoteSigner("relay.tests", SignatureType.ED25519, b"another key".ljust(32))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (resigned(signer=OTHER), Reason.DIRECTORY_SIGNATURE),
        (lambda raw: raw.replace(b"support-notes", b"other-notes"), Reason.DIRECTORY_SIGNATURE),
        (lambda raw: raw[:-2], Reason.DIRECTORY_FORMAT),
        (lambda _raw: b"<html>", Reason.DIRECTORY_FORMAT),
    ],
)
def test_a_directory_that_is_not_the_operators_ends_the_request(
    place: Place, change: Callable[[bytes], bytes], reason: Reason
) -> None:
    async def work() -> None:
        meddler = Directory(change)
        async with behind(place, [place.node()], meddler) as (session, path, _):
            with pytest.raises((DirectoryRejected, FormatError)) as caught:
                await ask(session)
            assert getattr(caught.value, "reason", None) is reason
            assert set(path.paths) == {DIRECTORY_PATH}

    run(work)


def test_an_ended_directory_is_refused_and_a_held_one_is_used_no_longer(place: Place) -> None:
    async def work() -> None:
        async with behind(place, [place.node()]) as (session, path, _):
            await ask(session)
            ended = resigned(not_before=place.clock.time - timedelta(hours=2),
                             not_after=place.clock.time - timedelta(hours=1))  # fmt: skip
            path.meddler = Directory(ended)
            place.clock.time += timedelta(minutes=6)
            with pytest.raises(DirectoryRejected) as caught:
                await ask(session)
            assert caught.value.reason is Reason.DIRECTORY_TIME
            path.meddler = NoDirectory()
            place.clock.time += timedelta(hours=2)
            with pytest.raises(Unavailable):
                await ask(session)

    run(work)


class NoDirectory(Meddler):
    def refuse(self, path: str) -> tuple[int, str, bytes] | None:
        return (500, "text/plain", b"no") if path == DIRECTORY_PATH else None


def test_while_it_is_in_force_a_relay_without_a_directory_changes_nothing(place: Place) -> None:
    async def work() -> None:
        async with behind(place, [place.node()]) as (session, path, _):
            await ask(session)
            path.meddler = NoDirectory()
            place.clock.time += timedelta(minutes=6)
            await ask(session)

    run(work)


def test_the_sequence_never_goes_down(place: Place) -> None:
    async def work() -> None:
        async with behind(place, [place.node()]) as (session, path, _):
            await ask(session)
            assert session._relayed is not None
            path.meddler = Directory(resigned(sequence=session._relayed.sequence - 1))
            place.clock.time += timedelta(minutes=6)
            for _ in range(2):
                with pytest.raises(DirectoryRejected) as caught:
                    await ask(session)
                assert caught.value.reason is Reason.DIRECTORY_ROLLBACK

    run(work)


def test_entries_of_other_models_or_roots_are_no_candidates(place: Place) -> None:
    async def work() -> None:
        node = place.node()
        entries = [entry(node.url, model="other", roots=roots().name)]
        async with relay(entries, clock=place.clock) as running:
            where = Relay(running.url, SIGNER.key)
            session = place.session([], UnsafeKeepNone(), relay=where)
            with pytest.raises(Unavailable, match="lists no node"):
                await session.send(question())
            await session.close()

    run(work)


def test_the_sdk_takes_a_relay_in_the_place_of_a_node(place: Place, store: Path) -> None:
    async def work() -> None:
        entries = [entry(place.node().url, model=MODEL, roots=roots().name)]
        async with relay(entries, clock=place.clock) as running:
            client = async_openai_client(
                policy=inference_policy(),
                roots=roots(),
                relay=running.url,
                directory_key=SIGNER.key.encode(),
                cells=256,
                cadence_ms=10,
                receipts=store,
                clock=place.clock,
            )
            stream = await client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "What colour?"}], stream=True
            )
            assert "blue" in "".join([part.choices[0].delta.content or "" async for part in stream])
            await client.close()
        assert len(list_rows(store, limit=9)) == 1

    run(work)


@pytest.mark.parametrize(
    ("url", "key"),
    [(None, SIGNER.key.encode()), ("http://r.example", None), ("http://r.example", "no key")],
)
def test_a_relay_is_an_address_and_a_key(url: str | None, key: str | None) -> None:
    with pytest.raises(ConfigurationError):
        relay_of(url, key)


def test_a_session_has_nodes_or_a_relay_and_no_continuity_behind_one(place: Place) -> None:
    async def work() -> None:
        where = Relay("http://relay.example", SIGNER.key)
        for urls, more in (
            ([], {}),
            (["http://node.example"], {"relay": where}),
            ([], {"relay": where, "continuity": True}),
        ):
            with pytest.raises(ConfigurationError):
                place.session(urls, UnsafeKeepNone(), **more)

    run(work)
