"""One node that a client goes on using: proven once, kept while that lasts, proven again in time.

Clauses: docs/protocols/client.md §2, binding.md §1.7. What is kept is a proof with an end: of the
keyset, of the vendors' statements, or of the age that the caller allows, whichever is first. It is
looked at before every request. Keys are never used past it, whatever the network does meanwhile.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from confide.adapters.prove import prove_node
from confide.channel.succession import parse_succession, require_current, verify_succession
from confide.errors import EvidenceRejected, FormatError, Reason, Rejected, Unavailable
from confide.rats import Finding, Status

if TYPE_CHECKING:
    from datetime import datetime

    import httpx2

    from confide.adapters.carrier import Carrier
    from confide.adapters.prove import SealedNode
    from confide.appraisal.known import Known
    from confide.expectation import Expectation
    from confide.ports import Clock, Entropy
    from confide.trust.roots import Roots
    from confide.wire.keyset import Keyset

__all__ = ["Change", "HeldNode", "NodeState", "Proof", "TrustPolicy"]

_CLAUSE = "docs/protocols/client.md#2"
_RETRY = timedelta(seconds=30)
_MAX_CHANGES = 64


@dataclass(frozen=True, slots=True)
class TrustPolicy:
    """
    What a node has to prove, and for how long one proof counts.

    With `continuity`, every keyset after the first has to be named by the one before it, within
    its overlap: a node that was restarted is then refused. Without, it is proven anew.
    """

    expectation: Expectation
    roots: Roots
    max_evidence_age: timedelta = timedelta(hours=1)
    continuity: bool = False

    def __post_init__(self) -> None:
        """Refuse an age that nothing can meet."""
        if self.max_evidence_age < timedelta(seconds=1):
            raise ValueError("evidence has to count for at least a second")


@dataclass(frozen=True, slots=True)
class Proof:
    """A proven node and until when it counts; from `refresh_at` on it is proven again."""

    sealed: SealedNode
    proven_at: datetime
    refresh_at: datetime
    until: datetime

    def holds(self, now: datetime) -> bool:
        """Whether it counts at `now`; never before it was made, whatever a clock says."""
        return self.proven_at <= now <= self.until


@dataclass(frozen=True, slots=True)
class Change:
    """The keyset of a node changed: `reason` is None where the old one named the new one."""

    at: datetime
    reason: Reason | None


@dataclass(frozen=True, slots=True)
class NodeState:
    """What is known of one candidate. `refused` is why it was not used the last time."""

    url: str
    proven_at: datetime | None
    until: datetime | None
    keyset: bytes | None
    simulated: bool
    refused: str | None
    changes: tuple[Change, ...]


@dataclass(slots=True)
class HeldNode:
    """One candidate. Belongs to one event loop. `keyset` is the only one it may have, if named."""

    url: str
    policy: TrustPolicy
    http: httpx2.AsyncClient
    clock: Clock
    entropy: Entropy
    keyset: bytes | None = None
    carrier: Carrier | None = None
    _proof: Proof | None = None
    # The last keyset that was proven, whatever became of its proof: what continuity starts from.
    _last: Keyset | None = None
    _known: Known | None = None
    _refused: str | None = None
    _changes: list[Change] = field(default_factory=list)
    _proving: asyncio.Task[Proof] | None = None
    _not_before: datetime | None = None

    @property
    def state(self) -> NodeState:
        """What is known now; proves nothing to whoever reads it."""
        proof = self._proof
        return NodeState(
            self.url,
            None if proof is None else proof.proven_at,
            None if proof is None else proof.until,
            None if proof is None else proof.sealed.node.keyset.digest,
            self.policy.roots.simulated,
            self._refused,
            tuple(self._changes),
        )

    async def current(self) -> Proof:
        """
        Return a proof that counts now; make one where there is none.

        Raises what `prove_node` raises, and `EvidenceRejected`: KEYSET_EXPIRED or EVIDENCE_STALE
        where the proof held has ended and the node gives no other, and for `continuity`
        KEYSET_MISMATCH, KEYSET_EXPIRED, KEYSET_REVOKED.
        """
        now = self.clock.now()
        proof = self._proof
        if proof is not None and proof.holds(now):
            if now >= proof.refresh_at:
                self._refresh_soon(now)
            return proof
        return await self._prove_once()

    async def replace(self, proof: Proof) -> Proof:
        """
        Prove again, because the node says that it does not have the keys of `proof`.

        Returns a proof of other keys. Raises as `current`; `EvidenceRejected` (KEYSET_MISMATCH)
        where it proves the very keys that it says it does not have.
        """
        newer = self._proof
        if newer is None or newer is proof or not newer.holds(self.clock.now()):
            joined = self._running()
            newer = await self._prove_once()
            if joined and newer.sealed.node.keyset.digest == proof.sealed.node.keyset.digest:
                # That one began before the node changed its keys.
                newer = await self._prove_once()
        if newer.sealed.node.keyset.digest == proof.sealed.node.keyset.digest:
            raise _refused(Reason.KEYSET_MISMATCH, "the node refuses the keys that it proves")
        return newer

    async def close(self) -> None:
        """End what runs in the background."""
        if self._proving is not None:
            self._proving.cancel()
            await asyncio.wait({self._proving})

    def _running(self) -> bool:
        return self._proving is not None and not self._proving.done()

    async def _prove_once(self) -> Proof:
        """Prove, or wait for who does; one caller that leaves does not end it for the others."""
        return await asyncio.shield(self._begin())

    def _begin(self) -> asyncio.Task[Proof]:
        if self._proving is None or self._proving.done():
            self._proving = asyncio.ensure_future(self._prove())
            # Everybody may have left by then; what went wrong is in the state.
            self._proving.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self._proving

    async def _prove(self) -> Proof:
        policy, held = self.policy, self._proof
        try:
            sealed = await prove_node(
                self.url,
                role="model",
                expectation=policy.expectation,
                roots=policy.roots,
                http=self.http,
                clock=self.clock,
                entropy=self.entropy,
                known=self._known,
                carrier=self.carrier,
            )
            if self.keyset is not None and sealed.node.keyset.digest != self.keyset:
                # relay.md 4.5: another node than the one that was asked, proven or not.
                raise _refused(Reason.KEYSET_MISMATCH, "another keyset than the one asked for")
            self._follow(sealed)
        except Rejected as error:
            # What was proven before is contradicted now: it counts no more.
            self._proof, self._refused = None, error.reason.value
            raise
        except (Unavailable, FormatError) as error:
            self._refused = "unavailable"
            if held is not None and not held.holds(self.clock.now()):
                raise _ended(held, self.clock.now()) from error
            raise
        now = self.clock.now()
        until = min(now + policy.max_evidence_age, sealed.node.result.not_after)
        self._proof = Proof(sealed, now, now + (until - now) * 3 / 4, until)
        self._known, self._refused, self._not_before = sealed.node.known, None, None
        return self._proof

    def _follow(self, sealed: SealedNode) -> None:
        held, met, now = self._last, sealed.node.keyset, self.clock.now()
        if held is not None and held.digest != met.digest:
            document = sealed.evidence.succession
            reason = None
            try:
                succession = None if document is None else parse_succession(document)
                verify_succession(held, met, succession, now=now)
                require_current(held, succession, now=now)
            except (EvidenceRejected, FormatError) as error:
                if self.policy.continuity:
                    raise
                reason = error.reason
            self._changes = [*self._changes[-_MAX_CHANGES:], Change(now, reason)]
        self._last = met

    def _refresh_soon(self, now: datetime) -> None:
        # A refusal ends the proof, and the next request meets it itself. A node that cannot be
        # asked just now leaves the proof as it is, up to its end.
        if self._not_before is None or now >= self._not_before:
            self._not_before = now + _RETRY
            self._begin()


def _ended(proof: Proof, now: datetime) -> EvidenceRejected:
    if now > proof.sealed.node.keyset.not_after:
        return _refused(Reason.KEYSET_EXPIRED, "past the end of the keyset, and no other proof")
    return _refused(Reason.EVIDENCE_STALE, "older than this client accepts, and no other proof")


def _refused(reason: Reason, detail: str) -> EvidenceRejected:
    return EvidenceRejected((Finding(Status.FAIL, "keyset/1", _CLAUSE, "keyset", detail, reason),))
