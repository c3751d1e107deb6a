"""Watches the calls of a model node for numbers and spans: sizes, times, words out of a list.

docs/protocols/tenancy.md §6 and §7. Stands between the sealed gateway and the node, and sees bytes
pass; it keeps how many. What the node knows beside (finish, usage, code, key) it writes into the
`CallFacts` of the call.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from confide.node.asgi import spelled_path
from confide.telemetry.facts import CallFacts, endpoint_word
from confide.telemetry.spans import span_of

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from confide.inference.digest import InferenceRecord
    from confide.ports import Clock, Entropy
    from confide.telemetry.metrics import Metrics
    from confide.telemetry.spans import Span

__all__ = ["Observed", "SpanSink", "facts_of", "tell_record"]

_FACTS_KEY = "confide.facts"


class SpanSink(Protocol):
    """Where spans go. Never waits, never raises."""

    def add(self, span: Span) -> None:
        """Take a span; one too many is dropped."""
        ...


def facts_of(scope: Scope) -> CallFacts:
    """Return where facts of this call are written; nobody reads them where nobody watches."""
    facts = scope.get(_FACTS_KEY)
    return facts if isinstance(facts, CallFacts) else CallFacts("")


def tell_record(scope: Scope, record: InferenceRecord) -> None:
    """Write down how a call ended."""
    facts = facts_of(scope)
    facts.finish = record.finish.value
    if record.usage is not None:
        facts.input_tokens = record.usage.input_tokens
        facts.output_tokens = record.usage.output_tokens


class Observed:
    """An ASGI application that counts what passes to and from `app`."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        clock: Clock,
        entropy: Entropy,
        metrics: Metrics | None = None,
        spans: SpanSink | None = None,
        by_key: bool = False,
    ) -> None:
        self._app = app
        self._clock = clock
        self._entropy = entropy
        self._metrics = metrics
        self._spans = spans
        self._by_key = by_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        facts = CallFacts(endpoint_word(spelled_path(scope)))
        scope[_FACTS_KEY] = facts
        loop = asyncio.get_running_loop()
        begun, start = self._clock.now(), loop.time()

        async def counted_receive() -> Message:
            message = await receive()
            facts.request_bytes += len(message.get("body", b""))
            return message

        async def counted_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                facts.status = message["status"]
            elif facts.first_byte is None:
                facts.first_byte = loop.time() - start
            facts.response_bytes += len(message.get("body", b""))
            await send(message)

        if self._metrics is not None:
            self._metrics.begin()
        try:
            await self._app(scope, counted_receive, counted_send)
        finally:
            facts.seconds = loop.time() - start
            if self._metrics is not None:
                self._metrics.end(facts)
            if self._spans is not None:
                ended = self._clock.now()
                ids = self._entropy.token(24)
                self._spans.add(
                    span_of(facts, ids=ids, begun=begun, ended=ended, by_key=self._by_key)
                )
