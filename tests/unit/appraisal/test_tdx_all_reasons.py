"""Where two things are wrong both are told, and the first in the order of the steps comes first."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from confide.appraisal.tdx import appraise_tdx
from confide.errors import FormatError, Reason, Rejected
from confide.simulator.tdx import SimulatedLaunch, SimulatedTdxPlatform, TdxFault

NOW = datetime(2026, 11, 22, tzinfo=UTC)
HONEST = SimulatedTdxPlatform(b"reasons", NOW)
LAUNCH = SimulatedLaunch(mr_td=b"\1" * 48, rtmr=(b"\2" * 48,) * 4)
REPORT_DATA = bytes(range(64))
END = "-----END CERTIFICATE-----\n"


def _reasons(
    collateral: dict[str, object], *, fault: TdxFault | None = None, now: datetime = NOW
) -> list[Reason]:
    platform = SimulatedTdxPlatform(b"reasons", NOW, fault)
    with pytest.raises(Rejected) as refused:
        appraise_tdx(
            platform.quote(LAUNCH, report_data=REPORT_DATA),
            json.dumps(collateral).encode(),
            roots=(HONEST.anchor(),),
            policy=replace(HONEST.policy(LAUNCH), max_collateral_age=timedelta(days=999)),
            report_data=REPORT_DATA,
            now=now,
        )
    found = [failure.reason for failure in refused.value.failures]
    assert None not in found
    return [reason for reason in found if reason is not None]


def _collateral(fault: TdxFault | None = None) -> dict[str, object]:
    document: dict[str, object] = json.loads(
        SimulatedTdxPlatform(b"reasons", NOW, fault).collateral()
    )
    return document


@pytest.mark.parametrize("member", ["tcb_info_issuer_chain", "qe_identity_issuer_chain"])
def test_a_signer_without_its_root_has_no_role(member: str) -> None:
    collateral = _collateral()
    signer = str(collateral[member]).split(END)[0] + END
    assert _reasons({**collateral, member: signer}) == [
        Reason.ROOT_MISMATCH,
        Reason.COLLATERAL_SIGNER_ROLE,
    ]


def test_a_list_of_somebody_else_is_told_apart_also_when_it_has_expired() -> None:
    forged = _collateral(TdxFault.FORGED_PCK_CRL)
    found = _reasons(forged, now=NOW + timedelta(days=90))
    assert found[0] is Reason.CRL_EXPIRED
    assert Reason.CRL_SIGNATURE in found


@pytest.mark.parametrize("member", ["root_ca_crl", "pck_crl"])
@pytest.mark.parametrize("value", [None, ""])
def test_a_list_that_is_not_there_is_missing(member: str, value: str | None) -> None:
    assert _reasons({**_collateral(), member: value})[0] is Reason.CRL_MISSING


def test_certification_types_are_read_before_trailing_bytes() -> None:
    quote = bytearray(HONEST.quote(LAUNCH, report_data=REPORT_DATA))
    # From: docs/protocols/tdx.md#3: the outer type of a version 4 quote stands at 764.
    at = {4: 764, 5: 834}[quote[0]]
    quote[at] = 5
    with pytest.raises(FormatError) as refused:
        appraise_tdx(
            bytes(quote) + b"x",
            HONEST.collateral(),
            roots=(HONEST.anchor(),),
            policy=HONEST.policy(LAUNCH),
            report_data=REPORT_DATA,
            now=NOW,
        )
    assert refused.value.reason is Reason.OUTER_CERT_TYPE
