"""The verifier of AMD SEV-SNP evidence: report, certificates, anchors, policy, time in; claims out.

The procedure is docs/protocols/snp.md, steps 1 to 11:

- `verify_snp_report`: the steps of authenticity, 2.1 to 8.3 without those of policy;
- `appraise_snp_report`: the policy steps, 3.3, 3.4, 4.2, 5.2, 7.2 and 9 to 11;
- `appraise_snp`: all of them over bytes.

Report, leaf, chain and revocation list are hostile, whoever delivered them; roots, policy, `now`
and the expected report data are the caller's own. No field of the evidence selects a root.

**What the caller still must do:** choose the report data freshly and bind the channel into it, know
the measurement, and decide about the machine: an extracted key passes every step here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from confide.appraisal.snp_appraise import POLICY_STEPS, PolicyState
from confide.appraisal.snp_chain import CHAIN_STEPS, SnpState
from confide.appraisal.snp_report import REPORT_STEPS
from confide.appraisal.snp_types import SEAL, SnpClaims, SnpResult, VerifiedSnpReport
from confide.appraisal.steps import Step, established, run_steps
from confide.errors import EvidenceRejected, PolicyRejected, Reason
from confide.rats import Finding, Status
from confide.wire.snp import GuestPolicy, PlatformInfo, parse_report

if TYPE_CHECKING:
    from datetime import datetime

    from confide.appraisal.snp_policy import SnpPolicy
    from confide.trust.amd import AmdRoots
    from confide.wire.snp import SnpReport

__all__ = [
    "SnpClaims",
    "SnpResult",
    "VerifiedSnpReport",
    "appraise_snp",
    "appraise_snp_report",
    "verify_snp_report",
]

_STEPS: Final = (*CHAIN_STEPS, *REPORT_STEPS)


def _number(step: str) -> tuple[int, ...]:
    return tuple(int(part) for part in step.removeprefix("snp/").split("."))


def _in_order(*stages: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """Sort by step number: 4.2 stands between 4.1 and 5.1, whichever stage ran it."""
    findings = [found for stage in stages for found in stage]
    return tuple(sorted(findings, key=lambda found: _number(found.step)))


def _passed(findings: tuple[Finding, ...]) -> frozenset[str]:
    return frozenset(found.step for found in findings if found.status is Status.PASS)


def _all_passed(findings: tuple[Finding, ...]) -> bool:
    return len(_passed(findings)) == len(findings)


def _policy_steps(done: frozenset[str]) -> tuple[Step[PolicyState], ...]:
    """Return the policy steps with the needs in `done`, met by an earlier stage, removed."""
    return tuple(
        replace(step, needs=tuple(need for need in step.needs if need not in done))
        for step in POLICY_STEPS
    )


def _require_now(now: datetime) -> None:
    if now.tzinfo is None:
        raise ValueError("now needs a time zone")


def _require_report_data(report_data: bytes) -> None:
    if len(report_data) != 64:
        raise ValueError("the expected report data has 64 bytes")


def _verified(state: SnpState, findings: tuple[Finding, ...]) -> VerifiedSnpReport:
    return VerifiedSnpReport(
        report=state.report,
        anchor=established(state.anchor),
        simulated=state.simulated,
        kind=established(state.kind),
        product_name=state.product[1],
        operator=state.owner[1] or "",
        authority=state.authority,
        leaf=state.leaf,
        crl=state.crl,
        not_before=state.not_before,
        not_after=state.not_after,
        findings=findings,
        seal=SEAL,
    )


def verify_snp_report(
    report: SnpReport,
    *,
    leaf_der: bytes,
    chain_pem: bytes,
    crl_der: bytes | None,
    roots: AmdRoots,
    now: datetime,
    subject: str = "snp",
) -> VerifiedSnpReport:
    """
    Establish that a key certified under one of `roots` signed `report`, at its firmware level.

    `leaf_der` is the VCEK or VLEK, `chain_pem` ASK or ASVK then ARK, `crl_der` AMD's list or None.
    Says nothing about *what* runs inside: the result must still be appraised against a policy.

    Raises `EvidenceRejected` with a finding for every step.
    """
    _require_now(now)
    state = SnpState(
        report, leaf_der=leaf_der, chain_pem=chain_pem, crl_der=crl_der, roots=roots, now=now
    )
    findings = run_steps(_STEPS, state, subject=subject)
    if not _all_passed(findings):
        raise EvidenceRejected(_in_order(findings))
    return _verified(state, findings)


def appraise_snp_report(
    verified: VerifiedSnpReport,
    policy: SnpPolicy,
    *,
    expected_report_data: bytes,
    now: datetime,
    subject: str = "snp",
) -> SnpResult:
    """
    Decide whether `policy` accepts `verified`, made for `expected_report_data` (64 bytes).

    Raises `EvidenceRejected` when it was made for other report data, else `PolicyRejected`; with a
    finding for every step, those of authenticity included; also when something behind `verified`
    has expired since it was verified.
    """
    _require_report_data(expected_report_data)
    _require_now(now)
    state = PolicyState(verified, policy, expected_report_data, now)
    steps = _policy_steps(_passed(verified.findings))
    findings = run_steps(steps, state, subject=subject)
    merged = _in_order(verified.findings, findings)
    if any(found.reason is Reason.REPORT_DATA_MISMATCH for found in findings):
        # Not a matter of taste: the report was made for somebody or something else.
        raise EvidenceRejected(merged)
    if not _all_passed(findings):
        raise PolicyRejected(merged)
    return SnpResult(
        claims=_claims(verified),
        findings=merged,
        verified=verified,
        policy_digest=policy.digest,
        relaxations=policy.relaxations,
        now=now,
    )


def appraise_snp(
    report: bytes,
    *,
    leaf_der: bytes,
    chain_pem: bytes,
    crl_der: bytes | None,
    roots: AmdRoots,
    policy: SnpPolicy,
    report_data: bytes,
    now: datetime,
    subject: str = "snp",
) -> SnpResult:
    """
    Run all of docs/protocols/snp.md, steps 1 to 11, over bytes.

    `report_data` are the 64 bytes that the caller expects.

    Raises `FormatError` for step 1, `EvidenceRejected` for what is not authentic, `PolicyRejected`
    for what is not accepted; each rejection holds a finding for every step, in order.
    """
    _require_now(now)
    _require_report_data(report_data)
    state = SnpState(
        parse_report(report),
        leaf_der=leaf_der,
        chain_pem=chain_pem,
        crl_der=crl_der,
        roots=roots,
        now=now,
    )
    findings = run_steps(_STEPS, state, subject=subject)
    if not _all_passed(findings):
        # The policy is held against what is proven: the report names everything wrong.
        judged = PolicyState(state, policy, report_data, now)
        steps = _policy_steps(_passed(findings))
        raise EvidenceRejected(_in_order(findings, run_steps(steps, judged, subject=subject)))
    return appraise_snp_report(
        _verified(state, findings),
        policy,
        expected_report_data=report_data,
        now=now,
        subject=subject,
    )


def _names(bits: GuestPolicy | PlatformInfo) -> tuple[str, ...]:
    return tuple(sorted(str(bit.name).lower().replace("_", "-") for bit in bits))


def _claims(verified: VerifiedSnpReport) -> SnpClaims:
    report, product = verified.report, verified.product
    known = PlatformInfo(report.platform_info & sum(PlatformInfo))
    return SnpClaims(
        anchor=verified.anchor.sha256,
        simulated=verified.simulated,
        product=product,
        product_name=verified.product_name,
        key=verified.kind,
        operator=verified.operator,
        version=report.version,
        vmpl=report.vmpl,
        guest_svn=report.guest_svn,
        guest_policy=_names(GuestPolicy(report.policy & sum(GuestPolicy))),
        abi=report.abi,
        platform_info=_names(known),
        platform_info_unknown=report.platform_info & ~sum(PlatformInfo),
        family_id=report.family_id,
        image_id=report.image_id,
        report_data=report.report_data,
        measurement=report.measurement,
        host_data=report.host_data,
        id_key_digest=report.id_key_digest,
        author_key_digest=report.author_key_digest,
        report_id=report.report_id,
        report_id_ma=report.report_id_ma,
        chip_id=report.chip_id,
        mask_chip_key=report.mask_chip_key,
        cpuid=report.cpuid,
        current_tcb=report.current_tcb.components(product),
        reported_tcb=report.reported_tcb.components(product),
        committed_tcb=report.committed_tcb.components(product),
        launch_tcb=report.launch_tcb.components(product),
        current_firmware=report.current,
        committed_firmware=report.committed,
        launch_mitigations=report.launch_mitigations,
        current_mitigations=report.current_mitigations,
        crl_issued=verified.crl.this_update if verified.crl else None,
        not_after=verified.not_after,
    )
