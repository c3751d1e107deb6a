"""What a local endpoint answers: OpenAI calls passed on, Anthropic calls translated, all proven.

Clauses: docs/protocols/client.md §7 and §8. Every call goes through one `Session`: sealed to a
proven node, receipted. What cannot be proven is answered with an error in the caller's own shape;
no call is ever answered by anything but a proven node.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from confide.adapters.answer_transport import Request
from confide.adapters.local_endpoint import Denied, LocalReply
from confide.errors import (
    ConfideError,
    FormatError,
    LocalProtocolError,
    Reason,
    ReceiptNotKept,
    Rejected,
    RemoteProtocolError,
    Unavailable,
)
from confide.inference.faults import ApiFault, RequestRefused
from confide.inference.messages import (
    COUNT_PATH,
    MESSAGES_PATH,
    count_request,
    error_body,
    error_event,
    plan_messages,
)
from confide.inference.messages_answer import MessagesStream, count_body, message_body

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable
    from datetime import datetime

    from confide.adapters.local_endpoint import LocalCall
    from confide.client.answer import Answer
    from confide.client.session import Session
    from confide.inference.messages import MessagesPlan
    from confide.ports import Clock, Entropy

__all__ = ["LocalProxy", "Served"]

_CHAT = "/v1/chat/completions"
# Files of a training node: as large as they are, and never held (client.md 7.8).
_STREAMED = re.compile(r"/v1/(files|uploads/[^/]+/parts)\Z")
_FORWARDED = frozenset({"accept", "content-type"})
_RETURNED = frozenset(
    {
        *("confide-mapping", "content-type", "retry-after", "x-request-id", "x-should-retry"),
        # How a key stands with its limits: docs/protocols/tenancy.md §3.7.
        *(
            f"x-ratelimit-{what}-{of}"
            for what in ("limit", "remaining", "reset")
            for of in ("requests", "tokens")
        ),
    }
)
_JSON = ("content-type", "application/json")
_EVENTS = ("content-type", "text/event-stream")
_UNPROVEN = "The node or its answer was not proven; nothing more is passed on."
_UNREADABLE = "The model's answer cannot be read as one; nothing more is passed on."
# Of these an engine may be the cause behind a proven node: docs/protocols/client.md 3.4, 8.6.
_ENGINES: Final = frozenset({Reason.UPSTREAM_FORMAT, Reason.STREAM_FORMAT})
_ABSENT = "No proven node answers now."
_UNKEPT = (
    "The answer's receipt could not be kept, so the answer is not passed on: the store of receipts "
    "is locked, or its disk is full."
)


@dataclass(frozen=True, slots=True)
class Served:
    """One call as its status line says it: no content, and nothing that was not verified."""

    at: datetime
    method: str
    path: str
    model: str | None
    status: int
    input_tokens: int | None
    output_tokens: int | None
    seconds: float
    receipt: str | None
    problem: str | None


class LocalProxy:
    """Answers calls over `session`. `key` is what the node knows the caller by, if it asks."""

    def __init__(
        self,
        session: Session,
        *,
        clock: Clock,
        entropy: Entropy,
        elapsed: Callable[[], float],
        on_served: Callable[[Served], None],
        key: str | None = None,
    ) -> None:
        self._session = session
        self._clock = clock
        self._entropy = entropy
        self._elapsed = elapsed
        self._on_served = on_served
        self._key = key

    def streams(self, method: str, path: str) -> bool:
        """Whether a body is passed on as it comes: it goes out once, and no receipt names it."""
        return method == "POST" and _STREAMED.match(path) is not None

    def deny(self, path: str, denied: Denied) -> LocalReply:
        """Say no in the words of the API that `path` belongs to."""
        fault = ApiFault(denied.status, "invalid_request_error", denied.code, denied.message)
        return _fault_reply(path, fault)

    async def handle(self, call: LocalCall) -> LocalReply:
        """Answer one call."""
        told = _Told(self, call)
        try:
            reply = await self._answer(call, told)
        except ConfideError as error:
            fault = _fault(error)
            told.end(fault.status, problem=fault.code)
            return _fault_reply(call.path, fault)
        except BaseException:
            told.end(499, problem="left")
            raise
        return reply

    async def _answer(self, call: LocalCall, told: _Told) -> LocalReply:
        if call.path in (MESSAGES_PATH, COUNT_PATH) and call.method == "POST":
            return await self._messages(call, told)
        if not call.path.startswith("/v1/") or call.path.startswith(MESSAGES_PATH):
            raise RequestRefused(
                ApiFault(404, "invalid_request_error", "not_found", "No such route.")
            )
        path = f"{call.path}?{call.query}" if call.query else call.path
        answer = await self._session.send(self._request(call, path, call.body))
        headers = tuple((n, v) for n, v in answer.headers if n.lower() in _RETURNED)
        if answer.streamed:
            return LocalReply(answer.status, headers, self._passed(answer, told))
        body = await answer.aread()
        told.end(answer.status, answer)
        return LocalReply(answer.status, headers, body)

    def _request(self, call: LocalCall, path: str, body: bytes | AsyncIterator[bytes]) -> Request:
        headers = [(name, value) for name, value in call.headers if name in _FORWARDED]
        if self._key is not None:
            headers.append(("authorization", f"Bearer {self._key}"))
        return Request(call.method, path, tuple(headers), body)

    async def _passed(self, answer: Answer, told: _Told) -> AsyncGenerator[bytes, None]:
        try:
            async for piece in answer.aiter_bytes():
                yield piece
            told.end(answer.status, answer)
        except ConfideError as error:
            fault = _fault(error)
            told.end(answer.status, problem=fault.code)
            yield b"\n\n" + fault.stream_event()
            raise
        finally:
            told.end(answer.status, problem="left")
            await answer.aclose()

    async def _messages(self, call: LocalCall, told: _Told) -> LocalReply:
        if not isinstance(call.body, bytes):
            raise LocalProtocolError("only files are taken as they come")
        counting = call.path == COUNT_PATH
        plan = count_request(call.body) if counting else plan_messages(call.body)
        answer = await self._session.send(self._request(call, _CHAT, plan.body))
        message_id = "msg_" + self._entropy.token(12).hex()
        if answer.streamed:
            pieces = self._translated(answer, plan, message_id, told)
            return LocalReply(answer.status, (_EVENTS,), pieces)
        raw = await answer.aread()
        receipt = answer.receipt
        headers = (_JSON,) if receipt is None else (_JSON, ("request-id", receipt.id))
        if answer.status != 200:
            fault = ApiFault(answer.status, "", "engine", _engine_words(answer.status))
            body = error_body(fault)
        elif counting:
            body = count_body(raw)
        else:
            body = message_body(raw, message_id=message_id, model=plan.model)
        # Not before it is known that there is an answer to give.
        told.end(answer.status, answer)
        return LocalReply(answer.status, headers, body)

    async def _translated(
        self, answer: Answer, plan: MessagesPlan, message_id: str, told: _Told
    ) -> AsyncGenerator[bytes, None]:
        stream = MessagesStream(message_id=message_id, model=plan.model)
        try:
            async for piece in answer.aiter_bytes():
                if out := stream.feed(piece):
                    yield out
            # The answer ended verified; only now is it said to be whole.
            last = stream.close()
            told.end(answer.status, answer)
            yield last
        except ConfideError as error:
            fault = _fault(error)
            told.end(answer.status, problem=fault.code)
            yield error_event(fault)
            raise
        finally:
            told.end(answer.status, problem="left")
            await answer.aclose()


class _Told:
    """The status line of one call, told once."""

    def __init__(self, proxy: LocalProxy, call: LocalCall) -> None:
        self._proxy = proxy
        self._call = call
        self._began = proxy._elapsed()  # noqa: SLF001 - a part of it
        self._done = False

    def end(self, status: int, answer: Answer | None = None, *, problem: str | None = None) -> None:
        if self._done:
            return
        self._done = True
        receipt = None if answer is None else answer.receipt
        said = None if receipt is None else receipt.inference.statement
        proxy = self._proxy
        proxy._on_served(  # noqa: SLF001 - a part of it
            Served(
                proxy._clock.now(),  # noqa: SLF001
                self._call.method,
                self._call.path,
                None if said is None else said.model.name,
                status,
                None if said is None else said.input_tokens,
                None if said is None else said.output_tokens,
                proxy._elapsed() - self._began,  # noqa: SLF001
                None if receipt is None else receipt.id,
                problem,
            )
        )


def _engine_words(status: int) -> str:
    if status < 500:
        return "The node refused this request: a value or a length is outside what it supports."
    return "The model engine failed to answer."


def _fault(error: ConfideError) -> ApiFault:
    """Return the answer for `error`: fixed words, and the reason from our closed list."""
    if isinstance(error, RequestRefused):
        return error.fault
    if isinstance(error, LocalProtocolError):
        what = "The request is more than can be sent."
        return ApiFault(413, "invalid_request_error", "request_too_large", what)
    if isinstance(error, Rejected | FormatError):
        what = _UNREADABLE if error.reason in _ENGINES else _UNPROVEN
        return ApiFault(502, "confide_error", error.reason.value, what)
    if isinstance(error, RemoteProtocolError):
        code = "protocol" if error.reason is None else error.reason.value
        return ApiFault(502, "confide_error", code, _UNPROVEN)
    if isinstance(error, Unavailable):
        unkept = isinstance(error, ReceiptNotKept)
        code, what = ("receipt-not-kept", _UNKEPT) if unkept else ("unavailable", _ABSENT)
        return ApiFault(503, "confide_error", code, what)
    return ApiFault(500, "confide_error", "internal", "An error in Confide.")


def _fault_reply(path: str, fault: ApiFault) -> LocalReply:
    anthropic = path.startswith(MESSAGES_PATH)
    return LocalReply(fault.status, (_JSON,), error_body(fault) if anthropic else fault.body())
