"""Attestations appraised: who asks, proven, with the key that secrets are wrapped to. Pure.

Performs steps broker/1 to broker/8 of docs/protocols/broker.md §3 over hostile evidence: challenge
and key (1, 2), for a node of ours the Expectation, what was quoted, the node and the run (3 to 6),
for a guest of Confidential Containers what was quoted and the broker's floor (7, 8). The cheap ones
stand first and can be run alone, before anybody is asked for endorsements and any signature is
verified. Whatever passes is *attested* and may ask; what it gets is decided for each resource, by
what the owners signed (`broker/decision.py`).
"""

from __future__ import annotations

import hashlib
from dataclasses import InitVar, dataclass, field, replace
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, TypeVar

from confide.appraisal.binding import parse_statement
from confide.appraisal.claim_names import ClaimName
from confide.appraisal.eventlog import run_commitment
from confide.appraisal.node import appraise_node
from confide.appraisal.service import appraise_service
from confide.appraisal.service_profiles import AUDIT
from confide.appraisal.steps import Refused, Step, established, run_steps
from confide.broker.refusal import DOC
from confide.crypto.jwe import require_usable
from confide.errors import Reason, Rejected, ReleaseRefused
from confide.expectation import parse_expectation
from confide.wire.endorsements import Endorsements
from confide.wire.jwe import thumbprint
from confide.wire.kbs import runtime_claim
from confide.wire.snp import parse_report as parse_snp_report
from confide.wire.tdx import parse_quote

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from confide.appraisal.node import VerifiedNode
    from confide.appraisal.service_policy import Policy
    from confide.expectation import Expectation
    from confide.rats import AttestationResult
    from confide.trust.roots import Roots
    from confide.wire.jwe import WrappingKey
    from confide.wire.kbs import Attestation, KbsChallenge, NodeEvidence, Tee
    from confide.wire.service import Evidence

__all__ = [
    "Asked",
    "Attested",
    "GuestProof",
    "NodeProof",
    "Proof",
    "floor_policy",
    "session_of",
]

_SEAL: Final = object()
T = TypeVar("T")
# From: broker.md 3.3. What every guest has to prove before an owner's policy is looked at.
_FLOOR: Final = frozenset(
    {ClaimName.HARDWARE, ClaimName.DEBUG_OFF, ClaimName.FRESHNESS, ClaimName.KEYS}
)


def session_of(nonce: bytes) -> bytes:
    """Return how receipts and tokens name the session of a challenge: SHA-256 of its nonce."""
    return hashlib.sha256(nonce).digest()


def floor_policy(*, simulated: bool) -> Policy:
    """Return the broker's own floor: the profile `audit`, with these four claims required."""
    claims = replace(AUDIT.claims, require=_FLOOR)
    return replace(AUDIT, name="broker-floor", claims=claims, unsafe_simulated=simulated)


@dataclass(frozen=True, slots=True)
class NodeProof:
    """A node of ours, proven for one Expectation and run. Only `Asked.prove_node` makes one."""

    role: Literal["agent", "model"]
    expectation: Expectation
    run: bytes | None = field(repr=False)
    not_after: datetime
    seal: InitVar[object]

    def __post_init__(self, seal: object) -> None:
        """Refuse every maker but `prove_node`."""
        if seal is not _SEAL:
            raise TypeError("only prove_node makes a NodeProof")


@dataclass(frozen=True, slots=True)
class GuestProof:
    """
    A guest above the floor, with what judging it again takes. Only `Asked.prove_guest` makes one.

    `tee_pubkey` is the thumbprint of the key that its hardware vouches for.
    """

    evidence: Evidence = field(repr=False)
    endorsements: Endorsements = field(repr=False)
    roots: Roots = field(repr=False)
    not_after: datetime
    seal: InitVar[object]

    def __post_init__(self, seal: object) -> None:
        """Refuse every maker but `prove_guest`."""
        if seal is not _SEAL:
            raise TypeError("only prove_guest makes a GuestProof")

    def judge(self, policy: Policy, *, now: datetime) -> AttestationResult:
        """Return what this guest proves under `policy`, at `now`. Raises `Rejected`."""
        return appraise_service(
            self.evidence, self.endorsements, policy=policy, roots=self.roots, now=now
        )


Proof: TypeAlias = NodeProof | GuestProof


