"""A booted model node with keys, in one event loop: a store on disk, an engine of a script."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from nodes import NOW, WEIGHTS, FixedClock, SimulatedNode

from confide.adapters.tenant_sql import SqlTenants, open_tenants
from confide.errors import Unavailable
from confide.inference.models import ServedModel
from confide.inference.plan import Endpoint
from confide.inference.routes import EngineRoutes, RequestLimits
from confide.node.identity import NodeIdentity
from confide.node.metering import Meter, in_thread
from confide.node.model import ModelNode, ModelNodePorts
from confide.node.observed import Observed
from confide.node.sealed import SCOPE_KEY, ChannelRecord
from confide.node.tenants import KeyedTenants, SaltSource
from confide.receipts.inline import RECEIPT_HEADER, ReceiptStripper, decode_inline
from confide.telemetry.metrics import Metrics
from confide.tenancy.keys import KeyRecord, Limits, make_key

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from starlette.types import ASGIApp

    from confide.node.faces import Carried
    from confide.node.tenants import Tenants
    from confide.ports import TenantStore
    from confide.tenancy.ledger import Operation, Outcome

MODEL = "support-notes"
CHAT = "/v1/chat/completions"
ASKED: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}


def answer_of(given: int, made: int) -> bytes:
    """Return a whole chat answer that reports so many tokens."""
    usage = {"prompt_tokens": given, "completion_tokens": made}
    return json.dumps({"id": "c", "model": MODEL, "choices": [], "usage": usage}).encode()


@dataclass
class Scripted:
    """An engine: what it answers, whether it waits for `opened`, and what it was sent."""

    body: bytes = field(default_factory=lambda: answer_of(3, 4))
    status: int = 200
    content_type: str = "application/json"
    pieces: tuple[bytes, ...] = ()
    breaks: bool = False
    absent: bool = False
    hold: bool = False
    # After the last piece it says no more until `opened`.
    lingers: bool = False
    opened: asyncio.Event = field(default_factory=asyncio.Event)
    begun: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    seen: list[bytes] = field(default_factory=list)
    error: BaseException | None = None
    # Prompts that it remembers, each with the salt it came with, as vLLM and SGLang do.
    cache: set[tuple[str, str]] = field(default_factory=set)

    async def forward(self, path: str, body: bytes, **_options: Any) -> _Answer:
        del path
        self.seen.append(body)
        self.body = self._remembering(json.loads(body))
        self.begun.release()
        if self.error is not None:
            raise self.error
        if self.hold:
            await self.opened.wait()
        if self.absent:
            raise Unavailable("no engine")
        return _Answer(self)

    def _remembering(self, asked: dict[str, Any]) -> bytes:
        """Return the answer, with what of its prompt was not computed anew."""
        place = (asked.get("cache_salt", ""), json.dumps(asked.get("messages")))
        answer = json.loads(self.body)
        details = {"cached_tokens": 3 if place in self.cache else 0}
        answer["usage"]["prompt_tokens_details"] = details
        self.cache.add(place)
        return json.dumps(answer).encode()

    async def probe(self) -> EngineRoutes:
        return ROUTES


ROUTES = EngineRoutes.of(
    frozenset((Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.EMBEDDINGS, Endpoint.TOKENIZE)),
    models=False,
)


class _Answer:
    member = None

    def __init__(self, engine: Scripted) -> None:
        self._engine = engine
        self.status = engine.status
        self.content_type = engine.content_type

    async def chunks(self) -> AsyncIterator[bytes]:
        for piece in self._engine.pieces or (self._engine.body,):
            yield piece
        if self._engine.lingers:
            await self._engine.opened.wait()
        if self._engine.breaks:
            raise Unavailable("broken off")

    async def close(self) -> None:
        return


@dataclass
class Got:
    """What a caller got."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def code(self) -> str:
        """The code of a refusal."""
        return str(json.loads(self.body)["error"]["code"])

    @property
    def record(self) -> dict[str, Any]:
        """The record of the receipt that came along."""
        text: str | None = self.headers.get(RECEIPT_HEADER)
        if text is None:
            stripper = ReceiptStripper()
            stripper.feed(self.body)
            text = stripper.finish()[1]
        assert text is not None, "an answer without a receipt"
        predicate = json.loads(decode_inline(text).payload)["predicate"]
        record: dict[str, Any] = predicate["record"]
        return record


