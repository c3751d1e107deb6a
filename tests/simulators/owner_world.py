"""Three owners, a broker, and a log that can be down or lie: what a desk of owners meets."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeAlias

import log_world as world
from log_world import NOW, FixedClock
from memory_store import MemoryStore

from confide.broker.beside import Submission, seal_value, secret_version
from confide.broker.keys import BrokerKeys
from confide.broker.owners import Owners, make_owners
from confide.broker.statement import add_signature
from confide.broker.statement_kinds import (
    Accept,
    Addressed,
    Body,
    Listing,
    Release,
    Secret,
    make_payload,
)
from confide.broker.vault import Vault
from confide.crypto.ed25519 import Ed25519Signer
from confide.errors import Unavailable
from confide.node.broker_owners import OwnerDesk
from confide.node.broker_store import SealedStore
from confide.tlog.leaf import LeafOpening
from confide.wire.dsse import Envelope

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from confide.broker.record import Change, Summary
    from confide.node.log_keeper import LogKeeper
    from confide.ports import Clock
    from confide.wire.json import JsonValue
    from confide.wire.tlog_proof import TlogProof

    Answer: TypeAlias = dict[str, JsonValue]

REPOSITORY = "acme"
DATASET = "acme/secret/dataset"
VALUE = b"correct horse battery staple"
OLD_CODE = hashlib.sha256(b"the Expectation of the old code").digest()
NEW_CODE = hashlib.sha256(b"the Expectation of the new code").digest()
LOG_POLICY = world.policy(1, world.WITNESSES[0])


def owner(name: str) -> Ed25519Signer:
    """The key that goes with a name."""
    return Ed25519Signer(hashlib.sha256(f"owner {name}".encode()).digest())


ALICE, BOB, CAROL, MALLORY = (owner(name) for name in ("alice", "bob", "carol", "mallory"))
KEYS = BrokerKeys(hashlib.sha256(b"sign").digest(), hashlib.sha256(b"seal").digest())


def owners(threshold: int, *signers: Ed25519Signer, repository: str = REPOSITORY) -> Owners:
    """A set of owners."""
    keys = [each.public_key for each in signers]
    return make_owners(repository, threshold=threshold, keys=keys)


SOLE = owners(1, ALICE)
CONSORTIUM = owners(3, ALICE, BOB, CAROL)


class CountingEntropy:
    """Randomness that never repeats."""

    def __init__(self) -> None:
        self._given = itertools.count(1)

    def token(self, size: int) -> bytes:
        return hashlib.shake_256(b"%d" % next(self._given)).digest(size)


ENTROPY = CountingEntropy()


def addressed(to: Owners, *, issued: datetime = NOW, keys: BrokerKeys = KEYS) -> Addressed:
    """A statement's address, with a nonce of its own."""
    return Addressed(keys.key, to.repository, to.digest, issued, ENTROPY.token(32))


def signed(to: Owners | Addressed, body: Body, *by: Ed25519Signer) -> Envelope:
    """A statement to `KEYS` with the signatures of `by`."""
    to = addressed(to) if isinstance(to, Owners) else to
    envelope = Envelope(make_payload(to, body), ())
    for each in by:
        envelope = add_signature(envelope, each)
    return envelope


def release(
    *digests: bytes,
    resources: Sequence[str] = (DATASET,),
    start: datetime = NOW,
    days: float = 30,
    policy: bytes | None = None,
) -> Release:
    """A release to the Expectations `digests`, or to `policy`."""
    accepts = [Accept("expectation", each) for each in digests]
    if policy is not None:
        accepts.append(Accept("policy", hashlib.sha256(policy).digest()))
    return Release(tuple(accepts), tuple(resources), start, start + timedelta(days=days))


def sealed(value: bytes = VALUE, *, resource: str = DATASET) -> tuple[Secret, bytes]:
    """The statement that puts `value`, and what travels beside it."""
    salt = ENTROPY.token(32)
    version = secret_version(salt, value)
    raw = seal_value(
        KEYS.opener.public_key.raw,
        value,
        resource=resource,
        version=version,
        ephemeral=ENTROPY.token(32),
    )
    return Secret(resource, version, salt, hashlib.sha256(raw).digest(), len(value)), raw