@dataclass(frozen=True, slots=True)
class Attested:
    """
    A session: who asks, and the key that answers are sealed to. Good until `until`.

    `session` names it (SHA-256 of the nonce), `evidence` is the digest of the attestation body.
    """

    session: bytes
    key: WrappingKey
    evidence: bytes
    proof: Proof
    until: datetime

    @property
    def thumbprint(self) -> bytes:
        """The RFC 7638 thumbprint of the key."""
        return thumbprint(self.key)


@dataclass(slots=True)
class _State:
    attestation: Attestation
    challenge: KbsChallenge
    tee: Tee
    spent: bool
    roots: Roots
    now: datetime
    own: Endorsements
    node: NodeEvidence | None = None
    guest: Evidence | None = None
    # What earlier steps established.
    expectation: Expectation | None = None
    verified: VerifiedNode | None = None
    floor: AttestationResult | None = None


def _nest(run: Callable[[], T]) -> T:
    try:
        return run()
    except Rejected as error:
        raise Refused(error.reason, str(error.failures[0])) from error


def _challenge(state: _State) -> str:
    if state.attestation.nonce != state.challenge.nonce:
        raise Refused(Reason.NONCE_MISMATCH, "answers another challenge than the session's")
    if state.spent:
        raise Refused(Reason.REPLAYED, "an attestation was accepted for this challenge already")
    return "this session's, for the first time"


def _key(state: _State) -> str:
    require_usable(state.attestation.key)
    return "a key that can be sealed to"


def _expectation(state: _State) -> str:
    if state.tee != "tdx":
        raise Refused(Reason.TEE_TYPE, "a node of ours is a TDX guest")
    if state.attestation.additional or state.attestation.has_init_data:
        raise Refused(Reason.BROKER_FORMAT, "a node has no additional evidence and no init-data")
    expectation = parse_expectation(established(state.node).expectation)
    state.expectation = expectation
    return expectation.digest.hex()


def _node_quoted(state: _State) -> str:
    """The statement and the quote against this exchange."""
    bundle = established(state.node).evidence
    statement = parse_statement(bundle.statement)
    if statement.purpose != "release":
        raise Refused(Reason.STATEMENT_MISMATCH, f"made for purpose {statement.purpose}")
    if statement.nonce != state.challenge.nonce:
        raise Refused(Reason.NONCE_MISMATCH, "made for another challenge")
    if statement.claim != _claim(state):
        raise Refused(Reason.CLAIM_MISMATCH, "made for another key")
    if parse_quote(bundle.quote).body.report_data != statement.report_data:
        raise Refused(Reason.REPORT_DATA_MISMATCH, "the quote is of another statement")
    return "made for this challenge and key"


def _claim(state: _State) -> bytes:
    return runtime_claim(nonce=state.challenge.nonce, tee_pubkey=state.attestation.tee_pubkey)


def _node(state: _State) -> str:
    presented, expectation = established(state.node), established(state.expectation)
    bundle = presented.evidence
    if not state.roots.simulated:
        # 3.5: what Intel and NVIDIA say is the broker's to bring. A simulated vendor has no
        # service to ask; what the evidence brought then counts.
        collateral = state.own.tdx[0] if state.own.tdx else b""
        bundle = replace(bundle, collateral=collateral, endorsements=state.own.nvidia)
    claim = _claim(state)
    state.verified = _nest(
        lambda: appraise_node(
            bundle,
            subject=f"{presented.role}-node",
            role=presented.role,
            purpose="release",
            nonce=state.challenge.nonce,
            claim=claim,
            expectation=expectation,
            roots=state.roots,
            now=state.now,
        )
    )
    return f"{presented.role} node, for a release"


def _run(state: _State) -> str:
    presented, verified = established(state.node), established(state.verified)
    if presented.run is None:
        return "a model node has no run"
    digest = established(state.expectation).digest
    payload = run_commitment("confide-expectation", run=presented.run, digest=digest)
    if not verified.events.has_run_event("confide-expectation", payload):
        raise Refused(Reason.EXPECTATION_MISMATCH, "RTMR3 does not hold this run's Expectation")
    return "measured before anything of the run was prepared"


