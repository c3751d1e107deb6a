"""The model node's routes, in process: every answer has a receipt, closings cover only its own."""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from nodes import NOW, WEIGHTS, SimulatedNode, fitting_expectation, roots

from confide.appraisal.binding import closing_nonce
from confide.appraisal.node import appraise_node
from confide.crypto.ed25519 import verify_ed25519
from confide.errors import Reason, Unavailable
from confide.inference.models import ServedModel
from confide.inference.routes import EngineRoutes, RequestLimits
from confide.node.faces import FaceRecord
from confide.node.identity import NodeIdentity
from confide.node.model import ModelNode, ModelNodePorts
from confide.node.sealed import SCOPE_KEY, ChannelRecord
from confide.receipts.inline import RECEIPT_HEADER, ReceiptStripper, decode_inline
from confide.receipts.issue import INFERENCE, session_claim
from confide.wire.dsse import Envelope, pae, parse_envelope, parse_statement_payload
from confide.wire.evidence import decode_evidence
from confide.wire.faces import Way
from confide.wire.json import jcs, parse_json

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from confide.node.faces import Carried
    from confide.wire.json import JsonValue

SEALED = hashlib.sha256(b"the sealed request").digest()
QUESTION = {"model": "support-notes", "messages": [{"role": "user", "content": "hello"}]}
WHOLE = json.dumps(
    {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "support-notes",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
        ],
    }
).encode()
EVENTS = [b'data: {"choices": []}\n\n', b"data: [DONE]\n\n"]


