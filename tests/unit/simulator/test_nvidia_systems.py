"""SIMULATED systems of 8 GPUs and 4 NVSwitches: accepted whole, refused for every single fault."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from confide.appraisal.nvidia import (
    AllowedVersions,
    GpuMode,
    GpuSetResult,
    MinimumVersion,
    appraise_gpus,
)
from confide.errors import EvidenceRejected, PolicyRejected, Reason, Rejected
from confide.rats import Status
from confide.simulator.nvidia import (
    EXPECTED,
    EXPECTED_OF_SYSTEMS,
    GpuFault,
    SimulatedGpu,
    SimulatedGpuSet,
    SimulatedSwitch,
    SystemFault,
    simulated_ppcie,
)
from confide.wire.evidence import GpuEvidence, NvidiaEndorsements

if TYPE_CHECKING:
    from confide.appraisal.nvidia import NvidiaPolicy

NOW = datetime(2026, 11, 22, 8, 30, tzinfo=UTC)
NONCE = hashlib.sha256(b"system").digest()
SEED = b"system"
PLACES = {"first": 0, "middle GPU": 3, "last GPU": 7, "first switch": 8, "last": 11}


def system(fault: GpuFault | SystemFault | None = None, position: int = 0) -> SimulatedGpuSet:
    return simulated_ppcie(SEED, now=NOW, fault=fault, position=position)


def appraise(
    devices: SimulatedGpuSet,
    *,
    policy: NvidiaPolicy | None = None,
    evidence: tuple[GpuEvidence, ...] | None = None,
    endorsements: NvidiaEndorsements | None = None,
) -> GpuSetResult:
    return appraise_gpus(
        devices.collect(NONCE) if evidence is None else evidence,
        endorsements or devices.endorsements(NOW),
        roots=devices.roots(),
        policy=policy or devices.policy(),
        expected_nonce=NONCE,
        now=NOW,
    )


def refusal(devices: SimulatedGpuSet, policy: NvidiaPolicy | None = None) -> Rejected:
    with pytest.raises(Rejected) as caught:
        appraise(devices, policy=policy)
    return caught.value


def test_a_whole_system_is_accepted_and_its_claims_agree() -> None:
    result = appraise(system())
    assert result.simulated
    assert (result.mode, result.chip) == (GpuMode.PPCIE, "GH100")
    assert (len(result.devices), len(result.switches)) == (8, 4)
    pdis = {claims.pdi for claims in result.devices}
    for claims in result.switches:
        assert claims.chip == "LS10"
        assert claims.hwmodel == "LS_10 A01 FSP BROM"
        assert claims.bios_version == "96.10.55.00.01"
        assert claims.compared == 31
        assert claims.uncovered == ()
        assert set(claims.gpu_pdis) == pdis
    assert len(pdis | {claims.pdi for claims in result.switches}) == 12
    assert len(result.verified_rims) == 3
    assert {finding.status for finding in result.findings} == {Status.PASS}


def test_the_order_of_the_devices_does_not_matter() -> None:
    devices = system()
    mixed = devices.collect(NONCE)[::-1]
    assert len(appraise(devices, evidence=mixed).switches) == 4


def _places(fault: SystemFault) -> tuple[int, ...]:
    of_a_switch = fault.name.startswith("SWITCH")
    return (8, 9, 11) if of_a_switch else (0, 3, 7)


@pytest.mark.parametrize(
    ("fault", "position"), [(fault, at) for fault in SystemFault for at in _places(fault)]
)
def test_every_fault_of_a_system_is_refused_for_its_reason(
    fault: SystemFault, position: int
) -> None:
    assert refusal(system(fault, position)).reason is EXPECTED_OF_SYSTEMS[fault]


def test_every_fault_has_an_expected_reason() -> None:
    assert set(EXPECTED_OF_SYSTEMS) == set(SystemFault)


# What any device can have, a switch included: the answer does not depend on the place.
ANYWHERE = [
    GpuFault.WRONG_NONCE,
    GpuFault.FLIP_BLOCK,
    GpuFault.TRUNCATED,
    GpuFault.TRAILING_BYTE,
    GpuFault.EMPTY_REPORT,
    GpuFault.DUPLICATE_FIELD,
    GpuFault.UNKNOWN_FIELD,
    GpuFault.FOREIGN_ROOT,
    GpuFault.FOREIGN_CHAIN,
    GpuFault.MISSING_CERTIFICATE,
    GpuFault.BROM_OF_ANOTHER,
    GpuFault.CHAIN_EXPIRED,
    GpuFault.UNKNOWN_CHIP,
    GpuFault.DICE_KEY_DIFFERS,
    GpuFault.NO_DICE,
    GpuFault.DEVTOOLS,
    GpuFault.OCSP_MISSING,
    GpuFault.OCSP_STALE,
    GpuFault.OCSP_REVOKED,
    GpuFault.OCSP_HOLD,
    GpuFault.OCSP_OTHER_SERIAL,
    GpuFault.OCSP_OTHER_RESPONDER,
    GpuFault.DEVICE_TWICE,
]


@pytest.mark.parametrize("fault", ANYWHERE)
@pytest.mark.parametrize("place", PLACES)
def test_one_bad_device_fails_the_set_wherever_it_stands(fault: GpuFault, place: str) -> None:
    refused = refusal(system(fault, PLACES[place]))
    assert refused.reason is EXPECTED[fault]
    if fault in {GpuFault.EMPTY_REPORT, GpuFault.DEVICE_TWICE}:
        return
    # Every other device was looked at, and nothing is wrong with it.
    bad = f"gpus[{PLACES[place]}]"
    for number in range(12):
        own = {f.status for f in refused.findings if f.subject == f"gpus[{number}]"}
        assert (own == {Status.PASS}) is (f"gpus[{number}]" != bad)


def test_gpus_without_their_switches_are_refused() -> None:
    devices = system()
    gpus = devices.collect(NONCE)[:8]
    policy = replace(devices.policy(), switch_count=0, switch_bios=None)
    with pytest.raises(EvidenceRejected) as caught:
        appraise(devices, evidence=gpus, policy=policy)
    assert caught.value.reason is Reason.TOPOLOGY_COUNT


def test_switches_alone_are_no_set() -> None:
    devices = system()
    with pytest.raises(EvidenceRejected) as caught:
        appraise(devices, evidence=devices.collect(NONCE)[8:])
    assert caught.value.reason is Reason.TOPOLOGY_COUNT


@pytest.mark.parametrize("mode", [GpuMode.SPT, GpuMode.MPT])
def test_no_other_mode_has_switches(mode: GpuMode) -> None:
    chip = "GB100" if mode is GpuMode.MPT else "GH100"
    devices = SimulatedGpuSet(
        SEED, (SimulatedGpu(chip=chip, mode=mode),), now=NOW, switches=(SimulatedSwitch(),)
    )
    assert refusal(devices).reason is Reason.TOPOLOGY_COUNT


def test_two_systems_cannot_be_mixed() -> None:
    # Each device is genuine and the counts are right: only the identifiers tell.
    here = system()
    there = SimulatedGpuSet(
        SEED,
        tuple(SimulatedGpu(label=f"other-{n}", mode=GpuMode.PPCIE) for n in range(8)),
        now=NOW,
        switches=tuple(SimulatedSwitch(label=f"other-{n}") for n in range(4)),
    )
    mixed = here.collect(NONCE)[:8] + there.collect(NONCE)[8:]
    first, second = here.endorsements(NOW), there.endorsements(NOW)
    answers = {answer.certificate_sha256: answer for answer in (*first.ocsp, *second.ocsp)}
    both = NvidiaEndorsements(first.rims, tuple(answers.values()))
    with pytest.raises(EvidenceRejected) as caught:
        appraise(here, evidence=mixed, endorsements=both)
    assert {f.reason for f in caught.value.failures} == {Reason.TOPOLOGY_PDI_MISMATCH}
    assert [f.step for f in caught.value.failures] == ["nvidia/15b", "nvidia/15c"]


def test_one_gpu_short_is_seen_from_both_sides() -> None:
    refused = refusal(system(SystemFault.GPU_MISSING, 4))
    assert [f.step for f in refused.failures] == ["nvidia/15a", "nvidia/15c", "nvidia/16"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"switch_count": 3}, Reason.TOPOLOGY_COUNT),
        ({"gpu_count": 7}, Reason.TOPOLOGY_COUNT),
        ({"gpu_count": 9}, Reason.GPU_MISSING),
        ({"switch_bios": MinimumVersion("96.10.56")}, Reason.VERSION_NOT_ALLOWED),
        ({"switch_bios": AllowedVersions(("96.10.6D.00.01",))}, Reason.VERSION_NOT_ALLOWED),
        ({"chips": frozenset({"GH100"})}, Reason.ARCH_MISMATCH),
        ({"switch_count": 0, "switch_bios": None}, Reason.VERSION_NOT_ALLOWED),
    ],
)
def test_the_policy_is_kept(change: dict[str, object], reason: Reason) -> None:
    devices = system()
    refused = refusal(devices, replace(devices.policy(), **change))  # type: ignore[arg-type]
    assert type(refused) is PolicyRejected
    assert refused.reason is reason


@pytest.mark.parametrize("count", [-1, 0, 4])
def test_a_rule_for_switches_and_their_number_go_together(count: int) -> None:
    policy = system().policy()
    rule = None if count == 4 else policy.switch_bios
    with pytest.raises(ValueError, match="BIOS of switches"):
        replace(policy, switch_count=count, switch_bios=rule)


@pytest.mark.parametrize("count", [1, 2, 8])
def test_blackwell_systems_need_no_switches(count: int) -> None:
    gpus = tuple(
        SimulatedGpu(label=f"mpt-{n}", chip="GB100", mode=GpuMode.MPT) for n in range(count)
    )
    result = appraise(SimulatedGpuSet(SEED, gpus, now=NOW))
    assert (len(result.devices), result.switches, result.mode) == (count, (), GpuMode.MPT)


@pytest.mark.parametrize(("gpus", "position"), [(0, 0), (8, 12), (8, -1)])
def test_a_fault_needs_a_device(gpus: int, position: int) -> None:
    devices = tuple(SimulatedGpu(label=str(number)) for number in range(gpus))
    with pytest.raises(ValueError, match="a set has a GPU"):
        SimulatedGpuSet(
            SEED,
            devices,
            now=NOW,
            position=position,
            switches=tuple(SimulatedSwitch(label=str(number)) for number in range(4)),
        )


def test_only_known_chips_are_simulated() -> None:
    with pytest.raises(ValueError, match="a simulated GPU"):
        SimulatedGpu(chip="LS10")