class Fails:
    """The true store for as many transactions as `answers` says, then one that fails."""

    def __init__(self, store: TenantStore) -> None:
        self._store = store
        self.answers: int | None = None
        self.failed = 0

    def work(self, operations: Sequence[Operation]) -> list[Outcome]:
        if self.answers == 0:
            self.failed += 1
            raise Unavailable("the disk is full")
        if self.answers is not None:
            self.answers -= 1
        return self._store.work(operations)


@dataclass
class World:
    """The node at `app`, its store, its engine."""

    app: ASGIApp
    identity: NodeIdentity
    store: SqlTenants
    fails: Fails
    meter: Meter
    engine: Scripted
    clock: FixedClock
    metrics: Metrics

    def key(self, number: int = 1, limits: Limits | None = None, **changes: Any) -> str:
        """Store one more key; return its text."""
        key = make_key(bytes([number]) * 32)
        record = KeyRecord(id=key.id, digest=key.digest, tenant=key.id, created=NOW)
        self.store.add(replace(record, limits=limits or Limits(), **changes))
        return key.text

    async def ask(
        self,
        key: str | None,
        body: Any = None,
        *,
        path: str = CHAT,
        headers: Sequence[tuple[str, str]] = (),
        left: asyncio.Event | None = None,
        after: int = 1 << 30,
        carried: Carried | None = None,
    ) -> Got:
        """Send one request; the caller leaves when `left` is set, or after so many messages."""
        raw = body if isinstance(body, bytes) else json.dumps(body or ASKED).encode()
        named = [] if key is None else [("authorization", f"Bearer {key}")]
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "headers": [(n.encode(), v.encode("latin-1")) for n, v in (*named, *headers)],
            SCOPE_KEY: carried
            or ChannelRecord(
                b"c" * 32, 1, b"n" * 32, NOW, self.identity.current, request_sha256=bytes(32)
            ),
        }
        got, sent, gone = Got(), 0, left or asyncio.Event()
        pending = [{"type": "http.request", "body": raw, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if pending:
                return pending.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            nonlocal sent
            sent += 1
            if message["type"] == "http.response.start":
                got.status = message["status"]
                got.headers = {n.decode(): v.decode() for n, v in message["headers"]}
            else:
                got.body += message.get("body", b"")
            if sent >= after:
                gone.set()
                await asyncio.sleep(0)

        await self.app(scope, receive, send)
        return got

    async def written(self) -> None:
        """Return when everything that ended is in the ledger."""
        while self.meter.late:  # noqa: ASYNC110 - the meter has nobody else to tell
            await asyncio.sleep(0.01)


@asynccontextmanager
async def world(
    folder: Path, *, salted: bool = False, tenants: Tenants | None = None
) -> AsyncIterator[World]:
    """Boot a node whose keys are in `folder`."""
    simulated = SimulatedNode("model")
    await simulated.boot()
    clock = simulated.clock
    store = open_tenants(str(folder / "keys.sqlite3"), create=True, counting=True)
    fails = Fails(store)
    meter = Meter(in_thread(fails), clock)
    endpoints = frozenset((Endpoint.CHAT,))
    salts = SaltSource(bytes(32), endpoints) if salted else None
    engine = Scripted()
    identity = NodeIdentity(
        simulated.keys, simulated.attester, clock=clock, entropy=simulated.entropy, simulated=True
    )
    ports = ModelNodePorts(
        identity=identity,
        upstream=engine,
        routes=ROUTES,
        served=ServedModel(
            name=MODEL,
            weights_digest="11" * 32,
            manifest_digest=WEIGHTS.hex(),
            upstream_name=MODEL,
            created=1,
        ),
        weights=WEIGHTS,
        clock=clock,
        entropy=simulated.entropy,
        limits=RequestLimits(),
        tenants=tenants or KeyedTenants(meter, clock=clock, entropy=simulated.entropy, salts=salts),
    )
    metrics = Metrics(by_key=True)
    app = Observed(
        ModelNode(ports), clock=clock, entropy=simulated.entropy, metrics=metrics, by_key=True
    )
    try:
        yield World(app, identity, store, fails, meter, engine, clock, metrics)
    finally:
        await meter.close()
        store.close()
