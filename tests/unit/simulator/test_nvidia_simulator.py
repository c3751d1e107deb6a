"""SIMULATED GPUs are accepted under their own roots alone, and every fault is refused by name."""

from __future__ import annotations

import hashlib
from dataclasses import FrozenInstanceError, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from confide.appraisal.nvidia import (
    GpuMode,
    GpuSetResult,
    MinimumVersion,
    NvidiaPolicy,
    appraise_gpus,
)
from confide.crypto.x509 import parse_pem_chain
from confide.errors import EvidenceRejected, PolicyRejected, Reason, Rejected
from confide.rats import Finding, Status
from confide.simulator.nvidia import EXPECTED, GpuFault, SimulatedGpu, SimulatedGpuSet
from confide.trust.nvidia import NVIDIA_ROOTS

if TYPE_CHECKING:
    from confide.wire.evidence import NvidiaEndorsements

SEED = b"test seed"
NOW = datetime(2026, 11, 22, 8, 30, tzinfo=UTC)
NONCE = hashlib.sha256(b"challenge").digest()

HOPPER = (SimulatedGpu(),)
BLACKWELL = tuple(
    SimulatedGpu(label=str(number), chip="GB100", mode=GpuMode.MPT) for number in range(3)
)


def appraise(
    gpus: SimulatedGpuSet,
    *,
    policy: NvidiaPolicy | None = None,
    now: datetime = NOW,
    nonce: bytes = NONCE,
    endorsements: NvidiaEndorsements | None = None,
) -> GpuSetResult:
    return appraise_gpus(
        gpus.collect(NONCE),
        endorsements or gpus.endorsements(now),
        roots=gpus.roots(),
        policy=policy or gpus.policy(),
        expected_nonce=nonce,
        now=now,
    )


def refusal(gpus: SimulatedGpuSet, policy: NvidiaPolicy | None = None) -> Rejected:
    with pytest.raises(Rejected) as caught:
        appraise(gpus, policy=policy)
    return caught.value


def made(
    gpus: tuple[SimulatedGpu, ...], fault: GpuFault | None = None, position: int = 0
) -> SimulatedGpuSet:
    return SimulatedGpuSet(SEED, gpus, now=NOW, fault=fault, position=position)


def test_one_hopper_is_accepted_with_its_claims() -> None:
    result = appraise(made(HOPPER))
    assert result.simulated
    assert result.mode is GpuMode.SPT
    assert result.not_after == NOW + timedelta(hours=24)
    assert {finding.status for finding in result.findings} == {Status.PASS}
    (claims,) = result.devices
    assert (claims.chip, claims.driver_version) == ("GH100", "580.95.05")
    assert claims.vbios_version == "96.00.9F.00.01"
    assert claims.hwmodel == "GH100 A01 GSP BROM"
    assert (claims.compared, claims.skipped, claims.uncovered) == (32, (35,), ())
    assert claims.fwid_present
    with pytest.raises(FrozenInstanceError):
        claims.ueid = "1"  # type: ignore[misc]


def test_eight_blackwell_gpus_are_accepted() -> None:
    gpus = tuple(replace(BLACKWELL[0], label=str(number)) for number in range(8))
    result = appraise(made(gpus))
    assert len(result.devices) == 8
    assert len({claims.ueid for claims in result.devices}) == 8
    assert len({claims.pdi for claims in result.devices}) == 8


def test_an_enabled_decoder_is_compared() -> None:
    (claims,) = appraise(made((SimulatedGpu(nvdec_enabled=True),))).devices
    assert (claims.compared, claims.skipped) == (33, ())


def test_the_roots_of_the_vendor_refuse_simulated_gpus() -> None:
    gpus = made(HOPPER)
    with pytest.raises(EvidenceRejected) as caught:
        appraise_gpus(
            gpus.collect(NONCE),
            gpus.endorsements(NOW),
            roots=NVIDIA_ROOTS,
            policy=gpus.policy(),
            expected_nonce=NONCE,
            now=NOW,
        )
    assert caught.value.reason is Reason.CHAIN_UNTRUSTED_ROOT


def test_every_simulated_chain_says_so() -> None:
    for gpus in (made(HOPPER), made(BLACKWELL)):
        for device in gpus.collect(NONCE):
            chain = parse_pem_chain(
                device.chain_pem, max_certificates=5, what="", reason=Reason.CHAIN_MALFORMED
            )
            assert chain[-1].subject == "SIMULATED TEST ONLY Device Identity CA"
        for document in gpus.endorsements(NOW).rims:
            assert b"SIMULATED" in document.xml