def _guest_quoted(state: _State) -> str:
    """The report data against what it has to commit to."""
    evidence = established(state.guest)
    if len(evidence.attesters) != 1 or evidence.nonce != state.challenge.nonce:
        raise Refused(Reason.NONCE_MISMATCH, "not evidence of one machine for this challenge")
    [attester] = evidence.attesters
    named = {key.value for key in attester.keys if key.name in attester.binding.covers}
    if named != {thumbprint(state.attestation.key)}:
        raise Refused(Reason.KEY_MISMATCH, "the report data covers another key, or none")
    if attester.tdx is not None:
        quoted = parse_quote(attester.tdx.quote).body.report_data
    elif attester.snp is not None:
        quoted = parse_snp_report(attester.snp.report).report_data
    else:
        raise Refused(Reason.EVIDENCE_MISSING, "no evidence of a processor")
    if quoted != attester.binding.expected:
        raise Refused(Reason.REPORT_DATA_MISMATCH, "made for another challenge or key")
    return "made for this challenge and key"


def _floor(state: _State) -> str:
    evidence, policy = established(state.guest), floor_policy(simulated=state.roots.simulated)
    state.floor = _nest(
        lambda: appraise_service(
            evidence, state.own, policy=policy, roots=state.roots, now=state.now
        )
    )
    return "genuine, fresh, not in debug mode, the key bound"


def _step(
    number: int, clause: str, run: Callable[[_State], str], needs: tuple[int, ...]
) -> Step[_State]:
    return Step(f"broker/{number}", f"{DOC}#{clause}", run, tuple(f"broker/{n}" for n in needs))


_ASKED: Final = (_step(1, "3.1", _challenge, ()), _step(2, "3.2", _key, (1,)))
_NODE_SCREEN: Final = (
    *_ASKED,
    _step(3, "3.4", _expectation, (1, 2)),
    _step(4, "3.4", _node_quoted, (1, 2)),
)
_NODE_STEPS: Final = (
    *_NODE_SCREEN,
    _step(5, "3.4", _node, (3, 4)),
    _step(6, "3.4", _run, (5,)),
)
_GUEST_SCREEN: Final = (*_ASKED, _step(7, "3.3", _guest_quoted, (1, 2)))
_GUEST_STEPS: Final = (*_GUEST_SCREEN, _step(8, "3.3", _floor, (7,)))


def _run_all(steps: tuple[Step[_State], ...], state: _State) -> None:
    findings = run_steps(steps, state, subject="attestation")
    if any(finding.failed for finding in findings):
        raise ReleaseRefused(findings)


@dataclass(frozen=True, slots=True)
class Asked:
    """One attestation in its session: what was sent for which challenge, under which roots."""

    attestation: Attestation
    challenge: KbsChallenge
    tee: Tee
    spent: bool
    roots: Roots
    now: datetime

    def _state(
        self,
        *,
        own: Endorsements | None = None,
        node: NodeEvidence | None = None,
        guest: Evidence | None = None,
    ) -> _State:
        return _State(
            self.attestation,
            self.challenge,
            self.tee,
            self.spent,
            self.roots,
            self.now,
            own or Endorsements(),
            node,
            guest,
        )

    def screen_node(self, node: NodeEvidence) -> None:
        """Run the cheap steps, 1 to 4, alone. Raises `ReleaseRefused`; a pass proves nothing."""
        _run_all(_NODE_SCREEN, self._state(node=node))

    def screen_guest(self, guest: Evidence) -> None:
        """Run the cheap steps, 1, 2, 7, alone. Raises `ReleaseRefused`; a pass proves nothing."""
        _run_all(_GUEST_SCREEN, self._state(guest=guest))

    def prove_node(self, node: NodeEvidence, *, own: Endorsements) -> NodeProof:
        """
        Establish that a node of ours, under the Expectation it names, holds the wrapping key, now.

        Performs steps broker/1 to broker/6. `own` is what vendors told the broker. That anybody
        wants this Expectation to have anything is **not** established: the owners' releases say so.
        Raises `ReleaseRefused`.
        """
        state = self._state(own=own, node=node)
        _run_all(_NODE_STEPS, state)
        return NodeProof(
            node.role,
            established(state.expectation),
            node.run,
            established(state.verified).result.not_after,
            seal=_SEAL,
        )

    def prove_guest(self, guest: Evidence, *, own: Endorsements) -> GuestProof:
        """
        Establish that a genuine machine holds the wrapping key, now; nothing about what runs in it.

        Performs steps broker/1, broker/2, broker/7 and broker/8. `guest` is what the reader of
        the attestation returned, `own` what vendors told the broker. Raises `ReleaseRefused`.
        """
        state = self._state(own=own, guest=guest)
        _run_all(_GUEST_STEPS, state)
        return GuestProof(guest, own, self.roots, established(state.floor).not_after, seal=_SEAL)
