"""The EHBP face: bodies sealed by the Encrypted HTTP Body Protocol, the model node behind them.

Clauses: docs/protocols/ehbp-face.md. A request is opened to its end before anything is done with
it; an answer is sealed piece by piece as it comes. Method, path, status and header fields are in
clear both ways: only what the protocol itself needs is told there. What is not sealed is not
served.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from confide.channel.carriage import PROBLEM_MEDIA_TYPE, problem_type
from confide.channel.ehbp import RequestOpening, seal_receipt, seal_response_body
from confide.channel.replay import ReplayPolicy, ReplayWindow
from confide.crypto.kem import load_private_key
from confide.errors import FormatError, LocalProtocolError, Reason, RemoteProtocolError
from confide.node.asgi import send_whole, spelled_path
from confide.node.faces import FaceRecord
from confide.node.identity import LIFETIME
from confide.node.sealed import SCOPE_KEY
from confide.receipts.inline import RECEIPT_HEADER, decode_inline
from confide.wire.ehbp import (
    ENCAPSULATED_KEY_FIELD,
    KEY_PROBLEM_TYPE,
    KEYS_MEDIA_TYPE,
    KEYS_PATH,
    RESPONSE_NONCE_FIELD,
    encode_keys,
    parse_encapsulated_key,
)
from confide.wire.faces import FaceName, Way
from confide.wire.json import b64encode
from confide.wire.ohttp import Kem

if TYPE_CHECKING:
    from collections.abc import Collection

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from confide.channel.keys import ResponseKey
    from confide.crypto.kem import PrivateKey
    from confide.node.identity import NodeIdentity

__all__ = ["ALGORITHM", "SEALED_RECEIPT_FIELD", "EhbpFace", "replay_window"]

# From: docs/protocols/faces.md §2.
ALGORITHM: Final = "ehbp-X25519"
# From: docs/protocols/ehbp-face.md 5.3.
SEALED_RECEIPT_FIELD: Final = "confide-receipt-sealed"
# From: docs/protocols/ehbp-face.md 5.1: what published clients seal in one frame.
_FRAME_BYTES = 64 * 1024
# From: docs/protocols/ehbp-face.md 5.2. Everything else that an answer has stays inside.
_ANSWER_FIELDS = frozenset({b"content-type", b"retry-after", b"confide-mapping"})
# Fields of the outer hop: about the sealed body, or about the connection (RFC 9110 §7.6.1).
_OUTER_FIELDS = frozenset(
    {
        ENCAPSULATED_KEY_FIELD,
        RESPONSE_NONCE_FIELD,
        *(b"connection", b"content-length", b"expect", b"keep-alive", b"proxy-connection"),
        *(b"te", b"trailer", b"transfer-encoding", b"upgrade"),
    }
)
# From: docs/protocols/ehbp-face.md 4.2: 2^22 requests in a day are 48 in every second of it.
_MAX_REMEMBERED = 1 << 22


def replay_window() -> ReplayWindow:
    """Return the window of an EHBP face: no key that opens a request outlives it (§4)."""
    return ReplayWindow(ReplayPolicy(int(LIFETIME.total_seconds()), _MAX_REMEMBERED))


class EhbpFace:
    """
    Open EHBP requests to `paths` into `inner`; at most `max_bytes` of sealed body each.

    `window` is shared by everything that opens requests under these keys.
    """

    name = FaceName.EHBP

    def __init__(
        self,
        identity: NodeIdentity,
        inner: ASGIApp,
        *,
        paths: Collection[str],
        max_bytes: int,
        window: ReplayWindow,
    ) -> None:
        self._identity = identity
        self._inner = inner
        self._paths = frozenset(paths)
        self._max_bytes = max_bytes
        self._window = window
        self._parsed: dict[int, PrivateKey] = {}

    def takes(self, scope: Scope) -> bool:
        """Whether the request asks for the key, or says that its body is sealed to one."""
        return scope["path"] == KEYS_PATH or bool(_encapsulated_keys(scope))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP scope that `takes` takes."""
        if scope["path"] == KEYS_PATH:
            await self._tell_key(scope, send)
            return
        try:
            exchange = _Exchange(self._opening(scope), self._identity.entropy.token(32), send)
            body = await self._body(exchange.opening, receive)
        except RemoteProtocolError as error:
            await _send_problem(send, error)
            return
        if body is not None:
            inner = self._inner_scope(scope, exchange.opening)
            await self._inner(inner, _once(body, receive), exchange.send)

    async def _tell_key(self, scope: Scope, send: Send) -> None:
        if scope["method"] != "GET":
            await send_whole(send, 405, (("allow", "GET"),), b"")
            return
        key = self._identity.current.keys.face[ALGORITHM]
        raw = encode_keys(key.id, self._private(key.id, key.secret).public_key.raw)
        head = (("content-type", KEYS_MEDIA_TYPE), ("cache-control", "no-store"))
        await send_whole(send, 200, head, raw)

    def _opening(self, scope: Scope) -> RequestOpening:
        if spelled_path(scope) not in self._paths or scope["method"] != "POST":
            raise RemoteProtocolError("no such route", status_hint=404)
        try:
            enc = parse_encapsulated_key(_encapsulated_keys(scope))
        except FormatError as error:
            raise RemoteProtocolError(error.what, reason=error.reason, status_hint=400) from error
        return RequestOpening(enc, self._keys(), max_bytes=self._max_bytes)

    def _keys(self) -> tuple[tuple[int, PrivateKey], ...]:
        # Nothing is remembered of a request for longer than a keyset is valid (4.2).
        now = self._identity.clock.now()
        known = [each.keys for each in self._identity.known() if each.keys.keyset.not_after >= now]
        found = [keys.face[ALGORITHM] for keys in known]
        usable = tuple((key.id, self._private(key.id, key.secret)) for key in found)
        self._parsed = dict(usable)
        return usable

    def _private(self, key_id: int, secret: bytes) -> PrivateKey:
        return self._parsed.get(key_id) or load_private_key(Kem.X25519, secret)

    async def _body(self, opening: RequestOpening, receive: Receive) -> bytes | None:
        """Return the whole plaintext; None when the caller went away. `RemoteProtocolError`."""
        pieces: list[bytes] = []
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return None
            fresh = not opening.opened
            pieces.append(opening.receive(message.get("body", b"")))
            if fresh and opening.opened:
                self._admit(opening)
            if not message.get("more_body", False):
                opening.receive_end()
                return b"".join(pieces)

    def _admit(self, opening: RequestOpening) -> None:
        now = self._identity.clock.now()
        self._window.admit(opening.key_id, opening.enc, now, now=now)

    @staticmethod
    def _inner_scope(outer: Scope, opening: RequestOpening) -> Scope:
        kept = [(n, v) for n, v in outer["headers"] if bytes(n).lower() not in _OUTER_FIELDS]
        record = FaceRecord(Way.EHBP, opening.key_id, opening.sha256, receipt_inline=True)
        # The address of the outer hop is not the client's to be believed or logged.
        return {**outer, "headers": kept, "client": None, "server": None, SCOPE_KEY: record}


