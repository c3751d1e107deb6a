"""Sealed streams that are cut or reordered on their way, at every boundary there is.

The cut is the worst kind: the outer HTTP message ends as if it were complete. Cheap exchanges with
the model node are cut everywhere; whole runs are cut once for each kind of frame.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from in_path import Cut, InPath, Meddler, SealedResponses, sealed_chunks

from confide.adapters.clock import SystemClock
from confide.adapters.entropy import SystemEntropy
from confide.channel.carriage import CHANNEL_PATH
from confide.errors import Reason, RemoteProtocolError
from confide.node.model_link import ModelNodeAddress, open_model_link

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from deployment import Deployment
    from stub_openai import StubOpenAI

    from confide.node.model_link import ModelLink

pytestmark = pytest.mark.container


def _call(prompt: str, *, stream: bool) -> bytes:
    message = {"role": "user", "content": prompt}
    body = {"model": "support-notes", "stream": stream, "messages": [message]}
    return json.dumps(body).encode()


# One whole answer of 100,000 letters: always seven chunks. Pieces of a stream may arrive together.
_CALL, _STREAM = _call("long:100000", stream=False), _call("label", stream=True)
_JSON = (("content-type", "application/json"),)


class _FirstBytes(SealedResponses):
    """Lets `count` bytes of a sealed response through, then ends the HTTP message properly."""

    def __init__(self, count: int) -> None:
        self._count = count

    def chunks(self, chunks: Iterator[bytes]) -> Iterable[bytes]:
        left = self._count
        for chunk in chunks:
            yield chunk[:left]
            left -= len(chunk[:left])
            if not left:
                return


class _FirstChunks(SealedResponses):
    """Lets the nonce and `count` chunks through, then ends; `abruptly` closes the connection."""

    def __init__(self, count: int, *, abruptly: bool = False) -> None:
        self._count, self._abruptly = count, abruptly

    def chunks(self, chunks: Iterator[bytes]) -> Iterable[bytes]:
        yield from itertools.islice(chunks, self._count + 1)
        if self._abruptly:
            raise Cut


class _WithoutLast(SealedResponses):
    """Drops the last `count` chunks."""

    def __init__(self, count: int) -> None:
        self._count = count

    def chunks(self, chunks: Iterator[bytes]) -> Iterable[bytes]:
        return list(chunks)[: -self._count]


class _Reordered(SealedResponses):
    """Rearranges the chunks behind the nonce."""

    def __init__(self, order: tuple[int, ...]) -> None:
        self._order = order

    def chunks(self, chunks: Iterator[bytes]) -> Iterable[bytes]:
        yield next(chunks)
        held = list(itertools.islice(chunks, max(self._order) + 1))
        yield from (held[number] for number in self._order)
        yield from chunks


class _Recorded(SealedResponses):
    """Keeps the sizes of what passes."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def chunks(self, chunks: Iterator[bytes]) -> Iterable[bytes]:
        for chunk in chunks:
            self.sizes.append(len(chunk))
            yield chunk


class _FlippedBit(SealedResponses):
    def __init__(self, chunk: int) -> None:
        self._chunk = chunk

    def chunks(self, chunks: Iterator[bytes]) -> Iterable[bytes]:
        for number, chunk in enumerate(chunks):
            if number == self._chunk:
                yield chunk[:-1] + bytes((chunk[-1] ^ 1,))
            else:
                yield chunk


class _Appended(SealedResponses):
    def chunks(self, chunks: Iterator[bytes]) -> Iterable[bytes]:
        yield from chunks
        yield b"\0"


class _CutRequest(Meddler):
    """Lets `count` bytes of a sealed request through, then ends the HTTP message properly."""

    def __init__(self, count: int) -> None:
        self._count = count

    def request(self, path: str, pieces: Iterable[bytes]) -> Iterable[bytes]:
        if path != CHANNEL_PATH:
            yield from pieces
            return
        left = self._count
        for piece in pieces:
            if left:
                yield piece[:left]
            left -= len(piece[:left])


class _Twice(Meddler):
    """Keeps the sealed request, so that a host can send it again."""

    def __init__(self) -> None:
        self.kept = b""

    def request(self, path: str, pieces: Iterable[bytes]) -> Iterable[bytes]:
        raw = b"".join(pieces)
        if path == CHANNEL_PATH:
            self.kept = raw
        return [raw]


