"""
What other verifiers of NVIDIA evidence got wrong (nvidia.md §12), one test each.

Numbers are those of that list. Tested elsewhere: 1, 2 in part and 10 in test_nvidia_systems.py, 5
in test_nvidia_simulator.py, 9 and 15 with the tokens of the remote service. 13: nothing here sets
the ready state of a driver; a model node gets ready only through `measure_gpus`.
"""

from __future__ import annotations

import hashlib
import inspect
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from confide.appraisal import nvidia
from confide.appraisal.nvidia import (
    DEVICE_STEPS,
    GpuMode,
    GpuSetResult,
    NvidiaPolicy,
    VerifiedSignatures,
    appraise_gpus,
)
from confide.appraisal.nvidia_chain import SignatureMemory
from confide.appraisal.nvidia_measurements import compare
from confide.appraisal.nvidia_ocsp import require_good
from confide.appraisal.steps import Refused
from confide.crypto.ocsp import OcspStatus
from confide.crypto.x509 import Certificate, parse_certificate_der
from confide.errors import EvidenceRejected, FormatError, Reason, Rejected
from confide.rats import Status
from confide.simulator.nvidia import GpuFault, SimulatedGpu, SimulatedGpuSet, simulated_ppcie
from confide.simulator.nvidia_pki import (
    FOREVER,
    Period,
    authority,
    end_entity_extensions,
    extension,
    issue,
    name,
    ocsp_response,
    ocsp_unavailable,
    responder,
)
from confide.wire.der import encode_oid, encode_tlv
from confide.wire.evidence import GpuEvidence, RimDocument
from confide.wire.rim import Edition, GoldenMeasurement, Rim

if TYPE_CHECKING:
    from confide.appraisal.nvidia_state import DeviceState

NOW = datetime(2026, 11, 22, 8, 30, tzinfo=UTC)
NONCE = hashlib.sha256(b"lessons").digest()
SEED = b"lessons"
BLACKWELL = tuple(
    SimulatedGpu(label=str(number), chip="GB100", mode=GpuMode.MPT) for number in range(2)
)


def _set(*gpus: SimulatedGpu, fault: GpuFault | None = None) -> SimulatedGpuSet:
    return SimulatedGpuSet(SEED, gpus or (SimulatedGpu(),), now=NOW, fault=fault)


def _appraise(
    gpus: SimulatedGpuSet, evidence: tuple[GpuEvidence, ...] | None = None
) -> GpuSetResult:
    return appraise_gpus(
        evidence or gpus.collect(NONCE),
        gpus.endorsements(NOW),
        roots=gpus.roots(),
        policy=gpus.policy(),
        expected_nonce=NONCE,
        now=NOW,
    )


def test_2_another_leaf_of_the_same_device_is_the_same_device() -> None:
    gpus = _set(*BLACKWELL)
    device = gpus._devices[0]
    text = encode_tlv(0x0C, b"NVIDIA:GB100:48B02D00")
    other = encode_tlv(0xA0, encode_oid("1.3.6.1.4.1.412.274.1"), encode_tlv(0xA0, text))
    dice = parse_certificate_der(device.chain[0], what="leaf", reason=Reason.CHAIN_MALFORMED)
    again = issue(
        subject=name(CN="GB100 A01 GSP FMC LF"),
        subject_key=device.leaf_key,
        issuer=device.brom.subject,
        issuer_key=device.brom.key,
        serial=99,
        period=Period(NOW, FOREVER),
        extensions=[
            *end_entity_extensions(device.leaf_key, device.brom.key),
            extension("2.5.29.17", encode_tlv(0x30, other)),
            extension("2.23.133.5.4.1.1", dice.extension("2.23.133.5.4.1.1") or b""),
        ],
    )
    twin = replace(device, chain=(again, *device.chain[1:]))
    with pytest.raises(EvidenceRejected) as caught:
        _appraise(gpus, (device.evidence(NONCE), twin.evidence(NONCE)))
    assert [(f.step, f.reason) for f in caught.value.failures] == [
        ("nvidia/14a", Reason.DUPLICATE_DEVICE)
    ]


