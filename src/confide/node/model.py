"""The model node: OpenAI-compatible inference in front of an engine, each answer with a receipt.

Routes of the inner application (sealed requests only): `POST /v1/chat/completions`,
`/v1/completions`, `/v1/responses`; `GET /v1/models`, `/v1/models/{name}`, `/v1/receipts/{id}`;
`POST /confide/v1/closing`. docs/protocols/inference.md, docs/protocols/receipt.md §3 and §5.

Written against ASGI itself: this is the hot path. Prompts and answers pass through memory and
nowhere else.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

from confide.errors import ConfideError, FormatError, Reason, Unavailable
from confide.inference.exchange import Exchange, refusal_record
from confide.inference.faults import ApiFault, RequestRefused
from confide.inference.models import model_answer, models_answer
from confide.inference.routes import Endpoint, RequestLimits, plan_request
from confide.node.sealed import SCOPE_KEY
from confide.receipts.inline import RECEIPT_HEADER, encode_inline, inline_comment
from confide.receipts.issue import issue_inference_receipt, session_claim
from confide.wire.evidence import encode_evidence_file
from confide.wire.json import JsonLimits, Members, is_hex, parse_json

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import Receive, Scope, Send

    from confide.inference.digest import InferenceRecord
    from confide.inference.models import ServedModel
    from confide.inference.routes import EngineRoutes, InferencePlan
    from confide.node.identity import NodeIdentity
    from confide.ports import Clock, Entropy, Upstream
    from confide.wire.dsse import Envelope
    from confide.wire.keyset import Keyset

__all__ = [
    "Headers",
    "ModelNode",
    "ModelNodePorts",
    "ReceiptStore",
]

_CLOSING = "/confide/v1/closing"
_RECEIPTS = "/v1/receipts/"
_MODELS = "/v1/models"
_CLOSING_LIMITS = JsonLimits(max_bytes=16 * 1024 * 1024, max_depth=4)
_MAX_CLOSED_RECEIPTS = 100_000
# About 2.5 KiB each: what `GET /v1/receipts/{id}` and closings can still name.
_MAX_RECEIPTS = 8192
_MAX_DIGESTS = 200_000

Headers: TypeAlias = "tuple[tuple[str, str], ...]"
_NO_ROUTE = ApiFault(404, "invalid_request_error", "not_found", "No such route.")
_JSON: Headers = (("content-type", "application/json"),)


@dataclass(frozen=True, slots=True)
class ModelNodePorts:
    """What the model node needs: identity, the engine and what it serves, time, randomness."""

    identity: NodeIdentity
    upstream: Upstream
    routes: EngineRoutes
    served: ServedModel
    weights: bytes | None
    clock: Clock
    entropy: Entropy
    limits: RequestLimits


@lru_cache(maxsize=4)
def _digest_of(keyset: Keyset) -> bytes:
    # Every receipt names it, and it is a hash over canonical JSON.
    return keyset.digest


class ReceiptStore:
    """Receipts of this boot, newest kept, and the digests of those issued. In memory only."""

    def __init__(self) -> None:
        self._by_id: OrderedDict[str, Envelope] = OrderedDict()
        self._digests: OrderedDict[bytes, None] = OrderedDict()

    def add(self, receipt_id: str, envelope: Envelope) -> None:
        """Keep `envelope`; the oldest go when there are too many."""
        self._by_id[receipt_id] = envelope
        self._digests[envelope.digest] = None
        if len(self._by_id) > _MAX_RECEIPTS:
            self._by_id.popitem(last=False)
        if len(self._digests) > _MAX_DIGESTS:
            self._digests.popitem(last=False)

    def find(self, receipt_id: str) -> Envelope | None:
        """Return the receipt with this id, if it is still kept."""
        return self._by_id.get(receipt_id)

    def issued(self, digest: bytes) -> bool:
        """Whether a receipt with this digest was issued by this boot (and is still known)."""
        return digest in self._digests


class ModelNode:
    """The inner ASGI application of a model node."""

    def __init__(self, ports: ModelNodePorts) -> None:
        self._ports = ports
        self._receipts = ReceiptStore()
        self._sequence = 0
        self._endpoints = {endpoint.value: endpoint for endpoint in Endpoint}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] != "http":
            return
        path, method = scope["path"], scope["method"]
        endpoint = self._endpoints.get(path)
        if endpoint is not None and method == "POST":
            await self._infer(endpoint, scope, receive, send)
        elif path == _CLOSING and method == "POST":
            await self._close_run(scope, receive, send)
        elif method == "GET" and path == _MODELS:
            await _whole(send, 200, _JSON, models_answer(self._ports.served))
        elif method == "GET" and path == f"{_MODELS}/{self._ports.served.name}":
            await _whole(send, 200, _JSON, model_answer(self._ports.served))
        elif method == "GET" and path.startswith(_RECEIPTS):
            await self._receipt(path.removeprefix(_RECEIPTS), send)
        else:
            await _fault(
                send, ApiFault(404, "invalid_request_error", "not_found", "No such route.")
            )

    async def _receipt(self, receipt_id: str, send: Send) -> None:
        found = self._receipts.find(receipt_id)
        if found is None:
            gone = "No receipt with this id is kept by this boot."
            await _fault(send, ApiFault(404, "invalid_request_error", "not_found", gone))
            return
        await _whole(send, 200, _JSON, found.encode())

    async def _infer(self, endpoint: Endpoint, scope: Scope, receive: Receive, send: Send) -> None:
        ports = self._ports
        body = await _read(receive, ports.limits.max_body_bytes + 1)
        if body is None:
            return
        try:
            plan = plan_request(
                endpoint, body, served=ports.served, routes=ports.routes, limits=ports.limits
            )
        except RequestRefused as refusal:
            record = refusal_record(endpoint, body, refusal.fault, served=ports.served)
            envelope = self._issue(scope, record)
            headers = (*_JSON, (RECEIPT_HEADER, encode_inline(envelope)))
            await _whole(send, refusal.fault.status, headers, refusal.fault.body())
            return
        await self._forward(plan, body, scope, receive, send)

    async def _forward(
        self, plan: InferencePlan, body: bytes, scope: Scope, receive: Receive, send: Send
    ) -> None:
        exchange = Exchange(
            plan,
            body,
            token=self._ports.entropy.token(12).hex(),
            created_at=int(self._ports.clock.now().timestamp()),
        )
        answer = _Answer(send, exchange)
        try:
            async with _while_listening(receive) as caller:
                await self._relay(plan, exchange, answer)
        except BaseException:
            exchange.cancel()
            self._issue(scope, exchange.record())
            raise
        if caller.left:
            # The engine's connection is closed; the receipt says that nobody was there any more.
            exchange.cancel()
            self._issue(scope, exchange.record())
            return
        await answer.end(self._issue(scope, exchange.record()))

    async def _relay(self, plan: InferencePlan, exchange: Exchange, answer: _Answer) -> None:
        try:
            upstream = await self._ports.upstream.forward(plan.upstream_path, plan.body)
        except Unavailable:
            answer.held = exchange.fail()
            return
        try:
            exchange.answer(upstream.status, upstream.content_type)
            async for chunk in upstream.chunks():
                await answer.give(exchange.feed(chunk))
            answer.held = exchange.finish()
        except (Unavailable, FormatError):
            answer.held = exchange.fail()
        finally:
            await upstream.close()

    def _issue(self, scope: Scope, record: InferenceRecord) -> Envelope:
        ports = self._ports
        channel = scope[SCOPE_KEY]
        keys = ports.identity.for_key(channel.key_id).keys
        receipt_id = "rcpt-" + ports.entropy.token(16).hex()
        envelope = issue_inference_receipt(
            keys.signer,
            receipt_id=receipt_id,
            keyset=_digest_of(keys.keyset),
            model=ports.served.name,
            weights=ports.weights,
            served=ports.clock.now(),
            sequence=self._sequence,
            sealed_request=channel.request_sha256 or bytes(32),
            response=bytes.fromhex(record.response_digest),
            record=record.as_json(),
        )
        self._sequence += 1
        self._receipts.add(receipt_id, envelope)
        return envelope

    async def _close_run(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _read(receive, _CLOSING_LIMITS.max_bytes + 1)
        if body is None:
            return
        try:
            evidence = await self._closing_evidence(scope, body)
        except FormatError as error:
            await _problem(send, 400, error.reason, error.what)
        except ConfideError:
            await _problem(send, 503, Reason.EVIDENCE_MISSING, "no evidence can be made now")
        else:
            await _whole(send, 200, _JSON, evidence)

    async def _closing_evidence(self, scope: Scope, body: bytes) -> bytes:
        reason = Reason.CLAIM_MISMATCH
        value = parse_json(body, what="closing", reason=reason, limits=_CLOSING_LIMITS)
        members = Members(value, what="closing", reason=reason)
        nonce, expectation, context = (
            members.hexes(name, 32) for name in ("nonce", "expectation", "context")
        )
        listed = members.texts("receipts", max_items=_MAX_CLOSED_RECEIPTS)
        members.end()
        receipts: list[bytes] = []
        for text in listed:
            if not is_hex(text, 32):
                members.refuse("a receipt is not named by 32 bytes of hex")
            receipts.append(bytes.fromhex(text))
        if not all(self._receipts.issued(digest) for digest in receipts):
            members.refuse("a receipt that this node did not issue")
        identity = self._ports.identity.for_key(scope[SCOPE_KEY].key_id)
        bundle = await identity.attester.attest(
            purpose="claim",
            nonce=nonce,
            expectation=expectation,
            claim=session_claim(context=context, receipts=receipts),
        )
        return encode_evidence_file(bundle)


class _Caller:
    """Whether the caller went away while it was answered."""

    def __init__(self) -> None:
        self.left = False


@asynccontextmanager
async def _while_listening(receive: Receive) -> AsyncIterator[_Caller]:
    """
    Run the body until it ends or the caller goes away, whichever is first.

    ASGI servers tell a disconnect through `receive`; some do not fail a `send` to nobody, and an
    engine must not go on working for a caller that left.
    """
    caller, here = _Caller(), asyncio.current_task()

    async def listen() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        caller.left = True
        if here is not None:
            here.cancel()

    listening = asyncio.ensure_future(listen())
    try:
        yield caller
    except asyncio.CancelledError:
        if not caller.left or here is None or here.uncancel() > 0:
            raise
    except OSError:
        caller.left = True
    finally:
        listening.cancel()


class _Answer:
    """The ASGI response of one exchange: streamed as it comes, or whole with its receipt."""

    def __init__(self, send: Send, exchange: Exchange) -> None:
        self._send = send
        self._exchange = exchange
        self._started = False
        # What `Exchange.finish` or `fail` gave: the rest of a stream, or the whole body.
        self.held = b""

    async def give(self, data: bytes) -> None:
        """Send bytes of a stream at once."""
        if not data:
            return
        if not self._started:
            self._started = True
            await _start(self._send, self._exchange.status, self._exchange.headers)
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, envelope: Envelope) -> None:
        """Send the rest, and the receipt: a comment line of a stream, a header otherwise."""
        if self._exchange.streams:
            await self.give(self.held)
            last = inline_comment(envelope)
            await self._send({"type": "http.response.body", "body": last, "more_body": False})
            return
        headers = (*self._exchange.headers, (RECEIPT_HEADER, encode_inline(envelope)))
        await _whole(self._send, self._exchange.status, headers, self.held)


async def _read(receive: Receive, limit: int) -> bytes | None:
    """Return the request body, cut at `limit` bytes; None when the caller went away."""
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        piece = message.get("body", b"")
        if size < limit:
            pieces.append(piece[: limit - size])
            size += len(piece)
        if not message.get("more_body", False):
            return b"".join(pieces)


async def _start(send: Send, status: int, headers: Headers) -> None:
    encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    await send({"type": "http.response.start", "status": status, "headers": encoded})


async def _whole(send: Send, status: int, headers: Headers, body: bytes) -> None:
    await _start(send, status, (*headers, ("content-length", str(len(body)))))
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def _fault(send: Send, fault: ApiFault) -> None:
    await _whole(send, fault.status, _JSON, fault.body())


async def _problem(send: Send, status: int, reason: Reason, detail: str) -> None:
    await _fault(send, ApiFault(status, "confide_error", reason.value, detail))
