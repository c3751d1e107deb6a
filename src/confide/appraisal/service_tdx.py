"""The TDX part of one attester: authentic or not, at which level, under which launch.

Clauses: docs/protocols/services.md §5, steps 1 and 2. The checks are docs/protocols/tdx.md; here
their findings become claims. Collateral of the relying party is tried before what the attester
passed along, and the first that is authentic, current and about this platform decides: older
statements of the vendor cannot undo what a newer one revokes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from confide.appraisal.claim_names import ClaimName
from confide.appraisal.tdx import appraise_quote, verify_collateral, verify_quote
from confide.appraisal.tdx_policy import UnsafeAny
from confide.errors import EvidenceRejected, FormatError, Rejected
from confide.rats import Status
from confide.reasons import Reason
from confide.wire.collateral import parse_collateral
from confide.wire.tdx import parse_quote

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from confide.appraisal.service_ledger import Ledger
    from confide.appraisal.tdx import VerifiedQuote
    from confide.appraisal.tdx_policy import TdxPolicy
    from confide.rats import Finding
    from confide.trust.anchors import TdxAnchor

__all__ = ["claim_tdx", "verify_tdx"]

_STEP: Final = "service/1"
_LEVEL: Final = "service/2"
# Which claim a policy step of tdx.md speaks about.
_LEVEL_STEPS: Final = {
    "tdx/8.3": ClaimName.TCB,
    "tdx/9.3": ClaimName.TCB,
    "tdx/15.2": ClaimName.TCB,
    "tdx/18": ClaimName.TCB,
    "tdx/28": ClaimName.TCB,
    "tdx/29.1": ClaimName.DEBUG_OFF,
    "tdx/29.2": ClaimName.DEBUG_OFF,
    "tdx/29.3": ClaimName.DEBUG_OFF,
    "tdx/29.4": ClaimName.DEBUG_OFF,
    "tdx/29.5": ClaimName.DEBUG_OFF,
    "tdx/30.9": ClaimName.PLATFORM,
    "tdx/30.10": ClaimName.PLATFORM,
}
_DEBUG_BIT: Final = 1
# One container is for one family of platforms, and a service has few. The rest of what a bundle
# brings would only cost time.
_MAX_OFFERED: Final = 32
# Collateral of another platform family or another PCK CA: says nothing about this quote.
_ELSEWHERE: Final = frozenset({Reason.FMSPC_MISMATCH, Reason.PCEID_MISMATCH, Reason.CRL_SIGNATURE})


def verify_tdx(
    quote: bytes,
    offered: Sequence[bytes],
    *,
    roots: tuple[TdxAnchor, ...],
    now: datetime,
    ledger: Ledger,
) -> VerifiedQuote | None:
    """
    Establish `hardware` for a quote, under whichever of the `offered` collateral verifies.

    Returns None, with the failed findings of the best attempt in the ledger, where none does.
    Raises `FormatError` for a quote that is not one.
    """
    parsed = parse_quote(quote)
    subject = f"{ledger.subject}/tdx"
    if not offered:
        ledger.contradicted(
            ClaimName.HARDWARE, _STEP, Reason.COLLATERAL_MISSING, "no collateral for this quote"
        )
        return None
    best: EvidenceRejected | None = None
    malformed: FormatError | None = None
    for raw in tuple(dict.fromkeys(offered))[:_MAX_OFFERED]:
        endorsed = None
        try:
            endorsed = verify_collateral(
                parse_collateral(raw), roots=roots, now=now, subject=subject
            )
            verified = verify_quote(parsed, endorsed, now=now, subject=subject)
        except EvidenceRejected as error:
            if _decides(error, about_a_platform=endorsed is not None):
                best = error
                break
            if best is None or len(error.failures) < len(best.failures):
                best = error
        except FormatError as error:
            malformed = malformed or error
        else:
            claimed = f"Intel TDX, FMSPC {verified.platform.fmspc.hex()}"
            ledger.proven(ClaimName.HARDWARE, _STEP, "Intel", claimed)
            return verified
    if best is None:
        raise malformed or ValueError("no attempt was made")
    ledger.add(best.findings)
    ledger.contradicted(ClaimName.HARDWARE, _STEP, best.reason, str(best))
    return None


def _decides(refused: EvidenceRejected, *, about_a_platform: bool) -> bool:
    """Whether other collateral could no longer excuse what this one says."""
    reasons = {finding.reason for finding in refused.failures}
    if about_a_platform:
        return not reasons & _ELSEWHERE
    return Reason.CERT_REVOKED in reasons


def claim_tdx(
    verified: VerifiedQuote,
    policy: TdxPolicy,
    *,
    report_data: bytes,
    now: datetime,
    ledger: Ledger,
) -> tuple[Finding, ...]:
    """
    Judge an authentic quote by `policy` and record its level, configuration and platform.

    Registers and report data are in the findings returned; what they mean for a claim depends on
    the launch and the service, which later steps know.
    """
    subject = f"{ledger.subject}/tdx"
    try:
        findings = appraise_quote(
            verified, policy, expected_report_data=report_data, now=now, subject=subject
        ).findings
    except Rejected as error:
        findings = error.findings
    ledger.add(findings)
    failed: dict[ClaimName, Finding] = {}
    for finding in findings:
        claim = _LEVEL_STEPS.get(finding.step)
        if claim is not None and finding.status is not Status.PASS:
            failed.setdefault(claim, finding)
    for name, finding in failed.items():
        ledger.contradicted(name, _LEVEL, finding.reason or Reason.TCB_STATUS, finding.detail)
    _record_level(verified, policy, ledger)
    return findings


def _record_level(verified: VerifiedQuote, policy: TdxPolicy, ledger: Ledger) -> None:
    tcb, body, platform = verified.tcb, verified.quote.body, verified.platform
    advisories = f", advisories {', '.join(tcb.advisories)}" if tcb.advisories else ""
    ledger.proven(ClaimName.TCB, _LEVEL, "Intel", f"{tcb.status}{advisories}")
    if body.td_attributes[0] & _DEBUG_BIT:
        # The policy may accept it; that does not make it private.
        ledger.open(ClaimName.DEBUG_OFF, _LEVEL, "DEBUG is set, and the policy accepts that")
    ledger.proven(ClaimName.DEBUG_OFF, _LEVEL, "Intel", f"attributes {body.td_attributes.hex()}")
    name = f"PPID {platform.ppid.hex()}"
    if isinstance(policy.platforms, UnsafeAny):
        ledger.open(ClaimName.PLATFORM, _LEVEL, f"{name}: the policy lists no platforms")
    ledger.proven(ClaimName.PLATFORM, _LEVEL, "Intel", name)
