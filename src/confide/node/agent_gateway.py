"""The agent's only way to a model: a loopback endpoint inside its own network namespace.

docs/protocols/agent-run.md §3. Takes OpenAI calls with this run's token, forwards each sealed to
the proven model node, gives the answer back unchanged, and writes digests and the node's receipt
into the transcript. Request and response bytes are hashed here as the agent saw them.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from contextlib import suppress
from typing import TYPE_CHECKING

from aiohttp import web

from confide.errors import ConfideError, FormatError, RemoteProtocolError, RunRefused, Unavailable
from confide.receipts.inline import RECEIPT_HEADER, ReceiptStripper, decode_inline

if TYPE_CHECKING:
    import socket

    from confide.adapters.sealed_http import SealedResponse
    from confide.node.model_link import ModelLink
    from confide.node.run import Run
    from confide.wire.dsse import Envelope

__all__ = ["AgentGateway"]

# A prompt with a long context and images; the model node has its own, lower or equal, limit.
_MAX_REQUEST_BYTES = 32 * 1024 * 1024
# For what `stop` has not ended by itself: connections without a call.
_SHUTDOWN_SECONDS = 1.0
_FORWARDED = ("content-type", "accept")
# What of the answer's head the agent sees; the inline receipt is the node's, not the agent's.
_RETURNED = ("content-type", "confide-mapping", "retry-after", "x-request-id")


def _problem(status: int, message: str, code: str) -> web.Response:
    error = {"message": message, "type": "confide_error", "param": None, "code": code}
    return web.json_response({"error": error}, status=status)


class AgentGateway:
    """Serves one run on one listening socket until `stop`."""

    def __init__(self, run: Run, link: ModelLink) -> None:
        self._run = run
        self._link = link
        app = web.Application(client_max_size=_MAX_REQUEST_BYTES)
        app.router.add_route("*", "/v1/{tail:.*}", self._handle)
        self._runner = web.AppRunner(
            app, access_log=None, handle_signals=False, shutdown_timeout=_SHUTDOWN_SECONDS
        )
        self._calls: set[asyncio.Task[object]] = set()

    async def start(self, listener: socket.socket) -> None:
        """Begin to serve on `listener`, a TCP socket that already listens."""
        await self._runner.setup()
        await web.SockSite(self._runner, listener).start()

    async def stop(self, *, grace_seconds: float) -> None:
        """
        Take no more calls; give those in progress `grace_seconds`, then cut them.

        Every call that was taken is in the transcript when this returns, whatever became of it.
        """
        for site in tuple(self._runner.sites):
            await site.stop()
        try:
            if self._calls and grace_seconds > 0:
                await asyncio.wait(self._calls, timeout=grace_seconds)
        finally:
            for task in self._calls:
                task.cancel()
            await asyncio.gather(*self._calls, return_exceptions=True)
            await self._runner.cleanup()

    def _authorised(self, request: web.Request) -> bool:
        given = request.headers.get("authorization", "")
        expected = f"Bearer {self._run.token}"
        return hmac.compare_digest(given.encode("utf-8", "replace"), expected.encode())

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if not self._authorised(request):
            return _problem(401, "the token of this run is needed", "unauthorized")
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            return _problem(413, f"at most {_MAX_REQUEST_BYTES} bytes", "request_too_large")
        try:
            self._run.begin_call()
        except RunRefused:
            return _problem(429, "this run has made all the calls it may", "limit_exceeded")
        # A task of its own: the server forgets a handler whose agent went away, the run must not.
        call = asyncio.ensure_future(self._call(request, body))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        return await asyncio.shield(call)

    async def _call(self, request: web.Request, body: bytes) -> web.StreamResponse:
        call = _Call(self._run, request.path, hashlib.sha256(body).digest())
        headers = [(n, request.headers[n]) for n in _FORWARDED if n in request.headers]
        try:
            answer = await self._link.request(request.method, request.path_qs, headers, body)
        except ConfideError as error:
            # Fixed text: what went wrong between the nodes is in the transcript, by outcome.
            call.record(status=0, outcome=_outcome(error))
            return _problem(502, "the model node could not be reached", "model_unavailable")
        except asyncio.CancelledError:
            call.record(status=0, outcome="cut")
            raise
        async with answer:
            return await call.relay(request, answer)


def _outcome(error: ConfideError) -> str:
    if isinstance(error, RemoteProtocolError):
        return f"refused:{error.reason}" if error.reason is not None else "protocol"
    return "unavailable" if isinstance(error, Unavailable) else "failed"


class _Call:
    """One model call: relays the answer and writes exactly one transcript event."""

    def __init__(self, run: Run, endpoint: str, request: bytes) -> None:
        self._run = run
        self._endpoint = endpoint
        self._request = request
        self._response = hashlib.sha256()
        self._began = False
        self._agent_left = False

    def record(self, *, status: int, outcome: str, receipt: Envelope | None = None) -> None:
        self._run.record_call(
            endpoint=self._endpoint[:200],
            request=self._request,
            response=self._response.digest() if self._began else None,
            status=status,
            outcome=outcome,
            receipt=receipt,
        )

    async def relay(self, request: web.Request, answer: SealedResponse) -> web.StreamResponse:
        headers = dict(answer.headers)
        given = {name: headers[name] for name in _RETURNED if name in headers}
        response = web.StreamResponse(status=answer.status, headers=given)
        stripper = ReceiptStripper() if RECEIPT_HEADER not in headers else None
        text = headers.get(RECEIPT_HEADER)
        outcome = "cut"
        try:
            await self._begin(response, request)
            async for piece in answer.aiter_bytes():
                await self._give(response, stripper.feed(piece) if stripper else piece)
            if stripper is not None:
                rest, text = stripper.finish()
                await self._give(response, rest)
            if not self._agent_left:
                with suppress(ConnectionError):
                    await response.write_eof()
            outcome = "agent-left" if self._agent_left else "complete"
        except ConfideError:
            # The agent sees its connection close inside the body: no half answer looks whole.
            if request.transport is not None:
                request.transport.abort()
        finally:
            self.record(status=answer.status, outcome=outcome, receipt=_receipt(text))
        return response

    async def _begin(self, response: web.StreamResponse, request: web.Request) -> None:
        self._began = True
        try:
            await response.prepare(request)
        except ConnectionError:
            self._agent_left = True

    async def _give(self, response: web.StreamResponse, data: bytes) -> None:
        self._response.update(data)
        if not data or self._agent_left:
            return
        try:
            await response.write(data)
        except ConnectionError:
            # Read on to the receipt: what the model answered is accounted for all the same.
            self._agent_left = True


def _receipt(text: str | None) -> Envelope | None:
    if text is None:
        return None
    try:
        return decode_inline(text)
    except FormatError:
        return None
