"""The blind relay as an ASGI service. Clauses: docs/protocols/relay.md §2 and §3.

It holds no key that opens anything. What it reads of a request is its path; what it writes towards
a node is its own. Nothing about a request is kept or logged.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from confide.adapters.evidence_http import EVIDENCE_PATH
from confide.adapters.relay_http import NotReached
from confide.channel.carriage import (
    CHANNEL_PATH,
    PROBLEM_MEDIA_TYPE,
    REQUEST_MEDIA_TYPE,
    RESPONSE_MEDIA_TYPE,
    problem_reason,
    problem_type,
)
from confide.errors import (
    FormatError,
    LocalProtocolError,
    Overloaded,
    Reason,
    RemoteProtocolError,
    Unavailable,
)
from confide.node.app import HEALTH_PATH
from confide.node.asgi import content_type_of, send_whole, spelled_path
from confide.node.relay_inbound import Inbound
from confide.node.relay_table import UnknownKeyset
from confide.wire.directory import DIRECTORY_PATH, DirectoryAnswer, parse_node_path
from confide.wire.json import JsonLimits, Members, jcs, parse_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import Receive, Scope, Send

    from confide.adapters.relay_http import RelayedAnswer, RelayLink
    from confide.node.asgi import Headers
    from confide.node.relay_table import RelayNode, RelayTable
    from confide.wire.directory import NoteWithDirectory

__all__ = ["RelayApp"]

_JSON: Final = "application/json"
_PROBLEM_BYTES: Final = 4096
_ASKED_LIMITS: Final = JsonLimits(max_bytes=4096, max_depth=4)
# From: channel.md 7.4. What a node may answer outside the seal, and the status that goes with it.
_STATUSES: Final = {
    Reason.KEYSET_MISMATCH: 422,
    Reason.REPLAYED: 409,
    Reason.REQUEST_TIME: 409,
    Reason.NODE_BUSY: 503,
    Reason.LIMIT_EXCEEDED: 413,
    Reason.CHANNEL_FORMAT: 400,
}


@dataclass(frozen=True, slots=True)
class _Route:
    """One of the two that lead to a node: what comes, what is answered, how much of each."""

    path: str
    takes: str
    gives: str
    request_bytes: int
    answer_bytes: int

    @property
    def sealed(self) -> bool:
        return self.path == CHANNEL_PATH


class RelayApp:
    """Forwards to the nodes of `table` over `link`; `directory` is what is listed now, if any."""

    def __init__(
        self,
        table: RelayTable,
        link: RelayLink,
        *,
        directory: Callable[[], NoteWithDirectory | None],
    ) -> None:
        self._table = table
        self._link = link
        self._directory = directory
        limits = table.limits
        self._routes = {
            CHANNEL_PATH: _Route(
                CHANNEL_PATH,
                REQUEST_MEDIA_TYPE,
                RESPONSE_MEDIA_TYPE,
                limits.request_bytes,
                limits.answer_bytes,
            ),
            EVIDENCE_PATH: _Route(
                EVIDENCE_PATH, _JSON, _JSON, _ASKED_LIMITS.max_bytes, limits.evidence_bytes
            ),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] != "http":
            raise LocalProtocolError("a relay serves HTTP only")
        path = "" if scope.get("query_string") else spelled_path(scope)
        target = parse_node_path(path)
        route = None if target is None else self._routes.get(target[1])
        if target is not None and route is not None:
            await self._pass(scope, receive, send, target[0], route)
        elif path == DIRECTORY_PATH and scope["method"] == "GET":
            await self._list(send)
        elif path == HEALTH_PATH and scope["method"] == "GET":
            ready = not self._table.draining and self._directory() is not None
            await _send(send, 200, _JSON, jcs({"role": "relay", "ready": ready}))
        else:
            await _send(send, 404, "text/plain", b"not found\n")

    async def _list(self, send: Send) -> None:
        found = self._directory()
        if found is None:
            await _send_problem(send, 503, Reason.NODE_BUSY, retry_after=5)
            return
        hints = tuple(
            (node.keyset, self._table.hint(node.keyset)) for node in found.directory.nodes
        )
        await _send(send, 200, _JSON, DirectoryAnswer(found.note.encode(), hints).encode())

    async def _pass(
        self, scope: Scope, receive: Receive, send: Send, keyset: bytes, route: _Route
    ) -> None:
        given = content_type_of(scope).partition(";")[0].strip().lower()
        if scope["method"] != "POST" or given != route.takes:
            status = 405 if scope["method"] != "POST" else 415
            await _send(send, status, "text/plain", f"POST of {route.takes} only\n".encode())
            return
        try:
            with self._table.place(keyset) as node:
                await self._exchange(receive, send, node, route)
        except UnknownKeyset:
            await _send_problem(send, 404, Reason.KEYSET_MISMATCH)
        except Overloaded as error:
            await _send_problem(
                send, error.status_hint, Reason.NODE_BUSY, retry_after=error.retry_after
            )

    async def _exchange(self, receive: Receive, send: Send, node: RelayNode, route: _Route) -> None:
        inbound = Inbound(receive, self._table.limits, max_bytes=route.request_bytes)
        outbound = _Outbound(send, route)
        failure: Exception | None = None
        async with inbound.watching():
            try:
                body = inbound.pieces() if route.sealed else _asked(await inbound.whole())
                answer = await self._link.forward(node.entry.url + route.path, body)
                try:
                    await outbound.give(answer)
                finally:
                    answer.close()
            except (FormatError, RemoteProtocolError, Unavailable) as error:
                failure = error
        if inbound.left:
            return
        if inbound.refusal is not None:
            refusal = inbound.refusal
            # Who is slow is not waited for any longer; who sends too much hears why.
            slow = refusal.status_hint == 408
            await outbound.fail(refusal.status_hint, refusal.reason, closing=slow)
        elif isinstance(failure, NotReached):
            node.lost()
            raise Overloaded("the node was not reached", retry_after=5) from failure
        elif isinstance(failure, FormatError):
            await outbound.fail(400, Reason.CHANNEL_FORMAT)
        elif failure is not None:
            # It may have got the request. Whether it is still there is asked at once.
            node.suspected.set()
            await outbound.fail(502, Reason.CHANNEL_FORMAT)


class _Outbound:
    """The answer to the client: what the node answered, or why there is none."""

    def __init__(self, send: Send, route: _Route) -> None:
        self._send = send
        self._route = route
        self._started = False

    async def give(self, answer: RelayedAnswer) -> None:
        """Pass `answer` on; raises `Unavailable` where it is none that a node gives."""
        if answer.encoded:
            raise Unavailable("the node encodes its answers although asked not to")
        if answer.status == 200 and answer.media_type == self._route.gives:
            await self._stream(answer)
        elif self._route.sealed and answer.media_type == PROBLEM_MEDIA_TYPE:
            reason = await _problem_of(answer)
            await self.fail(_STATUSES[reason], reason)
        elif not self._route.sealed and answer.status == 503:
            await self.fail(503, Reason.NODE_BUSY)
        else:
            raise Unavailable("an answer that no node gives")

    async def _stream(self, answer: RelayedAnswer) -> None:
        headers = [(b"content-type", self._route.gives.encode()), (b"cache-control", b"no-store")]
        if self._route.sealed:
            headers.append((b"incremental", b"?1"))
        self._started = True
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        async for piece in answer.pieces(self._route.answer_bytes):
            await self._send({"type": "http.response.body", "body": piece, "more_body": True})
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def fail(self, status: int, reason: Reason | None, *, closing: bool = False) -> None:
        """Answer with a problem; cut the connection where an answer began, or if `closing`."""
        if self._started:
            raise LocalProtocolError("the answer of the node did not come to its end")
        self._started = True
        retry_after = 1 if reason is Reason.NODE_BUSY else None
        # A request that was not read to its end leaves no connection for another one.
        more = (("connection", "close"),) if closing else ()
        await _send_problem(self._send, status, reason, retry_after=retry_after, more=more)


def _asked(raw: bytes) -> bytes:
    """Return a request for evidence written anew: a nonce and a digest, and nothing else."""
    value = parse_json(raw, what="request", reason=Reason.CHANNEL_FORMAT, limits=_ASKED_LIMITS)
    members = Members(value, what="request", reason=Reason.CHANNEL_FORMAT)
    nonce, expectation = members.hexes("nonce", 32), members.hexes("expectation", 32)
    members.end()
    return jcs({"nonce": nonce.hex(), "expectation": expectation.hex()})


async def _problem_of(answer: RelayedAnswer) -> Reason:
    """Return what a node's problem says, in our words alone."""
    raw = b"".join([piece async for piece in answer.pieces(_PROBLEM_BYTES)])
    try:
        value = parse_json(raw, what="problem", reason=Reason.CHANNEL_FORMAT)
        kind = Members(value, what="problem", reason=Reason.CHANNEL_FORMAT).text("type")
    except FormatError as error:
        raise Unavailable("a problem that no node has") from error
    reason = problem_reason(kind)
    if reason is None:
        raise Unavailable("a problem that no node has")
    return reason


async def _send_problem(
    send: Send,
    status: int,
    reason: Reason | None,
    *,
    retry_after: int | None = None,
    more: Headers = (),
) -> None:
    body = json.dumps({"type": problem_type(reason), "status": status}).encode()
    if retry_after is not None:
        more = (*more, ("retry-after", str(retry_after)))
    await _send(send, status, PROBLEM_MEDIA_TYPE, body, more)


async def _send(send: Send, status: int, media_type: str, body: bytes, more: Headers = ()) -> None:
    headers = (("content-type", media_type), ("cache-control", "no-store"), *more)
    await send_whole(send, status, headers, body)
