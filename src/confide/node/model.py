"""The model node: OpenAI-compatible inference in front of an engine, each answer with a receipt.

Routes of the inner application (sealed requests only): the endpoints of
docs/protocols/inference.md §1.1 and the routes of its §6 and §8; `GET /v1/receipts/{id}`;
`POST /confide/v1/closing`. docs/protocols/receipt.md §3 and §5.

Written against ASGI itself: this is the hot path. Prompts and answers pass through memory and
nowhere else.
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

from confide.errors import ConfideError, FormatError, Overloaded, Reason, Unavailable
from confide.inference.digest import PLAIN, Carriage
from confide.inference.exchange import Exchange, refusal_record
from confide.inference.faults import ApiFault, RequestRefused, node_fault
from confide.inference.models import about_model, models_answer
from confide.inference.passing import PassRoutes, plan_pass, require_apart
from confide.inference.plan import UPLOADS
from confide.inference.routes import Endpoint, RequestLimits, plan_request
from confide.node.asgi import (
    Answer,
    content_type_of,
    read_body,
    send_fault,
    send_whole,
    spelled_path,
    while_listening,
)
from confide.node.closing import MAX_CLOSING_BYTES, closing_evidence
from confide.node.observed import facts_of, tell_record
from confide.node.receipt_store import IssuedDigests, ReceiptStore
from confide.node.sealed import SCOPE_KEY
from confide.node.tenants import Anyone
from confide.receipts.inference import UNLISTED
from confide.receipts.inline import RECEIPT_HEADER, encode_inline
from confide.receipts.issue import issue_inference_receipt

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.types import Receive, Scope, Send

    from confide.inference.digest import InferenceRecord
    from confide.inference.models import ServedModel
    from confide.inference.passing import PassRoute
    from confide.inference.plan import EngineRoutes, InferencePlan
    from confide.inference.salting import Salting
    from confide.node.asgi import Headers
    from confide.node.faces import Carried
    from confide.node.identity import NodeIdentity
    from confide.node.tenants import Call, Tenants
    from confide.ports import Clock, Entropy, Upstream
    from confide.wire.dsse import Envelope
    from confide.wire.keyset import Keyset
    from confide.wire.quantisation import Quantisation

__all__ = [
    "ModelNode",
    "ModelNodePorts",
    "ReceiptListener",
    "Worker",
]

# Scope of the call, id of its receipt, what it records, the receipt.
ReceiptListener: TypeAlias = "Callable[[Scope, str, InferenceRecord, Envelope], None]"

_CLOSING = "/confide/v1/closing"
_RECEIPTS = "/v1/receipts/"
_MODELS = "/v1/models"

_NO_ROUTE = ApiFault(404, "invalid_request_error", "not_found", "No such route.")
_JSON: Headers = (("content-type", "application/json"),)
_METHODS = frozenset(("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"))
_DRAIN_RETRY_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Worker:
    """
    Which of several workers this process is: docs/protocols/workers.md.

    `number` is its own for the life of the node, `issued` is shared by all, `elsewhere` finds the
    receipt of an id that another one issued.
    """

    number: int
    issued: IssuedDigests
    elsewhere: Callable[[str], Awaitable[bytes | None]]


@dataclass(frozen=True, slots=True)
class ModelNodePorts:
    """
    What the model node needs: identity, the engine and what it serves, time, randomness.

    `passing` are the routes of §8; the operator's beside those that only compute. `tenants` are
    those who may call: anyone, unless keys are asked for (docs/protocols/tenancy.md).
    `worker` is None where one process is the node.
    """

    identity: NodeIdentity
    upstream: Upstream
    routes: EngineRoutes
    served: ServedModel
    weights: bytes | None
    clock: Clock
    entropy: Entropy
    limits: RequestLimits
    passing: PassRoutes = field(default_factory=PassRoutes)
    quantisation: Quantisation | None = None
    tenants: Tenants = field(default_factory=Anyone)
    worker: Worker | None = None


@dataclass(frozen=True, slots=True)
class _Asked:
    """One request as it came, and how a plan is made of it for whoever asks."""

    endpoint: str
    body: bytes
    plan: Callable[[Salting | None], InferencePlan]
    carriage: Carriage = PLAIN


@lru_cache(maxsize=4)
def _digest_of(keyset: Keyset) -> bytes:
    # Every receipt names it, and it is a hash over canonical JSON.
    return keyset.digest


class ModelNode:
    """The inner ASGI application of a model node."""

    def __init__(self, ports: ModelNodePorts) -> None:
        self._ports = ports
        worker = ports.worker
        self._receipts = ReceiptStore(None if worker is None else worker.issued)
        # By keyset: how many receipts of it there are.
        self._sequences: Counter[bytes] = Counter()
        self._draining = False
        self._listeners: list[ReceiptListener] = []
        self._endpoints = {endpoint.value: endpoint for endpoint in Endpoint}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] != "http":
            return
        path, method = spelled_path(scope), scope["method"]
        endpoint = self._endpoints.get(path)
        if endpoint is not None and method == "POST":
            await self._infer(endpoint, scope, receive, send)
        elif path == _CLOSING and method == "POST":
            await self._close_run(scope, receive, send)
        elif method == "GET" and path == _MODELS:
            await send_whole(send, 200, _JSON, models_answer(self._ports.served))
        elif method == "GET" and (about := about_model(self._ports.served, scope["path"])):
            await send_whole(send, 200, _JSON, about)
        elif method == "GET" and path.startswith(_RECEIPTS):
            await self._receipt(path.removeprefix(_RECEIPTS), send)
        elif (route := self._ports.passing.find(method, path)) is not None:
            await self._pass(route, scope, receive, send)
        else:
            await self._turn_away(scope, receive, send)

    def drain(self) -> None:
        """Begin no more calls; those in progress go on (§9.6)."""
        self._draining = True

    def on_receipt(self, listener: ReceiptListener) -> None:
        """Have `listener` called at every receipt that is issued, before the answer is whole."""
        self._listeners.append(listener)

    async def _receipt(self, receipt_id: str, send: Send) -> None:
        found = self._receipts.find(receipt_id)
        body = None if found is None else found.encode()
        if body is None and self._ports.worker is not None:
            body = await self._ports.worker.elsewhere(receipt_id)
        if body is None:
            gone = "No receipt with this id is kept by this boot."
            await send_fault(send, ApiFault(404, "invalid_request_error", "not_found", gone))
            return
        await send_whole(send, 200, _JSON, body)

    def find_receipt(self, receipt_id: str) -> Envelope | None:
        """Return a receipt that this process issued, while it keeps it."""
        return self._receipts.find(receipt_id)

    async def _infer(self, endpoint: Endpoint, scope: Scope, receive: Receive, send: Send) -> None:
        ports = self._ports
        body = await read_body(receive, ports.limits.body_bytes(endpoint) + 1)
        if body is None:
            return

        def planned(salting: Salting | None) -> InferencePlan:
            return plan_request(
                endpoint,
                body,
                served=ports.served,
                routes=ports.routes,
                limits=ports.limits,
                content_type=content_type_of(scope) if endpoint in UPLOADS else "",
                salting=salting,
            )

        await self._serve(_Asked(endpoint, body, planned), scope, receive, send)

    async def _pass(self, route: PassRoute, scope: Scope, receive: Receive, send: Send) -> None:
        ports = self._ports
        limit = max(ports.limits.max_body_bytes, ports.limits.max_upload_bytes)
        body = await read_body(receive, limit + 1)
        if body is None:
            return

        def planned(salting: Salting | None) -> InferencePlan:
            require_apart(route, ports.passing.added, salting)
            return plan_pass(
                route,
                body,
                query=scope.get("query_string", b"").decode("latin-1"),
                content_type=content_type_of(scope),
                served=ports.served,
                limits=ports.limits,
            )

        asked = _Asked(route.path, body, planned, Carriage(method=route.method))
        await self._serve(asked, scope, receive, send)

    async def _serve(self, asked: _Asked, scope: Scope, receive: Receive, send: Send) -> None:
        """Find out who calls, plan, admit, forward; what is refused is receipted."""
        with ExitStack() as stack:
            try:
                self._require_open()
                caller = stack.enter_context(await self._ports.tenants.identify(scope))
                plan = asked.plan(caller.salting)
                call = await caller.admit(plan)
            except (RequestRefused, Overloaded) as error:
                fault = _fault_of(error)
                record = self._refused(asked.endpoint, asked.body, fault, asked.carriage)
                await self._refuse(scope, send, record, fault)
                return
            await self._forward(plan, asked.body, scope, receive, send, call=call)

    async def _turn_away(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(receive, self._ports.limits.max_body_bytes + 1)
        if body is None:
            return
        method = scope["method"] if scope["method"] in _METHODS else "other"
        record = self._refused(UNLISTED, body, _NO_ROUTE, Carriage(method=method))
        await self._refuse(scope, send, record, _NO_ROUTE)

    def _refused(
        self, endpoint: str, body: bytes, fault: ApiFault, carriage: Carriage = PLAIN
    ) -> InferenceRecord:
        return refusal_record(endpoint, body, fault, served=self._ports.served, carriage=carriage)

    def _require_open(self) -> None:
        if self._draining:
            raise Overloaded("draining", retry_after=_DRAIN_RETRY_SECONDS, draining=True)

    async def _refuse(
        self, scope: Scope, send: Send, record: InferenceRecord, fault: ApiFault
    ) -> None:
        facts_of(scope).code = fault.code
        told = ((RECEIPT_HEADER, encode_inline(self._issue(scope, record))),)
        await send_fault(send, fault, told if _carried(scope).receipt_inline else ())

    async def _forward(
        self,
        plan: InferencePlan,
        body: bytes,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        call: Call,
    ) -> None:
        # Nobody is asked where nobody could sign what was asked.
        _ = _carried(scope).speaker
        exchange = Exchange(
            plan,
            body,
            token=self._ports.entropy.token(12).hex(),
            created_at=int(self._ports.clock.now().timestamp()),
        )
        answer = Answer(send, exchange, call.headers, inline=_carried(scope).receipt_inline)
        try:
            async with while_listening(receive) as caller:
                await self._relay(plan, exchange, answer, call)
        except Overloaded as error:
            fault = node_fault(error)
            record = self._refused(plan.endpoint, body, fault, Carriage(method=plan.method))
            call.settle(record)
            await self._refuse(scope, send, record, fault)
            return
        except BaseException:
            exchange.cancel()
            self._conclude(scope, exchange, call)
            raise
        if caller.left:
            # The engine's connection is closed; the receipt says that nobody was there any more.
            exchange.cancel()
            self._conclude(scope, exchange, call)
            return
        await answer.end(self._conclude(scope, exchange, call))

    def _conclude(self, scope: Scope, exchange: Exchange, call: Call) -> Envelope:
        record = exchange.record()
        call.settle(record)
        return self._issue(scope, record)

    async def _relay(
        self, plan: InferencePlan, exchange: Exchange, answer: Answer, call: Call
    ) -> None:
        try:
            upstream = await self._ports.upstream.forward(
                f"{plan.upstream_path}?{plan.query}" if plan.query else plan.upstream_path,
                plan.body,
                method=plan.method,
                content_type=plan.content_type,
                repeatable=plan.repeatable,
            )
        except Overloaded:
            raise
        except Unavailable:
            answer.held = exchange.fail()
            return
        try:
            exchange.answer(upstream.status, upstream.content_type, member=upstream.member)
            async for chunk in upstream.chunks():
                call.count(chunk)
                await answer.give(exchange.feed(chunk))
            answer.held = exchange.finish()
        except (Unavailable, FormatError):
            answer.held = exchange.fail()
        finally:
            await upstream.close()

    def _issue(self, scope: Scope, record: InferenceRecord) -> Envelope:
        tell_record(scope, record)
        ports = self._ports
        channel = _carried(scope)
        if channel.way is not None:
            record = record.carried_by(channel.way)
        keys = channel.speaker.keys
        keyset = _digest_of(keys.keyset)
        receipt_id = "rcpt-" + ports.entropy.token(16).hex()
        envelope = issue_inference_receipt(
            keys.signer,
            receipt_id=receipt_id,
            keyset=keyset,
            model=ports.served.name,
            weights=ports.weights,
            served=ports.clock.now(),
            sequence=self._sequences[keyset],
            worker=None if ports.worker is None else ports.worker.number,
            sealed_request=channel.request_sha256 or bytes(32),
            response=bytes.fromhex(record.response_digest),
            record=record.as_json(),
            quantisation=ports.quantisation,
        )
        self._sequences[keyset] += 1
        self._receipts.add(receipt_id, envelope)
        for listener in self._listeners:
            listener(scope, receipt_id, record, envelope)
        return envelope

    async def _close_run(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(receive, MAX_CLOSING_BYTES + 1)
        if body is None:
            return
        try:
            evidence = await closing_evidence(
                body, issued=self._receipts.issued, attester=_carried(scope).speaker.attester
            )
        except FormatError as error:
            await _problem(send, 400, error.reason, error.what)
        except ConfideError:
            await _problem(send, 503, Reason.EVIDENCE_MISSING, "no evidence can be made now")
        else:
            await send_whole(send, 200, _JSON, evidence)


def _carried(scope: Scope) -> Carried:
    carried: Carried = scope[SCOPE_KEY]
    return carried


def _fault_of(error: RequestRefused | Overloaded) -> ApiFault:
    return error.fault if isinstance(error, RequestRefused) else node_fault(error)


async def _problem(send: Send, status: int, reason: Reason, detail: str) -> None:
    await send_fault(send, ApiFault(status, "confide_error", reason.value, detail))
