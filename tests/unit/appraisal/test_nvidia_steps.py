"""Every numbered NVIDIA step carries weight: without it, something wrong would be accepted.

For each step there is a set of GPUs that the procedure refuses for that step's reason. With that
one step made deaf (it runs, but its refusal is dropped) the same set is accepted. A step for which
nobody can write such a case would be decoration.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

import pytest

from confide.appraisal import nvidia
from confide.appraisal.nvidia import (
    BOUND_STEPS,
    DEVICE_STEPS,
    SET_STEPS,
    AllowedVersions,
    GpuMode,
    NvidiaPolicy,
    appraise_gpus,
)
from confide.appraisal.steps import Refused, Step
from confide.errors import FormatError, Reason, Rejected
from confide.simulator.nvidia import (
    GpuFault,
    SimulatedGpu,
    SimulatedGpuSet,
    SystemFault,
    simulated_nvidia_roots,
    simulated_ppcie,
)
from confide.wire.evidence import RimDocument

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from confide.trust.nvidia import NvidiaRoots
    from confide.wire.evidence import NvidiaEndorsements

S = TypeVar("S")

SEED = b"weight"
NOW = datetime(2026, 11, 22, 8, 30, tzinfo=UTC)
NONCE = hashlib.sha256(b"weight challenge").digest()
HOPPER = SimulatedGpu()
BLACKWELL = tuple(
    SimulatedGpu(label=str(number), chip="GB100", mode=GpuMode.MPT) for number in range(2)
)


@dataclass(frozen=True)
class Wrong:
    """One wrong input; `also` are steps that must be deaf too because they overlap."""

    gpus: SimulatedGpuSet
    reason: Reason
    policy: NvidiaPolicy | None = None
    roots: NvidiaRoots | None = None
    endorsements: NvidiaEndorsements | None = None
    also: frozenset[str] = frozenset()

    def appraise(self) -> None:
        appraise_gpus(
            self.gpus.collect(NONCE),
            self.endorsements or self.gpus.endorsements(NOW),
            roots=self.roots or self.gpus.roots(),
            policy=self.policy or self.gpus.policy(),
            expected_nonce=NONCE,
            now=NOW,
        )


def _set(*gpus: SimulatedGpu, fault: GpuFault | None = None, seed: bytes = SEED) -> SimulatedGpuSet:
    return SimulatedGpuSet(seed, gpus or (HOPPER,), now=NOW, fault=fault)


def _fault(fault: GpuFault, reason: Reason, *gpus: SimulatedGpu) -> Wrong:
    return Wrong(_set(*gpus, fault=fault), reason)


def _system(fault: SystemFault, position: int, reason: Reason) -> Wrong:
    return Wrong(simulated_ppcie(SEED, now=NOW, fault=fault, position=position), reason)


def _bounds() -> Wrong:
    gpus = _set()
    endorsements = gpus.endorsements(NOW)
    twice = replace(endorsements, ocsp=(*endorsements.ocsp, endorsements.ocsp[0]))
    return Wrong(gpus, Reason.OCSP_MALFORMED, endorsements=twice)


def _other_root() -> Wrong:
    gpus = _set()
    device = simulated_nvidia_roots(b"somebody else").device
    return Wrong(gpus, Reason.CHAIN_UNTRUSTED_ROOT, roots=replace(gpus.roots(), device=device))


def _report_without_fwid() -> Wrong:
    gpus = _set(fault=GpuFault.FWID_ABSENT)
    policy = replace(gpus.policy(), unsafe_allow_missing_fwid=True)
    return Wrong(gpus, Reason.REPORT_MALFORMED, policy=policy)


def _vbios_manifest_of_another_version() -> Wrong:
    # It runs the older code, says that it runs the newer, and brings the older manifest.
    older = SimulatedGpu(vbios_identity=b"SIMULATED vbios 96.00.9F.00.01")
    liar = _set(replace(older, vbios_version="96.00.9F.00.02"))
    genuine = {rim.id: rim.xml for rim in _set(older).endorsements(NOW).rims}
    endorsements = liar.endorsements(NOW)
    rims = tuple(
        RimDocument(
            rim.id, genuine.get(rim.id.replace("00.02", "00.01").replace("0002", "0001"), b"")
        )
        for rim in endorsements.rims
    )
    return Wrong(liar, Reason.RIM_IDENTITY_MISMATCH, endorsements=replace(endorsements, rims=rims))


def _with_policy(reason: Reason, **change: object) -> Wrong:
    gpus = _set()
    return Wrong(gpus, reason, policy=replace(gpus.policy(), **change))  # type: ignore[arg-type]


def _old_driver() -> Wrong:
    return Wrong(_set(SimulatedGpu(driver_version="535.86.09")), Reason.FWID_MISSING)


def _two_chips() -> Wrong:
    blackwell = SimulatedGpu(label="b", chip="GB100")
    gpus = _set(HOPPER, blackwell)
    policy = replace(
        gpus.policy(),
        chips=frozenset({"GH100", "GB100"}),
        driver=AllowedVersions((HOPPER.driver, blackwell.driver)),
        vbios=AllowedVersions((HOPPER.vbios, blackwell.vbios)),
    )
    return Wrong(gpus, Reason.ARCH_MISMATCH, policy=policy, also=frozenset({"nvidia/15a"}))


CASES: dict[str, Callable[[], Wrong]] = {
    "nvidia/1": _bounds,
    "nvidia/2a": _other_root,
    "nvidia/2b": lambda: _fault(GpuFault.CHAIN_EXPIRED, Reason.CHAIN_EXPIRED),
    "nvidia/3": lambda: _fault(GpuFault.FLIP_SIGNATURE, Reason.SIGNATURE_INVALID),
    "nvidia/4": _report_without_fwid,
    "nvidia/5": lambda: _fault(GpuFault.REPLAYED_NONCE, Reason.NONCE_MISMATCH),
    "nvidia/6": lambda: _fault(GpuFault.CHIP_CONTRADICTION, Reason.ARCH_MISMATCH),
    "nvidia/7": lambda: _fault(GpuFault.FWID_DIFFERS, Reason.FWID_MISMATCH),
    "nvidia/8a": lambda: _fault(GpuFault.PDI_OF_A_SWITCH, Reason.PDI_MISMATCH),
    "nvidia/8b": lambda: _system(SystemFault.SWITCH_PDI_DIFFERS, 9, Reason.PDI_MISMATCH),
    "nvidia/9": lambda: _fault(GpuFault.OCSP_REVOKED, Reason.OCSP_REVOKED),
    "nvidia/10": lambda: _fault(GpuFault.MODE_CONTRADICTION, Reason.MODE_MISMATCH),
    "nvidia/11a": lambda: _fault(GpuFault.RIM_OTHER_VERSION, Reason.RIM_IDENTITY_MISMATCH),
    "nvidia/11b": _vbios_manifest_of_another_version,
    "nvidia/11c": lambda: _fault(GpuFault.RIM_EXPIRED, Reason.RIM_EXPIRED),
    "nvidia/11d": lambda: _fault(GpuFault.RIM_OCSP_REVOKED, Reason.OCSP_REVOKED),
    "nvidia/12a": lambda: _fault(GpuFault.RIM_INDEX_CONFLICT, Reason.RIM_INDEX_CONFLICT),
    "nvidia/12b": lambda: _fault(GpuFault.DEVTOOLS, Reason.MEASUREMENT_MISMATCH),
    "nvidia/12c": lambda: _fault(GpuFault.UNCOVERED, Reason.MEASUREMENT_UNCOVERED),
    "nvidia/13a": lambda: _with_policy(Reason.ARCH_MISMATCH, chips=frozenset({"GB100"})),
    "nvidia/13b": lambda: _with_policy(Reason.MODE_MISMATCH, mode=GpuMode.MPT),
    "nvidia/13c": lambda: _with_policy(
        Reason.VERSION_NOT_ALLOWED, driver=AllowedVersions(("999.1",))
    ),
    "nvidia/13d": _old_driver,
    "nvidia/14a": lambda: _fault(GpuFault.DEVICE_TWICE, Reason.DUPLICATE_DEVICE, *BLACKWELL),
    "nvidia/14b": _two_chips,
    "nvidia/15a": lambda: Wrong(_set(HOPPER, replace(HOPPER, label="b")), Reason.TOPOLOGY_COUNT),
    "nvidia/15b": lambda: _system(SystemFault.GPU_AT_OTHER_SWITCH, 3, Reason.TOPOLOGY_PDI_MISMATCH),
    "nvidia/15c": lambda: _system(
        SystemFault.SWITCH_AT_OTHER_GPU, 11, Reason.TOPOLOGY_PDI_MISMATCH
    ),
    "nvidia/15d": lambda: _system(SystemFault.SWITCH_UNLOCKED, 8, Reason.TOPOLOGY_SWITCH_UNLOCKED),
    "nvidia/16": lambda: _fault(GpuFault.DEVICE_MISSING, Reason.GPU_MISSING, *BLACKWELL),
}


def _deaf(steps: Sequence[Step[S]], ids: frozenset[str]) -> tuple[Step[S], ...]:
    def deaf(run: Callable[[S], str | None]) -> Callable[[S], str | None]:
        def unheard(state: S) -> str | None:
            try:
                return run(state)
            except (Refused, FormatError):
                return None

        return unheard

    return tuple(replace(step, run=deaf(step.run)) if step.id in ids else step for step in steps)


def _mutate(monkeypatch: pytest.MonkeyPatch, ids: frozenset[str]) -> None:
    monkeypatch.setattr(nvidia, "BOUND_STEPS", _deaf(BOUND_STEPS, ids))
    monkeypatch.setattr(nvidia, "DEVICE_STEPS", _deaf(DEVICE_STEPS, ids))
    monkeypatch.setattr(nvidia, "SET_STEPS", _deaf(SET_STEPS, ids))


ALL_IDS = [
    *(step.id for step in BOUND_STEPS),
    *(step.id for step in DEVICE_STEPS),
    *(step.id for step in SET_STEPS),
]


def test_every_step_has_a_case() -> None:
    assert list(CASES) == ALL_IDS
    assert len(set(ALL_IDS)) == len(ALL_IDS)


def test_needs_name_earlier_steps() -> None:
    seen: set[str] = set()
    for step in DEVICE_STEPS:
        assert set(step.needs) <= seen
        seen.add(step.id)


def _manifest_of_another_bios() -> Wrong:
    return _system(SystemFault.SWITCH_RIM_OTHER_VERSION, 8, Reason.RIM_IDENTITY_MISMATCH)


def _too_few_switches() -> Wrong:
    gpus = simulated_ppcie(SEED, now=NOW, fault=SystemFault.SWITCH_MISSING, position=10)
    policy = replace(gpus.policy(), switch_count=3)
    # The links to the switch that is not shown name it too: both are in the way.
    return Wrong(gpus, Reason.TOPOLOGY_COUNT, policy=policy, also=frozenset({"nvidia/15b"}))


def _one_gpu_for_eight() -> Wrong:
    gpus = simulated_ppcie(SEED, now=NOW, fault=SystemFault.ONE_GPU_FOR_ALL)
    return Wrong(gpus, Reason.DUPLICATE_DEVICE, also=frozenset({"nvidia/15c"}))


def _old_bios() -> Wrong:
    gpus = simulated_ppcie(SEED, now=NOW)
    policy = replace(gpus.policy(), switch_bios=AllowedVersions(("96.10.6D.00.01",)))
    return Wrong(gpus, Reason.VERSION_NOT_ALLOWED, policy=policy)


def _switches_nobody_asked_for() -> Wrong:
    gpus = simulated_ppcie(SEED, now=NOW)
    policy = replace(gpus.policy(), chips=frozenset({"GH100"}))
    return Wrong(gpus, Reason.ARCH_MISMATCH, policy=policy)


# The same steps where they decide about switches and whole systems.
SYSTEM_CASES: dict[str, tuple[str, Callable[[], Wrong]]] = {
    "a switch of another kind": (
        "nvidia/8a",
        lambda: _system(SystemFault.SWITCH_SERIAL_OF_A_GPU, 8, Reason.PDI_MISMATCH),
    ),
    "another BIOS": (
        "nvidia/12b",
        lambda: _system(SystemFault.SWITCH_OTHER_BIOS, 11, Reason.MEASUREMENT_MISMATCH),
    ),
    "a manifest that leaves out an entry": (
        "nvidia/12a",
        # The block that it leaves out is uncovered too.
        lambda: replace(
            _system(SystemFault.SWITCH_RIM_FEW_ENTRIES, 8, Reason.RIM_MALFORMED),
            also=frozenset({"nvidia/12c"}),
        ),
    ),
    "a manifest without weight": (
        "nvidia/12b",
        # The steps before and after would refuse it too: two more walls around an empty match.
        lambda: replace(
            _system(SystemFault.SWITCH_RIM_ALL_INACTIVE, 8, Reason.MEASUREMENT_MISMATCH),
            also=frozenset({"nvidia/12a", "nvidia/12c"}),
        ),
    ),
    "the manifest of another BIOS": ("nvidia/11b", _manifest_of_another_bios),
    "a BIOS that is not allowed": ("nvidia/13c", _old_bios),
    "a chip that is not allowed": ("nvidia/13a", _switches_nobody_asked_for),
    "one switch too few": ("nvidia/15a", _too_few_switches),
    "one GPU in eight places": ("nvidia/14a", _one_gpu_for_eight),
    "a switch of which a GPU knows nothing": (
        "nvidia/15b",
        lambda: _system(SystemFault.GPU_AT_THREE_SWITCHES, 7, Reason.TOPOLOGY_PDI_MISMATCH),
    ),
    "a switch with one GPU at all ports": (
        "nvidia/15c",
        lambda: _system(SystemFault.SWITCH_AT_ONE_GPU, 9, Reason.TOPOLOGY_PDI_MISMATCH),
    ),
}


@pytest.mark.parametrize("which", SYSTEM_CASES)
def test_the_step_is_what_refuses_a_system(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    step_id, made = SYSTEM_CASES[which]
    wrong = made()
    _mutate(monkeypatch, wrong.also)
    with pytest.raises(Rejected) as caught:
        wrong.appraise()
    failures = caught.value.failures
    assert {(f.step, f.reason) for f in failures} == {(step_id, wrong.reason)}
    _mutate(monkeypatch, wrong.also | {step_id})
    wrong.appraise()  # wrongly accepted: the step was the only thing in the way


@pytest.mark.parametrize("step_id", ALL_IDS)
def test_the_step_is_what_refuses(step_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = CASES[step_id]()
    _mutate(monkeypatch, wrong.also)
    with pytest.raises(Rejected) as caught:
        wrong.appraise()
    assert [(f.step, f.reason) for f in caught.value.failures] == [(step_id, wrong.reason)]
    _mutate(monkeypatch, wrong.also | {step_id})
    wrong.appraise()  # wrongly accepted: the step was the only thing in the way


def test_a_hole_in_the_procedure_is_a_bug_and_never_a_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nvidia, "DEVICE_STEPS", DEVICE_STEPS[1:])
    with pytest.raises(ValueError, match="at least one failed finding"):
        Wrong(_set(fault=GpuFault.FLIP_BLOCK), Reason.SIGNATURE_INVALID).appraise()
