"""The simulated platform: accepted under its own root alone, and refused for every named fault."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from confide.appraisal.tdx import appraise_tdx
from confide.errors import EvidenceRejected, FormatError, PolicyRejected, Reason, Rejected
from confide.simulator.tdx import QuoteKind, SimulatedLaunch, SimulatedTdxPlatform, TdxFault
from confide.simulator.tdx_fault_table import FAULTS
from confide.trust.intel import INTEL_TDX_ANCHOR
from confide.wire.tdx import encode_quote, parse_quote

if TYPE_CHECKING:
    from confide.appraisal.tdx_types import TdxResult

NOW = datetime(2026, 11, 22, 8, 30, tzinfo=UTC)
SEED = b"test"
REPORT_DATA = hashlib.sha512(b"report data").digest()


def _register(name: str) -> bytes:
    return hashlib.sha384(name.encode()).digest()


LAUNCH = SimulatedLaunch(
    mr_td=_register("mrtd"),
    rtmr=(_register("0"), _register("1"), _register("2"), _register("3")),
    mr_config_id=_register("config"),
)


def _appraise(
    platform: SimulatedTdxPlatform, *, kind: QuoteKind = QuoteKind.V4, now: datetime = NOW
) -> TdxResult:
    honest = SimulatedTdxPlatform(SEED, NOW)
    return appraise_tdx(
        platform.quote(LAUNCH, report_data=REPORT_DATA, kind=kind),
        platform.collateral(),
        roots=(honest.anchor(),),
        policy=honest.policy(LAUNCH),
        report_data=REPORT_DATA,
        now=now,
    )


@pytest.mark.parametrize("kind", QuoteKind)
def test_an_honest_platform_is_accepted_and_called_simulated(kind: QuoteKind) -> None:
    platform = SimulatedTdxPlatform(SEED, NOW)
    result = _appraise(platform, kind=kind)
    claims = result.claims
    assert claims.simulated
    assert claims.anchor == platform.anchor().sha256
    assert (claims.mr_td, claims.rtmr, claims.mr_config_id) == (
        LAUNCH.mr_td,
        LAUNCH.rtmr,
        LAUNCH.mr_config_id,
    )
    assert claims.report_data == REPORT_DATA
    assert claims.version == kind.version
    assert (claims.tee_tcb_svn2 is not None) is kind.td15
    assert claims.ppid == platform.ppid
    assert claims.tcb_status == "UpToDate"
    assert claims.not_after == NOW + timedelta(days=45)
    assert result.relaxations == ("anchor: simulated",)


@pytest.mark.parametrize("fault", TdxFault)
def test_every_fault_is_refused_for_its_reason(fault: TdxFault) -> None:
    with pytest.raises((FormatError, EvidenceRejected, PolicyRejected)) as refused:
        _appraise(SimulatedTdxPlatform(SEED, NOW, fault))
    expected = FAULTS[fault].reason
    if isinstance(refused.value, Rejected):
        # Under another root its signers are nobody's; a bit of the debug group is reserved too.
        also = {
            TdxFault.TUD_ATTRIBUTE: {Reason.TD_ATTRIBUTES},
            TdxFault.WRONG_ROOT: {Reason.COLLATERAL_SIGNER_ROLE},
        }.get(fault, set[Reason]())
        assert {found.reason for found in refused.value.failures} == {expected} | also
    else:
        assert isinstance(refused.value, FormatError)
        assert refused.value.reason is expected


def test_every_fault_has_a_recipe() -> None:
    assert set(FAULTS) == set(TdxFault)


def test_faults_cover_every_reason_of_the_steps() -> None:
    covered = {fault.reason for fault in FAULTS.values()}
    reasons = list(Reason)
    first, last = reasons.index(Reason.QUOTE_TRUNCATED), reasons.index(Reason.LOG_FORMAT)
    ours = set(reasons[first:last])
    # The first is for bundles without collateral, which no platform produces.
    assert ours - covered == {Reason.COLLATERAL_MISSING}


def test_equal_inputs_give_equal_bytes() -> None:
    one, two = (SimulatedTdxPlatform(SEED, NOW) for _ in range(2))
    assert one.collateral() == two.collateral()
    assert one.anchor() == two.anchor()
    quotes = {p.quote(LAUNCH, report_data=REPORT_DATA) for p in (one, two)}
    assert len(quotes) == 1


def test_the_root_depends_on_the_seed_alone() -> None:
    later = SimulatedTdxPlatform(SEED, NOW + timedelta(days=300))
    assert later.anchor() == SimulatedTdxPlatform(SEED, NOW).anchor()
    assert SimulatedTdxPlatform(b"other", NOW).anchor() != later.anchor()


@pytest.mark.parametrize("age", [timedelta(0), timedelta(minutes=-30), timedelta(days=29)])
def test_collateral_serves_for_a_month_around_now(age: timedelta) -> None:
    assert _appraise(SimulatedTdxPlatform(SEED, NOW), now=NOW + age).claims.simulated


@pytest.mark.parametrize("age", [timedelta(days=-1), timedelta(days=46), timedelta(days=4000)])
def test_outside_its_time_it_is_refused(age: timedelta) -> None:
    with pytest.raises(EvidenceRejected):
        _appraise(SimulatedTdxPlatform(SEED, NOW), now=NOW + age)


def test_a_microsecond_in_the_clock_does_not_matter() -> None:
    odd = NOW.replace(microsecond=123456)
    assert _appraise(SimulatedTdxPlatform(SEED, odd), now=odd).claims.simulated


def test_it_is_refused_under_the_vendor_root() -> None:
    platform = SimulatedTdxPlatform(SEED, NOW)
    with pytest.raises(EvidenceRejected) as refused:
        appraise_tdx(
            platform.quote(LAUNCH, report_data=REPORT_DATA),
            platform.collateral(),
            roots=(INTEL_TDX_ANCHOR,),
            policy=platform.policy(LAUNCH),
            report_data=REPORT_DATA,
            now=NOW,
        )
    assert refused.value.reason is Reason.ROOT_MISMATCH


def test_it_is_refused_where_the_policy_does_not_name_simulation() -> None:
    platform = SimulatedTdxPlatform(SEED, NOW)
    with pytest.raises(PolicyRejected) as refused:
        appraise_tdx(
            platform.quote(LAUNCH, report_data=REPORT_DATA),
            platform.collateral(),
            roots=(INTEL_TDX_ANCHOR, platform.anchor()),
            policy=replace(platform.policy(LAUNCH), unsafe_simulated=False),
            report_data=REPORT_DATA,
            now=NOW,
        )
    assert [found.reason for found in refused.value.failures] == [Reason.SIMULATED_NOT_ALLOWED]


def test_names_say_simulated() -> None:
    quote = parse_quote(SimulatedTdxPlatform(SEED, NOW).quote(LAUNCH, report_data=REPORT_DATA))
    assert encode_quote(quote)
    names = SimulatedTdxPlatform(SEED, NOW).anchor().names
    everything = (names.root, *names.pck_authorities, names.pck_leaf, names.tcb_signer)
    assert all(name.startswith("Simulated ") for name in everything)
