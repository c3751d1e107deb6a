"""Every numbered step carries weight: without it, some fault is no longer refused as it must be.

A mutant is the procedure with one step removed and nothing else changed. `ACCEPTED_WITHOUT` is the
strong form: without the step the fault is *accepted*.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from confide.appraisal import tdx
from confide.appraisal.tdx_policy import TrailingBytes
from confide.errors import PolicyRejected, Reason, Rejected
from confide.simulator.tdx import SimulatedLaunch, SimulatedTdxPlatform, TdxFault
from confide.simulator.tdx_fault_table import FAULTS
from confide.wire.collateral import parse_collateral
from confide.wire.tdx import parse_quote

if TYPE_CHECKING:
    from confide.appraisal.steps import Step

NOW = datetime(2026, 11, 22, 8, 30, tzinfo=UTC)
REPORT_DATA = hashlib.sha512(b"report data").digest()
LAUNCH = SimulatedLaunch(mr_td=b"\1" * 48, rtmr=(b"\2" * 48, b"\3" * 48, b"\4" * 48, b"\5" * 48))
HONEST = SimulatedTdxPlatform(b"test", NOW)

# Without the step, the fault is accepted.
ACCEPTED_WITHOUT = {
    "tdx/5.1": TdxFault.FOREIGN_COLLATERAL_ROOT,
    "tdx/5.2": TdxFault.FOREIGN_QUOTE_ROOT,
    "tdx/6": TdxFault.CHAIN_OVERRIDE,
    "tdx/7": TdxFault.PCK_NAME,
    "tdx/8.2": TdxFault.FUTURE_PCK,
    "tdx/9.1": TdxFault.FORGED_ROOT_CRL,
    "tdx/9.2": TdxFault.FORGED_PCK_CRL,
    "tdx/9.3": TdxFault.OLD_CRL,
    "tdx/10.1": TdxFault.REVOKED_SIGNER,
    "tdx/10.2": TdxFault.REVOKED_PCK,
    "tdx/11": TdxFault.SIGNER_IS_PCK,
    "tdx/12.1": TdxFault.ALTERED_TCB_INFO,
    "tdx/12.2": TdxFault.ALTERED_QE_IDENTITY,
    "tdx/14.1": TdxFault.OTHER_TCB_TYPE,
    "tdx/14.2": TdxFault.SGX_QE_IDENTITY,
    "tdx/15.2": TdxFault.STALE_COLLATERAL,
    "tdx/16": TdxFault.OTHER_FMSPC,
    "tdx/17": TdxFault.PCK_COMPONENTS,
    "tdx/18": TdxFault.OLD_EVALUATION,
    "tdx/19": TdxFault.FORGED_QE_REPORT,
    "tdx/20": TdxFault.UNBOUND_ATTESTATION_KEY,
    "tdx/21": TdxFault.PATCHED_USER_DATA,
    "tdx/22": TdxFault.QE_DEBUG,
    "tdx/24": TdxFault.FOREIGN_MODULE,
    "tdx/27": TdxFault.FOREIGN_MODULE_NOW,
    "tdx/28": TdxFault.OLD_TCB_PLATFORM,
    "tdx/29.1": TdxFault.DEBUG_TD,
    "tdx/29.2": TdxFault.SEPT_VE_CLEAR,
    "tdx/29.3": TdxFault.MIGRATABLE,
    "tdx/29.4": TdxFault.XFAM_UNKNOWN,
    "tdx/29.5": TdxFault.SERVICE_TD,
    "tdx/30.1": TdxFault.WRONG_MRTD,
    "tdx/30.2": TdxFault.WRONG_RTMR0,
    "tdx/30.3": TdxFault.WRONG_RTMR1,
    "tdx/30.4": TdxFault.WRONG_RTMR2,
    "tdx/30.5": TdxFault.WRONG_RTMR3,
    "tdx/30.6": TdxFault.WRONG_MRSEAM,
    "tdx/30.7": TdxFault.WRONG_MRCONFIGID,
    "tdx/30.8": TdxFault.WRONG_MROWNER,
    "tdx/30.9": TdxFault.OTHER_PLATFORM,
    "tdx/30.10": TdxFault.DYNAMIC_PLATFORM,
    "tdx/31": TdxFault.REPLAYED_NONCE,
}
# Redundant on purpose: 8.1 and 15.1 name what expired; 8.3 holds the time against the validity of
# the whole once more, because a verified value may be appraised long after it was verified.
BACKED_UP = {
    "tdx/8.1": (TdxFault.EXPIRED_SIGNER, "tdx/8.3"),
    "tdx/15.1": (TdxFault.EXPIRED_COLLATERAL, "tdx/8.3"),
}
# Redundant on purpose: a document is parsed by whichever step reads it first, and cannot be read
# unparsed. 13 gives that a number of its own.
PARSED_LATER = {
    "tdx/13.1": (TdxFault.DUPLICATE_MEMBER, "tdx/14.1"),
    "tdx/13.2": (TdxFault.MISTYPED_MEMBER, "tdx/14.2"),
}
# Without the step there is no level to report, and the procedure stops as a bug would.
STOPPED = {"tdx/23": TdxFault.ANCIENT_QE, "tdx/25": TdxFault.ANCIENT_PLATFORM}
# 26 computes and refuses nothing: 28 judges what it merged.
NO_CHECK_OF_THEIR_OWN = {"tdx/26"}
# Time passes between verifying and appraising; see the last test.
STALE = "tdx/8.3"
# Shown below: no fault, because the platform cannot know what the policy says.
SIMULATED_ANCHOR = "tdx/30.11"
PADDING = "tdx/4.2"

REGISTRIES = ("COLLATERAL_STEPS", "QUOTE_STEPS", "POLICY_STEPS")


def _remove(monkeypatch: pytest.MonkeyPatch, removed: str) -> None:
    """Remove one step, and its name from the needs of the others."""

    def without(steps: tuple[Step[Any], ...]) -> tuple[Step[Any], ...]:
        return tuple(
            replace(step, needs=tuple(need for need in step.needs if need != removed))
            for step in steps
            if step.id != removed
        )

    for registry in (*REGISTRIES, "_QUOTE_STEPS_AFTER"):
        monkeypatch.setattr(tdx, registry, without(getattr(tdx, registry)))


def _appraise(fault: TdxFault | None, *, simulated: bool = True) -> None:
    platform = SimulatedTdxPlatform(b"test", NOW, fault)
    tdx.appraise_tdx(
        platform.quote(LAUNCH, report_data=REPORT_DATA),
        platform.collateral(),
        roots=(HONEST.anchor(),),
        policy=replace(HONEST.policy(LAUNCH), unsafe_simulated=simulated),
        report_data=REPORT_DATA,
        now=NOW,
    )


def test_the_tables_name_every_step() -> None:
    steps = {step.id for registry in REGISTRIES for step in getattr(tdx, registry)}
    named = {*ACCEPTED_WITHOUT, *BACKED_UP, *PARSED_LATER, *STOPPED, *NO_CHECK_OF_THEIR_OWN}
    assert steps == named | {SIMULATED_ANCHOR, PADDING, STALE}


@pytest.mark.parametrize(("step", "fault"), ACCEPTED_WITHOUT.items(), ids=ACCEPTED_WITHOUT)
def test_without_the_step_the_fault_is_accepted(
    monkeypatch: pytest.MonkeyPatch, step: str, fault: TdxFault
) -> None:
    _remove(monkeypatch, step)
    _appraise(fault)


@pytest.mark.parametrize(("step", "backed_up"), BACKED_UP.items(), ids=BACKED_UP)
def test_without_the_step_a_later_one_refuses(
    monkeypatch: pytest.MonkeyPatch, step: str, backed_up: tuple[TdxFault, str]
) -> None:
    fault, later = backed_up
    _remove(monkeypatch, step)
    with pytest.raises(Rejected) as refused:
        _appraise(fault)
    assert [failure.step for failure in refused.value.failures] == [later]
    assert refused.value.reason is not FAULTS[fault].reason


@pytest.mark.parametrize(("step", "parsed"), PARSED_LATER.items(), ids=PARSED_LATER)
def test_without_the_step_the_next_reader_refuses(
    monkeypatch: pytest.MonkeyPatch, step: str, parsed: tuple[TdxFault, str]
) -> None:
    fault, reader = parsed
    _remove(monkeypatch, step)
    with pytest.raises(Rejected) as refused:
        _appraise(fault)
    assert refused.value.failures[0].step == reader
    assert refused.value.reason is FAULTS[fault].reason


@pytest.mark.parametrize(("step", "fault"), STOPPED.items(), ids=STOPPED)
def test_without_the_step_the_procedure_stops(
    monkeypatch: pytest.MonkeyPatch, step: str, fault: TdxFault
) -> None:
    _remove(monkeypatch, step)
    with pytest.raises(RuntimeError):
        _appraise(fault)


def test_without_the_anchor_step_a_policy_for_hardware_accepts_simulation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(Rejected):
        _appraise(None, simulated=False)
    _remove(monkeypatch, SIMULATED_ANCHOR)
    _appraise(None, simulated=False)


def test_without_the_padding_step_a_padded_quote_is_accepted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def appraise() -> None:
        tdx.appraise_tdx(
            HONEST.quote(LAUNCH, report_data=REPORT_DATA) + bytes(70),
            HONEST.collateral(),
            roots=(HONEST.anchor(),),
            policy=replace(HONEST.policy(LAUNCH), trailing_bytes=TrailingBytes.NONE),
            report_data=REPORT_DATA,
            now=NOW,
        )

    with pytest.raises(PolicyRejected) as refused:
        appraise()
    assert [failure.reason for failure in refused.value.failures] == [Reason.TRAILING_BYTES]
    _remove(monkeypatch, PADDING)
    appraise()


def test_without_the_stale_step_an_expired_proof_is_accepted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    collateral = tdx.verify_collateral(
        parse_collateral(HONEST.collateral()), roots=(HONEST.anchor(),), now=NOW
    )
    quote = parse_quote(HONEST.quote(LAUNCH, report_data=REPORT_DATA))
    verified = tdx.verify_quote(quote, collateral, now=NOW)
    policy = replace(HONEST.policy(LAUNCH), max_collateral_age=timedelta(days=100))
    later = NOW + timedelta(days=46)

    def appraise() -> None:
        tdx.appraise_quote(verified, policy, expected_report_data=REPORT_DATA, now=later)

    with pytest.raises(PolicyRejected) as refused:
        appraise()
    assert [failure.reason for failure in refused.value.failures] == [Reason.EVIDENCE_STALE]
    _remove(monkeypatch, STALE)
    appraise()
