"""A set of SIMULATED NVIDIA devices with everything that vouches for it, and faults on demand.

The evidence has the bytes of genuine evidence and is appraised by the same code; only the roots
differ, and they are accepted only by a caller who passes `SimulatedGpuSet.roots()` on purpose.
Everything derives from `seed` and `now`: equal arguments, equal bytes.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from confide.appraisal.nvidia_policy import AllowedVersions, GpuMode, NvidiaPolicy
from confide.simulator.nvidia_device import Device, DeviceAuthorities, make_device
from confide.simulator.nvidia_endorsements import (
    Manifest,
    device_answers,
    publish,
    rim_answers,
    rim_root,
)
from confide.simulator.nvidia_faults import (
    EXPECTED,
    EXPECTED_OF_SYSTEMS,
    DeviceFault,
    GpuFault,
    SystemFault,
)
from confide.simulator.nvidia_gpu import SimulatedGpu, golden_values, gpu_blocks, gpu_opaque
from confide.simulator.nvidia_rim import RimContent
from confide.simulator.nvidia_switch import SimulatedSwitch, switch_blocks, switch_opaque
from confide.trust.nvidia import NvidiaRoots
from confide.wire.evidence import GpuEvidence, NvidiaEndorsements, OcspAnswer
from confide.wire.rim import rim_driver_id, rim_switch_id, rim_vbios_id

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

__all__ = [
    "EXPECTED",
    "EXPECTED_OF_SYSTEMS",
    "GpuFault",
    "SimulatedGpu",
    "SimulatedGpuSet",
    "SimulatedSwitch",
    "SystemFault",
    "simulated_nvidia_roots",
    "simulated_ppcie",
]

_FOREIGN: Final = b"\0foreign"
_OTHER_CHIP: Final = {"GH100": "GB100", "GB100": "GH100"}
_SOMEBODY_ELSE: Final = b"SIMULATE"
_PPCIE_GPUS, _PPCIE_SWITCHES = 8, 4


def simulated_nvidia_roots(seed: bytes) -> NvidiaRoots:
    """Return the simulated roots of `seed`. Passing them to a verifier accepts simulated GPUs."""
    device = DeviceAuthorities.make(seed, "GH100").root
    return NvidiaRoots(device=device.der, rim=rim_root(seed).der, simulated=True)


def simulated_ppcie(
    seed: bytes, *, now: datetime, fault: DeviceFault | None = None, position: int = 0
) -> SimulatedGpuSet:
    """Return a protected PCIe system: 8 Hopper GPUs, 4 NVSwitches at positions 8 to 11."""
    gpus = tuple(
        SimulatedGpu(label=f"ppcie-{number}", mode=GpuMode.PPCIE) for number in range(_PPCIE_GPUS)
    )
    switches = tuple(SimulatedSwitch(label=f"ppcie-{n}") for n in range(_PPCIE_SWITCHES))
    return SimulatedGpuSet(seed, gpus, now=now, fault=fault, position=position, switches=switches)


class SimulatedGpuSet:
    """
    GPUs, and NVSwitches where there are any, that answer challenges, and their endorsements.

    `fault` is built into the set; where it concerns one device it is the one at `position`,
    counted over the GPUs and then the switches. All GPUs are linked to all switches. `now` is the
    day around which manifest signers are valid (30 days before, 700 after).
    """

    __slots__ = (
        "_asked",
        "_authorities",
        "_devices",
        "_fault",
        "_gpus",
        "_manifests",
        "_position",
        "_seed",
        "_switches",
    )

    def __init__(
        self,
        seed: bytes,
        gpus: tuple[SimulatedGpu, ...],
        *,
        now: datetime,
        fault: DeviceFault | None = None,
        position: int = 0,
        switches: tuple[SimulatedSwitch, ...] = (),
    ) -> None:
        if not gpus or not 0 <= position < len(gpus) + len(switches):
            raise ValueError("a set has a GPU, and the fault's position is one of its devices")
        self._seed = seed
        self._fault = fault
        self._position = position
        bridged = fault is GpuFault.PPCIE_WITHOUT_SWITCHES
        self._asked = replace(gpus[0], mode=GpuMode.PPCIE) if bridged else gpus[0]
        self._gpus = tuple(self._faulty_gpu(gpu, at) for at, gpu in enumerate(gpus))
        self._switches = switches
        chips = {gpu.chip for gpu in self._gpus} | {switch.chip for switch in switches}
        self._authorities = {chip: DeviceAuthorities.make(seed, chip) for chip in sorted(chips)}
        self._devices = tuple(self._make(at) for at in range(len(gpus) + len(switches)))
        self._manifests = tuple(self._publish(now))

    def _faulty_gpu(self, gpu: SimulatedGpu, at: int) -> SimulatedGpu:
        if self._fault is GpuFault.PPCIE_WITHOUT_SWITCHES:
            return replace(gpu, mode=GpuMode.PPCIE)
        if at != self._position:
            return gpu
        if self._fault is GpuFault.MODE_MIX:
            return replace(gpu, mode=GpuMode.PPCIE if gpu.mode is GpuMode.SPT else GpuMode.SPT)
        if self._fault is GpuFault.CHIP_MIX:
            return SimulatedGpu(label=gpu.label, chip=_OTHER_CHIP[gpu.chip])
        return gpu

    def _make(self, at: int) -> Device:
        fault = self._fault if at == self._position else None
        if at < len(self._gpus):
            gpu = self._gpus[at]
            identity, blocks = gpu.identity, gpu_blocks(gpu, fault)
            opaque = gpu_opaque(gpu, self._switches_of(fault))
        else:
            number = at - len(self._gpus)
            switch = self._switches[number]
            identity, blocks = switch.identity, switch_blocks(switch, fault)
            pdi, gpus = switch.pdi(self._seed), self._gpus_of(fault)
            opaque = switch_opaque(switch, pdi, number, gpus)
        authorities = self._authorities[identity.chip]
        if fault not in {GpuFault.FOREIGN_ROOT, GpuFault.FOREIGN_CHAIN}:
            return make_device(
                self._seed, identity, authorities, blocks=blocks, opaque=opaque, fault=fault
            )
        foreign = DeviceAuthorities.make(self._seed + _FOREIGN, identity.chip)
        device = make_device(
            self._seed, identity, foreign, blocks=blocks, opaque=opaque, fault=None
        )
        if fault is GpuFault.FOREIGN_CHAIN:
            # Dressed up: the pinned root stands at the end of a chain it did not sign.
            device = replace(device, chain=(*device.chain[:-1], authorities.root.der))
        return device

    def _switches_of(self, fault: DeviceFault | None) -> tuple[bytes, ...]:
        """Return the switches that a GPU sees at its links."""
        pdis = tuple(switch.pdi(self._seed) for switch in self._switches)
        if fault is SystemFault.GPU_AT_OTHER_SWITCH:
            return (*pdis[:-1], _SOMEBODY_ELSE)
        return pdis[:-1] if fault is SystemFault.GPU_AT_THREE_SWITCHES else pdis

    def _gpus_of(self, fault: DeviceFault | None) -> tuple[bytes, ...]:
        """Return the GPUs that a switch sees at its ports."""
        pdis = tuple(gpu.pdi(self._seed) for gpu in self._gpus)
        if fault is SystemFault.SWITCH_AT_OTHER_GPU:
            return (*pdis[:-1], _SOMEBODY_ELSE)
        return pdis[:1] * len(pdis) if fault is SystemFault.SWITCH_AT_ONE_GPU else pdis

    def roots(self) -> NvidiaRoots:
        """Return the simulated roots this set chains to."""
        return simulated_nvidia_roots(self._seed)

    def policy(self) -> NvidiaPolicy:
        """Return the narrowest policy that accepts this set as it was asked for."""
        first, switches = self._asked, self._switches
        return NvidiaPolicy(
            chips=frozenset({first.chip, *(switch.chip for switch in switches)}),
            mode=first.mode,
            gpu_count=len(self._gpus),
            driver=AllowedVersions((first.driver,)),
            vbios=AllowedVersions((first.vbios,)),
            max_ocsp_age=timedelta(hours=24),
            switch_count=len(switches),
            switch_bios=AllowedVersions((switches[0].bios,)) if switches else None,
        )

    def collect(self, nonce: bytes) -> tuple[GpuEvidence, ...]:
        """Return one signed report with its chain for each device, over `nonce` (32 bytes)."""
        found = [device.evidence(nonce) for device in self._devices]
        at = self._position
        match self._fault:
            case GpuFault.DEVICE_MISSING | SystemFault.SWITCH_MISSING | SystemFault.GPU_MISSING:
                del found[at]
            case GpuFault.DEVICE_TWICE:
                other = found[(at + 1) % len(found)]
                if len(found) == 1:
                    found.append(other)
                found[at] = other
            case SystemFault.ONE_GPU_FOR_ALL:
                found[: len(self._gpus)] = [found[at]] * len(self._gpus)
            case SystemFault.SWITCH_AS_GPU:
                found[at] = replace(found[at], kind="gpu")
            case SystemFault.GPU_AS_SWITCH:
                found[at] = replace(found[at], kind="switch")
            case _:
                pass
        return tuple(found)

    def endorsements(self, now: datetime) -> NvidiaEndorsements:
        """Return the manifests, and OCSP answers produced at `now` (whole minutes)."""
        moment = now.replace(second=0, microsecond=0)
        answers: dict[str, bytes] = {}
        for at, device in enumerate(self._devices):
            fault = self._fault if at == self._position else None
            chain = self._authorities[device.identity.chip]
            for label, der in device_answers(self._seed, device, chain, moment, fault):
                answers.setdefault(label, der)
        for manifest in self._manifests:
            for label, der in rim_answers(self._seed, manifest, moment, self._fault):
                answers.setdefault(label, der)
        return NvidiaEndorsements(
            tuple(manifest.document for manifest in self._manifests),
            tuple(OcspAnswer(label, der) for label, der in answers.items()),
        )

    def _contents(self) -> Iterator[tuple[str, str, RimContent]]:
        """Yield kind, id and content of each manifest that the devices need."""
        for gpu in self._gpus:
            driver = RimContent(gpu.driver, gpu.chip, golden_values("driver", gpu.driver, b""))
            vbios = RimContent(gpu.vbios, gpu.chip, golden_values("vbios", gpu.vbios, b""))
            if self._fault is GpuFault.RIM_INDEX_CONFLICT:
                # The right value, but in the manifest of the other part.
                driver = replace(driver, golden={**driver.golden, 0: vbios.golden[0]})
            yield "driver", rim_driver_id(gpu.chip, gpu.driver), driver
            yield "vbios", rim_vbios_id(*gpu.board, gpu.vbios), vbios
        for switch in self._switches:
            golden = golden_values("bios", switch.bios, b"")
            content = RimContent(switch.bios, switch.chip, golden, edition="SWITCH")
            yield "bios", rim_switch_id(switch.bios), content

    def _publish(self, now: datetime) -> Iterator[Manifest]:
        day = now.replace(hour=0, minute=0, second=0, microsecond=0)
        contents = {rim_id: (kind, content) for kind, rim_id, content in self._contents()}
        for rim_id, (kind, content) in contents.items():
            found = publish(self._seed, kind, rim_id, content, day=day, fault=self._fault)
            if found is not None:
                yield found