def test_equal_arguments_give_equal_bytes() -> None:
    first, second = made(BLACKWELL), made(BLACKWELL)
    assert first.collect(NONCE) == second.collect(NONCE)
    assert first.endorsements(NOW) == second.endorsements(NOW)
    assert first.roots() == second.roots()
    other = SimulatedGpuSet(b"other", BLACKWELL, now=NOW)
    assert other.roots() != first.roots()


def _places(fault: GpuFault) -> list[tuple[tuple[SimulatedGpu, ...], int]]:
    """Return sets and positions: the bad device alone, then first, in the middle and last."""
    # Only Hopper's layout has a key to differ, and only Hopper has protected PCIe.
    if fault in {GpuFault.DICE_KEY_DIFFERS, GpuFault.PPCIE_WITHOUT_SWITCHES}:
        return [(HOPPER, 0)]
    return [(HOPPER, 0), *((BLACKWELL, position) for position in range(3))]


PLACES = [
    pytest.param(fault, gpus, position, id=f"{fault}-{gpus[0].chip}-{position}")
    for fault in GpuFault
    for gpus, position in _places(fault)
]


@pytest.mark.parametrize(("fault", "gpus", "position"), PLACES)
def test_every_fault_is_refused_for_its_reason(
    fault: GpuFault, gpus: tuple[SimulatedGpu, ...], position: int
) -> None:
    refused = refusal(made(gpus, fault, position))
    assert refused.reason is EXPECTED[fault]


def test_every_fault_has_an_expected_reason() -> None:
    assert set(EXPECTED) == set(GpuFault)


@pytest.mark.parametrize("position", [0, 1, 2])
def test_one_bad_device_does_not_hide_the_others(position: int) -> None:
    refused = refusal(made(BLACKWELL, GpuFault.FLIP_BLOCK, position))
    by_device: dict[str, list[Finding]] = {}
    for finding in refused.findings:
        by_device.setdefault(finding.subject, []).append(finding)
    for number in range(3):
        statuses = {finding.status for finding in by_device[f"gpus[{number}]"]}
        assert (statuses == {Status.PASS}) is (number != position)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (GpuFault.UNCOVERED, PolicyRejected),
        (GpuFault.DEVICE_MISSING, PolicyRejected),
        (GpuFault.DEVTOOLS, EvidenceRejected),
        (GpuFault.OCSP_REVOKED, EvidenceRejected),
    ],
)
def test_authentic_but_unwanted_is_told_apart(fault: GpuFault, kind: type[Rejected]) -> None:
    assert type(refusal(made(BLACKWELL, fault))) is kind


def test_devtools_shows_at_index_nine() -> None:
    refused = refusal(made(HOPPER, GpuFault.DEVTOOLS))
    assert refused.failures[0].detail == "indexes 9 (firmware)"


def test_code_that_runs_enters_the_measurements() -> None:
    gpu = replace(HOPPER[0], driver_identity=b"another build")
    refused = refusal(made((gpu,)))
    assert refused.reason is Reason.MEASUREMENT_MISMATCH
    assert "(driver)" in refused.failures[0].detail
    assert "(firmware)" not in refused.failures[0].detail


def test_a_bit_of_the_measurement_35_is_only_ignored_while_the_decoder_is_off() -> None:
    assert appraise(made(HOPPER)).devices[0].skipped == (35,)
    assert refusal(made(HOPPER, GpuFault.NVDEC_FIRMWARE)).failures[0].detail == (
        "indexes 35 (driver)"
    )


# Policy: each rule refuses what differs, each relaxation accepts exactly what it names.


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"driver": MinimumVersion("581")}, Reason.VERSION_NOT_ALLOWED),
        ({"vbios": MinimumVersion("96.00.9F.00.02")}, Reason.VERSION_NOT_ALLOWED),
        ({"chips": frozenset({"GB100"})}, Reason.ARCH_MISMATCH),
        ({"mode": GpuMode.MPT}, Reason.MODE_MISMATCH),
        ({"gpu_count": 2}, Reason.GPU_MISSING),
    ],
)
def test_the_policy_is_kept(change: dict[str, object], reason: Reason) -> None:
    gpus = made(HOPPER)
    refused = refusal(gpus, replace(gpus.policy(), **change))  # type: ignore[arg-type]
    assert type(refused) is PolicyRejected
    assert refused.reason is reason


def test_a_minimum_accepts_what_is_above() -> None:
    gpus = made(HOPPER)
    policy = replace(
        gpus.policy(), driver=MinimumVersion("570.0"), vbios=MinimumVersion("96.00.9E.00.01")
    )
    assert appraise(gpus, policy=policy).devices[0].driver_version == "580.95.05"


