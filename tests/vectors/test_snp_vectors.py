"""Every shared SEV-SNP vector gets the expected verdict; no signed bit of a report can change."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from conformance.stages.snp import judge

from confide.appraisal.snp import VerifiedSnpReport, verify_snp_report
from confide.errors import EvidenceRejected, FormatError, Reason
from confide.trust.amd import AMD_INTERMEDIATES, AMD_ROOTS
from confide.wire.snp import SIGNED_BYTES, Product, SigningKeyKind, encode_report, parse_report

_ROOT = Path(
    os.environ.get(
        "CONFIDE_VECTORS", Path(__file__).resolve().parents[2].parent / "shared" / "vectors"
    )
)
_FOLDER = _ROOT / "snp"
_INDEX: dict[str, Any] = (
    json.loads((_FOLDER / "index.json").read_text()) if _FOLDER.is_dir() else {"cases": []}
)
_CASES: list[dict[str, Any]] = _INDEX.pop("cases")
_ACCEPTED = [case for case in _CASES if case["outcome"] == "accept" and not case["policy"]]
_BY_ID = {case["id"]: case for case in _CASES}


def _judge(case: dict[str, Any]) -> Any:
    return judge({**case, "_index": _INDEX}, _FOLDER)


def test_the_vectors_are_there(vectors: Path) -> None:
    assert (vectors / "snp" / "index.json").is_file()
    assert len(_CASES) == 25


@pytest.mark.parametrize("case", _CASES, ids=[case["id"] for case in _CASES])
def test_verdict_reason_and_claims(case: dict[str, Any]) -> None:
    verdict = _judge(case)
    assert not verdict.differences
    if case["outcome"] == "accept":
        assert verdict.outcome == "accept", verdict.detail
        return
    assert verdict.outcome in {"reject", "malformed"}
    # The first failure in the order of the steps, not only one of several.
    assert verdict.reason in case["reason"], verdict.detail


@pytest.mark.usefixtures("vectors")
def test_a_claim_that_is_not_there_is_a_difference() -> None:
    case = {**_BY_ID["milan-vcek"], "claims": {"product": "Genoa", "colour": "red"}}
    verdict = _judge(case)
    assert verdict.outcome == "accept"
    assert verdict.differences == (
        "product is Milan, not Genoa",
        "no claim is called colour",
    )


@pytest.mark.usefixtures("vectors")
def test_a_relaxation_that_does_not_accept_is_a_difference() -> None:
    case = {**_BY_ID["vmpl-limit"], "relaxed": {"policy": {"max_vmpl": 0}, "outcome": "accept"}}
    assert _judge(case).differences[0].startswith("relaxed: reject: vmpl")


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        ("expected_measurement", "measurement-mismatch"),
        ("expected_host_data", "host-data-mismatch"),
        ("expected_report_data", "report-data-mismatch"),
    ],
)
def test_expected_values_are_held_against_the_report(
    vectors: Path, member: str, reason: str
) -> None:
    case = _BY_ID["milan-vcek"]
    report = parse_report((vectors / "snp" / case["report"]).read_bytes())
    honest = getattr(report, member.removeprefix("expected_"))
    assert _judge({**case, "policy": {member: honest.hex()}}).outcome == "accept"
    other = bytes((honest[0] ^ 1,)) + honest[1:]
    verdict = _judge({**case, "policy": {member: other.hex()}})
    assert (verdict.outcome, verdict.reasons) == ("reject", (reason,))


@pytest.mark.usefixtures("vectors")
@pytest.mark.parametrize("at", range(4))
@pytest.mark.parametrize("floor", ["min_reported", "min_committed", "min_launch"])
def test_floors_are_in_the_order_of_the_index(floor: str, at: int) -> None:
    case = _BY_ID["milan-vcek"]
    # Reported, committed and launch TCB of this report are equal.
    exact = [3, 0, 8, 0x73]
    assert _judge({**case, "policy": {floor: exact}}).outcome == "accept"
    above = [value + (index == at) for index, value in enumerate(exact)]
    assert _judge({**case, "policy": {floor: above}}).reasons == ("tcb-floor",)


def _verify(case: dict[str, Any], report: bytes) -> VerifiedSnpReport:
    return verify_snp_report(
        parse_report(report),
        leaf_der=(_FOLDER / case["leaf"]).read_bytes(),
        chain_pem=(_FOLDER / case["ask_ark"]).read_bytes(),
        crl_der=None,
        roots=AMD_ROOTS,
        now=datetime.fromtimestamp(case["now"], UTC),
    )


@pytest.mark.parametrize("case", _ACCEPTED, ids=[case["id"] for case in _ACCEPTED])
def test_genuine_reports_read_and_write_alike(case: dict[str, Any]) -> None:
    raw = (_FOLDER / case["report"]).read_bytes()
    assert encode_report(parse_report(raw)) == raw
    verified = _verify(case, raw)
    kind = SigningKeyKind(case["claims"]["key"])
    assert AMD_INTERMEDIATES[Product.MILAN, kind] == verified.authority.der
    # What the key of the chip signed before its policy was ever looked at.
    assert {found.step for found in verified.findings} >= {"snp/2.2", "snp/6", "snp/8.1"}


def _refuse_flips(case: dict[str, Any], bits: range) -> None:
    raw = (_FOLDER / case["report"]).read_bytes()
    for bit in bits:
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << (bit % 8)
        with pytest.raises((EvidenceRejected, FormatError)) as refused:
            _verify(case, bytes(flipped))
        if isinstance(refused.value, EvidenceRejected):
            found = {failure.reason for failure in refused.value.failures}
            assert Reason.REPORT_SIGNATURE in found, bit


@pytest.mark.usefixtures("vectors")
def test_flipped_bits_are_refused() -> None:
    _refuse_flips(_BY_ID["milan-vcek"], range(0, SIGNED_BYTES * 8, 13))


@pytest.mark.usefixtures("vectors")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["milan-vcek", "milan-vlek"])
def test_every_flipped_bit_of_the_signed_bytes_is_refused(name: str) -> None:
    _refuse_flips(_BY_ID[name], range(SIGNED_BYTES * 8))


@pytest.mark.usefixtures("vectors")
@pytest.mark.parametrize("name", ["milan-vcek", "milan-vlek"])
def test_every_flipped_byte_behind_them_is_refused(name: str) -> None:
    case = _BY_ID[name]
    raw = (_FOLDER / case["report"]).read_bytes()
    for at in range(SIGNED_BYTES, len(raw)):
        flipped = bytearray(raw)
        flipped[at] ^= 0x80
        with pytest.raises(EvidenceRejected) as refused:
            _verify(case, bytes(flipped))
        assert refused.value.reason in {Reason.REPORT_SIGNATURE, Reason.REPORT_RESERVED}


def test_no_flipped_bit_of_a_leaf_is_believed(vectors: Path) -> None:
    case = _BY_ID["milan-vcek"]
    leaf = (vectors / "snp" / case["leaf"]).read_bytes()
    report = parse_report((vectors / "snp" / case["report"]).read_bytes())
    chain = (vectors / "snp" / case["ask_ark"]).read_bytes()
    for bit in range(0, len(leaf) * 8, 41):
        flipped = bytearray(leaf)
        flipped[bit // 8] ^= 1 << (bit % 8)
        with pytest.raises(EvidenceRejected) as refused:
            verify_snp_report(
                report,
                leaf_der=bytes(flipped),
                chain_pem=chain,
                crl_der=None,
                roots=AMD_ROOTS,
                now=datetime.fromtimestamp(case["now"], UTC),
            )
        assert Reason.CHAIN in {failure.reason for failure in refused.value.failures}, bit
