"""One model call over the NEAR face: opened, answered by the node's own application, signed.

Clauses: docs/protocols/near-face.md §4 to §6. The digests of the signed text are taken here, over
the bytes that came and the bytes that went; what the node's receipt names is the plaintext.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from confide.channel.near_answer import SealedEvents, encode_json
from confide.errors import FormatError, LocalProtocolError, Reason
from confide.inference.faults import ApiFault, RequestRefused
from confide.node.asgi import read_body, send_fault
from confide.node.faces import FaceRecord
from confide.node.near_e2ee import not_hidden, open_sealed, read_headers
from confide.node.near_keys import SigningAlgorithm
from confide.node.near_signatures import SignedExchange
from confide.node.sealed import SCOPE_KEY
from confide.wire.faces import Way
from confide.wire.json import JsonLimits, parse_json
from confide.wire.sse import SseEvent, SseParser

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from confide.channel.near_answer import AnswerSealer
    from confide.node.near_keys import NearKeyring, NearKeys
    from confide.node.near_signatures import SignatureStore
    from confide.ports import Clock, Entropy
    from confide.wire.json import JsonValue

__all__ = ["CHAT_ID_HEADER", "NearCalls"]

CHAT_ID_HEADER: Final = "confide-chat-id"
# The largest body of any route (docs/protocols/inference.md §7.1).
_MAX_BODY_BYTES: Final = 32 * 1024 * 1024
_MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
_JSON_LIMITS: Final = JsonLimits(max_bytes=_MAX_ANSWER_BYTES, max_depth=64)
# An id stands in the first event; whoever has not said it by then has none.
_MAX_ID_BYTES: Final = 64 * 1024
_MAX_ID_CHARS: Final = 128
# Of the caller's headers these alone reach the application.
_PASSED: Final = frozenset({b"content-type", b"accept", b"authorization"})
# What belongs to a body that is written anew, and what names digests of plaintext.
_DROPPED: Final = frozenset({b"content-length", b"content-type"})
_TOO_LARGE: Final = ApiFault(413, "invalid_request_error", "too_large", "The body is too large.")


@dataclass(frozen=True, slots=True)
class _Call:
    """A call as the application gets it. `sealer` is None where its answer goes out as it is."""

    body: bytes
    keys: NearKeys
    record: FaceRecord
    sealer: AnswerSealer | None


class NearCalls:
    """Calls of `inner` over the face; `model` is the name that every signed text begins with."""

    def __init__(
        self,
        inner: ASGIApp,
        *,
        model: str,
        keyring: NearKeyring,
        signatures: SignatureStore,
        clock: Clock,
        entropy: Entropy,
    ) -> None:
        self._inner = inner
        self._model = model
        self._keyring = keyring
        self._signatures = signatures
        self._clock = clock
        self._entropy = entropy

    async def infer(self, scope: Scope, receive: Receive, send: Send, *, way: Way | None) -> None:
        """Serve one `POST`; `way` is how its connection hides it, None where others can read it."""
        raw = await read_body(receive, _MAX_BODY_BYTES + 1)
        if raw is None:
            return
        if len(raw) > _MAX_BODY_BYTES:
            await send_fault(send, _TOO_LARGE)
            return
        try:
            call = self._open(scope, raw, way)
        except RequestRefused as error:
            await send_fault(send, error.fault)
            return
        invented = f"confide-{self._entropy.token(16).hex()}"
        answer = _Answer(send, call.sealer, invented)
        try:
            await self._inner(
                _inner_scope(scope, call.record), _replay(call.body, receive), answer.send
            )
        finally:
            if answer.status in range(200, 300):
                entry = SignedExchange(
                    answer.text(self._model, raw), call.keys, hidden=way is not None
                )
                self._signatures.add(answer.ids, entry, now=self._clock.now())

    async def ask(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one `GET` of the application that reads no body and tells nothing of a caller."""
        keys = self._keyring.current
        record = FaceRecord(
            Way.NEAR_TLS, keys.ids[SigningAlgorithm.ED25519], None, receipt_inline=False
        )
        await self._inner(_inner_scope(scope, record), receive, send)

    def _open(self, scope: Scope, raw: bytes, way: Way | None) -> _Call:
        asked = read_headers(scope["headers"])
        digest = hashlib.sha256(raw).digest()
        if asked is not None:
            opened = open_sealed(scope["path"], raw, asked, self._keyring.known(), self._entropy)
            record = FaceRecord(opened.way, opened.key_id, digest, receipt_inline=False)
            return _Call(opened.body, opened.keys, record, opened.sealer)
        if way is None:
            not_hidden()
        keys = self._keyring.current
        key_id = keys.ohttp_id if way is Way.NEAR_OHTTP else keys.ids[SigningAlgorithm.ED25519]
        record = FaceRecord(way, key_id, digest, receipt_inline=True)
        return _Call(raw, keys, record, None)


