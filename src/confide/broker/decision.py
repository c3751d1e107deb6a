"""Whether a session may have a resource, now. Pure.

Clause: docs/protocols/broker.md 4.2, steps (3) and (4): a release in force that names the
Expectation of a node, or a policy that accepts the evidence of a guest. Nothing is remembered: what
was permitted a moment ago is decided anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from confide.appraisal.policy_file import parse_policy
from confide.broker.attested import Attested, NodeProof
from confide.broker.refusal import DOC, refusal
from confide.errors import FormatError, Reason, Rejected, ReleaseRefused
from confide.rats import Finding, Status

if TYPE_CHECKING:
    from datetime import datetime

    from confide.broker.attested import GuestProof
    from confide.broker.holdings import Holdings

__all__ = ["Permit", "RefusedPermit", "permit"]


@dataclass(frozen=True, slots=True)
class Permit:
    """Why a session may have a resource: held to `against`, by the word of `release`."""

    accepts: Literal["expectation", "policy"]
    against: bytes
    release: bytes


class RefusedPermit(ReleaseRefused):
    """A refusal that knows what it was decided against (None: nothing to decide against)."""

    def __init__(
        self,
        findings: tuple[Finding, ...],
        *,
        accepts: Literal["expectation", "policy"] | None,
        against: bytes | None,
    ) -> None:
        super().__init__(findings)
        self.accepts = accepts
        self.against = against


def permit(
    attested: Attested, resource: str, *, broker: bytes, holdings: Holdings, now: datetime
) -> Permit:
    """
    Decide steps (3) and (4) for `attested` and `resource`. Blocks where `holdings` does.

    `broker` is the key of the broker that decides.

    Raises `RefusedPermit`; whatever `holdings` cannot read is `Unavailable` or `FormatError`.
    """
    if isinstance(attested.proof, NodeProof):
        _require_listed(attested.proof, resource, broker=broker)
        return _expectation(attested.proof, resource, holdings=holdings, now=now)
    return _policy(attested.proof, resource, holdings=holdings, now=now)


def _require_listed(proof: NodeProof, resource: str, *, broker: bytes) -> None:
    """Require that the Expectation asks this broker for `resource`, for the agent that it names."""
    expectation = proof.expectation
    asked = expectation.broker
    listed = {asked.resource(use.name) for use in asked.uses}
    if asked.state:
        listed.add(asked.state_resource(expectation.name))
    if proof.role == "agent" and asked.key == broker.hex() and resource in listed:
        return
    missing = refusal(
        Reason.EXPECTATION_MISMATCH,
        "the Expectation does not ask this broker for it, or a node asks that runs no agent",
        step="10",
        clause="4.2",
    )
    raise RefusedPermit(missing.findings, accepts="expectation", against=expectation.digest)


def _expectation(proof: NodeProof, resource: str, *, holdings: Holdings, now: datetime) -> Permit:
    digest = proof.expectation.digest
    try:
        found = holdings.require_release(resource, accepts="expectation", digest=digest, now=now)
    except ReleaseRefused as error:
        raise RefusedPermit(error.findings, accepts="expectation", against=digest) from error
    return Permit("expectation", digest, found)


def _policy(proof: GuestProof, resource: str, *, holdings: Holdings, now: datetime) -> Permit:
    refused: RefusedPermit | None = None
    for digest, raw in holdings.policies(resource, now=now):
        try:
            proof.judge(parse_policy(raw.decode()), now=now)
            found = holdings.require_release(resource, accepts="policy", digest=digest, now=now)
        except (Rejected, FormatError, UnicodeDecodeError) as error:
            # The first one tells why; a later one may still accept.
            refused = refused or _against(digest, error)
            continue
        return Permit("policy", digest, found)
    if refused is not None:
        raise refused
    missing = refusal(
        Reason.RELEASE_MISSING, "no release to a policy is in force", step="10", clause="4.2"
    )
    raise RefusedPermit(missing.findings, accepts=None, against=None)


def _against(digest: bytes, error: Exception) -> RefusedPermit:
    if isinstance(error, ReleaseRefused):
        return RefusedPermit(error.findings, accepts="policy", against=digest)
    reason = error.reason if isinstance(error, Rejected | FormatError) else Reason.POLICY_FORMAT
    detail = "the evidence of this session is not accepted by the owners' policy"
    finding = Finding(Status.FAIL, "broker/11", f"{DOC}#4.2", "broker", detail, reason)
    return RefusedPermit((finding,), accepts="policy", against=digest)