def test_answers_are_not_used_past_the_age_that_the_policy_sets() -> None:
    gpus = made(HOPPER)
    old = gpus.endorsements(NOW - timedelta(hours=2))
    assert appraise(gpus, endorsements=old).not_after == NOW + timedelta(hours=22)
    policy = replace(gpus.policy(), max_ocsp_age=timedelta(hours=1))
    with pytest.raises(EvidenceRejected) as caught:
        appraise(gpus, endorsements=old, policy=policy)
    assert caught.value.reason is Reason.OCSP_STALE


def test_hold_is_tolerated_for_manifests_only() -> None:
    held = made(HOPPER, GpuFault.RIM_OCSP_HOLD)
    policy = replace(held.policy(), unsafe_tolerate_rim_hold=True)
    assert appraise(held, policy=policy).devices
    for fault in (GpuFault.OCSP_HOLD, GpuFault.RIM_OCSP_REVOKED):
        assert refusal(made(HOPPER, fault), policy).reason is EXPECTED[fault]


def test_an_expired_signer_is_tolerated_only_on_demand_and_only_while_good() -> None:
    gpus = made(HOPPER)
    later = NOW + timedelta(days=701)
    policy = replace(gpus.policy(), unsafe_tolerate_expired_rim_signer=True)
    assert appraise(gpus, policy=policy, now=later).devices
    with pytest.raises(EvidenceRejected) as caught:
        appraise(gpus, now=later)
    assert caught.value.reason is Reason.RIM_EXPIRED
    both = replace(policy, unsafe_tolerate_rim_hold=True)
    with pytest.raises(EvidenceRejected) as caught:
        appraise(made(HOPPER, GpuFault.RIM_OCSP_HOLD), policy=both, now=later)
    assert caught.value.reason is Reason.OCSP_HOLD


def test_an_expired_issuer_of_the_signer_is_never_tolerated() -> None:
    gpus = made(HOPPER)
    policy = replace(gpus.policy(), unsafe_tolerate_expired_rim_signer=True)
    with pytest.raises(EvidenceRejected) as caught:
        appraise(gpus, policy=policy, now=NOW + timedelta(days=913))
    assert caught.value.reason is Reason.RIM_EXPIRED


def test_an_old_driver_without_firmware_id_needs_the_named_option() -> None:
    gpus = made((SimulatedGpu(driver_version="535.86.09"),))
    refused = refusal(gpus)
    assert type(refused) is PolicyRejected
    assert refused.reason is Reason.FWID_MISSING
    policy = replace(gpus.policy(), unsafe_allow_missing_fwid=True)
    assert not appraise(gpus, policy=policy).devices[0].fwid_present


def test_uncovered_values_are_accepted_one_by_one() -> None:
    gpus = made(HOPPER, GpuFault.UNCOVERED)
    policy = replace(gpus.policy(), uncovered_allowed=(60,))
    assert appraise(gpus, policy=policy).devices[0].uncovered == (60,)
    other = replace(gpus.policy(), uncovered_allowed=(59,))
    assert refusal(gpus, other).reason is Reason.MEASUREMENT_UNCOVERED


def test_every_part_of_a_policy_is_in_its_digest() -> None:
    policy = made(HOPPER).policy()
    changes: list[dict[str, object]] = [
        {"chips": frozenset({"GB100"})},
        {"mode": GpuMode.MPT},
        {"gpu_count": 3},
        {"driver": MinimumVersion("1")},
        {"vbios": MinimumVersion("1")},
        {"max_ocsp_age": timedelta(hours=1)},
        {"switch_count": 1, "switch_bios": MinimumVersion("1")},
        {"switch_count": 1, "switch_bios": MinimumVersion("2")},
        {"uncovered_allowed": (1,)},
        {"unsafe_tolerate_rim_hold": True},
        {"unsafe_tolerate_expired_rim_signer": True},
        {"unsafe_allow_missing_fwid": True},
    ]
    digests = {replace(policy, **change).digest() for change in changes}  # type: ignore[arg-type]
    assert len(digests | {policy.digest()}) == len(changes) + 1
    assert len(changes) == len(NvidiaPolicy.__dataclass_fields__)


def test_two_gpus_are_no_single_gpu_set() -> None:
    gpus = made((SimulatedGpu(label="a"), SimulatedGpu(label="b")))
    assert refusal(gpus).reason is Reason.TOPOLOGY_COUNT


def test_nine_gpus_are_no_multi_gpu_set() -> None:
    gpus = tuple(replace(BLACKWELL[0], label=str(number)) for number in range(9))
    assert refusal(made(gpus)).reason is Reason.TOPOLOGY_COUNT
