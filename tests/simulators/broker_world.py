"""A key broker with everything around it in memory: owners, log, store, nodes and guests."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import httpx2
import uvicorn
from log_world import WITNESSES, signed, signed_head
from memory_store import MemoryStore
from nodes import (
    NOW,
    SEED,
    CountingEntropy,
    FixedClock,
    SimulatedNode,
    fitting_expectation,
    roots,
)

from confide.adapters.kbs_http import KbsHttp
from confide.appraisal.eventlog import run_commitment
from confide.broker.holdings import Held
from confide.broker.keys import BrokerKeys
from confide.broker.refusal import refusal
from confide.broker.vault import Vault
from confide.crypto.jwe import UnwrappingKey, derive_unwrapping_key
from confide.errors import Reason, Unavailable
from confide.expectation.broker import BrokerSpec
from confide.node.broker_app import broker_app
from confide.node.broker_audit import AuditLimits, BrokerAudit
from confide.node.broker_gate import LoadLimits
from confide.node.broker_link import Asker, BrokerLink, BrokerPlace
from confide.node.broker_service import BrokerConfig, BrokerPorts, BrokerService
from confide.node.broker_store import SealedStore
from confide.simulator.machine import make_platform
from confide.simulator.trustee import SimulatedPod
from confide.wire.ccel import encode_ccel
from confide.wire.dsse import Envelope, parse_envelope
from confide.wire.endorsements import Endorsements
from confide.wire.jwe import KeyCurve, encode_wrapping_key, parse_jwe
from confide.wire.rtmr_log import RuntimeEvent
from confide.wire.tlog_proof import TlogProof

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from datetime import datetime

    from confide.broker.record import Change, Summary
    from confide.errors import ConfideError
    from confide.expectation import Expectation
    from confide.wire.json import JsonValue
    from confide.wire.service import Evidence

REPOSITORY = "acme"
NAME = "openai-key"
RESOURCE = f"{REPOSITORY}/secret/{NAME}"
VALUE = b"sk-a-value-that-nobody-may-see"
VERSION = hashlib.sha256(b"version 1").digest()
RELEASE = hashlib.sha256(b"the owners' release").digest()
RUN = b"\x07" * 32
KEYS = BrokerKeys(b"s" * 32, b"x" * 32)
INIT_DATA = b'version = "0.1.0"\nalgorithm = "sha384"\n[data]\n"aa.toml" = "x"\n'


@dataclass(slots=True)
class Owners:
    """What owners gave and signed, without signatures: the Protocol `Holdings`."""

    values: dict[str, Held] = field(default_factory=dict)
    # (resource, kind, digest) to the release's digest, or to why there is none.
    releases: dict[tuple[str, str, bytes], bytes | Reason] = field(default_factory=dict)
    toml: dict[bytes, bytes] = field(default_factory=dict)
    fails: ConfideError | None = None
    looked: int = 0

    def value(self, resource: str) -> Held | None:
        self.looked += 1
        if self.fails is not None:
            raise self.fails
        return self.values.get(resource)

    def require_release(
        self,
        resource: str,
        *,
        accepts: Literal["expectation", "policy"],
        digest: bytes,
        now: datetime,
    ) -> bytes:
        del now
        found = self.releases.get((resource, accepts, digest), Reason.RELEASE_MISSING)
        if isinstance(found, Reason):
            raise refusal(found, "the owners say so", step="10", clause="4.2")
        return found

    def policies(self, resource: str, *, now: datetime) -> Sequence[tuple[bytes, bytes]]:
        del now
        return [
            (digest, self.toml[digest])
            for (name, kind, digest), found in self.releases.items()
            if (name, kind) == (resource, "policy") and isinstance(found, bytes)
        ]

    def repositories(self) -> dict[str, bytes]:
        return {REPOSITORY: b"o" * 32}

    async def take(self, body: bytes) -> dict[str, JsonValue]:
        return {"took": len(body)}


@dataclass(slots=True)
class Log:
    """The port `FinalityLog`: what was logged, in order; down when told."""

    down: bool = False
    digests: list[bytes] = field(default_factory=list)

    async def final(self, digest: bytes) -> TlogProof:
        await asyncio.sleep(0)
        if self.down:
            raise Unavailable("the log is down")
        self.digests.append(digest)
        return TlogProof(0, (), signed(signed_head(9), *WITNESSES), b"b" * 32)


class FullStore(MemoryStore):
    """A store whose disk is full, or whose database is locked, when told."""

    fails = False

    def apply(self, changes: Sequence[Change], summary: Summary | None = None) -> bool:
        if self.fails:
            raise Unavailable("database or disk is full")
        return super().apply(changes, summary)


class Naps:
    """The port `Sleeper`, in a hurry."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0.001)