@pytest.fixture(scope="module")
def relay(deployment: Deployment) -> Iterator[InPath]:
    """A proxy in front of the model node."""
    with InPath(deployment.model_url) as running:
        yield running


def ask(
    deployment: Deployment, relay: InPath, meddlers: list[Meddler], body: bytes = _CALL
) -> list[bytes | Exception]:
    """One model call for each meddler, over one proven link; what each of them gave."""

    async def one(link: ModelLink, meddler: Meddler) -> bytes | Exception:
        relay.meddler = meddler
        try:
            async with await link.request("POST", "/v1/chat/completions", _JSON, body) as answer:
                return await answer.aread()
        except RemoteProtocolError as error:
            return error

    async def work() -> list[bytes | Exception]:
        relay.meddler = Meddler()
        async with httpx2.AsyncClient(timeout=60, trust_env=False) as http:
            link = await open_model_link(
                ModelNodeAddress(relay.url, deployment.installation.roots),
                expectation=deployment.expectation(), http=http,
                clock=SystemClock(), entropy=SystemEntropy(),
            )  # fmt: skip
            return [await one(link, meddler) for meddler in meddlers]

    return asyncio.run(work())


def reasons(outcomes: list[bytes | Exception]) -> set[Reason | str | None]:
    """The reasons of refusals; what was accepted is named `accepted`."""
    return {o.reason if isinstance(o, RemoteProtocolError) else "accepted" for o in outcomes}


def test_the_splitter_finds_the_chunks(deployment: Deployment, relay: InPath) -> None:
    recorded = _Recorded()
    (answer,) = ask(deployment, relay, [recorded])
    assert isinstance(answer, bytes)
    assert recorded.sizes[0] == 32
    assert len(recorded.sizes) == 8
    assert sum(recorded.sizes) > len(answer)
    assert list(sealed_chunks([bytes(32), b"\x01a\x02b", b"c\0rest"])) == [
        bytes(32), b"\x01a", b"\x02bc", b"\0rest",
    ]  # fmt: skip


def test_a_response_cut_at_any_chunk_is_refused(deployment: Deployment, relay: InPath) -> None:
    recorded = _Recorded()
    (whole,) = ask(deployment, relay, [recorded])
    chunks = len(recorded.sizes) - 1
    cuts: list[Meddler] = [_FirstChunks(count) for count in range(chunks)]
    cuts += [_FirstChunks(count, abruptly=True) for count in range(chunks)]
    assert reasons(ask(deployment, relay, cuts)) == {Reason.CHANNEL_TRUNCATED}
    # One more chunk, the final one, and it is the whole answer: the cuts were the only cause.
    (uncut,) = ask(deployment, relay, [_FirstChunks(chunks)])
    assert isinstance(uncut, bytes)
    assert isinstance(whole, bytes)
    assert len(uncut) == len(whole)


def test_a_stream_of_events_without_its_end_is_refused(
    deployment: Deployment, relay: InPath
) -> None:
    """Every event and [DONE] may have arrived: a stream is whole when its final chunk says so."""
    found = ask(deployment, relay, [Meddler(), _WithoutLast(1), _WithoutLast(2)], _STREAM)
    assert isinstance(found[0], bytes)
    assert b"[DONE]" in found[0]
    assert reasons(found[1:]) == {Reason.CHANNEL_TRUNCATED}


