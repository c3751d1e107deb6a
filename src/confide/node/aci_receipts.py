"""Receipts of `aci/1`, beside the node's own, for calls that nobody on the way can read.

Clauses: docs/protocols/aci-face.md §4, §5. An ASGI application around the model node: it says in
headers which receipt an answer will have, and serves receipts to whoever knows the id, inside the
channel or TLS that ends in the node. What a receipt says is what the node's own record says: no
byte is hashed twice.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from confide.channel.aci import SIGNING_ALGORITHM, issue_receipt
from confide.crypto.ed25519 import Ed25519Signer
from confide.errors import FormatError, Reason
from confide.inference.digest import Finish
from confide.inference.faults import ApiFault
from confide.inference.plan import Endpoint
from confide.node.aci import aci_digest, aci_headers
from confide.node.asgi import send_fault, send_whole, spelled_path
from confide.node.sealed import SCOPE_KEY
from confide.wire.json import JsonLimits, parse_json
from confide.wire.sse import SseEvent, SseLimits, SseParser

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

    from confide.inference.digest import InferenceRecord
    from confide.node.aci import Serving
    from confide.node.identity import NodeIdentity
    from confide.node.model import ModelNode
    from confide.wire.dsse import Envelope
    from confide.wire.json import JsonValue

__all__ = ["RECEIPTS_PATH", "AciReceipts"]

RECEIPTS_PATH: Final = "/v1/aci/receipts/"
_NAMESPACE: Final = "/v1/aci/"
_SESSIONS: Final = "/v1/aci/sessions"
# Where the wrapper finds again what it knows of a call.
_CALL_KEY: Final = "confide.aci"
# About 1 KiB each.
_MAX_KEPT: Final = 8192
# From: aci-face.md 4.4: an answer whose `id` is found further on has none in its receipt.
_MAX_ID_BYTES: Final = 1024 * 1024
_MAX_ID_CHARS: Final = 256
_ENDPOINTS: Final = frozenset(endpoint.value for endpoint in Endpoint)
_JSON: Final = (("content-type", "application/json"), ("cache-control", "no-store"))
_GONE = ApiFault(404, "invalid_request_error", "not_found", "No such receipt, session or route.")
_REASON: Final = "the engine is beside this node, and nothing attests it"


class _AnswerId:
    """Finds the top-level `id` of an answer in its first megabyte, whole or a stream of events."""

    def __init__(self, *, events: bool) -> None:
        self._parser = SseParser(SseLimits(_MAX_ID_BYTES, _MAX_ID_BYTES)) if events else None
        self._held = bytearray()
        self._over = False
        self.found: str | None = None

    def feed(self, data: bytes) -> None:
        """Take bytes of the answer."""
        if self._over or not data:
            return
        if self._parser is None:
            self._held += data
            self._over = len(self._held) > _MAX_ID_BYTES
            return
        try:
            for item in self._parser.feed(data):
                if isinstance(item, SseEvent):
                    self._over, self.found = True, _id_of(item.data)
                    return
        except FormatError:
            self._over = True

    def end(self) -> None:
        """The answer has no more bytes."""
        if self._parser is None and not self._over:
            self.found = _id_of(bytes(self._held))
        self._over = True


def _id_of(raw: bytes) -> str | None:
    try:
        limits = JsonLimits(max_bytes=_MAX_ID_BYTES)
        value = parse_json(raw, what="answer", reason=Reason.UPSTREAM_FORMAT, limits=limits)
    except FormatError:
        return None
    found = value.get("id") if isinstance(value, dict) else None
    return found if isinstance(found, str) and len(found) <= _MAX_ID_CHARS else None


@dataclass(slots=True)
class _Call:
    """One call while it runs. `issued` is what the node recorded of it."""

    id: str
    answer: _AnswerId | None = None
    issued: tuple[str, InferenceRecord, Envelope] | None = None
    kept: bool = False


class AciReceipts:
    """
    The model node `inner`, with receipts of ACI. Make it before the first call.

    `serving` and `fingerprint` are those of the face; the newest `max_kept` receipts are kept.
    """

    def __init__(
        self,
        identity: NodeIdentity,
        inner: ModelNode,
        *,
        serving: Serving,
        fingerprint: bytes | None,
        max_kept: int = _MAX_KEPT,
    ) -> None:
        self._identity = identity
        self._inner = inner
        self._max_kept = max_kept
        self._serving = serving
        self._fingerprint = fingerprint
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        inner.on_receipt(self._issued)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope that came through the sealed channel, or TLS that ends here."""
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        path = spelled_path(scope)
        if path.startswith(_NAMESPACE):
            await self._serve(scope, path, send)
            return
        call = _Call("aci-" + self._identity.entropy.token(16).hex())
        inner_scope = {**scope, _CALL_KEY: call}
        try:
            await self._inner(inner_scope, receive, self._tapped(inner_scope, call, send))
        finally:
            # Of a call that was cut nobody saw the end, and the receipt says so all the same.
            self._keep(inner_scope, call)

    def _tapped(self, scope: Scope, call: _Call, send: Send) -> Send:
        async def tapped(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = self._started(scope, call, message)
            elif message["type"] == "http.response.body" and call.answer is not None:
                call.answer.feed(message.get("body", b""))
                if not message.get("more_body", False):
                    # Kept before the last byte goes: who read the answer to its end finds it.
                    call.answer.end()
                    self._keep(scope, call)
            await send(message)

        return tapped

    def _started(self, scope: Scope, call: _Call, message: Message) -> Message:
        headers = [(bytes(n).lower(), bytes(v)) for n, v in message.get("headers", ())]
        kind = dict(headers).get(b"content-type", b"")
        call.answer = _AnswerId(events=kind.startswith(b"text/event-stream"))
        told = aci_headers(self._digest(scope))
        if call.issued is not None or spelled_path(scope) in _ENDPOINTS:
            told = (*told, ("x-receipt-id", call.id))
        more = [(name.encode(), value.encode()) for name, value in told]
        return {**message, "headers": [*headers, *more]}

    def _digest(self, scope: Scope) -> str:
        keys = self._identity.for_key(scope[SCOPE_KEY].key_id).keys
        return aci_digest(keys.keyset, self._fingerprint)

    def _issued(
        self, scope: Scope, receipt_id: str, record: InferenceRecord, envelope: Envelope
    ) -> None:
        # Calls of other faces come past this application, and have no receipt of ACI.
        call = scope.get(_CALL_KEY)
        if isinstance(call, _Call):
            call.issued = receipt_id, record, envelope

    def _keep(self, scope: Scope, call: _Call) -> None:
        if call.issued is None or call.kept:
            return
        call.kept = True
        self._kept[call.id] = self._receipt(scope, call, *call.issued)
        if len(self._kept) > self._max_kept:
            self._kept.popitem(last=False)

    def _receipt(
        self, scope: Scope, call: _Call, own_id: str, record: InferenceRecord, envelope: Envelope
    ) -> bytes:
        keys = self._identity.for_key(scope[SCOPE_KEY].key_id).keys
        key = keys.face[SIGNING_ALGORITHM]
        body: dict[str, JsonValue] = {
            "receipt_id": call.id,
            "chat_id": None if call.answer is None else call.answer.found,
            # Of a request that was refused the node records no model that was asked for.
            "model": record.model if _forwarded(record) else None,
            "workload_keyset_digest": aci_digest(keys.keyset, self._fingerprint),
            "endpoint": record.endpoint,
            "method": record.carriage.method,
            "served_at": int(self._identity.clock.now().timestamp()),
        }
        signer = Ed25519Signer(key.secret)
        events = [*self._events(record), _own(own_id, record, envelope)]
        return issue_receipt(signer, key_id=str(key.id), body=body, events=events)

    def _events(self, record: InferenceRecord) -> list[JsonValue]:
        events: list[JsonValue] = [_hashed("request.received", record.request_digest)]
        if _forwarded(record):
            sent = record.forwarded_digest or record.request_digest
            events.append(_hashed("request.forwarded", sent))
            if self._serving == "aggregator":
                events.append(_unverified(record.model))
        events.append(_hashed("response.returned", record.response_digest))
        return events

    async def _serve(self, scope: Scope, path: str, send: Send) -> None:
        headers = aci_headers(self._digest(scope))
        found: bytes | None = None
        if scope["method"] == "GET" and path.startswith(RECEIPTS_PATH):
            found = self._kept.get(path.removeprefix(RECEIPTS_PATH))
        elif scope["method"] == "GET" and path == _SESSIONS:
            # No upstream of this node is attested, so there is no session, ever.
            found = b'{"api_version":"aci/1","sessions":[]}'
        if found is None:
            await send_fault(send, _GONE, headers)
        else:
            await send_whole(send, 200, (*_JSON, *headers), found)


def _hashed(kind: str, digest: str) -> JsonValue:
    return {"type": kind, "body_hash": f"sha256:{digest}"}


def _own(receipt_id: str, record: InferenceRecord, envelope: Envelope) -> JsonValue:
    """Return the event that leads to the node's own receipt, which says more (aci-face.md 4.5)."""
    return {
        "type": "confide.receipt",
        "id": receipt_id,
        "digest": f"sha256:{envelope.digest.hex()}",
        "finish": record.finish.value,
    }


def _unverified(model: str) -> JsonValue:
    return {
        "type": "upstream.verified",
        "result": "failed",
        "required": False,
        "model_id": model,
        "reason": _REASON,
    }


def _forwarded(record: InferenceRecord) -> bool:
    # From: inference.md 4.7: what the record of a request that was refused looks like.
    nothing = record.forwarded_digest is None and record.upstream_digest is None
    return not (nothing and record.status >= 400 and record.finish is Finish.COMPLETE)
