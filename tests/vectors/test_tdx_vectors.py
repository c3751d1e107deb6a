"""Every shared TDX vector gets the expected verdict, for an accepted reason, with equal claims."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from confide.appraisal.tdx import appraise_tdx
from confide.appraisal.tdx_policy import PlatformFlag, TdAttribute, TdxPolicy, UnsafeAny
from confide.errors import EvidenceRejected, FormatError, PolicyRejected, Rejected
from confide.trust.anchors import TdxAnchor, TdxNames
from confide.trust.intel import INTEL_TDX_ANCHOR
from confide.wire.collateral import TcbStatus
from confide.wire.tdx import parse_quote

if TYPE_CHECKING:
    from confide.appraisal.tdx_types import TdxClaims, TdxResult

_ROOT = Path(
    os.environ.get(
        "CONFIDE_VECTORS", Path(__file__).resolve().parents[2].parent / "shared" / "vectors"
    )
)
_INDEX = _ROOT / "tdx" / "index.json"
_CASES: list[dict[str, Any]] = json.loads(_INDEX.read_text())["cases"] if _INDEX.is_file() else []
_SIMULATED_NAMES = TdxNames(
    root="Simulated SGX Root CA",
    pck_authorities=("Simulated SGX PCK Platform CA",),
    pck_leaf="Simulated SGX PCK Certificate",
    tcb_signer="Simulated SGX TCB Signing",
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_POLICY = TdxPolicy(
    accepted_status=frozenset({TcbStatus.UP_TO_DATE}),
    mr_td=UnsafeAny(),
    rtmr0=UnsafeAny(),
    rtmr1=UnsafeAny(),
    rtmr2=UnsafeAny(),
    rtmr3=UnsafeAny(),
    mr_seam=UnsafeAny(),
    mr_config_id=UnsafeAny(),
    platforms=UnsafeAny(),
    platform_flags=frozenset(PlatformFlag),
    min_evaluation=0,
    min_root_crl_issued=_EPOCH,
    min_pck_crl_issued=_EPOCH,
    max_collateral_age=timedelta(days=3650),
    unsafe_simulated=True,
)
_ATTRIBUTES = {"0x10000000": frozenset[TdAttribute](), "0x50000000": frozenset({TdAttribute.PKS})}


@dataclass(frozen=True)
class Case:
    """One case of the index, ready to be appraised."""

    quote: bytes
    collateral: bytes
    anchor: TdxAnchor
    now: datetime
    data: dict[str, Any]

    def appraise(self, changes: dict[str, Any]) -> TdxResult:
        policy, expected = _policy(changes)
        return appraise_tdx(
            self.quote,
            self.collateral,
            roots=(self.anchor,),
            policy=policy,
            report_data=expected or _own_report_data(self.quote),
            now=self.now,
        )


def _own_report_data(quote: bytes) -> bytes:
    # Most cases say nothing about report data: expect what the quote says.
    try:
        return parse_quote(quote).body.report_data
    except FormatError:
        return bytes(64)


def _policy(changes: dict[str, Any]) -> tuple[TdxPolicy, bytes | None]:
    policy, expected = _POLICY, None
    for name, value in changes.items():
        match name:
            case "accept_status":
                policy = replace(policy, accepted_status=frozenset(map(TcbStatus, value)))
            case "min_tcb_evaluation_data_number":
                policy = replace(policy, min_evaluation=value)
            case "min_pck_crl_this_update":
                policy = replace(policy, min_pck_crl_issued=datetime.fromtimestamp(value, UTC))
            case "require_sept_ve_disable":
                policy = replace(policy, unsafe_sept_ve_clear=not value)
            case "allowed_td_attributes":
                policy = replace(policy, unsafe_attributes=_ATTRIBUTES[value])
            case "expected_report_data":
                expected = bytes.fromhex(value)
            case _:
                raise AssertionError(f"a vector changes {name}, which this test does not know")
    return policy, expected


def _load(data: dict[str, Any]) -> Case:
    def read(name: str) -> bytes:
        return (_ROOT / "tdx" / str(data[name])).read_bytes()

    if data["anchor"] == "intel":
        assert read("root") == INTEL_TDX_ANCHOR.der
        anchor = INTEL_TDX_ANCHOR
    else:
        anchor = TdxAnchor(read("root"), _SIMULATED_NAMES, simulated=True)
    now = datetime.fromtimestamp(data["now"], UTC)
    return Case(read("quote"), read("collateral"), anchor, now, data)


_ALL = pytest.mark.parametrize("data", _CASES, ids=[case["id"] for case in _CASES])


def test_the_vectors_are_there(vectors: Path) -> None:
    assert (vectors / "tdx" / "index.json").is_file()
    assert len(_CASES) == 106


@_ALL
def test_verdict_and_reason(data: dict[str, Any]) -> None:
    case = _load(data)
    if data["outcome"] == "accept":
        result = case.appraise(data["policy"])
        assert result.claims.tcb_status == data["tcb_status"]
        assert result.claims.simulated is (data["anchor"] == "simulated")
        assert result.claims.anchor == case.anchor.sha256
        return
    with pytest.raises((FormatError, EvidenceRejected, PolicyRejected)) as refused:
        case.appraise(data["policy"])
    if isinstance(refused.value, Rejected):
        reasons = [finding.reason for finding in refused.value.failures]
        if "tcb_status" in data and data["tcb_status"] != "UpToDate":
            # Two policies refuse at once; the vector names one of them.
            assert set(reasons) & set(data["reason"])
        else:
            assert reasons[0] in data["reason"]
            assert len(reasons) == 1 or refused.type is EvidenceRejected
    else:
        assert isinstance(refused.value, FormatError)
        assert refused.value.reason in data["reason"]


@pytest.mark.parametrize(
    "data",
    [
        case
        for case in _CASES
        if "tcb_status" in case
        and case["outcome"] == "reject"
        # Refused before the levels are merged.
        and "tdx-module-unknown" not in case["reason"]
    ],
    ids=lambda case: case["id"],
)
def test_a_refused_level_is_named(data: dict[str, Any]) -> None:
    with pytest.raises(Rejected) as refused:
        _load(data).appraise(data["policy"])
    (merged,) = [found.detail for found in refused.value.findings if found.step == "tdx/26"]
    assert merged == data["tcb_status"]


@pytest.mark.parametrize(
    "data", [case for case in _CASES if "relaxed" in case], ids=lambda case: case["id"]
)
def test_a_relaxed_policy_accepts_with_status_and_advisories(data: dict[str, Any]) -> None:
    relaxed = data["relaxed"]
    result = _load(data).appraise({**data["policy"], **relaxed["policy"]})
    assert result.claims.tcb_status == relaxed["tcb_status"]
    if "advisories" in relaxed:
        assert list(result.claims.advisories) == relaxed["advisories"]


@pytest.mark.parametrize(
    "data", [case for case in _CASES if "claims" in case], ids=lambda case: case["id"]
)
def test_claims_are_equal(data: dict[str, Any]) -> None:
    claims = _load(data).appraise(data["policy"]).claims
    assert {name: _shown(claims, name) for name in data["claims"]} == data["claims"]


def _shown(claims: TdxClaims, name: str) -> object:
    value = getattr(claims, {"mrtd": "mr_td", "mrconfigid": "mr_config_id"}.get(name, name))
    if isinstance(value, tuple):
        return [item.hex() for item in value]
    return value.hex() if isinstance(value, bytes) else value


def test_every_finding_of_an_accepted_vector_passed_in_step_order() -> None:
    if not _CASES:
        pytest.skip("SHARED VECTORS ABSENT")
    findings = _load(_CASES[0]).appraise({}).findings
    numbers = [
        tuple(int(part) for part in found.step.removeprefix("tdx/").split("."))
        for found in findings
    ]
    assert numbers == sorted(numbers)
    assert {number[0] for number in numbers} == set(range(5, 32))
    assert not [found for found in findings if found.status != "pass"]
