"""Frames of a run, in and out: inputs from a sealed request, progress and refusals to the client.

docs/protocols/agent-run.md §1 and §2. Everything read here is the client's and bounded.
"""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import aclosing
from typing import TYPE_CHECKING

from starlette.responses import Response

from confide.errors import ConfideError, FormatError, Reason, Rejected, Unavailable
from confide.wire.frames import FrameDecoder, FrameKind, encode_frame, json_frame
from confide.wire.json import Members, parse_json

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from confide.errors import RunRefused
    from confide.node.run import Run

__all__ = ["FramesResponse", "RunInputs", "failed", "progress", "refusal_frame", "refused"]

_REASON = Reason.RECEIPT_FORMAT
_CLAUSE = "docs/protocols/agent-run.md#2"


class RunInputs:
    """The request of a run, frame by frame. `count` is the number of complete input files."""

    def __init__(self, request: Request) -> None:
        self._frames = self._read(request)
        self.count = 0
        # Set when the whole request was read: from then on, only a disconnect can come.
        self.read = asyncio.Event()

    async def _read(self, request: Request) -> AsyncGenerator[tuple[FrameKind, bytes], None]:
        decoder = FrameDecoder()
        async for piece in request.stream():
            for frame in decoder.feed(piece):
                yield frame
        decoder.finish()
        self.read.set()

    async def drain(self) -> None:
        """Read to the end; anything that follows END is refused."""
        async for _ in self._frames:
            raise FormatError("something follows END", reason=_REASON, clause=_CLAUSE)

    async def _next(self, *kinds: FrameKind) -> tuple[FrameKind, bytes]:
        frame = await anext(self._frames, None)
        if frame is None or frame[0] not in kinds:
            raise FormatError("run request: another frame expected", reason=_REASON, clause=_CLAUSE)
        return frame

    async def header(self) -> Members:
        """Return the run header, the first frame."""
        _, raw = await self._next(FrameKind.HEADER)
        value = parse_json(raw, what="run header", reason=_REASON)
        return Members(value, what="run header", reason=_REASON)

    async def turn(self) -> bytes:
        """Return the one turn of a turn request: one line of text."""
        _, text = await self._next(FrameKind.TURN)
        await self._next(FrameKind.END)
        await self.drain()
        return text

    async def into(self, run: Run) -> None:
        """Hand every input to `run`, until END. Raises `FormatError`, `RunRefused`."""
        while True:
            kind, raw = await self._next(FrameKind.FILE, FrameKind.END)
            if kind is FrameKind.END:
                await self.drain()
                return
            value = parse_json(raw, what="input", reason=_REASON)
            members = Members(value, what="input", reason=_REASON)
            path, size = members.text("path"), members.integer("bytes")
            members.end()
            await self._one(run, path, size)
            self.count += 1

    async def _one(self, run: Run, path: str, size: int) -> None:
        digest, left = hashlib.sha256(), size
        if size == 0:
            await run.write_input(path, b"")
        while left:
            _, data = await self._next(FrameKind.DATA)
            left -= len(data)
            if left < 0 or not data:
                raise FormatError("an input of another size", reason=_REASON, clause=_CLAUSE)
            digest.update(data)
            await run.write_input(path, data)
        await run.add_input(path, digest.digest(), size)


class FramesResponse(Response):
    """
    A streamed answer to a streamed request.

    Reads the client's disconnect only once `read` is set, so that it never takes a piece of the
    request from whoever is still reading it; a client that goes away cancels `stream`.
    """

    def __init__(
        self, stream: AsyncGenerator[bytes, None], read: asyncio.Event | None = None
    ) -> None:
        super().__init__(media_type="application/x-confide-frames")
        del self.headers["content-length"]
        self._stream = stream
        self._read = read

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send every frame, or stop when the client is gone."""
        del scope
        sending = asyncio.ensure_future(self._send(send))
        watching = asyncio.ensure_future(self._watch(receive))
        try:
            await asyncio.wait({sending, watching}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, watching):
                task.cancel()
            results = await asyncio.gather(sending, watching, return_exceptions=True)
        if isinstance(results[0], Exception) and not isinstance(results[0], OSError):
            raise results[0]

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with aclosing(self._stream) as stream:
            async for frame in stream:
                await send({"type": "http.response.body", "body": frame, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _watch(self, receive: Receive) -> None:
        if self._read is not None:
            await self._read.wait()
        while (await receive())["type"] != "http.disconnect":
            pass


def progress(step: str, detail: str) -> bytes:
    """Return a PROGRESS frame: what just happened, for people."""
    return json_frame(FrameKind.PROGRESS, {"step": step, "detail": detail})


async def refused(error: RunRefused) -> AsyncGenerator[bytes, None]:
    """Yield the one frame of a refusal."""
    yield refusal_frame(error)


def refusal_frame(error: ConfideError) -> bytes:
    """Return the REFUSED frame of `error`."""
    if isinstance(error, Rejected):
        first = error.failures[0]
        return json_frame(
            FrameKind.REFUSED,
            {
                "reason": error.reason.value,
                "step": first.step,
                "detail": first.detail,
                "findings": [str(finding) for finding in error.failures],
            },
        )
    if isinstance(error, FormatError):
        return json_frame(
            FrameKind.REFUSED,
            {"reason": error.reason.value, "step": "run/1", "detail": error.what, "findings": []},
        )
    return json_frame(
        FrameKind.REFUSED,
        {"reason": "unavailable", "step": "run/1", "detail": str(error), "findings": []},
    )


async def failed(run: Run | None, error: ConfideError) -> AsyncGenerator[bytes, None]:
    """
    Yield what a client gets when the node cannot go on.

    Before the agent started: a refusal, nothing was executed. After: a receipt that says
    `node-failed`, so that what did happen stays provable.
    """
    if run is None or not run.transcript.running:
        yield refusal_frame(error)
        return
    run.record_node_failure()
    try:
        proof = await run.prove()
    except Unavailable as second:
        yield refusal_frame(second)
        return
    yield progress("node-failed", type(error).__name__)
    yield encode_frame(FrameKind.RECEIPT, proof.encode())
    yield encode_frame(FrameKind.END)
