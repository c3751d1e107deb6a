"""Attestation results on the wire: an EAR document (draft-ietf-rats-ear) with an AR4SI vector.

Clauses: docs/protocols/services.md §7. One submodule for each attester. The document is a claims
set; nothing signs it here. A trustworthiness component is affirming only where every claim it
rests on is proven; nothing said is 0, which affirms nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from confide.appraisal.claim_names import ClaimName
from confide.rats import Status

if TYPE_CHECKING:
    from confide.rats import AttestationResult, Claim, Finding
    from confide.wire.json import JsonValue

__all__ = ["PROFILE", "claim_document", "ear_document", "finding_document"]

PROFILE: Final = "urn:confide:ear:v1"
# From: draft-ietf-rats-ar4si §2.3; tiers: none 0, affirming 2, warning 32, contraindicated 96.
_NONE, _AFFIRMING, _WARNING, _CONTRAINDICATED = 0, 2, 32, 96
_TIERS: Final = {
    _NONE: "none",
    _AFFIRMING: "affirming",
    _WARNING: "warning",
    _CONTRAINDICATED: "contraindicated",
}
# What each component of the vector rests on.
_COMPONENTS: Final = {
    "instance-identity": (ClaimName.KEYS, ClaimName.FRESHNESS),
    "configuration": (ClaimName.DEBUG_OFF, ClaimName.WORKLOAD, ClaimName.WORKLOAD_EXPECTED),
    "executables": (ClaimName.LAUNCH, ClaimName.IMAGES_PINNED, ClaimName.WORKLOAD_COMPLETE),
    "hardware": (ClaimName.HARDWARE, ClaimName.TCB),
    "runtime-opaque": (ClaimName.HARDWARE, ClaimName.DEBUG_OFF),
}
_DEVICE_COMPONENTS: Final = {
    "instance-identity": (ClaimName.GPU_FRESHNESS,),
    "executables": (ClaimName.GPU_FIRMWARE,),
    "hardware": (ClaimName.GPU, ClaimName.GPU_TOPOLOGY),
}


def _component(claims: dict[str, Claim], names: tuple[ClaimName, ...]) -> int:
    statuses = [claims[name.value].status for name in names if name.value in claims]
    if not statuses or all(status is Status.NOT_PROVEN for status in statuses):
        return _NONE
    if Status.FAIL in statuses:
        return _CONTRAINDICATED
    complete = len(statuses) == len(names) and all(found is Status.PASS for found in statuses)
    return _AFFIRMING if complete else _WARNING


def claim_document(claim: Claim) -> dict[str, JsonValue]:
    """Return the JSON object of one claim."""
    return {
        "name": claim.name,
        "status": claim.status.value,
        "source": claim.source,
        "step": claim.step,
        "clause": claim.clause,
        "value": claim.value,
    }


def finding_document(finding: Finding) -> dict[str, JsonValue]:
    """Return the JSON object of one finding; `reason` is null where nothing failed."""
    return {
        "status": finding.status.value,
        "step": finding.step,
        "clause": finding.clause,
        "subject": finding.subject,
        "detail": finding.detail,
        "reason": finding.reason.value if finding.reason is not None else None,
    }


def _submodule(
    result: AttestationResult, components: dict[str, tuple[ClaimName, ...]], *, least: int
) -> dict[str, JsonValue]:
    claims = {claim.name: claim for claim in result.claims}
    vector: dict[str, JsonValue] = {
        name: _component(claims, names) for name, names in components.items()
    }
    tier = max(int(str(value)) for value in vector.values())
    if tier == _AFFIRMING and _NONE in vector.values():
        tier = _WARNING
    return {
        "ear.status": _TIERS[max(tier, least)],
        "ear.trustworthiness-vector": vector,
        "ear.appraisal-policy-id": f"sha256:{result.policy_digest}",
    }


def _refused(result: AttestationResult, part: AttestationResult) -> int:
    """
    Return the least tier of `part` in a result that was refused.

    The vector knows no policy: a service that lacks a required claim may have a spotless one.
    """
    found = any(
        finding.failed and finding.subject.partition("/")[0] == part.subject
        for finding in result.findings
    )
    return _CONTRAINDICATED if found or not result.parts else _WARNING


def ear_document(
    result: AttestationResult, *, accepted: bool, version: str
) -> dict[str, JsonValue]:
    """
    Return `result` as an EAR claims set.

    `accepted` is whether the policy accepted the whole; `version` names this verifier. The members
    under `confide` hold every claim and finding, which the vector cannot say.
    """
    submodules: dict[str, JsonValue] = {}
    for part in result.parts or (result,):
        least = _NONE if accepted else _refused(result, part)
        submodule = _submodule(part, _COMPONENTS, least=least)
        submodule["confide.claims"] = [claim_document(claim) for claim in part.claims]
        submodules[part.subject] = submodule
        if any(c.name == ClaimName.GPU and c.status is not Status.NOT_PROVEN for c in part.claims):
            submodules[f"{part.subject}/devices"] = _submodule(
                part, _DEVICE_COMPONENTS, least=least
            )
    return {
        "eat_profile": PROFILE,
        "iat": int(result.now.timestamp()),
        "ear.verifier-id": {"build": version, "developer": "Confide"},
        "submods": submodules,
        "confide": {
            "accepted": accepted,
            "subject": result.subject,
            "simulated": result.simulated,
            "roots": list(result.roots),
            "policy": result.policy_digest,
            "not_after": int(result.not_after.timestamp()),
            "claims": [claim_document(claim) for claim in result.claims],
            "findings": [finding_document(finding) for finding in result.findings],
            "limits": list(result.limits),
        },
    }
