"""A model node's inner application in memory, in front of engines on real sockets."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import deque
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engine_peers import Engine
from nodes import NOW, WEIGHTS, SimulatedNode

from confide.adapters.upstream_http import UpstreamConfig
from confide.adapters.upstream_pool import EnginePool, PoolLimits
from confide.crypto.ed25519 import verify_ed25519
from confide.errors import Reason
from confide.inference.digest import InferenceRecord, parse_record
from confide.inference.models import ServedModel
from confide.inference.passing import PassRoutes
from confide.inference.plan import Endpoint, EngineRoutes, RequestLimits
from confide.node.identity import NodeIdentity
from confide.node.model import ModelNode, ModelNodePorts
from confide.node.sealed import SCOPE_KEY, ChannelRecord
from confide.receipts.inline import RECEIPT_HEADER, ReceiptStripper, decode_inline
from confide.wire.dsse import pae

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from engine_peers import Peer

    from confide.wire.dsse import Envelope

SEALED = hashlib.sha256(b"the sealed request").digest()
ALL = EngineRoutes.of(frozenset(Endpoint), models=True)


@dataclass
class Got:
    """An ASGI response; `body` without the receipt that ends a stream."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes = b""
    pieces: int = 0

    @property
    def body(self) -> bytes:
        if RECEIPT_HEADER in self.headers:
            return self.raw
        stripper = ReceiptStripper()
        given = stripper.feed(self.raw)
        return given + stripper.finish()[0]

    @property
    def envelope(self) -> Envelope:
        if RECEIPT_HEADER in self.headers:
            return decode_inline(self.headers[RECEIPT_HEADER])
        stripper = ReceiptStripper()
        stripper.feed(self.raw)
        text = stripper.finish()[1]
        assert text is not None, "an answer without a receipt"
        return decode_inline(text)

    @property
    def code(self) -> str:
        return str(json.loads(self.body)["error"]["code"])


class Call:
    """One ASGI call that a test feeds and may leave."""

    def __init__(self, node: ModelNode, scope: dict[str, Any]) -> None:
        self.got = Got()
        self.answering = asyncio.Event()
        self._node = node
        self._scope = scope
        self._messages: deque[dict[str, Any]] = deque()
        self._more = asyncio.Event()

    def give(self, body: bytes, *, more: bool = False) -> None:
        self._messages.append({"type": "http.request", "body": body, "more_body": more})
        self._more.set()

    def leave(self) -> None:
        self._messages.append({"type": "http.disconnect"})
        self._more.set()

    async def run(self) -> Got:
        await self._node(self._scope, self._receive, self._send)
        return self.got

    async def _receive(self) -> dict[str, Any]:
        while not self._messages:
            self._more.clear()
            await self._more.wait()
        return self._messages.popleft()

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.got.status = message["status"]
            self.got.headers = {n.decode(): v.decode() for n, v in message["headers"]}
            return
        self.got.raw += message.get("body", b"")
        self.got.pieces += 1
        self.answering.set()


@dataclass
class Inner:
    """A booted model node in front of a pool."""

    simulated: SimulatedNode
    identity: NodeIdentity
    pool: EnginePool
    node: ModelNode

    def call(self, path: str, *, method: str = "POST", kind: str = "application/json") -> Call:
        raw_path, _, query = path.partition("?")
        record = ChannelRecord(
            b"c" * 32, 1, b"n" * 32, NOW, self.identity.current, request_sha256=SEALED
        )
        scope = {
            "type": "http",
            "method": method,
            "path": raw_path,
            "raw_path": raw_path.encode(),
            "query_string": query.encode(),
            "headers": [(b"content-type", kind.encode())],
            SCOPE_KEY: record,
        }
        return Call(self.node, scope)

    async def ask(
        self,
        path: str,
        body: bytes | dict[str, Any] = b"",
        *,
        method: str = "POST",
        kind: str = "application/json",
    ) -> Got:
        call = self.call(path, method=method, kind=kind)
        call.give(body if isinstance(body, bytes) else json.dumps(body).encode())
        return await call.run()

    def record(self, envelope: Envelope) -> InferenceRecord:
        """Return the record of a receipt, signature checked."""
        ((keyid, signature),) = envelope.signatures
        keys = {str(k.id): k.public_key for k in self.simulated.keys.keyset.keys}
        verify_ed25519(keys[keyid], signature, pae(envelope.payload))
        value = json.loads(envelope.payload)["predicate"]["record"]
        return parse_record(value, what="record", reason=Reason.RECEIPT_FORMAT)

    def receipts(self) -> list[InferenceRecord]:
        """Return the records of all receipts, those that nobody received too."""
        return [self.record(envelope) for envelope in self.node._receipts._by_id.values()]


@asynccontextmanager
async def inner_node(
    *talks: Callable[[Peer], Awaitable[None]],
    upstream_name: str = "m",
    routes: EngineRoutes = ALL,
    passing: PassRoutes | None = None,
    limits: PoolLimits | None = None,
    **config: Any,
) -> AsyncIterator[Inner]:
    """Boot a node that serves "m" in front of engines that do what `talks` say."""
    async with AsyncExitStack() as stack:
        urls = [await stack.enter_async_context(Engine(talk).serving()) for talk in talks]
        configs = [UpstreamConfig(base_url=url, **config) for url in urls]
        pool = EnginePool(configs, model=upstream_name, limits=limits)
        await stack.enter_async_context(pool)
        simulated = SimulatedNode("model")
        await simulated.boot()
        identity = NodeIdentity(
            simulated.keys,
            simulated.attester,
            clock=simulated.clock,
            entropy=simulated.entropy,
            simulated=True,
        )
        served = ServedModel(
            name="m",
            weights_digest="11" * 32,
            manifest_digest=WEIGHTS.hex(),
            upstream_name=upstream_name,
            created=1,
        )
        ports = ModelNodePorts(
            identity=identity,
            upstream=pool,
            routes=routes,
            served=served,
            weights=WEIGHTS,
            clock=simulated.clock,
            entropy=simulated.entropy,
            limits=RequestLimits(),
            passing=passing or PassRoutes(),
        )
        yield Inner(simulated, identity, pool, ModelNode(ports))
