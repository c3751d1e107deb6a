"""A booted model node with the NEAR face in memory, a stub engine behind it, ways to reach it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import httpx2
from nodes import NOW, SEED, SOFTWARE, WEIGHTS, SimulatedNode, roots

from confide.errors import Unavailable
from confide.inference.models import ServedModel
from confide.inference.routes import Endpoint, EngineRoutes, RequestLimits
from confide.node.app import NodeApp
from confide.node.faces import TLS_KEY
from confide.node.identity import NodeIdentity
from confide.node.machine import Machine, MachineGpus
from confide.node.model import ModelNode, ModelNodePorts
from confide.node.near import NearFace
from confide.simulator.boot import launch_document
from confide.simulator.machine import SimulatedGpuControl, make_gpus, make_platform
from confide.wire.endorsements import Endorsements
from confide.wire.faces import FaceName

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


MODEL = "support-notes"
FINGERPRINT = b"f" * 32
WHOLE: dict[str, Any] = {
    "id": "chatcmpl-0123",
    "object": "chat.completion",
    "created": 1,
    "model": MODEL,
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "the answer", "reasoning": "because"},
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
}


def event(**delta: Any) -> bytes:
    """One event of a stream of an engine."""
    chunk = {
        "id": "chatcmpl-0123",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": MODEL,
        "choices": [{"index": 0, "delta": delta, "finish_reason": None}],
    }
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


EVENTS = [
    event(role="assistant", content=""),
    event(content="the "),
    event(content="answer"),
    b"data: [DONE]\n\n",
]


@dataclass
class Answered:
    """One answer of the stub engine; with `hangs` it stays open after its pieces."""

    pieces: list[bytes]
    content_type: str = "application/json"
    status: int = 200
    breaks: bool = False
    hangs: bool = False
    member: int | None = None

    async def chunks(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            yield piece
        if self.hangs:
            await asyncio.Event().wait()
        if self.breaks:
            raise Unavailable("the engine broke off its answer")

    async def close(self) -> None:
        return


@dataclass
class StubUpstream:
    """An engine that answers one thing, and what it was asked."""

    answer: Answered
    seen: list[Any] = field(default_factory=list)

    async def forward(
        self,
        path: str,
        body: bytes,
        *,
        method: str = "POST",
        content_type: str = "application/json",
        repeatable: bool = True,
    ) -> Answered:
        del method, repeatable
        said = json.loads(body) if content_type == "application/json" else body
        self.seen.append((path, said))
        return self.answer

    async def probe(self) -> EngineRoutes:
        return EngineRoutes.of(frozenset(Endpoint), models=False)


def whole(**changed: Any) -> Answered:
    return Answered([json.dumps({**WHOLE, **changed}).encode()])


def streamed(*events: bytes, **how: Any) -> Answered:
    return Answered(list(events or EVENTS), "text/event-stream", **how)


class NearPlace:
    """The node. `tls` says whether there is a TLS port of its own, `faces` what is on."""

    def __init__(
        self, *, tls: bool = False, faces: tuple[FaceName, ...] = (FaceName.NEAR,)
    ) -> None:
        self.simulated = SimulatedNode("model", faces=faces)
        asyncio.run(self.simulated.boot())
        self.upstream = StubUpstream(whole())
        clock, entropy = self.simulated.clock, self.simulated.entropy
        self.identity = NodeIdentity(
            self.simulated.keys,
            self.simulated.attester,
            clock=clock,
            entropy=entropy,
            simulated=True,
        )
        served = ServedModel(
            name=MODEL,
            weights_digest="11" * 32,
            manifest_digest=WEIGHTS.hex(),
            upstream_name=MODEL,
            created=1,
        )
        ports = ModelNodePorts(
            identity=self.identity,
            upstream=self.upstream,
            routes=EngineRoutes.of(frozenset(Endpoint), models=False),
            served=served,
            weights=WEIGHTS,
            clock=clock,
            entropy=entropy,
            limits=RequestLimits(),
        )
        self.node = ModelNode(ports)
        on = []
        if FaceName.NEAR in faces:
            self.face = NearFace(
                identity=self.identity,
                machine=self.machine(),
                inner=self.node,
                model=MODEL,
                fingerprint=FINGERPRINT if tls else None,
            )
            on = [self.face]
        self.app = NodeApp(self.identity, self.node, on)

    def machine(self, **changed: Any) -> Machine:
        attester = self.simulated.attester
        assert attester.devices is not None
        policy = make_gpus(SEED, NOW, ()).policy()
        machine = Machine(
            SOFTWARE,
            self.simulated.guest,
            attester.collateral,
            MachineGpus(attester.devices, SimulatedGpuControl(), policy),
            roots(),
            launch_document(role="model", software=SOFTWARE),
        )
        return replace(machine, **changed)

    def call(
        self,
        method: str,
        path: str,
        *,
        body: bytes | dict[str, Any] = b"",
        headers: dict[str, str] | list[tuple[str, str]] | None = None,
        tls: bool = False,
    ) -> httpx2.Response:
        """Send one request; `tls`: through the node's own TLS port."""
        content = json.dumps(body).encode() if isinstance(body, dict) else body

        async def app(scope: Any, receive: Any, send: Any) -> None:
            marked = {**scope, TLS_KEY: FINGERPRINT} if tls else scope
            await self.app(marked, receive, send)

        async def exchange() -> httpx2.Response:
            transport = httpx2.ASGITransport(app=app)
            async with httpx2.AsyncClient(transport=transport, base_url="http://node") as client:
                return await client.request(method, path, content=content, headers=headers)

        return asyncio.run(exchange())

    def receipts(self) -> list[dict[str, Any]]:
        """The predicates of all receipts of this node, oldest first."""
        kept = self.node._receipts._by_id.values()
        return [json.loads(envelope.payload)["predicate"] for envelope in kept]


def endorsements() -> Endorsements:
    """Collateral and manifests for the machine of these tests."""
    return Endorsements(
        tdx=(make_platform(SEED, NOW, ()).collateral(),),
        nvidia=make_gpus(SEED, NOW, ()).endorsements(NOW),
    )