def test_3_an_exception_in_a_step_is_no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_state: DeviceState) -> str:
        raise KeyError("a bug")

    for number in range(len(DEVICE_STEPS)):
        steps = list(DEVICE_STEPS)
        steps[number] = replace(steps[number], run=broken)
        monkeypatch.setattr(nvidia, "DEVICE_STEPS", tuple(steps))
        with pytest.raises(KeyError):
            _appraise(_set())


def test_3_a_refusal_publishes_no_claims() -> None:
    with pytest.raises(Rejected) as caught:
        _appraise(_set(fault=GpuFault.DEVTOOLS))
    assert caught.value.result is None
    assert set(vars(caught.value)) == {"findings", "result"}
    later = [f for f in caught.value.findings if f.step == "nvidia/12c"]
    assert [f.status for f in later] == [Status.NOT_PROVEN]


@pytest.mark.parametrize("gpu", [SimulatedGpu(), BLACKWELL[0]], ids=["Hopper", "Blackwell"])
def test_4_the_firmware_id_is_compared_in_both_layouts(gpu: SimulatedGpu) -> None:
    # The last 48 bytes of Blackwell's extension are zero: a report of zeros must not match them.
    gpus = _set(gpu)
    (device,) = gpus._devices
    opaque = tuple((n, bytes(48) if n == 20 else value) for n, value in device.opaque)
    with pytest.raises(EvidenceRejected) as caught:
        _appraise(gpus, (replace(device, opaque=opaque).evidence(NONCE),))
    assert caught.value.reason is Reason.FWID_MISMATCH


def _ocsp_setting() -> tuple[Certificate, Certificate, bytes]:
    root = authority(SEED, "ocsp", name(CN="TEST"), Period(NOW - timedelta(days=1), FOREVER))
    child = authority(
        SEED, "child", name(CN="child"), Period(NOW - timedelta(days=1), FOREVER), parent=root
    )
    nonce = bytes(range(32))
    answer = ocsp_response(
        serial=child.serial,
        issuer=root,
        signer=responder(SEED, root, NOW),
        this_update=NOW,
        nonce=nonce,
    )
    parsed = [
        parse_certificate_der(each.der, what="test", reason=Reason.CHAIN_MALFORMED)
        for each in (child, root)
    ]
    return parsed[0], parsed[1], answer


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"nonce": bytes(range(32))}, None),
        ({"nonce": bytes(32)}, Reason.OCSP_NONCE_MISMATCH),
        ({"now": NOW - timedelta(seconds=1)}, Reason.OCSP_STALE),
        ({"now": NOW + timedelta(hours=24)}, None),
        ({"now": NOW + timedelta(hours=24, seconds=1)}, Reason.OCSP_STALE),
        ({"max_age": timedelta(hours=1), "now": NOW + timedelta(hours=2)}, Reason.OCSP_STALE),
        ({"der": None}, Reason.OCSP_UNAVAILABLE),
        ({"der": ocsp_unavailable()}, Reason.OCSP_UNAVAILABLE),
        ({"der": b""}, Reason.OCSP_MALFORMED),
    ],
)
def test_6_answers_are_judged_whole(change: dict[str, object], reason: Reason | None) -> None:
    certificate, issuer, answer = _ocsp_setting()
    arguments: dict[str, object] = {
        "der": answer,
        "now": NOW,
        "max_age": timedelta(hours=24),
        "memory": SignatureMemory(VerifiedSignatures()),
        **change,
    }
    found: Reason | None = None
    try:
        require_good(
            arguments.pop("der"),  # type: ignore[arg-type]
            certificate,
            issuer,
            **arguments,  # type: ignore[arg-type]
        )
    except (Refused, FormatError) as refused:
        found = refused.reason
    assert found is reason


