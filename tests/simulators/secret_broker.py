"""A broker in memory: the `SecretSession` port, with genuine signatures on its receipts.

It keeps secrets by name and one state, gives the lease of the state to one run at a time, and
notes what it was asked, in order. It decides nothing: what it must refuse, a test says.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from confide.broker.released import OpenedState, ReleasedSecret
from confide.crypto.ed25519 import Ed25519Signer
from confide.errors import ConfideError, Reason, ReleaseRefused
from confide.expectation import BrokerSpec, Expectation
from confide.rats import Finding, Status
from confide.wire.dsse import Envelope, pae
from confide.wire.release_receipt import NO_STATE, ReleaseReceipt, StateStep

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

REPOSITORY = "records"


def refused(reason: Reason) -> ReleaseRefused:
    """A refusal as a broker gives it."""
    finding = Finding(Status.FAIL, "broker/4.2", "broker.md#4.2", "broker", "not released", reason)
    return ReleaseRefused((finding,))


def _sha(*parts: str) -> bytes:
    return hashlib.sha256("/".join(parts).encode()).digest()


@dataclass(slots=True)
class SecretBroker:
    """
    The broker. `failures` raises instead of answering, by what is asked: a name, `open`, `save`.

    `forge` changes each receipt before it is signed: what a dishonest broker would say.
    """

    now: datetime
    values: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    failures: dict[str, ConfideError] = field(default_factory=dict)
    forge: Callable[[ReleaseReceipt], ReleaseReceipt] | None = None
    signer: Ed25519Signer = field(default_factory=lambda: Ed25519Signer(b"b" * 32))
    state_key: bytes = bytes(range(32))
    counter: int = 0
    sealed: bytes = field(default=b"", repr=False)
    leased: bool = False
    asked: list[str] = field(default_factory=list)

    def spec(self, *secrets: str, state: bool = False) -> BrokerSpec:
        """What an Expectation says that asks for these."""
        return BrokerSpec(self.signer.public_key.hex(), REPOSITORY, secrets, state)

    async def open(self, expectation: Expectation, run: bytes) -> SecretBrokerSession:
        """See `RunPorts.open_secrets`."""
        self.asked.append("attest")
        if "attest" in self.failures:
            raise self.failures["attest"]
        return SecretBrokerSession(self, expectation, run)

    @property
    def digest(self) -> bytes:
        """The digest of the state there is."""
        return hashlib.sha256(self.sealed).digest() if self.counter else NO_STATE

    def ask(self, what: str) -> None:
        """Note what is asked; raise where a test says so."""
        self.asked.append(what)
        if what in self.failures:
            raise self.failures[what]

    def receipt(self, receipt: ReleaseReceipt) -> Envelope:
        """Sign a receipt."""
        payload = (self.forge(receipt) if self.forge is not None else receipt).payload()
        signature = self.signer.sign(pae(payload))
        return Envelope(payload, ((self.signer.public_key.hex(), signature),))


@dataclass(slots=True)
class SecretBrokerSession:
    """One attested run. See `ports.SecretSession`."""

    broker: SecretBroker
    expectation: Expectation
    run: bytes
    closed: int = 0
    _holds: bool = False

    def _receipt(self, resource: str, version: bytes) -> ReleaseReceipt:
        run = self.run.hex()
        return ReleaseReceipt(
            broker=self.broker.signer.public_key,
            resource=resource,
            version=version,
            reason=None,
            accepts="expectation",
            against=self.expectation.digest,
            evidence=_sha("evidence", run),
            session=_sha("session", run),
            tee_pubkey=_sha("key", run),
            release=_sha("release"),
            jwe=_sha("jwe", run, resource, version.hex()),
            at=self.broker.now,
        )

    async def secret(self, name: str) -> ReleasedSecret:
        self.broker.ask(name)
        value = self.broker.values[name]
        version = hashlib.sha256(b"salt" + value).digest()
        resource = self.expectation.broker.resource(name)
        receipt = self.broker.receipt(self._receipt(resource, version))
        return ReleasedSecret(name, version, receipt, value)

    @property
    def _state(self) -> str:
        return self.expectation.broker.state_resource(self.expectation.name)

    async def open_state(self) -> OpenedState:
        self.broker.ask("open")
        if self.broker.leased:
            raise refused(Reason.STATE_IN_USE)
        self.broker.leased = self._holds = True
        counter, digest = self.broker.counter, self.broker.digest
        said = replace(self._receipt(self._state, digest), state=StateStep("open", counter, digest))
        return OpenedState(
            resource=self._state,
            counter=counter,
            digest=digest,
            receipt=self.broker.receipt(said),
            sealed=self.broker.sealed,
            key=self.broker.state_key,
        )

    async def save_state(self, sealed: bytes) -> Envelope:
        self.broker.ask("save")
        if not self._holds:
            raise refused(Reason.STATE_FORK)
        self.broker.counter, self.broker.sealed = self.broker.counter + 1, sealed
        self.broker.leased = self._holds = False
        step = StateStep("save", self.broker.counter, self.broker.digest)
        return self.broker.receipt(
            replace(self._receipt(self._state, self.broker.digest), state=step)
        )

    async def close(self) -> None:
        self.broker.asked.append("close")
        self.closed += 1
        if self._holds:
            self.broker.leased = self._holds = False
