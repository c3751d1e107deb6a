"""The key broker at work: challenges, attestations, resources. docs/protocols/broker.md §2 to §6.

Everything that is released goes through `resource` in the order of 4.2: session, resource, release,
policy, value, log, answer. There is no other way to a value, and nothing remembers an earlier
decision. Refusals of attestations that could be read are receipted and kept before they are said.
"""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from confide.broker.attested import Asked, Attested, GuestProof, session_of
from confide.broker.decision import RefusedPermit, permit
from confide.broker.info import BrokerInfo, sign_broker_info
from confide.broker.names import parse_resource
from confide.broker.receipt import issue_release_receipt
from confide.broker.refusal import refusal
from confide.broker.session import SESSION_SECONDS, Challenges, SessionLimits, Sessions, Tokens
from confide.crypto.jwe import EPHEMERAL_BYTES, JweSecrets, seal_jwe
from confide.errors import (
    FormatError,
    Reason,
    Rejected,
    ReleaseRefused,
    Unavailable,
    Unsupported,
)
from confide.node.broker_evidence import read_presented
from confide.node.broker_gate import Gate, LoadLimits
from confide.wire.jwe import thumbprint
from confide.wire.kbs import NONCE_BYTES, parse_request
from confide.wire.release_receipt import ReleaseReceipt

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from confide.broker.attested import Proof
    from confide.broker.decision import Permit
    from confide.broker.holdings import Held, Holdings
    from confide.broker.keys import BrokerKeys
    from confide.broker.session import Issued
    from confide.node.broker_audit import BrokerAudit
    from confide.node.broker_evidence import Presented
    from confide.ports import Clock, Entropy
    from confide.trust.roots import Roots
    from confide.wire.dsse import Envelope
    from confide.wire.endorsements import Endorsements
    from confide.wire.release_receipt import StateStep
    from confide.wire.service import Evidence

__all__ = ["BrokerConfig", "BrokerPorts", "BrokerService", "ReceiptedRefusal", "Released"]

# Vendors are slow and may be asked again: fetching.md §2 bounds one attempt to 30 s.
_ENDORSE_SECONDS: Final = 60.0
_ASKING: Final = 16


@dataclass(frozen=True, slots=True)
class BrokerConfig:
    """What a broker is: its keys, whose hardware it believes, how much it does at once."""

    keys: BrokerKeys
    roots: Roots
    load: LoadLimits = field(default_factory=LoadLimits)
    sessions: SessionLimits = field(default_factory=SessionLimits)


@dataclass(frozen=True, slots=True)
class BrokerPorts:
    """What a broker stands on. `endorse` gets what vendors say about evidence."""

    holdings: Holdings
    audit: BrokerAudit
    endorse: Callable[[Evidence], Awaitable[Endorsements]]
    clock: Clock
    entropy: Entropy


@dataclass(frozen=True, slots=True)
class Released:
    """An answer with a value: the JWE, and the receipt that is in the log."""

    body: bytes = field(repr=False)
    receipt: Envelope


class ReceiptedRefusal(ReleaseRefused):
    """A refusal that was kept, with the receipt that says so."""

    def __init__(self, refused: Rejected, receipt: Envelope) -> None:
        super().__init__(refused.findings)
        self.receipt = receipt


