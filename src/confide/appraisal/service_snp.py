"""The SEV-SNP part of one attester: authentic or not, at which level, under which launch.

Clauses: docs/protocols/services.md §5, steps 1, 2 and 7. The checks are docs/protocols/snp.md;
here their findings become claims. Certificates of the relying party are tried before those that
the attester passed along; what one of them shows to be revoked stays revoked.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from confide.appraisal.claim_names import ClaimName
from confide.appraisal.snp import appraise_snp_report, verify_snp_report
from confide.appraisal.tdx_policy import UnsafeAny
from confide.errors import EvidenceRejected, FormatError, Rejected
from confide.rats import Status
from confide.reasons import Reason
from confide.wire.snp import GuestPolicy, parse_report

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from confide.appraisal.service_ledger import Ledger
    from confide.appraisal.snp_policy import SnpPolicy
    from confide.appraisal.snp_types import VerifiedSnpReport
    from confide.rats import Finding
    from confide.trust.amd import AmdRoots
    from confide.wire.endorsements import SnpEndorsement
    from confide.wire.snp import SnpReport

__all__ = ["claim_snp", "verify_snp"]

_STEP: Final = "service/1"
_LEVEL: Final = "service/2"
_LAUNCH: Final = "service/7"
# Which claim a policy step of snp.md speaks about; those of the launch are judged apart.
_STEPS: Final = {
    "snp/3.3": (ClaimName.TCB, _LEVEL),
    "snp/3.4": (ClaimName.TCB, _LEVEL),
    "snp/4.2": (ClaimName.TCB, _LEVEL),
    "snp/5.2": (ClaimName.TCB, _LEVEL),
    "snp/7.2": (ClaimName.PLATFORM, _LEVEL),
    "snp/9.1": (ClaimName.DEBUG_OFF, _LEVEL),
    "snp/9.2": (ClaimName.DEBUG_OFF, _LEVEL),
    "snp/9.3": (ClaimName.DEBUG_OFF, _LEVEL),
    "snp/9.4": (ClaimName.LAUNCH, _LAUNCH),
    "snp/9.5": (ClaimName.DEBUG_OFF, _LEVEL),
    "snp/9.6": (ClaimName.PLATFORM, _LEVEL),
    "snp/9.7": (ClaimName.HARDWARE, _STEP),
    "snp/10.1": (ClaimName.TCB, _LEVEL),
    "snp/10.2": (ClaimName.TCB, _LEVEL),
    "snp/10.3": (ClaimName.TCB, _LEVEL),
    "snp/10.4": (ClaimName.TCB, _LEVEL),
    "snp/11.1": (ClaimName.LAUNCH, _LAUNCH),
    "snp/11.2": (ClaimName.WORKLOAD, _LAUNCH),
    "snp/11.3": (ClaimName.LAUNCH, _LAUNCH),
}


def verify_snp(
    report: bytes,
    offered: Sequence[SnpEndorsement],
    *,
    roots: AmdRoots,
    now: datetime,
    ledger: Ledger,
) -> VerifiedSnpReport | None:
    """
    Establish `hardware` for a report, under whichever of the `offered` certificates verify.

    Returns None, with the failed findings of the best attempt in the ledger, where none do.
    Raises `FormatError` for a report that is not one.
    """
    parsed = parse_report(report)
    if not offered:
        ledger.contradicted(
            ClaimName.HARDWARE, _STEP, Reason.COLLATERAL_MISSING, "no certificate for this report"
        )
        return None
    subject = f"{ledger.subject}/snp"
    best: EvidenceRejected | None = None
    malformed: FormatError | None = None
    for endorsement in offered:
        try:
            verified = verify_snp_report(
                parsed,
                leaf_der=endorsement.leaf_der,
                chain_pem=endorsement.chain_pem,
                crl_der=endorsement.crl_der,
                roots=roots,
                now=now,
                subject=subject,
            )
        except EvidenceRejected as error:
            if best is None or len(error.failures) < len(best.failures):
                best = error
        except FormatError as error:
            malformed = malformed or error
        else:
            revoked = _revoked(parsed, endorsement, offered, roots=roots, now=now, subject=subject)
            if revoked is not None:
                best = revoked
                break
            what = f"AMD SEV-SNP, {verified.anchor.product}, {verified.kind}"
            ledger.proven(ClaimName.HARDWARE, _STEP, "AMD", what)
            return verified
    if best is None:
        raise malformed or ValueError("no attempt was made")
    ledger.add(best.findings)
    ledger.contradicted(ClaimName.HARDWARE, _STEP, best.reason, str(best))
    return None


def _revoked(
    report: SnpReport,
    used: SnpEndorsement,
    offered: Sequence[SnpEndorsement],
    *,
    roots: AmdRoots,
    now: datetime,
    subject: str,
) -> EvidenceRejected | None:
    """
    Return the refusal of the certificates `used` under any other list at hand; None: not revoked.

    Who presents certificates chooses which list comes along, or that none does.
    """
    for crl in dict.fromkeys(each.crl_der for each in offered if each.crl_der != used.crl_der):
        try:
            verify_snp_report(
                report,
                leaf_der=used.leaf_der,
                chain_pem=used.chain_pem,
                crl_der=crl,
                roots=roots,
                now=now,
                subject=subject,
            )
        except EvidenceRejected as error:
            if any(finding.reason is Reason.CERT_REVOKED for finding in error.failures):
                return error
        except FormatError:
            # A list that cannot be read says nothing.
            continue
    return None


def claim_snp(
    verified: VerifiedSnpReport,
    policy: SnpPolicy,
    *,
    bound: bool,
    signed: bool,
    now: datetime,
    ledger: Ledger,
) -> None:
    """
    Judge an authentic report by `policy` and record level, configuration, platform and launch.

    `bound` says that HOST_DATA follows from a launch document that was judged, `signed` that the
    measurement is one that a listed publisher signed. A list that names values is kept to.
    """
    report = verified.report
    if bound and _unlisted(policy.host_data):
        policy = replace(policy, host_data=frozenset({report.host_data}))
    if signed and _unlisted(policy.measurement):
        policy = replace(policy, measurement=frozenset({report.measurement}))
    try:
        findings = appraise_snp_report(
            verified,
            policy,
            # What the report data must be is judged with the keys it covers (service/3).
            expected_report_data=report.report_data,
            now=now,
            subject=f"{ledger.subject}/snp",
        ).findings
    except Rejected as error:
        findings = error.findings
    ledger.add(findings)
    for finding in findings:
        if finding.status is not Status.PASS and finding.step in _STEPS:
            name, step = _STEPS[finding.step]
            _unmet(name, step, finding, ledger)
    _record(verified, policy, ledger)


def _unlisted(values: frozenset[bytes] | UnsafeAny) -> bool:
    return isinstance(values, UnsafeAny) or not values


def _unmet(name: ClaimName, step: str, finding: Finding, ledger: Ledger) -> None:
    if finding.reason is not None:
        ledger.contradicted(name, step, finding.reason, finding.detail)
    else:
        ledger.open(name, step, finding.detail)


def _record(verified: VerifiedSnpReport, policy: SnpPolicy, ledger: Ledger) -> None:
    report, product = verified.report, verified.anchor.product
    tcb = report.reported_tcb.components(product)
    ledger.proven(ClaimName.TCB, _LEVEL, "AMD", f"{tcb}; floors are the policy's own")
    if report.policy & GuestPolicy.DEBUG:
        # The policy may accept it; that does not make it private.
        ledger.open(ClaimName.DEBUG_OFF, _LEVEL, "DEBUG is set, and the policy accepts that")
    ledger.proven(ClaimName.DEBUG_OFF, _LEVEL, "AMD", "guest policy without debug")
    chip = f"chip {report.chip_id.hex()[:32]}…"
    if isinstance(policy.chips, UnsafeAny):
        ledger.open(ClaimName.PLATFORM, _LEVEL, f"{chip}: the policy lists no chips")
    ledger.proven(ClaimName.PLATFORM, _LEVEL, "AMD", chip)
    if isinstance(policy.measurement, UnsafeAny):
        why = f"the policy does not say which measurement it expects; {report.measurement.hex()}"
        ledger.open(ClaimName.LAUNCH, _LAUNCH, why)
    ledger.proven(ClaimName.LAUNCH, _LAUNCH, "your policy", "the launch measurement is listed")
