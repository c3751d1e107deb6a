"""From what was established about each attester to one verdict.

Clauses: docs/protocols/services.md §6. A required claim must be proven for every attester it
applies to; a contradicted claim refuses unless the policy tolerates it by name. The whole service
is no better than its worst attester.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from confide.appraisal.claim_names import ClaimName
from confide.appraisal.policy_rules import allows
from confide.appraisal.service_ledger import DOC, WORST
from confide.rats import AttestationResult, Claim, Finding, Status
from confide.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from confide.appraisal.service_ledger import Ledger
    from confide.appraisal.service_policy import Policy

__all__ = ["AUTHENTICITY", "DEVICE_CLAIMS", "Judged", "decide", "merge_claims"]

_STEP: Final = "service/10"
# About devices: they do not apply to a machine that only passes requests on.
DEVICE_CLAIMS: Final = frozenset(
    {
        ClaimName.GPU,
        ClaimName.GPU_FIRMWARE,
        ClaimName.GPU_FRESHNESS,
        ClaimName.GPU_TOPOLOGY,
        ClaimName.GPU_BINDING,
        ClaimName.GPU_COLOCATION,
        ClaimName.MODEL_WEIGHTS,
    }
)
# A contradiction here means: not what it says it is. Elsewhere: not what the caller accepts.
AUTHENTICITY: Final = frozenset(
    {
        ClaimName.HARDWARE,
        ClaimName.FRESHNESS,
        ClaimName.KEYS,
        ClaimName.TLS,
        ClaimName.EVENT_LOG,
        ClaimName.WORKLOAD,
        ClaimName.IMAGE_PROVENANCE,
        ClaimName.GPU,
        ClaimName.GPU_FIRMWARE,
        ClaimName.GPU_FRESHNESS,
        ClaimName.RESPONSE_SIGNATURE,
    }
)


@dataclass(frozen=True, slots=True)
class Judged:
    """
    One attester after its steps: ledger, what was used, until when it holds.

    `inapplicable` are claims that another machine of the service has to make; one that this
    machine contradicts counts all the same. `signed` is the report data that hardware signed, None
    where no hardware was established. `limits` is what its documents show that no claim says.
    """

    name: str
    inapplicable: frozenset[ClaimName]
    ledger: Ledger
    roots: tuple[str, ...]
    simulated: bool
    not_after: datetime
    signed: bytes | None = None
    limits: tuple[str, ...] = ()


def _applies(name: ClaimName, judged: Judged) -> bool:
    # Whoever presents something that is contradicted has made the claim.
    return name not in judged.inapplicable or judged.ledger.status(name) is Status.FAIL


def _missing(name: ClaimName) -> Claim:
    return Claim(name.value, Status.NOT_PROVEN, "nobody", _STEP, f"{DOC}#10", "nothing presented")


def _all_claims(judged: Judged) -> tuple[Claim, ...]:
    """Return every claim that applies, in the order of the vocabulary."""
    return tuple(
        judged.ledger.claims.get(name, _missing(name))
        for name in ClaimName
        if _applies(name, judged)
    )


def _refusals(judged: Judged, policy: Policy) -> tuple[Finding, ...]:
    """Return a failed finding for every claim of this attester that the policy does not accept."""
    found: list[Finding] = []
    for claim in _all_claims(judged):
        name = ClaimName(claim.name)
        subject = f"{judged.ledger.subject}/{name}"
        if claim.status is Status.FAIL and not allows(policy.claims.unsafe_tolerate, name):
            reason = judged.ledger.reasons.get(name, Reason.CLAIM_NOT_PROVEN)
            found.append(
                Finding(Status.FAIL, claim.step, claim.clause, subject, claim.value, reason)
            )
        elif claim.status is not Status.PASS and name in policy.claims.require:
            why = f"required, and not proven: {claim.value}"
            found.append(
                Finding(
                    Status.FAIL, claim.step, claim.clause, subject, why, Reason.CLAIM_NOT_PROVEN
                )
            )
    # What is contradicted explains what could not be proven because of it.
    return tuple(sorted(found, key=lambda item: item.reason is Reason.CLAIM_NOT_PROVEN))


def _tolerated(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return the findings of an accepted result: what failed in detail did not decide."""
    return tuple(
        replace(
            item,
            status=Status.NOT_PROVEN,
            reason=None,
            detail=f"tolerated by the policy: {item.reason}: {item.detail}",
        )
        if item.failed
        else item
        for item in findings
    )


def merge_claims(parts: Sequence[AttestationResult]) -> tuple[Claim, ...]:
    """Return each claim as the worst attester has it; the value names it where they differ."""
    found: list[Claim] = []
    for name in ClaimName:
        made = [
            (part.subject, claim)
            for part in parts
            for claim in part.claims
            if claim.name == name.value
        ]
        if not made:
            continue
        subject, worst = max(made, key=lambda item: WORST[item[1].status])
        alone = len({(claim.status, claim.value) for _, claim in made}) == 1
        value = worst.value if alone or len(parts) == 1 else f"{subject}: {worst.value}"
        found.append(replace(worst, value=value))
    return tuple(found)


def decide(
    judged: Sequence[Judged],
    *,
    subject: str,
    policy: Policy,
    now: datetime,
    limits: tuple[str, ...],
) -> tuple[AttestationResult, tuple[Finding, ...]]:
    """
    Return the result of the whole service, and the findings that refuse it (none: accepted).

    The claim names that the policy requires and no attester could make are refused as well.
    """
    refusals = tuple(finding for item in judged for finding in _refusals(item, policy))
    refusals += _never_applied(judged, policy)
    parts = tuple(
        AttestationResult(
            subject=item.name,
            simulated=item.simulated,
            roots=item.roots,
            policy_digest=policy.digest,
            now=now,
            not_after=item.not_after,
            claims=_all_claims(item),
            findings=tuple(item.ledger.findings) if refusals else _tolerated(item.ledger.findings),
        )
        for item in judged
    )
    whole = AttestationResult(
        subject=subject,
        simulated=any(part.simulated for part in parts),
        roots=tuple(sorted({root for part in parts for root in part.roots})),
        policy_digest=policy.digest,
        now=now,
        not_after=min(part.not_after for part in parts),
        claims=merge_claims(parts),
        findings=(*refusals, *(found for part in parts for found in part.findings)),
        parts=parts,
        limits=limits,
    )
    return whole, refusals


def _never_applied(judged: Sequence[Judged], policy: Policy) -> tuple[Finding, ...]:
    """Refuse a required claim that applied to no attester at all."""
    return tuple(
        Finding(
            Status.FAIL,
            _STEP,
            f"{DOC}#10",
            name,
            "required, and no machine of this service could prove it",
            Reason.CLAIM_NOT_PROVEN,
        )
        for name in sorted(policy.claims.require)
        if not any(_applies(ClaimName(name), item) for item in judged)
    )