@cache
def expectation() -> Expectation:
    asked = BrokerSpec(KEYS.key.hex(), REPOSITORY, (NAME, "other"), state=True)
    return replace(fitting_expectation(roots()), name="agent", broker=asked)


@dataclass(slots=True)
class World:
    """One broker, and everything it stands on. `restart` is another process on the same store."""

    clock: FixedClock = field(default_factory=FixedClock)
    entropy: CountingEntropy = field(default_factory=CountingEntropy)
    owners: Owners = field(default_factory=Owners)
    log: Log = field(default_factory=Log)
    store: FullStore = field(default_factory=FullStore)
    endorsed: Endorsements | ConfideError = field(default_factory=Endorsements)
    load: LoadLimits = field(default_factory=LoadLimits)
    limits: AuditLimits = field(default_factory=AuditLimits)
    naps: Naps = field(default_factory=Naps)
    reported: list[str] = field(default_factory=list)
    asked_vendors: int = 0

    def __post_init__(self) -> None:
        self.sealed().begin(b"header", [])
        self.owners.values[RESOURCE] = Held(VERSION, VALUE)
        self.owners.releases[RESOURCE, "expectation", expectation().digest] = RELEASE
        platform = make_platform(SEED, NOW, ())
        self.endorsed = Endorsements(tdx=(platform.collateral(),))

    def sealed(self) -> SealedStore:
        return SealedStore(self.store, Vault(b"m" * 32), self.entropy)

    async def _endorse(self, _evidence: Evidence) -> Endorsements:
        self.asked_vendors += 1
        if isinstance(self.endorsed, Endorsements):
            return self.endorsed
        raise self.endorsed

    def audit(self) -> BrokerAudit:
        return BrokerAudit(self.sealed(), self.log, self.naps, self.limits)

    def service(self, audit: BrokerAudit, **config: Any) -> BrokerService:
        given = BrokerConfig(KEYS, roots(), self.load)
        ports = BrokerPorts(self.owners, audit, self._endorse, self.clock, self.entropy)
        return BrokerService(replace(given, **config), ports)

    @asynccontextmanager
    async def serving(self, **config: Any) -> AsyncIterator[Broker]:
        """One process of it, on a free port of 127.0.0.1."""
        audit = self.audit()
        await audit.open()
        running = asyncio.create_task(audit.run())
        app = broker_app(self.service(audit, **config), report=self.reported.append)
        server = uvicorn.Server(
            uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", lifespan="off")
        )
        task = asyncio.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110 - uvicorn offers no event
            await asyncio.sleep(0)
        port = server.servers[0].sockets[0].getsockname()[1]
        try:
            async with httpx2.AsyncClient(trust_env=False, timeout=60) as http:
                yield Broker(self, audit, f"http://127.0.0.1:{port}", http)
        finally:
            running.cancel()
            server.should_exit = True
            await asyncio.gather(running, task, return_exceptions=True)


@dataclass(slots=True)
class Broker:
    """A broker that serves, as a client sees it."""

    world: World
    audit: BrokerAudit
    url: str
    http: httpx2.AsyncClient

    async def link(self, node: SimulatedNode | None = None, **changes: Any) -> BrokerLink:
        """The client of a node; booted, with this run measured, where none is given."""
        curve: KeyCurve = changes.pop("curve", "P-256")
        key = changes.pop("key", KEYS.key)
        url = changes.pop("url", self.url)
        asker = Asker("agent", expectation(), RUN, (node or await ready_node()).attester)
        place = BrokerPlace(key, changes.pop("repository", REPOSITORY))
        return BrokerLink(
            KbsHttp(self.http, url),
            place,
            replace(asker, **changes),
            entropy=self.world.entropy,
            sleeper=self.world.naps,
            curve=curve,
        )

    async def settled(self, count: int) -> None:
        """Wait until so many digests are in the log."""
        async with asyncio.timeout(60):
            while len(self.world.log.digests) < count or self.audit.pending:  # noqa: ASYNC110
                await asyncio.sleep(0.001)


