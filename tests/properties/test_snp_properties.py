"""Laws of the SNP verifier: no flipped bit is believed, writing inverts parsing, floors join."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.appraisal.snp import appraise_snp
from confide.errors import FormatError, PolicyRejected, Rejected
from confide.simulator.snp import SimulatedSnpLaunch, SimulatedSnpMachine
from confide.wire.snp import (
    REPORT_BYTES,
    Product,
    SigningKeyKind,
    SnpTcb,
    Tcb,
    encode_report,
    encode_tcb,
    parse_report,
    reserved_not_zero,
)

NOW = datetime(2026, 11, 22, 8, 30, tzinfo=UTC)
REPORT_DATA = hashlib.sha512(b"report data").digest()
LAUNCH = SimulatedSnpLaunch(measurement=b"\1" * 48)
MACHINES = [
    SimulatedSnpMachine(b"laws", NOW, product=product, kind=kind, version=version)
    for product, kind, version in (
        (Product.MILAN, SigningKeyKind.VCEK, 2),
        (Product.GENOA, SigningKeyKind.VLEK, 3),
        (Product.TURIN, SigningKeyKind.VCEK, 5),
    )
]
_IDS = ["milan", "genoa", "turin"]
_BYTES = st.integers(0, 255)
_TCBS = st.builds(SnpTcb, boot_loader=_BYTES, tee=_BYTES, snp=_BYTES, microcode=_BYTES)


def _parts(machine: SimulatedSnpMachine) -> dict[str, bytes]:
    return {
        "report": machine.report(LAUNCH, report_data=REPORT_DATA),
        "leaf_der": machine.leaf_der,
        "chain_pem": machine.chain_pem,
        "crl_der": machine.crl_der or b"",
    }


PARTS = [_parts(machine) for machine in MACHINES]
ROOTS = MACHINES[0].roots()


def _appraise(index: int, parts: dict[str, bytes], **changes: Any) -> None:
    given_parts = dict(parts)
    policy = replace(MACHINES[index].policy(LAUNCH), **changes)
    appraise_snp(
        given_parts.pop("report"),
        leaf_der=given_parts["leaf_der"],
        chain_pem=given_parts["chain_pem"],
        crl_der=given_parts["crl_der"],
        roots=ROOTS,
        policy=policy,
        report_data=REPORT_DATA,
        now=NOW,
    )


@pytest.mark.parametrize("index", range(3), ids=_IDS)
def test_the_honest_parts_are_accepted(index: int) -> None:
    _appraise(index, PARTS[index])


@pytest.mark.parametrize("part", ["report", "leaf_der", "chain_pem", "crl_der"])
@pytest.mark.parametrize("index", range(3), ids=_IDS)
@settings(max_examples=60)
@given(data=st.data())
def test_a_flipped_bit_is_never_believed(index: int, part: str, data: st.DataObject) -> None:
    raw = PARTS[index][part]
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    changed = bytearray(raw)
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises((FormatError, Rejected)):
        _appraise(index, {**PARTS[index], part: bytes(changed)})


@settings(max_examples=60)
@given(data=st.data(), part=st.sampled_from(["report", "leaf_der", "chain_pem", "crl_der"]))
def test_parts_of_another_machine_are_never_believed(data: st.DataObject, part: str) -> None:
    index = data.draw(st.integers(0, 2))
    other = data.draw(st.integers(0, 2).filter(lambda found: found != index))
    with pytest.raises((FormatError, Rejected)):
        _appraise(index, {**PARTS[index], part: PARTS[other][part]})


@settings(max_examples=200)
@given(
    raw=st.binary(min_size=REPORT_BYTES, max_size=REPORT_BYTES),
    version=st.integers(2, 5),
)
def test_what_parses_without_reserved_bytes_is_written_alike(raw: bytes, version: int) -> None:
    # Whatever the fields hold; only what is reserved is made zero, and the numbers made to fit.
    body = bytearray(raw)
    body[0:4] = version.to_bytes(4, "little")
    body[52:56] = b"\1\0\0\0"
    body[72] = (body[72] & 3) | (4 * (raw[72] & 1))
    for number in (672, 744):
        body[number + 48 : number + 72] = bytes(24)
    for at in reserved_not_zero(parse_report(bytes(body))):
        body[at] = 0
    report = parse_report(bytes(body))
    assert reserved_not_zero(report) == ()
    assert encode_report(report) == bytes(body)


@settings(max_examples=200)
@given(raw=st.binary(max_size=1300))
def test_any_bytes_parse_or_are_refused(raw: bytes) -> None:
    try:
        report = parse_report(raw)
    except FormatError:
        return
    assert report.raw == raw


@given(raw=st.binary(min_size=8, max_size=8), product=st.sampled_from(list(Product)))
def test_a_level_is_read_and_written_alike(raw: bytes, product: Product) -> None:
    assert encode_tcb(Tcb(raw).components(product), product) == Tcb(raw)


@given(level=_TCBS, floor=_TCBS, higher=_TCBS)
def test_a_higher_floor_never_accepts_more(level: SnpTcb, floor: SnpTcb, higher: SnpTcb) -> None:
    joined = SnpTcb(
        boot_loader=max(floor.boot_loader, higher.boot_loader),
        tee=max(floor.tee, higher.tee),
        snp=max(floor.snp, higher.snp),
        microcode=max(floor.microcode, higher.microcode),
    )
    assert set(level.below(floor)) | set(level.below(higher)) == set(level.below(joined))


@settings(max_examples=40)
@given(floor=_TCBS)
def test_the_verdict_follows_the_floor(floor: SnpTcb) -> None:
    policy = MACHINES[0].policy(LAUNCH)
    (floors,) = policy.floors
    changed = (replace(floors, launch=floor),)
    level = floors.launch
    reached = all(
        getattr(level, name) >= getattr(floor, name)
        for name in ("boot_loader", "tee", "snp", "microcode")
    )
    if reached:
        _appraise(0, PARTS[0], floors=changed)
        return
    with pytest.raises(PolicyRejected):
        _appraise(0, PARTS[0], floors=changed)
