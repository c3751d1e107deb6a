"""The agent's only way to a model: a loopback endpoint inside its own network namespace.

docs/protocols/agent-run.md §3. Takes OpenAI calls with this run's token, forwards each sealed to
the proven model node, gives the answer back unchanged, and writes digests and the node's receipt
into the transcript. Request and response bytes are hashed here as the agent saw them.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING

from aiohttp import web

from confide.errors import ConfideError, FormatError, RemoteProtocolError, Unavailable
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
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False)

    async def start(self, listener: socket.socket) -> None:
        """Begin to serve on `listener`, a TCP socket that already listens."""
        await self._runner.setup()
        await web.SockSite(self._runner, listener).start()

    async def stop(self) -> None:
        """Stop serving; calls in progress are cut."""
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
        call = _Call(self._run, request.path, hashlib.sha256(body).digest())
        headers = [(n, request.headers[n]) for n in _FORWARDED if n in request.headers]
        try:
            answer = await self._link.request(request.method, request.path_qs, headers, body)
        except ConfideError as error:
            # Fixed text: what went wrong between the nodes is in the transcript, by outcome.
            call.record(status=0, outcome=_outcome(error))
            return _problem(502, "the model node could not be reached", "model_unavailable")
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
            await response.prepare(request)
            self._began = True
            async for piece in answer.aiter_bytes():
                await self._give(response, stripper.feed(piece) if stripper else piece)
            if stripper is not None:
                rest, text = stripper.finish()
                await self._give(response, rest)
            if not self._agent_left:
                await response.write_eof()
            outcome = "agent-left" if self._agent_left else "complete"
        except ConfideError:
            # The agent sees its connection close inside the body: no half answer looks whole.
            if request.transport is not None:
                request.transport.abort()
        finally:
            self.record(status=answer.status, outcome=outcome, receipt=_receipt(text))
        return response

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