class BrokerService:
    """One broker process."""

    def __init__(self, config: BrokerConfig, ports: BrokerPorts) -> None:
        self._config = config
        self._ports = ports
        self.gate = Gate(config.load)
        # Evidence that nobody verified yet makes the broker ask vendors: not without bound either.
        self._asking = Gate(replace(config.load, running=_ASKING))
        self._challenges = Challenges(ports.entropy.token(32))
        self._tokens = Tokens(ports.entropy.token(32))
        self._sessions = Sessions(config.sessions)

    @property
    def holdings(self) -> Holdings:
        """What the owners gave."""
        return self._ports.holdings

    def info(self) -> tuple[bytes, bytes]:
        """Return what this broker says about itself, signed (1.3). Blocks."""
        keys = self._config.keys
        body = BrokerInfo(
            key=keys.key,
            seal=keys.opener.public_key.raw,
            repositories=self.holdings.repositories(),
            simulated=self._config.roots.simulated,
        ).encode()
        return body, sign_broker_info(body, keys.signer)

    # --- sessions -------------------------------------------------------------------------------

    def challenge(self, raw: bytes) -> tuple[bytes, str]:
        """Return the challenge and its cookie (§2). Raises `FormatError`; keeps nothing."""
        issued, cookie = self._challenges.issue(
            parse_request(raw),
            nonce=self._ports.entropy.token(NONCE_BYTES),
            now=self._ports.clock.now(),
        )
        return issued.challenge.encode(), cookie

    def challenged(self, cookie: str) -> Issued:
        """Return the challenge of `cookie` while it is good. Raises `ReleaseRefused`."""
        issued = self._challenges.recognise(cookie)
        self._challenges.require_fresh(issued, now=self._ports.clock.now())
        return issued

    def attested(self, *, cookie: str | None, token: str | None) -> Attested:
        """Return the session that a cookie or a token names (4.2, 1). Raises `ReleaseRefused`."""
        now = self._ports.clock.now()
        if token is not None:
            return self._sessions.find(self._tokens.recognise(token), now=now)
        if cookie is not None:
            return self._sessions.find(self._challenges.recognise(cookie).session, now=now)
        raise refusal(Reason.SESSION_UNKNOWN, "no session", step="1", clause="4.2")

    # --- attestation ----------------------------------------------------------------------------

    async def attest(self, issued: Issued, raw: bytes) -> str:
        """
        Appraise an attestation and return the token of its session (§3).

        Raises `FormatError` and `Unsupported` for what is no attestation, `ReceiptedRefusal`,
        `Unavailable` where a vendor or the store does not answer.
        """
        try:
            presented = await asyncio.to_thread(read_presented, raw, issued)
        except Rejected as error:
            # Evidence of a kind that no hardware signs; the body itself could not be read further.
            raise Unsupported("evidence that proves nothing") from error
        now = self._ports.clock.now()
        try:
            proof = await self._prove(presented, issued, now)
            attested = self._begin(presented, issued, proof, now)
        except ReleaseRefused as error:
            if error.reason is Reason.NODE_BUSY:
                raise
            raise await self._refused_attestation(presented, issued, error) from error
        return self._tokens.issue(attested, now=now)

    async def _prove(self, presented: Presented, issued: Issued, now: datetime) -> Proof:
        asked = Asked(
            presented.attestation,
            issued.challenge,
            issued.tee,
            self._sessions.spent(issued.session),
            self._config.roots,
            now,
        )
        node, guest = presented.node, presented.guest
        if node is not None:
            await asyncio.to_thread(asked.screen_node, node)
            own = await self._endorsements(presented)
            async with self.gate.enter():
                return await asyncio.to_thread(asked.prove_node, node, own=own)
        if guest is None:
            raise RuntimeError("neither a node nor a guest")
        await asyncio.to_thread(asked.screen_guest, guest)
        own = await self._endorsements(presented)
        async with self.gate.enter():
            return await asyncio.to_thread(asked.prove_guest, guest, own=own)

    async def _endorsements(self, presented: Presented) -> Endorsements:
        try:
            async with self._asking.enter(), asyncio.timeout(_ENDORSE_SECONDS):
                return await self._ports.endorse(presented.asked_about())
        except TimeoutError as error:
            raise Unavailable("a vendor does not answer") from error

    def _begin(self, presented: Presented, issued: Issued, proof: Proof, now: datetime) -> Attested:
        attestation = presented.attestation
        attested = Attested(
            issued.session,
            attestation.key,
            attestation.digest,
            proof,
            min(now + timedelta(seconds=SESSION_SECONDS), proof.not_after),
        )
        # A session of a node holds its Expectation, one of a guest the evidence, judged again.
        node = presented.node
        weight = len(attestation.raw if node is None else node.expectation)
        self._sessions.admit(attested, weight=weight, now=now)
        return attested

    async def _refused_attestation(
        self, presented: Presented, issued: Issued, error: ReleaseRefused
    ) -> ReceiptedRefusal:
        attestation = presented.attestation
        return await self._refuse(
            error,
            resource=None,
            version=None,
            session=session_of(issued.challenge.nonce),
            evidence=attestation.digest,
            tee_pubkey=thumbprint(attestation.key),
        )

    # --- resources ------------------------------------------------------------------------------

    async def resource(self, attested: Attested, name: str) -> Released:
        """
        Release the resource `name` to a session, or say why not: 4.2, steps (2) to (6).

        What it returns may be sent: its receipt is in the log. Raises `ReceiptedRefusal`, or
        `Unavailable` and nothing is released.
        """
        now = self._ports.clock.now()
        try:
            parse_resource(name, reason=Reason.RESOURCE_UNKNOWN)
        except FormatError as error:
            unknown = _unknown("no name of a resource")
            raise await self.refuse(attested, unknown, resource=None) from error
        held, opens = await self._held(name)
        if held is None and opens:
            raise await self.refuse(attested, _unknown("no such resource"), resource=name)
        allowed = await self.permitted(
            attested, name, version=None if held is None else held.version
        )
        if held is None:
            raise Unavailable("the value does not open")
        body = self.wrap(attested, held.value)
        receipt = await self.release(
            attested, allowed, resource=name, version=held.version, jwe=_sha256(body), now=now
        )
        return Released(body, receipt)

    async def _held(self, name: str) -> tuple[Held | None, bool]:
        """Return the value, and whether it opens: one that does not is there all the same."""
        try:
            return await asyncio.to_thread(self.holdings.value, name), True
        except FormatError:
            return None, False

    async def permitted(
        self, attested: Attested, resource: str, *, version: bytes | None
    ) -> Permit:
        """
        Decide steps (3) and (4) of 4.2, now.

        Raises `ReceiptedRefusal`, `Unavailable`, and `ReleaseRefused` (NODE_BUSY) under load.
        """
        now = self._ports.clock.now()
        # A guest is appraised again, a node is looked up.
        appraises = isinstance(attested.proof, GuestProof)
        async with self.gate.enter() if appraises else nullcontext():
            try:
                return await asyncio.to_thread(
                    permit,
                    attested,
                    resource,
                    broker=self._config.keys.key,
                    holdings=self.holdings,
                    now=now,
                )
            except RefusedPermit as error:
                refused = error
        raise await self.refuse(attested, refused, resource=resource, version=version) from refused

    async def release(
        self,
        attested: Attested,
        allowed: Permit,
        *,
        resource: str,
        version: bytes,
        jwe: bytes,
        now: datetime,
        state: StateStep | None = None,
    ) -> Envelope:
        """
        Receipt a release and make it final (6). An answer with SHA-256 `jwe` may then be sent.

        Raises `Unavailable`: then it must not be.
        """
        decision = ReleaseReceipt(
            broker=self._config.keys.key,
            resource=resource,
            version=version,
            reason=None,
            accepts=allowed.accepts,
            against=allowed.against,
            evidence=attested.evidence,
            session=attested.session,
            tee_pubkey=attested.thumbprint,
            release=allowed.release,
            jwe=jwe,
            at=now,
            state=state,
        )
        receipt = issue_release_receipt(self._config.keys.signer, decision)
        await self._ports.audit.release(receipt, now=now)
        return receipt

    async def refuse(
        self,
        attested: Attested,
        error: ReleaseRefused,
        *,
        resource: str | None,
        version: bytes | None = None,
        state: StateStep | None = None,
    ) -> ReceiptedRefusal:
        """Keep a refusal to a session and return what to raise. Raises `Unavailable`."""
        return await self._refuse(
            error,
            state=state,
            resource=resource,
            version=version,
            session=attested.session,
            evidence=attested.evidence,
            tee_pubkey=attested.thumbprint,
        )

    async def _refuse(
        self,
        error: ReleaseRefused,
        *,
        resource: str | None,
        version: bytes | None,
        session: bytes,
        evidence: bytes,
        tee_pubkey: bytes,
        state: StateStep | None = None,
    ) -> ReceiptedRefusal:
        now = self._ports.clock.now()
        about = error if isinstance(error, RefusedPermit) else None
        decision = ReleaseReceipt(
            broker=self._config.keys.key,
            resource=resource,
            version=version,
            reason=error.reason.value,
            accepts=about.accepts if about is not None else None,
            against=about.against if about is not None else None,
            evidence=evidence,
            session=session,
            tee_pubkey=tee_pubkey,
            release=None,
            jwe=None,
            at=now,
            state=state,
        )
        receipt = issue_release_receipt(self._config.keys.signer, decision)
        await self._ports.audit.refuse(receipt, now=now)
        return ReceiptedRefusal(error, receipt)

    def wrap(self, attested: Attested, answer: bytes) -> bytes:
        """Return the JWE of `answer` for the key of a session."""
        return seal_jwe(attested.key, answer, secrets=self._secrets()).encode()

    def _secrets(self) -> JweSecrets:
        draw = self._ports.entropy.token
        return JweSecrets(draw(32), draw(12), draw(EPHEMERAL_BYTES))


def _sha256(raw: bytes) -> bytes:
    return hashlib.sha256(raw).digest()


def _unknown(detail: str) -> ReleaseRefused:
    return refusal(Reason.RESOURCE_UNKNOWN, detail, step="9", clause="4.2")
