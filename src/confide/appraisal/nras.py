"""Appraise a detached EAT of NVIDIA's remote service: token, keys, policy and time in, claims out.

The procedure is docs/protocols/nras.md; `NRAS_STEPS` are its steps. Every step that still makes
sense runs. The token and the key set are hostile bytes.

What the caller still must do: have fetched the key set itself, from NVIDIA's host over TLS (no
root for these keys is published), and remember that the service was trusted for the appraisal.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final, Literal

from confide.appraisal.claim_names import ClaimName
from confide.appraisal.nras_claims import (
    CLAIM_STEPS,
    POLICY_STEP_IDS,
    VERSION,
    WARNING,
    device_kind,
    version_claims,
)
from confide.appraisal.nras_policy import (
    NRAS_ISSUER,
    NrasDevice,
    NrasPolicy,
    NrasResult,
    ReportedDevice,
)
from confide.appraisal.nras_service import SERVICE_STEPS, SHAPE_STEP
from confide.appraisal.nras_state import NrasState
from confide.appraisal.steps import Step, established, run_steps
from confide.errors import EvidenceRejected, PolicyRejected
from confide.rats import Claim, Finding, Status

if TYPE_CHECKING:
    from datetime import datetime

    from confide.appraisal.nras_state import Claims

__all__ = [
    "NONCE_BYTES",
    "NRAS_ISSUER",
    "NRAS_STEPS",
    "NrasDevice",
    "NrasPolicy",
    "NrasResult",
    "ReportedDevice",
    "appraise_nras",
    "find_in_claims",
]

NONCE_BYTES: Final = 32
_DOC: Final = "docs/protocols/nras.md"
# Text of the service is shown as theirs, and never at more than this length.
_MAX_TEXT: Final = 256
NRAS_STEPS: tuple[Step[NrasState], ...] = (*SERVICE_STEPS, *CLAIM_STEPS)
_LIMITS: Final = (
    (
        "NVIDIA's remote service appraised the devices; this verifier checked its signature and "
        "what it said, not the devices' own reports."
    ),
    "A token over GPUs says nothing about switches, nor that the set is complete.",
    "Nothing shows which machine a device is attached to.",
)
_AS_FETCHED: Final = (
    "No root is published for the service's keys: that they are NVIDIA's rests on how the key "
    "set was fetched."
)


def appraise_nras(
    token: bytes,
    *,
    jwks: bytes | None,
    expected_nonce: bytes,
    issuer: str = NRAS_ISSUER,
    policy: NrasPolicy,
    now: datetime,
    reports: tuple[ReportedDevice, ...] | None = None,
    subject: str = "nras",
) -> NrasResult:
    """
    Establish that the service `issuer` vouches, for this nonce, for devices that `policy` accepts.

    Performs steps 1 to 9 of docs/protocols/nras.md. `token` is the detached EAT, exact bytes;
    `jwks` the key set as the relying party fetched it, never as an attester passed it on; None
    refuses. `reports` is what the devices' own appraised reports say, None where there are none.
    `issuer` is exact: simulated tokens are accepted only by a caller that names their issuer.

    **Does not check** that the key set is NVIDIA's (no root is published), nor anything that the
    service did not look at: switches beside GPUs, completeness, attachment.

    Raises `EvidenceRejected`, or `PolicyRejected` when the token is authentic and only the policy
    is not met, with every finding; `ValueError` for an expected nonce that is not 32 bytes or a
    `now` without a time zone.
    """
    if len(expected_nonce) != NONCE_BYTES or now.tzinfo is None:
        raise ValueError("the nonce has 32 bytes and the time has a zone")
    state = NrasState(token, jwks, issuer, expected_nonce, policy, now, reports)
    findings = run_steps(NRAS_STEPS, state, subject=subject)
    bad = {finding.step for finding in findings if finding.status is not Status.PASS}
    if bad:
        raise (PolicyRejected if bad <= POLICY_STEP_IDS else EvidenceRejected)(findings)
    return _result(state, findings)


def find_in_claims(
    token: bytes,
    *,
    expected_nonce: bytes,
    issuer: str,
    policy: NrasPolicy,
    now: datetime,
    subject: str = "nras",
) -> tuple[Finding, ...]:
    """
    Return the findings of step 1 and steps 4 to 9 alone, for vectors whose keys are gone.

    **Proves nothing**: no signature is looked at, and findings are no result. Nothing in the
    package calls this.
    """
    state = NrasState(token, None, issuer, expected_nonce, policy, now)
    return run_steps((SHAPE_STEP, *CLAIM_STEPS), state, subject=subject)


def _result(state: NrasState, findings: tuple[Finding, ...]) -> NrasResult:
    overall = established(state.overall_claims)
    devices = tuple(_device(name, claims) for name, claims in state.payloads.items())
    warnings = tuple(device.warning for device in devices if device.warning)
    if overall.get(WARNING) is not None:
        warnings = (_printable(overall[WARNING]), *warnings)
    keys = tuple(state.keys.values())
    issuers = {issuer for key in keys for issuer in key.certificates[1:]}
    simulated = state.issuer != NRAS_ISSUER
    return NrasResult(
        simulated=simulated,
        issuer=state.issuer,
        policy_digest=state.policy.digest(),
        now=state.now,
        not_after=min(state.expiries),
        version=_printable(overall.get(VERSION)),
        keys=tuple(hashlib.sha256(key.public.spki()).hexdigest() for key in keys),
        authorities=tuple(
            sorted(hashlib.sha256(each.public_key.spki()).hexdigest() for each in issuers)
        ),
        authority_pinned=state.pinned,
        devices=devices,
        warnings=warnings,
        claims=_claims(devices, simulated=simulated, pinned=state.pinned),
        findings=findings,
        limits=_LIMITS if state.pinned else (*_LIMITS, _AS_FETCHED),
    )


def _device(name: str, claims: Claims) -> NrasDevice:
    kind: Literal["gpu", "switch"] = "switch" if device_kind(name) == "switch" else "gpu"
    driver, vbios = version_claims(name)
    return NrasDevice(
        name=name,
        kind=kind,
        ueid=_printable(claims.get("ueid")),
        hwmodel=_printable(claims.get("hwmodel")),
        driver_version=_printable(claims.get(driver)),
        vbios_version=_printable(claims.get(vbios)).upper(),
        warning=_printable(claims.get(WARNING)),
    )


def _printable(value: object) -> str:
    """Return text of the service, shortened and without anything that a terminal would act on."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else "(a warning that is no text)"
    return "".join(char if char.isprintable() else "?" for char in text[:_MAX_TEXT])


def _claims(devices: tuple[NrasDevice, ...], *, simulated: bool, pinned: bool) -> tuple[Claim, ...]:
    source = "a simulated token service" if simulated else "NVIDIA's remote service"
    trust = "an issuer of its key is pinned" if pinned else "keys trusted as fetched"
    said = f"{len(devices)} device(s), by token; {trust}"
    passed = (
        (ClaimName.GPU, "nras/7b", said),
        (ClaimName.GPU_FIRMWARE, "nras/7c", "found equal to reference values by the service"),
        (ClaimName.GPU_FRESHNESS, "nras/6b", "the token answers the nonce"),
    )
    open_ = (
        (ClaimName.GPU_TOPOLOGY, "nras/9c", "a token does not say that the set is complete"),
        (ClaimName.GPU_COLOCATION, "nras/9c", "a token does not say where a device is attached"),
    )
    return tuple(
        Claim(name, Status.PASS, source, step, _clause(step), value) for name, step, value in passed
    ) + tuple(
        Claim(name, Status.NOT_PROVEN, "nobody", step, _clause(step), value)
        for name, step, value in open_
    )


def _clause(step: str) -> str:
    return f"{_DOC}#{step.removeprefix('nras/').rstrip('abcde')}"