@dataclass
class MemoryLog:
    """The `FinalityLog` port over a log in memory; `down`, or with the proof of something else."""

    clock: Clock = field(default_factory=FixedClock)
    down: bool = False
    lies: bool = False
    asked: list[bytes] = field(default_factory=list)
    keeper: LogKeeper = field(default_factory=lambda: world.open_log(world.MemoryDisk()))

    async def final(self, digest: bytes) -> TlogProof:
        if self.down:
            raise Unavailable("no answer")
        self.asked.append(digest)
        logged = hashlib.sha256(digest).digest() if self.lies else digest
        opening = LeafOpening(ENTROPY.token(32), logged)
        self.keeper.append([opening.entry])
        head = self.keeper.head.head
        seconds = int(self.clock.now().timestamp())
        seen = world.signed(head, world.WITNESSES[0], seconds=seconds)
        proof = self.keeper.prove(head.size - 1, seen)
        return replace(proof, extra=opening.blinding)


class FailingStore(MemoryStore):
    """Fails at change number `fails`; `after` says whether it was made all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.fails = -1
        self.after = False
        self.changes = 0

    def apply(self, changes: Sequence[Change], summary: Summary | None = None) -> bool:
        number, self.changes = self.changes, self.changes + 1
        if number != self.fails:
            return super().apply(changes, summary)
        if self.after:
            super().apply(changes, summary)
        raise Unavailable("the disk is full")


@dataclass
class World:
    """A desk and everything around it, to be restarted over the same store."""

    configured: tuple[Owners, ...] = (SOLE,)
    memory: FailingStore = field(default_factory=FailingStore)
    clock: FixedClock = field(default_factory=FixedClock)
    log: MemoryLog = field(default_factory=MemoryLog)
    reports: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.memory.rows:
            self.store.begin(b"header", [])
        self.desk = self.restart()

    @property
    def store(self) -> SealedStore:
        return SealedStore(self.memory, Vault(bytes(32)), ENTROPY)

    def restart(self, *configured: Owners) -> OwnerDesk:
        self.desk = OwnerDesk(
            self.store,
            keys=KEYS,
            configured=configured or self.configured,
            log=self.log,
            log_policy=LOG_POLICY,
            clock=self.clock,
            report=self.reports.append,
        )
        return self.desk

    @property
    def now(self) -> datetime:
        return self.clock.now()

    def send(
        self, envelope: Envelope, *, value: bytes | None = None, policy: bytes | None = None
    ) -> Answer:
        """Send one statement and what travels beside it."""
        return asyncio.run(self.desk.take(Submission(envelope, value, policy).encode()))

    def say(self, body: Body, *by: Ed25519Signer, to: Owners | None = None) -> Answer:
        """Send a statement of `by`, who are asked in the set `to`, or the one configured."""
        address = addressed(to or self.configured[0], issued=self.now)
        return self.send(signed(address, body, *(by or (ALICE,))))

    def put(self, value: bytes = VALUE, *by: Ed25519Signer, resource: str = DATASET) -> bytes:
        """Put a value and return its version."""
        secret, raw = sealed(value, resource=resource)
        to = addressed(self.configured[0], issued=self.now)
        self.send(signed(to, secret, *(by or (ALICE,))), value=raw)
        return secret.version

    def release(self, *digests: bytes, by: Sequence[Ed25519Signer] = (), days: float = 30) -> bytes:
        """Release `DATASET` to `digests` from now on; return the statement's digest."""
        found = self.say(release(*digests, start=self.now, days=days), *by)
        return bytes.fromhex(str(found["statement"]))

    def listing(self) -> Any:
        """What an owner is answered who asks what is there."""
        return self.say(Listing())["listing"]

    def open(self, digest: bytes = OLD_CODE, resource: str = DATASET) -> bytes:
        """The release by which `digest` may open `resource` now."""
        return self.desk.require_release(
            resource, accepts="expectation", digest=digest, now=self.now
        )
