"""Laws of NVIDIA evidence: encoding is the inverse of parsing, and one bit decides."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.appraisal.nvidia import VerifiedRim, VerifiedSignatures, appraise_gpus
from confide.crypto.ocsp import parse_ocsp
from confide.crypto.xmldsig import verify_enveloped
from confide.errors import EvidenceRejected, FormatError, Reason
from confide.simulator.nvidia import SimulatedGpu, SimulatedGpuSet
from confide.wire.dice import parse_composite_device_id, parse_tcb_info
from confide.wire.evidence import GpuEvidence, NvidiaEndorsements
from confide.wire.spdm import (
    GPU,
    MeasurementReport,
    encode_report,
    parse_report,
    read_gpu_fields,
)

NOW = datetime(2026, 11, 22, 8, 30, tzinfo=UTC)
NONCE = hashlib.sha256(b"property").digest()


@cache
def _gpus(chip: str) -> SimulatedGpuSet:
    return SimulatedGpuSet(b"property", (SimulatedGpu(chip=chip),), now=NOW)


@cache
def _parts(chip: str) -> tuple[GpuEvidence, NvidiaEndorsements]:
    return _gpus(chip).collect(NONCE)[0], _gpus(chip).endorsements(NOW)


@cache
def _known(chip: str) -> tuple[tuple[VerifiedRim, ...], VerifiedSignatures]:
    device, endorsements = _parts(chip)
    result = appraise_gpus(
        (device,),
        endorsements,
        roots=_gpus(chip).roots(),
        policy=_gpus(chip).policy(),
        expected_nonce=NONCE,
        now=NOW,
    )
    return result.verified_rims, result.verified_signatures


def _appraise(chip: str, device: GpuEvidence) -> None:
    rims, signatures = _known(chip)
    appraise_gpus(
        (device,),
        _parts(chip)[1],
        roots=_gpus(chip).roots(),
        policy=_gpus(chip).policy(),
        expected_nonce=NONCE,
        now=NOW,
        known_rims=rims,
        known_signatures=signatures,
    )


def _flipped(raw: bytes, bit: int) -> bytes:
    data = bytearray(raw)
    data[bit // 8] ^= 1 << (bit % 8)
    return bytes(data)


@pytest.mark.parametrize("chip", ["GH100", "GB100"])
@settings(max_examples=60, derandomize=True)
@given(data=st.data())
def test_any_flipped_bit_of_a_report_is_rejected(chip: str, data: st.DataObject) -> None:
    device = _parts(chip)[0]
    bit = data.draw(st.integers(0, len(device.report) * 8 - 1))
    with pytest.raises(EvidenceRejected) as caught:
        _appraise(chip, GpuEvidence(_flipped(device.report, bit), device.chain_pem))
    assert caught.value.reason is Reason.SIGNATURE_INVALID


@settings(max_examples=60, derandomize=True)
@given(data=st.data())
def test_any_flipped_bit_of_a_chain_is_rejected_or_changes_nothing(data: st.DataObject) -> None:
    device = _parts("GH100")[0]
    bit = data.draw(st.integers(0, len(device.chain_pem) * 8 - 1))
    flipped = GpuEvidence(device.report, _flipped(device.chain_pem, bit))
    # White space between the lines of a PEM block may become other white space: same certificates.
    if flipped.chain_pem.split() == device.chain_pem.split():
        _appraise("GH100", flipped)
        return
    with pytest.raises(EvidenceRejected):
        _appraise("GH100", flipped)


_VALUES = {
    3: st.from_regex(r"\A[0-9A-Za-z.]{1,20}\Z").map(lambda text: text.encode() + b"\0"),
    6: st.binary(min_size=8, max_size=8),
    11: st.sampled_from([b"\xaa", b"\x55"]),
    12: st.binary(min_size=256, max_size=256),
    15: st.just(b"882\0"),
    17: st.just(b"1010\0"),
    18: st.just(b"0200\0"),
}
_OPTIONAL = {
    1: st.binary(max_size=30),
    20: st.binary(min_size=48, max_size=48),
    34: st.sampled_from([b"\0\0", b"\x01\0"]),
    36: st.sampled_from([b"\0\0", b"\x01\0", b"\x02\0"]),
}
_REPORTS = st.builds(
    MeasurementReport,
    nonce=st.binary(min_size=32, max_size=32),
    blocks=st.binary(min_size=48, max_size=48).map(lambda block: (block,) * 64),
    responder_nonce=st.binary(min_size=32, max_size=32),
    opaque=st.fixed_dictionaries(_VALUES, optional=_OPTIONAL).flatmap(
        lambda entries: st.permutations(list(entries.items())).map(tuple)
    ),
    signature=st.binary(min_size=96, max_size=96),
)


@settings(max_examples=60, derandomize=True)
@given(report=_REPORTS)
def test_parsing_inverts_encoding(report: MeasurementReport) -> None:
    raw = encode_report(report)
    assert parse_report(raw, GPU) == report
    assert encode_report(parse_report(raw, GPU)) == raw


def _reason_of(raw: bytes) -> Reason | None:
    try:
        read_gpu_fields(parse_report(raw, GPU))
    except FormatError as error:
        return error.reason
    return None


@settings(max_examples=100, derandomize=True)
@given(raw=st.binary(max_size=200), cut=st.integers(0, 4200))
def test_garbage_is_a_format_error_and_nothing_else(raw: bytes, cut: int) -> None:
    report = _parts("GH100")[0].report
    for candidate in (raw, report[:cut] + raw + report[cut + len(raw) :]):
        assert _reason_of(candidate) in {None, Reason.REPORT_MALFORMED}
    for parse in (parse_composite_device_id, parse_tcb_info, parse_ocsp, verify_enveloped):
        with pytest.raises(FormatError):
            parse(raw)