def _inner_scope(outer: Scope, record: FaceRecord) -> Scope:
    path: str = outer["path"]
    return {
        "type": "http",
        "asgi": outer["asgi"],
        "http_version": "1.1",
        "method": outer["method"],
        "scheme": "https",
        "path": path,
        "raw_path": path.encode("ascii"),
        "query_string": b"",
        "root_path": "",
        "headers": [(name, value) for name, value in outer["headers"] if name.lower() in _PASSED],
        # The address of the outer hop is not the caller's to be believed or logged.
        "client": None,
        "server": None,
        "extensions": {},
        SCOPE_KEY: record,
    }


def _replay(body: bytes, receive: Receive) -> Receive:
    told = False

    async def replay() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


class _Answer:
    """The answer on its way out: sealed where it has to be, hashed as it goes, its id found."""

    def __init__(self, send: Send, sealer: AnswerSealer | None, invented: str) -> None:
        self._send = send
        self._sealer = sealer
        self._invented = invented
        self._sha256 = hashlib.sha256()
        self._finder = _IdFinder()
        self._events: SealedEvents | None = None
        self._held: bytearray | None = None
        self._head: list[tuple[bytes, bytes]] = []
        self._done = False
        self.status = 0

    @property
    def ids(self) -> tuple[str, ...]:
        """What the exchange can be asked for by: its own id, where it has one, and ours."""
        return (self._finder.found, self._invented) if self._finder.found else (self._invented,)

    def text(self, model: str, request: bytes) -> str | None:
        """Return the text to sign; None where the answer did not go out whole."""
        if not self._done:
            return None
        digests = (hashlib.sha256(request).hexdigest(), self._sha256.hexdigest())
        return ":".join((model, *digests))

    async def send(self, message: Message) -> None:
        """Take one message of the application."""
        if message["type"] == "http.response.start":
            await self._start(message)
        elif message["type"] == "http.response.body":
            await self._body(message.get("body", b""), more=message.get("more_body", False))
        else:
            raise LocalProtocolError("the application broke the order of a response")

    async def _start(self, message: Message) -> None:
        self.status = message["status"]
        headers = [(bytes(name).lower(), bytes(value)) for name, value in message["headers"]]
        kind = dict(headers).get(b"content-type", b"")
        streams = kind.startswith(b"text/event-stream")
        self._finder.begin(streams=streams, readable=streams or kind == b"application/json")
        headers.append((CHAT_ID_HEADER.encode(), self._invented.encode()))
        if self._sealer is None or self.status >= 300:
            # Refusals are fixed words of the node (inference.md §3.3), never text of a model.
            await self._send({**message, "headers": headers})
            return
        self._head = [(name, value) for name, value in headers if name not in _DROPPED]
        if streams:
            self._events = SealedEvents(self._sealer)
            await self._go(b"text/event-stream")
        else:
            self._held = bytearray()

    async def _go(self, kind: bytes, length: int | None = None) -> None:
        headers = [(b"content-type", kind), *self._head]
        if length is not None:
            headers.append((b"content-length", b"%d" % length))
        await self._send({"type": "http.response.start", "status": self.status, "headers": headers})

    async def _body(self, data: bytes, *, more: bool) -> None:
        if self._held is not None:
            self._held += data
            if more:
                return
            data = await self._whole(bytes(self._held))
        elif self._events is not None:
            data = self._events.feed(data)
        self._sha256.update(data)
        self._finder.feed(data)
        # Whole once the server took it: the text is about bytes that were sent.
        await self._send({"type": "http.response.body", "body": data, "more_body": more})
        self._done = not more

    async def _whole(self, answer: bytes) -> bytes:
        if self._sealer is None:  # pragma: no cover - held only to be sealed
            raise LocalProtocolError("an answer was held for nothing")
        value: JsonValue = None
        try:
            value = parse_json(
                answer, what="answer", reason=Reason.UPSTREAM_FORMAT, limits=_JSON_LIMITS
            )
        except FormatError:
            # What cannot be read cannot be sealed field by field: the error object says so.
            self.status = 502
        sealed = encode_json(self._sealer.seal(value))
        await self._go(b"application/json", len(sealed))
        return sealed


class _IdFinder:
    """Finds the member `id` of an answer in the bytes that go out."""

    def __init__(self) -> None:
        self.found = ""
        self._parser: SseParser | None = None
        self._json = False
        self._seen = 0

    def begin(self, *, streams: bool, readable: bool) -> None:
        """Say what comes; nothing is looked for in what is not `readable`."""
        self._parser = SseParser() if streams else None
        self._json = readable and not streams

    def feed(self, data: bytes) -> None:
        """Take bytes that went out."""
        if self.found or self._seen > _MAX_ID_BYTES:
            return
        self._seen += len(data)
        if self._json:
            # The answers of the application that are no streams come in one piece.
            self._look(data)
        elif self._parser is not None:
            try:
                for item in self._parser.feed(data):
                    if isinstance(item, SseEvent) and not self.found:
                        self._look(item.data)
            except FormatError:
                self._parser = None

    def _look(self, raw: bytes) -> None:
        try:
            value = parse_json(raw, what="id", reason=Reason.UPSTREAM_FORMAT, limits=_JSON_LIMITS)
        except FormatError:
            return
        name = value.get("id") if isinstance(value, dict) else None
        if isinstance(name, str) and 0 < len(name) <= _MAX_ID_CHARS and name.isprintable():
            self.found = name
