"""The verifier of Intel TDX evidence: quote, collateral, anchors, policy and time in; claims out.

The procedure is docs/protocols/tdx.md, steps 1 to 31:

- `verify_collateral`: steps 5.1, 8.1, 9.1, 10.1 and 11 to 15.1, once per set of collateral;
- `verify_quote`: the remaining steps up to 27, once per quote;
- `appraise_quote`: the policy steps, 4.2, 8.3, 9.3, 15.2, 18 and 28 to 31;
- `appraise_tdx`: all of them over bytes.

`quote` and `collateral` are hostile, whoever delivered them; `roots`, `policy`, `now` and the
expected report data are the caller's own. No field of the evidence selects a root.

**What the caller still must do:** choose the report data freshly and bind the channel into it,
replay an event log for every register left to `ByEventLog`, and decide about the platform: an
extracted attestation key passes every step here.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from confide.appraisal.steps import Step, run_steps
from confide.appraisal.tdx_appraise import POLICY_STEPS, PolicyState
from confide.appraisal.tdx_collateral import COLLATERAL_STEPS, CollateralState
from confide.appraisal.tdx_policy import TrailingBytes
from confide.appraisal.tdx_quote import QUOTE_STEPS, QuoteState
from confide.appraisal.tdx_types import (
    SEAL,
    CollateralDigests,
    TdxClaims,
    TdxResult,
    VerifiedCollateral,
    VerifiedQuote,
)
from confide.errors import EvidenceRejected, PolicyRejected, Reason
from confide.rats import Finding, Status
from confide.wire.collateral import parse_collateral
from confide.wire.tdx import TdBody15, parse_quote

if TYPE_CHECKING:
    from datetime import datetime

    from confide.appraisal.tdx_policy import TdxPolicy
    from confide.trust.anchors import TdxAnchor
    from confide.wire.collateral import Collateral
    from confide.wire.tdx import TdxQuote

__all__ = [
    "TdxClaims",
    "TdxResult",
    "VerifiedCollateral",
    "VerifiedQuote",
    "appraise_quote",
    "appraise_tdx",
    "verify_collateral",
    "verify_quote",
]


def _without_needs(
    steps: tuple[Step[QuoteState], ...], done: frozenset[str]
) -> tuple[Step[QuoteState], ...]:
    """Return `steps` with the needs in `done`, which an earlier stage satisfied, removed."""
    return tuple(
        replace(step, needs=tuple(need for need in step.needs if need not in done))
        for step in steps
    )


# What is left to need once every collateral step passed, which is the usual case.
_QUOTE_STEPS_AFTER: Final = _without_needs(
    QUOTE_STEPS, frozenset(step.id for step in COLLATERAL_STEPS)
)


def _number(step: str) -> tuple[int, ...]:
    return tuple(int(part) for part in step.removeprefix("tdx/").split("."))


_ORDER: Final = {
    name: _number(name)
    for name in (
        *(step.id for step in COLLATERAL_STEPS),
        *(step.id for step in QUOTE_STEPS),
        *(step.id for step in POLICY_STEPS),
    )
}


# Where each finding of a whole appraisal goes: sorting them anew takes longer than making them.
_POSITIONS: Final = tuple(
    position for _, position in sorted((number, at) for at, number in enumerate(_ORDER.values()))
)


def _in_order(*stages: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """Sort by step number: 9.2 stands between 9.1 and 9.3, whichever stage ran it."""
    findings = [found for stage in stages for found in stage]
    if len(findings) == len(_POSITIONS):
        return tuple([findings[position] for position in _POSITIONS])
    return tuple(sorted(findings, key=lambda found: _ORDER[found.step]))


def _all_passed(findings: tuple[Finding, ...]) -> bool:
    wanted = Status.PASS
    return not [found for found in findings if found.status is not wanted]


def _require_arguments(roots: tuple[TdxAnchor, ...], now: datetime) -> None:
    if not roots:
        raise ValueError("at least one trust anchor is needed")
    if now.tzinfo is None:
        raise ValueError("now needs a time zone")


def verify_collateral(
    collateral: Collateral, *, roots: tuple[TdxAnchor, ...], now: datetime, subject: str = "tdx"
) -> VerifiedCollateral:
    """
    Establish that `collateral` was issued under one of `roots` and is current at `now`.

    The result can be reused for any number of quotes while it is current; `verify_quote` checks
    the time again. Says nothing about any platform.

    Raises `EvidenceRejected` with a finding for every step.
    """
    _require_arguments(roots, now)
    state = CollateralState(collateral, roots=roots, now=now)
    findings = run_steps(COLLATERAL_STEPS, state, subject=subject)
    if not _all_passed(findings):
        raise EvidenceRejected(_in_order(findings))
    return _verified_collateral(state, findings)


def _sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def _verified_collateral(
    state: CollateralState, findings: tuple[Finding, ...]
) -> VerifiedCollateral:
    info, identity = state.tcb_info, state.qe_identity
    lists = (state.root_crl, state.pck_crl)
    certificates = (state.root, *state.signers)
    until = [found.next_update for found in lists if found.next_update is not None]
    until += [info.next_update, identity.next_update]
    return VerifiedCollateral(
        collateral=state.collateral,
        anchor=state.anchor,
        root=state.root,
        root_crl=state.root_crl,
        pck_crl=state.pck_crl,
        pck_authority=state.pck_authority,
        tcb_info=info,
        qe_identity=identity,
        digests=CollateralDigests(
            root_crl=state.root_crl.sha256,
            pck_crl=state.pck_crl.sha256,
            tcb_info=_sha256(state.collateral.tcb_info),
            qe_identity=_sha256(state.collateral.qe_identity),
            tcb_signer=state.tcb_chain[0].sha256,
            qe_signer=state.qe_chain[0].sha256,
        ),
        not_before=max(
            *(found.this_update for found in lists),
            *(certificate.not_before for certificate in certificates),
            info.issued,
            identity.issued,
        ),
        not_after=min(*until, *(certificate.not_after for certificate in certificates)),
        findings=findings,
        seal=SEAL,
    )


def _current(collateral: VerifiedCollateral, now: datetime) -> bool:
    return collateral.not_before <= now <= collateral.not_after


def verify_quote(
    quote: TdxQuote, collateral: VerifiedCollateral, *, now: datetime, subject: str = "tdx"
) -> VerifiedQuote:
    """
    Establish that a genuine platform under `collateral.anchor` signed `quote`, and at which level.

    Says nothing about *what* runs inside: the result must still be appraised against a policy.

    Raises `EvidenceRejected` with a finding for every step, also when the collateral is not
    current at `now` (its own steps then ran again).
    """
    if now.tzinfo is None:
        raise ValueError("now needs a time zone")
    if not _current(collateral, now):
        # Only the time can have changed; running the steps again names what expired.
        collateral = verify_collateral(
            collateral.collateral, roots=(collateral.anchor,), now=now, subject=subject
        )
    state = QuoteState(quote, collateral, now=now)
    findings = run_steps(_QUOTE_STEPS_AFTER, state, subject=subject)
    if not _all_passed(findings):
        raise EvidenceRejected(_in_order(collateral.findings, findings))
    return VerifiedQuote(
        quote=quote,
        collateral=collateral,
        platform=state.platform,
        tcb=state.verdict(),
        not_after=min(collateral.not_after, *(found.not_after for found in state.chain)),
        findings=findings,
        seal=SEAL,
    )


def appraise_quote(
    verified: VerifiedQuote,
    policy: TdxPolicy,
    *,
    expected_report_data: bytes,
    now: datetime,
    subject: str = "tdx",
) -> TdxResult:
    """
    Decide whether `policy` accepts `verified`, made for `expected_report_data` (64 bytes).

    **Does not check** registers that the policy leaves to `ByEventLog` or `UnsafeAny`.

    Raises `EvidenceRejected` when it was made for other report data, else `PolicyRejected`; with a
    finding for every step, those of authenticity included; also when something behind `verified`
    has expired since it was verified.
    """
    if len(expected_report_data) != 64:
        raise ValueError("the expected report data has 64 bytes")
    if now.tzinfo is None:
        raise ValueError("now needs a time zone")
    state = PolicyState(verified, policy, expected_report_data, now)
    findings = run_steps(POLICY_STEPS, state, subject=subject)
    merged = _in_order(verified.collateral.findings, verified.findings, findings)
    if any(found.reason is Reason.REPORT_DATA_MISMATCH for found in findings):
        # Not a matter of taste: the quote was made for somebody or something else.
        raise EvidenceRejected(merged)
    if not _all_passed(findings):
        raise PolicyRejected(merged)
    return TdxResult(
        claims=_claims(verified),
        findings=merged,
        verified=verified,
        policy_digest=policy.digest,
        relaxations=policy.relaxations,
        now=now,
    )


def appraise_tdx(
    quote: bytes,
    collateral: bytes,
    *,
    roots: tuple[TdxAnchor, ...],
    policy: TdxPolicy,
    report_data: bytes,
    now: datetime,
    subject: str = "tdx",
    known: tuple[VerifiedCollateral, ...] = (),
) -> TdxResult:
    """
    Run all of docs/protocols/tdx.md, steps 1 to 31, over bytes.

    `known` is what earlier results of the same caller hold: collateral of the same bytes, under
    one of `roots` and current at `now`, is not verified a second time.

    Raises `FormatError` for steps 1 to 4 and the collateral container, `EvidenceRejected` for
    what is not authentic, `PolicyRejected` for what is not accepted; each rejection holds a
    finding for every step, in order.
    """
    _require_arguments(roots, now)
    unsafe_trailing = policy.trailing_bytes is TrailingBytes.UNSAFE_ANY
    parsed = parse_quote(quote, unsafe_trailing=unsafe_trailing)
    container = parse_collateral(collateral)
    for found in known:
        if found.collateral == container and found.anchor in roots and _current(found, now):
            again = tuple(replace(finding, subject=subject) for finding in found.findings)
            verified = verify_quote(
                parsed, replace(found, findings=again, seal=SEAL), now=now, subject=subject
            )
            return appraise_quote(
                verified, policy, expected_report_data=report_data, now=now, subject=subject
            )
    state = CollateralState(container, roots=roots, now=now)
    endorsed = run_steps(COLLATERAL_STEPS, state, subject=subject)
    if not _all_passed(endorsed):
        # The quote is judged as far as that makes sense: the report names everything wrong.
        judged = QuoteState(parsed, state, now=now)
        done = frozenset(found.step for found in endorsed if found.status is Status.PASS)
        findings = run_steps(_without_needs(QUOTE_STEPS, done), judged, subject=subject)
        raise EvidenceRejected(_in_order(endorsed, findings))
    verified = verify_quote(parsed, _verified_collateral(state, endorsed), now=now, subject=subject)
    return appraise_quote(
        verified, policy, expected_report_data=report_data, now=now, subject=subject
    )


def _claims(verified: VerifiedQuote) -> TdxClaims:
    quote, endorsed, platform, tcb = (
        verified.quote,
        verified.collateral,
        verified.platform,
        verified.tcb,
    )
    body = quote.body
    later = body if isinstance(body, TdBody15) else None
    return TdxClaims(
        anchor=endorsed.anchor.sha256,
        simulated=endorsed.anchor.simulated,
        version=quote.version,
        user_data=quote.user_data,
        tee_tcb_svn=body.tee_tcb_svn,
        tee_tcb_svn2=later.tee_tcb_svn2 if later else None,
        mr_seam=body.mr_seam,
        mr_signer_seam=body.mr_signer_seam,
        seam_attributes=body.seam_attributes,
        td_attributes=body.td_attributes,
        xfam=body.xfam,
        mr_td=body.mr_td,
        mr_config_id=body.mr_config_id,
        mr_owner=body.mr_owner,
        mr_owner_config=body.mr_owner_config,
        rtmr=body.rtmr,
        report_data=body.report_data,
        mr_service_td=later.mr_service_td if later else None,
        padding=quote.padding,
        tcb_status=tcb.status,
        platform_status=tcb.platform.status,
        module_status=tcb.module.status if tcb.module else None,
        module_now_status=tcb.module_now.status if tcb.module_now else None,
        qe_status=tcb.qe.status,
        platform_tcb_date=tcb.platform.date,
        module_tcb_date=tcb.module.date if tcb.module else None,
        qe_tcb_date=tcb.qe.date,
        advisories=tcb.advisories,
        tcb_evaluation=endorsed.tcb_info.evaluation,
        qe_evaluation=endorsed.qe_identity.evaluation,
        root_crl_issued=endorsed.root_crl.this_update,
        pck_crl_issued=endorsed.pck_crl.this_update,
        ppid=platform.ppid,
        platform_instance=platform.platform_instance,
        fmspc=platform.fmspc,
        pce_id=platform.pce_id,
        cpu_svn=platform.cpu_svn,
        pce_svn=platform.pce_svn,
        dynamic_platform=platform.dynamic_platform,
        cached_keys=platform.cached_keys,
        smt_enabled=platform.smt_enabled,
        qe_mr_enclave=quote.qe_report.mr_enclave,
        qe_isv_svn=quote.qe_report.isv_svn,
        not_after=verified.not_after,
        digests=endorsed.digests,
    )
