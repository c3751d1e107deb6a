"""Frames of a run, in and out: inputs from a sealed request, progress and refusals to the client.

docs/protocols/agent-run.md §1 and §2. Everything read here is the client's and bounded.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from starlette.responses import StreamingResponse

from confide.errors import ConfideError, FormatError, Reason, Rejected, Unavailable
from confide.wire.frames import FrameDecoder, FrameKind, encode_frame, json_frame
from confide.wire.json import Members, parse_json

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request
    from starlette.responses import Response

    from confide.errors import RunRefused
    from confide.node.run import Run

__all__ = ["RunInputs", "failed", "frames", "progress", "refused"]

_REASON = Reason.RECEIPT_FORMAT
_CLAUSE = "docs/protocols/agent-run.md#2"


class RunInputs:
    """The request of a run, frame by frame. `count` is the number of complete input files."""

    def __init__(self, request: Request) -> None:
        self._frames = self._read(request)
        self.count = 0

    @staticmethod
    async def _read(request: Request) -> AsyncIterator[tuple[FrameKind, bytes]]:
        decoder = FrameDecoder()
        async for piece in request.stream():
            for frame in decoder.feed(piece):
                yield frame
        decoder.finish()

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
        return text

    async def into(self, run: Run) -> None:
        """Hand every input to `run`, until END. Raises `FormatError`, `RunRefused`."""
        while True:
            kind, raw = await self._next(FrameKind.FILE, FrameKind.END)
            if kind is FrameKind.END:
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


def frames(stream: AsyncIterator[bytes]) -> Response:
    """Return `stream` as the response body."""
    return StreamingResponse(stream, media_type="application/x-confide-frames")


def progress(step: str, detail: str) -> bytes:
    """Return a PROGRESS frame: what just happened, for people."""
    return json_frame(FrameKind.PROGRESS, {"step": step, "detail": detail})


async def refused(error: RunRefused) -> AsyncIterator[bytes]:
    """Yield the one frame of a refusal."""
    yield _refusal(error)


def _refusal(error: ConfideError) -> bytes:
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


async def failed(run: Run | None, error: ConfideError) -> AsyncIterator[bytes]:
    """
    Yield what a client gets when the node cannot go on.

    Before the agent started: a refusal, nothing was executed. After: a receipt that says
    `node-failed`, so that what did happen stays provable.
    """
    if run is None or not run.transcript.running:
        yield _refusal(error)
        return
    run.record_node_failure()
    try:
        proof = await run.prove()
    except Unavailable as second:
        yield _refusal(second)
        return
    yield progress("node-failed", type(error).__name__)
    yield encode_frame(FrameKind.RECEIPT, proof.encode())
    yield encode_frame(FrameKind.END)