def test_6_hold_is_never_tolerated_for_a_device() -> None:
    gpus = _set(fault=GpuFault.OCSP_HOLD)
    policy = replace(
        gpus.policy(),
        unsafe_tolerate_rim_hold=True,
        unsafe_tolerate_expired_rim_signer=True,
        unsafe_allow_missing_fwid=True,
    )
    with pytest.raises(EvidenceRejected) as caught:
        appraise_gpus(
            gpus.collect(NONCE),
            gpus.endorsements(NOW),
            roots=gpus.roots(),
            policy=policy,
            expected_nonce=NONCE,
            now=NOW,
        )
    assert caught.value.reason is Reason.OCSP_HOLD
    assert str(OcspStatus.HOLD) in caught.value.failures[0].detail


def test_7_an_unsigned_payload_beside_the_signed_one_is_refused() -> None:
    gpus = _set()
    endorsements = gpus.endorsements(NOW)
    edited = []
    for document in endorsements.rims:
        head, opening, rest = document.xml.partition(b"    <ns0:Payload")
        payload, closing, tail = rest.partition(b"</ns0:Payload>\n")
        # The reader that takes the first of two, or the last, finds an attacker's.
        forged = opening + payload.replace(b'active="True"', b'active="False"') + closing
        edited.append(RimDocument(document.id, head + forged + opening + payload + closing + tail))
    with pytest.raises(EvidenceRejected) as caught:
        appraise_gpus(
            gpus.collect(NONCE),
            replace(endorsements, rims=tuple(edited)),
            roots=gpus.roots(),
            policy=gpus.policy(),
            expected_nonce=NONCE,
            now=NOW,
        )
    assert caught.value.reason is Reason.RIM_DIGEST_MISMATCH


def test_8_versions_come_from_the_signed_report() -> None:
    # Evidence has no place where a driver library could state a version or a nonce.
    assert [field.name for field in fields(GpuEvidence)] == ["report", "chain_pem", "kind"]


def test_11_two_appraisals_at_once_do_not_influence_each_other() -> None:
    good, bad = simulated_ppcie(SEED, now=NOW), _set(fault=GpuFault.DEVTOOLS)
    _appraise(good)

    def run(number: int) -> int | Reason:
        try:
            result = _appraise(bad if number % 2 else good)
        except Rejected as refused:
            return refused.reason
        return len(result.devices) + len(result.switches) + len(result.findings)

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(run, range(12)))
    assert set(found[1::2]) == {Reason.MEASUREMENT_MISMATCH}
    assert len(set(found[::2])) == 1


def test_12_nothing_about_freshness_or_revocation_has_a_default() -> None:
    parameters = inspect.signature(appraise_gpus).parameters
    required = {n for n, p in parameters.items() if p.default is inspect.Parameter.empty}
    assert required == {"devices", "endorsements", "roots", "policy", "expected_nonce", "now"}
    relaxed = {f.name for f in fields(NvidiaPolicy) if f.name.startswith("unsafe_")}
    assert relaxed == {
        "unsafe_tolerate_rim_hold",
        "unsafe_tolerate_expired_rim_signer",
        "unsafe_allow_missing_fwid",
    }
    policy = _set().policy()
    assert not any(getattr(policy, option) for option in relaxed)


def _rim(*indexes: int) -> Rim:
    entries = tuple(GoldenMeasurement(index, True, (bytes(48),)) for index in indexes)
    return Rim("1", Edition.GPU, "GH100", entries)


def test_14_nothing_compared_is_no_agreement_and_a_missing_block_is_none() -> None:
    blocks = (bytes(48),) * 31
    empty = compare(blocks, decoder_off=False, driver=None, firmware=_rim())
    assert (empty.compared, empty.mismatches) == (0, ())
    beyond = compare(blocks, decoder_off=False, driver=_rim(30, 31), firmware=None)
    assert beyond.mismatches == ((31, "driver"),)
    with pytest.raises(EvidenceRejected) as caught:
        _appraise(_set(fault=GpuFault.RIM_ALL_INACTIVE))
    assert caught.value.reason is Reason.RIM_MALFORMED