async def ready_node(fault: str = "", *, run: bytes | None = RUN) -> SimulatedNode:
    """An agent node that measured the Expectation of `run`."""
    node = SimulatedNode("agent", fault)
    await node.boot()
    if run is not None:
        payload = run_commitment("confide-expectation", run=run, digest=expectation().digest)
        await node.guest.extend(RuntimeEvent("confide-expectation", payload))
    return node


@dataclass(slots=True)
class Guest:
    """A SIMULATED guest of Confidential Containers, speaking HTTP by itself."""

    broker: Broker
    key: UnwrappingKey = field(default_factory=lambda: derive_unwrapping_key("P-256", b"g" * 96))
    tee: str = "tdx"
    cookie: str = ""
    token: str = "none"

    def pod(self) -> SimulatedPod:
        return SimulatedPod(
            platform=make_platform(SEED, NOW, ()),
            init_data=INIT_DATA,
            firmware_log=encode_ccel(()),
            tee_pubkey=encode_wrapping_key(self.key.public),
        )

    async def post(self, path: str, body: bytes, *, cookie: str = "") -> httpx2.Response:
        headers = {"cookie": f"kbs-session-id={cookie}"} if cookie else {}
        self.broker.http.cookies.clear()
        answer = await self.broker.http.post(self.broker.url + path, content=body, headers=headers)
        self.broker.http.cookies.clear()
        return answer

    async def auth(self, **members: Any) -> httpx2.Response:
        body = {"version": "0.4.0", "tee": self.tee, "extra-params": {}, **members}
        answer = await self.post("/kbs/v0/auth", json.dumps(body).encode())
        self.cookie = answer.headers.get("set-cookie", "").partition("=")[2].partition(";")[0]
        return answer

    async def attest(self, *, edit: Any = None, pod: SimulatedPod | None = None) -> httpx2.Response:
        """Ask for a challenge and answer it; `edit` may change the body."""
        challenge = (await self.auth()).json()
        nonce = base64.b64decode(challenge["nonce"])
        documents = (pod or self.pod()).exchange(nonce)
        return await self.send(documents["attestation"], edit=edit)

    async def send(self, body: bytes, *, edit: Any = None) -> httpx2.Response:
        if edit is not None:
            value = json.loads(body)
            edit(value)
            body = json.dumps(value).encode()
        answer = await self.post("/kbs/v0/attest", body, cookie=self.cookie)
        self.token = answer.json().get("token", "") if answer.status_code == 200 else ""
        return answer

    async def get(self, name: str = RESOURCE, *, by_cookie: bool = False) -> httpx2.Response:
        headers = {"authorization": f"Bearer {self.token}"}
        if by_cookie:
            headers = {"cookie": f"kbs-session-id={self.cookie}"}
        return await self.broker.http.get(
            f"{self.broker.url}/kbs/v0/resource/{name}", headers=headers
        )

    def open(self, answer: httpx2.Response) -> bytes:
        return self.key.open(parse_jwe(answer.content))


def receipt_of(answer: httpx2.Response) -> Envelope:
    """The receipt in the header of an answer."""
    return parse_envelope(json.loads(base64.b64decode(answer.headers["confide-receipt"])))


def owners_policy(**tdx: Any) -> bytes:
    """An owner's policy for SIMULATED guests, as TOML; `tdx` replaces fields of that section."""
    launch = Guest.pod.__get__(Guest(None))().launch()  # type: ignore[arg-type]
    registers = {f"rtmr{index}": [launch.rtmr[index].hex()] for index in range(3)}
    fields = {"mrtd": [launch.mr_td.hex()], **registers, **tdx}
    lines = [f"{name} = {json.dumps(value)}" for name, value in fields.items()]
    return ("\n".join((*_POLICY, *lines)) + "\n").encode()


_POLICY = (
    'type = "confide/policy/v1"',
    'name = "acme"',
    'profile = "audit"',
    "unsafe_simulated = true",
    "[claims]",
    'require = ["hardware", "tcb", "debug-off", "freshness", "keys", "launch"]',
    'unsafe_tolerate = ["images-pinned", "workload-complete"]',
    "[snp]",
    "measurements = []",
    "[tdx]",
)


def run(work: Any) -> None:
    """Run one test's coroutine; nothing here takes half a minute."""
    asyncio.run(asyncio.wait_for(work, 60))