@dataclass
class Answered:
    """One answer of the stub engine."""

    status: int
    content_type: str
    pieces: list[bytes]
    breaks: bool = False
    member: int | None = None

    async def chunks(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            yield piece
        if self.breaks:
            raise Unavailable("the engine broke off its answer")

    async def close(self) -> None:
        return


@dataclass
class StubUpstream:
    """An engine that answers one thing, or nothing."""

    answer: Answered | None = None
    seen: list[tuple[str, bytes]] = field(default_factory=list)
    how: list[tuple[str, str, bool]] = field(default_factory=list)

    async def forward(
        self,
        path: str,
        body: bytes,
        *,
        method: str = "POST",
        content_type: str = "application/json",
        repeatable: bool = True,
    ) -> Answered:
        self.seen.append((path, body))
        self.how.append((method, content_type, repeatable))
        if self.answer is None:
            raise Unavailable("no engine")
        return self.answer

    async def probe(self) -> EngineRoutes:
        return EngineRoutes(chat=True, completions=True, responses=False, models=False)


@dataclass
class Got:
    """An ASGI response."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass
class Place:
    """A booted model node with a stub engine."""

    simulated: SimulatedNode
    upstream: StubUpstream
    node: ModelNode

    def call(
        self, method: str, path: str, body: bytes = b"", *, carried: Carried | None = None
    ) -> Got:
        record = carried or ChannelRecord(b"c" * 32, 1, b"n" * 32, NOW, request_sha256=SEALED)
        scope = {"type": "http", "method": method, "path": path, SCOPE_KEY: record}
        got = Got()

        pending = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if not pending:
                await asyncio.Event().wait()
            return pending.pop()

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                got.status = message["status"]
                got.headers = {n.decode(): v.decode() for n, v in message["headers"]}
            else:
                got.body += message.get("body", b"")

        asyncio.run(self.node(scope, receive, send))
        return got

    def require_signed(self, envelope: Envelope) -> dict[str, Any]:
        """Check signature and form; return the predicate."""
        ((keyid, signature),) = envelope.signatures
        keys = {str(k.id): k.public_key for k in self.simulated.keys.keyset.keys}
        verify_ed25519(keys[keyid], signature, pae(envelope.payload))
        parse_statement_payload(envelope.payload, predicate_type=INFERENCE)
        statement: dict[str, Any] = json.loads(envelope.payload)
        return dict(statement["predicate"])


@pytest.fixture
def place() -> Place:
    simulated = SimulatedNode("model")
    asyncio.run(simulated.boot())
    upstream = StubUpstream(Answered(200, "application/json", [WHOLE]))
    served = ServedModel(
        name="support-notes",
        weights_digest="11" * 32,
        manifest_digest=WEIGHTS.hex(),
        upstream_name="support-notes",
        created=1,
    )
    identity = NodeIdentity(
        simulated.keys,
        simulated.attester,
        clock=simulated.clock,
        entropy=simulated.entropy,
        simulated=True,
    )
    routes = EngineRoutes(chat=True, completions=True, responses=False, models=False)
    ports = ModelNodePorts(
        identity=identity,
        upstream=upstream,
        routes=routes,
        served=served,
        weights=WEIGHTS,
        clock=simulated.clock,
        entropy=simulated.entropy,
        limits=RequestLimits(),
    )
    return Place(simulated, upstream, ModelNode(ports))


def ask(place: Place, **changed: JsonValue) -> Got:
    return place.call("POST", "/v1/chat/completions", json.dumps({**QUESTION, **changed}).encode())


def test_a_whole_answer_carries_its_receipt_in_a_header(place: Place) -> None:
    got = ask(place)
    assert (got.status, got.body) == (200, WHOLE)
    predicate = place.require_signed(decode_inline(got.headers[RECEIPT_HEADER]))
    assert predicate["record"]["response"] == hashlib.sha256(WHOLE).hexdigest()
    assert predicate["sealed_request"] == SEALED.hex()
    assert predicate["model"] == {"name": "support-notes", "weights": WEIGHTS.hex()}


def test_a_stream_carries_its_receipt_in_the_last_line(place: Place) -> None:
    place.upstream.answer = Answered(200, "text/event-stream", EVENTS)
    got = ask(place, stream=True)
    stripper = ReceiptStripper()
    given = stripper.feed(got.body)
    rest, text = stripper.finish()
    assert given + rest == b"".join(EVENTS)
    assert text is not None
    predicate = place.require_signed(decode_inline(text))
    assert predicate["record"]["response"] == hashlib.sha256(given + rest).hexdigest()
    assert predicate["record"]["streamed"] is True


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("inline", [False, True])
def test_a_request_over_a_face_is_receipted_and_the_receipt_says_so(
    place: Place, *, stream: bool, inline: bool
) -> None:
    if stream:
        place.upstream.answer = Answered(200, "text/event-stream", EVENTS)
    record = FaceRecord(Way.NEAR_OHTTP, 1, SEALED, receipt_inline=inline)
    body = json.dumps({**QUESTION, "stream": stream}).encode()
    got = place.call("POST", "/v1/chat/completions", body, carried=record)
    assert (RECEIPT_HEADER in got.headers) == (inline and not stream)
    assert (b"confide-receipt" in got.body) == (inline and stream)
    (envelope,) = place.node._receipts._by_id.values()
    assert place.require_signed(envelope)["record"]["way"] == "near/ohttp"


def test_the_receipt_is_found_by_its_id_as_long_as_the_node_lives(place: Place) -> None:
    envelope = decode_inline(ask(place).headers[RECEIPT_HEADER])
    receipt_id = place.require_signed(envelope)["id"]
    got = place.call("GET", f"/v1/receipts/{receipt_id}")
    value = parse_json(got.body, what="receipt", reason=Reason.RECEIPT_FORMAT)
    assert parse_envelope(value) == envelope
    assert place.call("GET", "/v1/receipts/rcpt-other").status == 404


def test_receipts_are_numbered_in_order(place: Place) -> None:
    numbers = [
        place.require_signed(decode_inline(ask(place).headers[RECEIPT_HEADER]))["sequence"]
        for _ in range(3)
    ]
    assert numbers == [0, 1, 2]


def test_a_refused_request_reaches_no_engine_and_still_has_a_receipt(place: Place) -> None:
    got = ask(place, model="another")
    assert got.status == 404
    assert place.upstream.seen == []
    predicate = place.require_signed(decode_inline(got.headers[RECEIPT_HEADER]))
    assert predicate["record"]["upstream"] is None
    assert predicate["record"]["status"] == 404


@pytest.mark.parametrize("answer", [None, Answered(200, "application/json", [b"{"], breaks=True)])
def test_an_engine_that_fails_is_said_to_have_failed(place: Place, answer: Answered | None) -> None:
    place.upstream.answer = answer
    got = ask(place)
    assert got.status in (502, 503)
    predicate = place.require_signed(decode_inline(got.headers[RECEIPT_HEADER]))
    assert predicate["record"]["finish"] == "upstream-failed"


def test_a_stream_that_breaks_says_so_and_has_a_receipt(place: Place) -> None:
    place.upstream.answer = Answered(200, "text/event-stream", EVENTS[:1], breaks=True)
    got = ask(place, stream=True)
    stripper = ReceiptStripper()
    given = stripper.feed(got.body)
    _, text = stripper.finish()
    assert b'"error"' in given
    assert text is not None
    assert place.require_signed(decode_inline(text))["record"]["finish"] == "upstream-failed"


def test_responses_are_mapped_and_say_so(place: Place) -> None:
    body = json.dumps({"model": "support-notes", "input": "hello"}).encode()
    got = place.call("POST", "/v1/responses", body)
    assert got.headers["confide-mapping"] == "responses-over-chat"
    assert json.loads(got.body)["object"] == "response"
    assert place.upstream.seen[0][0] == "/v1/chat/completions"
    predicate = place.require_signed(decode_inline(got.headers[RECEIPT_HEADER]))
    assert "responses-over-chat" in predicate["record"]["transformations"]


def test_models_names_what_was_measured(place: Place) -> None:
    (entry,) = json.loads(place.call("GET", "/v1/models").body)["data"]
    assert entry["id"] == "support-notes"
    assert entry["manifest_digest"] == WEIGHTS.hex()
    assert place.call("GET", "/v1/models/support-notes").status == 200


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/chat/completions"), ("POST", "/v1/x"), ("GET", "/")]
)
def test_nothing_else_is_served(place: Place, method: str, path: str) -> None:
    assert place.call(method, path).status == 404


def _close(place: Place, receipts: list[str], nonce: bytes = b"o" * 32) -> Got:
    known = roots()
    return place.call(
        "POST",
        "/confide/v1/closing",
        jcs(
            {
                "nonce": closing_nonce(nonce, b"t" * 32).hex(),
                "expectation": fitting_expectation(known).digest.hex(),
                "context": (b"t" * 32).hex(),
                "receipts": receipts,
            }
        ),
    )


def test_a_closing_is_evidence_of_cpu_and_gpu_about_exactly_these_receipts(place: Place) -> None:
    digests = [decode_inline(ask(place).headers[RECEIPT_HEADER]).digest for _ in range(2)]
    got = _close(place, [digest.hex() for digest in digests])
    assert got.status == 200
    known = roots()
    node = appraise_node(
        decode_evidence(got.body),
        subject="model-node",
        role="model",
        purpose="claim",
        nonce=closing_nonce(b"o" * 32, b"t" * 32),
        claim=session_claim(context=b"t" * 32, receipts=digests),
        expectation=fitting_expectation(known),
        roots=known,
        now=NOW,
    )
    assert node.gpus is not None


def test_a_closing_over_a_receipt_of_somebody_else_is_refused(place: Place) -> None:
    own = decode_inline(ask(place).headers[RECEIPT_HEADER]).digest.hex()
    got = _close(place, [own, "ab" * 32])
    assert got.status == 400
    assert json.loads(got.body)["error"]["code"] == "claim-mismatch"


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"nonce": 1}', b"\xff"])
def test_a_closing_that_is_none_is_refused(place: Place, body: bytes) -> None:
    assert place.call("POST", "/confide/v1/closing", body).status == 400


def test_there_is_no_closing_once_the_weights_changed(place: Place) -> None:
    async def changed() -> None:
        raise Unavailable("the weights are not what was measured")

    ports = place.node._ports
    current = ports.identity.current
    object.__setattr__(current.attester, "unchanged", changed)
    assert _close(place, []).status == 503


def test_a_caller_that_leaves_stops_the_engine_and_leaves_a_receipt(place: Place) -> None:
    closed: list[bool] = []

    class Endless(Answered):
        async def chunks(self) -> AsyncIterator[bytes]:
            yield EVENTS[0]
            await asyncio.Event().wait()

        async def close(self) -> None:
            closed.append(True)

    place.upstream.answer = Endless(200, "text/event-stream", [])
    asked = [{"type": "http.request", "body": json.dumps({**QUESTION, "stream": True}).encode()}]

    async def exchange() -> None:
        first = asyncio.Event()

        async def receive() -> dict[str, Any]:
            if asked:
                return asked.pop()
            await first.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                first.set()

        record = ChannelRecord(b"c" * 32, 1, b"n" * 32, NOW, request_sha256=SEALED)
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/chat/completions",
            SCOPE_KEY: record,
        }
        await place.node(scope, receive, send)

    asyncio.run(exchange())
    assert closed == [True]
    (envelope,) = place.node._receipts._by_id.values()
    assert place.require_signed(envelope)["record"]["finish"] == "client-cancelled"
