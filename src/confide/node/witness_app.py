"""A witness over HTTP: compare, store durably, then answer; one at a time. log.md §4. ASGI."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Route

from confide.errors import ConfideError, FormatError
from confide.node.request_body import read_body
from confide.tlog.witness import WitnessAnswer, consider
from confide.wire.witness import ADD_CHECKPOINT, MAX_REQUEST_BYTES, parse_add_checkpoint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request
    from starlette.types import ASGIApp

    from confide.adapters.witness_files import WitnessFiles
    from confide.crypto.cosign import NoteSigner
    from confide.ports import Clock
    from confide.wire.note import VerifierKey
    from confide.wire.witness import AddCheckpoint

__all__ = ["WitnessService", "witness_app"]


class WitnessService:
    """One witness: its keys, the logs it knows, what it cosigned."""

    def __init__(
        self,
        signers: Sequence[NoteSigner],
        *,
        logs: Sequence[VerifierKey],
        state: WitnessFiles,
        clock: Clock,
    ) -> None:
        """Several `signers` sign the same head: one key of each kind, say."""
        self._signers = tuple(signers)
        self._logs = tuple(logs)
        self._state = state
        self._clock = clock
        # Of threads: a caller that goes away must not let the next one in before its time.
        self._turn = threading.Lock()

    def answer(self, raw: bytes) -> WitnessAnswer:
        """
        Decide, store, cosign. Blocking; one at a time (4.3).

        Raises `FormatError` for a request that is none, or a state that is none, and `Unavailable`.
        """
        request = parse_add_checkpoint(raw)
        with self._turn:
            return self._decide(request)

    def _decide(self, request: AddCheckpoint) -> WitnessAnswer:
        origin = request.checkpoint.head.origin
        logs = [key for key in self._logs if key.name == origin]
        last = self._state.last(origin) if logs else None
        found = consider(request, logs=logs, last=None if last is None else last.head)
        if found.contradicts:
            self._state.keep_evidence(request.checkpoint)
        if found.status != 200:
            return found
        self._state.remember(request.checkpoint)
        seconds = int(self._clock.now().timestamp())
        head = request.checkpoint.head
        lines = "".join(signer.cosign(head, seconds=seconds).line() for signer in self._signers)
        return WitnessAnswer(200, lines.encode())


def witness_app(service: WitnessService) -> ASGIApp:
    """Return the application of one witness."""

    async def add_checkpoint(request: Request) -> Response:
        try:
            raw = await read_body(request, max_bytes=MAX_REQUEST_BYTES)
        except FormatError:
            return Response("too large\n", status_code=413)
        except ClientDisconnect:
            return Response(status_code=400)
        try:
            parse_add_checkpoint(raw)
        except FormatError as error:
            return Response(f"{error.what}\n", status_code=400)
        try:
            answer = await asyncio.to_thread(service.answer, raw)
        except ConfideError:
            return Response("the witness cannot answer now\n", status_code=503)
        return Response(
            answer.body, status_code=answer.status, headers={"content-type": answer.content_type}
        )

    return Starlette(routes=[Route(f"/{ADD_CHECKPOINT}", add_checkpoint, methods=["POST"])])