def test_a_response_cut_inside_a_chunk_is_refused(deployment: Deployment, relay: InPath) -> None:
    recorded = _Recorded()
    ask(deployment, relay, [recorded])
    edges = list(itertools.accumulate(recorded.sizes))
    # Inside the nonce, the length, the ciphertext and the tag of the first, second and last chunk.
    counts = {1, 31}
    for start, end in ((edges[0], edges[1]), (edges[1], edges[2]), (edges[-2], edges[-1])):
        counts |= {start + 1, start + 2, (start + end) // 2, end - 16, end - 1}
    found = ask(deployment, relay, [_FirstBytes(count) for count in sorted(counts)])
    # Inside the final chunk the tag is what is missing: what is there does not open.
    assert reasons(found) <= {Reason.CHANNEL_TRUNCATED, Reason.CHANNEL_OPEN}


@pytest.mark.parametrize("order", [(1, 0), (0, 0), (0, 2, 1), (1,)], ids=str)
def test_reordered_repeated_and_missing_chunks_are_refused(
    deployment: Deployment, relay: InPath, order: tuple[int, ...]
) -> None:
    assert reasons(ask(deployment, relay, [_Reordered(order)])) == {Reason.CHANNEL_OPEN}


def test_a_flipped_bit_anywhere_is_refused(deployment: Deployment, relay: InPath) -> None:
    recorded = _Recorded()
    ask(deployment, relay, [recorded])
    flips: list[Meddler] = [_FlippedBit(number) for number in range(len(recorded.sizes))]
    assert reasons(ask(deployment, relay, flips)) == {Reason.CHANNEL_OPEN}


def test_bytes_behind_the_end_are_refused(deployment: Deployment, relay: InPath) -> None:
    assert "accepted" not in reasons(ask(deployment, relay, [_Appended()]))


def test_a_request_cut_anywhere_reaches_no_model(
    deployment: Deployment, relay: InPath, stub: StubOpenAI
) -> None:
    twice = _Twice()
    ask(deployment, relay, [twice])
    size, prompts = len(twice.kept), stub.prompts
    counts = [0, 1, 6, 7, 1000, size // 2, size - 17, size - 16, size - 1]
    found = ask(deployment, relay, [_CutRequest(count) for count in counts])
    assert "accepted" not in reasons(found)
    assert stub.prompts == prompts


def test_a_request_that_is_sent_again_has_no_effect(
    deployment: Deployment, relay: InPath, stub: StubOpenAI
) -> None:
    twice = _Twice()
    (answer,) = ask(deployment, relay, [twice])
    assert isinstance(answer, bytes)
    prompts = stub.prompts
    again = httpx2.post(
        deployment.model_url + CHANNEL_PATH,
        content=twice.kept,
        headers={"content-type": "message/ohttp-chunked-req"},
        trust_env=False,
    )
    assert (again.status_code, again.json()["type"]) == (409, "urn:confide:problem:replayed")
    assert stub.prompts == prompts


# --- whole runs ---------------------------------------------------------------------------------

# Four times progress, exited, proven, console and data, file and data, receipt, end, final.
_RUN = ({"do": "say", "text": "text"}, {"do": "copy"})


def _cut_run(deployment: Deployment, meddler: Meddler) -> tuple[RemoteProtocolError, list[Any]]:
    folder, seen = deployment.folder(), list[Any]()
    with InPath(deployment.agent_url, meddler) as relay, pytest.raises(RemoteProtocolError) as cut:
        deployment.run(_RUN, files={"a.txt": b"a"}, url=relay.url, folder=folder, progress=seen)
    # Nothing unverified was published, nothing half received was kept.
    assert sorted(path.name for path in folder.iterdir()) == ["in-0", "in-1"]
    deployment.nothing_left()
    return cut.value, seen


@pytest.mark.parametrize("count", [0, 1, 3, 5, 7, 9, 11, 20])
def test_a_run_whose_answer_is_cut_leaves_nothing(deployment: Deployment, count: int) -> None:
    """Cut at frames of each kind: nothing, progress, exited, console, file, receipt."""
    error, _seen = _cut_run(deployment, _FirstChunks(count))
    assert error.reason is Reason.CHANNEL_TRUNCATED


def test_a_run_cut_before_its_last_chunk_is_not_accepted(deployment: Deployment) -> None:
    """All outputs, the receipt and END arrived; only the proof that nothing follows is missing."""

    error, seen = _cut_run(deployment, _WithoutLast(1))
    assert error.reason is Reason.CHANNEL_TRUNCATED
    assert "proven" in {progress.step for progress in seen}


def test_a_run_with_two_frames_exchanged_is_refused(deployment: Deployment) -> None:
    error, _seen = _cut_run(deployment, _Reordered((0, 2, 1)))
    assert error.reason is Reason.CHANNEL_OPEN


def test_after_all_of_this_the_node_works(deployment: Deployment) -> None:
    deployment.still_works()