def _encapsulated_keys(scope: Scope) -> list[bytes]:
    return [
        bytes(value)
        for name, value in scope["headers"]
        if bytes(name).lower() == ENCAPSULATED_KEY_FIELD
    ]


def _once(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives `body`, then waits for the caller to leave."""
    given = False

    async def inner() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        while (await receive())["type"] != "http.disconnect":
            pass
        return {"type": "http.disconnect"}

    return inner


async def _send_problem(send: Send, error: RemoteProtocolError) -> None:
    # Fixed text for each reason: nothing of the request is repeated.
    reason = error.reason
    kind = KEY_PROBLEM_TYPE if reason is Reason.KEYSET_MISMATCH else problem_type(reason)
    title = "key configuration mismatch" if reason is Reason.KEYSET_MISMATCH else "refused"
    document = {"type": kind, "title": title, "status": error.status_hint}
    head = (("content-type", PROBLEM_MEDIA_TYPE), ("cache-control", "no-store"))
    await send_whole(send, error.status_hint, head, json.dumps(document).encode())


class _Exchange:
    """One request and the `send` that seals its answer."""

    def __init__(self, opening: RequestOpening, nonce: bytes, send: Send) -> None:
        self.opening = opening
        self._nonce = nonce
        self._outer_send = send
        self._key: ResponseKey | None = None

    async def send(self, message: Message) -> None:
        """Pass one message of the inner application on, sealed."""
        if message["type"] == "http.response.start":
            self._key = self.opening.response(self._nonce)
            fields = _sealed_fields(message.get("headers", ()), self._nonce, self._key)
            await self._outer_send({**message, "headers": fields})
        elif message["type"] == "http.response.body" and self._key is not None:
            body = message.get("body", b"")
            cut = [body[at : at + _FRAME_BYTES] for at in range(0, len(body), _FRAME_BYTES)]
            await self._outer_send({**message, "body": seal_response_body(self._key, cut)})
        else:
            raise LocalProtocolError("the inner application broke the order of a response")


def _sealed_fields(
    headers: Collection[tuple[bytes, bytes]], nonce: bytes, key: ResponseKey
) -> list[tuple[bytes, bytes]]:
    fields = [(RESPONSE_NONCE_FIELD, nonce.hex().encode()), (b"cache-control", b"no-store")]
    for name, value in headers:
        if name.lower() in _ANSWER_FIELDS:
            fields.append((name, value))
        elif name.lower() == RECEIPT_HEADER.encode():
            # A receipt names digests of plaintext, and this header is in clear.
            sealed = seal_receipt(key, decode_inline(value.decode("ascii")).encode())
            fields.append((SEALED_RECEIPT_FIELD.encode(), b64encode(sealed).encode()))
    return fields
