"""A set of SIMULATED GPUs with everything that vouches for it, and faults on demand.

The evidence has the bytes of genuine evidence and is appraised by the same code; only the roots
differ, and they are accepted only by a caller who passes `SimulatedGpuSet.roots()` on purpose.
Everything derives from `seed` and `now`: equal arguments, equal bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from confide.appraisal.nvidia_policy import AllowedVersions, GpuMode, NvidiaPolicy
from confide.crypto.ecdsa import Curve, derive_signing_key
from confide.crypto.ocsp import OcspStatus
from confide.simulator.nvidia_faults import EXPECTED, GpuFault
from confide.simulator.nvidia_gpu import (
    Device,
    DeviceAuthorities,
    SimulatedGpu,
    golden_values,
    make_device,
)
from confide.simulator.nvidia_pki import (
    Authority,
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
from confide.simulator.nvidia_rim import RimContent, signed_rim
from confide.trust.nvidia import NvidiaRoots
from confide.wire.der import SEQUENCE, encode_tlv
from confide.wire.evidence import GpuEvidence, NvidiaEndorsements, OcspAnswer, RimDocument
from confide.wire.rim import rim_driver_id, rim_vbios_id

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["EXPECTED", "GpuFault", "SimulatedGpu", "SimulatedGpuSet", "simulated_nvidia_roots"]

_FOREIGN: Final = b"\0foreign"
_OTHER_CHIP: Final = {"GH100": "GB100", "GB100": "GH100"}


@dataclass(frozen=True, slots=True)
class _RimAuthorities:
    """Root, per-chip CA, level 3 and the signer of one kind of manifest."""

    root: Authority
    ca: Authority
    level3: Authority
    signer: Authority

    @property
    def certificates(self) -> tuple[bytes, ...]:
        return tuple(each.der for each in (self.signer, self.level3, self.ca, self.root))


def _rim_root(seed: bytes) -> Authority:
    return authority(
        seed,
        "rim root",
        name(C="US", O="SIMULATED hardware", CN="SIMULATED TEST ONLY RIM signing Root CA"),
        Period(datetime(2023, 3, 16, tzinfo=UTC), datetime(2053, 3, 8, tzinfo=UTC)),
    )


def simulated_nvidia_roots(seed: bytes) -> NvidiaRoots:
    """Return the simulated roots of `seed`. Passing them to a verifier accepts simulated GPUs."""
    device = DeviceAuthorities.make(seed, "GH100").root
    return NvidiaRoots(device=device.der, rim=_rim_root(seed).der, simulated=True)


def _rim_authorities(
    seed: bytes, chip: str, kind: str, day: datetime, period: Period
) -> _RimAuthorities:
    root = _rim_root(seed)
    ca = authority(
        seed,
        f"rim {chip} ca",
        name(CN=f"NVIDIA Reference Value {chip} CA", O="NVIDIA Corporation", C="US"),
        Period(datetime(2023, 5, 11, tzinfo=UTC), datetime(2043, 5, 11, tzinfo=UTC)),
        parent=root,
    )
    level3 = authority(
        seed,
        f"rim {chip} level 3",
        name(CN=f"NVIDIA Reference Value L3 {chip} 001", O="NVIDIA Corporation", C="US"),
        Period(day - timedelta(days=365), day + timedelta(days=912)),
        parent=ca,
        path_length=0,
    )
    key = derive_signing_key(Curve.P384, seed, f"rim {chip} {kind} signer")
    subject = name(
        C="US", ST="CA", L="Santa Clara", O="NVIDIA Corporation", CN=f"SIMULATED RIM L4 {kind}"
    )
    serial = int.from_bytes(key.public.point[:8], "big") | 1 << 62
    der = issue(
        subject=subject,
        subject_key=key,
        issuer=level3.subject,
        issuer_key=level3.key,
        serial=serial,
        period=period,
        extensions=(
            *end_entity_extensions(key, level3.key),
            extension("2.5.29.19", encode_tlv(SEQUENCE), critical=True),
        ),
    )
    return _RimAuthorities(root, ca, level3, Authority(key, subject, der, serial))


@dataclass(frozen=True, slots=True)
class _Manifest:
    """One manifest to publish: where it is filed, what it says, who signs it."""

    document: RimDocument
    authorities: _RimAuthorities


class SimulatedGpuSet:
    """
    GPUs that answer challenges, and their endorsements.

    `fault` is built into the set; where it concerns one device it is the one at `position`.
    `now` is the day around which manifest signers are valid (30 days before, 700 after).
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
    )

    def __init__(
        self,
        seed: bytes,
        gpus: tuple[SimulatedGpu, ...],
        *,
        now: datetime,
        fault: GpuFault | None = None,
        position: int = 0,
    ) -> None:
        if not gpus or not 0 <= position < len(gpus):
            raise ValueError("a set has a GPU, and the fault's position is one of them")
        self._seed = seed
        self._fault = fault
        self._position = position
        bridged = fault is GpuFault.PPCIE_WITHOUT_SWITCHES
        self._asked = replace(gpus[0], mode=GpuMode.PPCIE) if bridged else gpus[0]
        self._gpus = tuple(self._faulty_gpu(gpu, at) for at, gpu in enumerate(gpus))
        self._authorities = {gpu.chip: DeviceAuthorities.make(seed, gpu.chip) for gpu in self._gpus}
        self._devices = tuple(self._make(gpu, at) for at, gpu in enumerate(self._gpus))
        self._manifests = tuple(self._publish(now))

    def _faulty_gpu(self, gpu: SimulatedGpu, at: int) -> SimulatedGpu:
        if self._fault is GpuFault.PPCIE_WITHOUT_SWITCHES:
            return replace(gpu, mode=GpuMode.PPCIE)
        if at != self._position:
            return gpu
        if self._fault is GpuFault.MODE_MIX:
            return replace(gpu, mode=GpuMode.SPT if gpu.mode is GpuMode.MPT else GpuMode.PPCIE)
        if self._fault is GpuFault.CHIP_MIX:
            return SimulatedGpu(label=gpu.label, chip=_OTHER_CHIP[gpu.chip])
        return gpu

    def _make(self, gpu: SimulatedGpu, at: int) -> Device:
        fault = self._fault if at == self._position else None
        authorities = self._authorities[gpu.chip]
        if fault in {GpuFault.FOREIGN_ROOT, GpuFault.FOREIGN_CHAIN}:
            foreign = DeviceAuthorities.make(self._seed + _FOREIGN, gpu.chip)
            device = make_device(self._seed, gpu, foreign, fault=None)
            if fault is GpuFault.FOREIGN_CHAIN:
                # Dressed up: the pinned root stands at the end of a chain it did not sign.
                device = replace(device, chain=(*device.chain[:-1], authorities.root.der))
            return device
        return make_device(self._seed, gpu, authorities, fault=fault)

    def roots(self) -> NvidiaRoots:
        """Return the simulated roots this set chains to."""
        return simulated_nvidia_roots(self._seed)

    def policy(self) -> NvidiaPolicy:
        """Return the narrowest policy that accepts this set as it was asked for."""
        first = self._asked
        return NvidiaPolicy(
            chips=frozenset({first.chip}),
            mode=first.mode,
            gpu_count=len(self._gpus),
            driver=AllowedVersions((first.driver,)),
            vbios=AllowedVersions((first.vbios,)),
            max_ocsp_age=timedelta(hours=24),
        )

    def collect(self, nonce: bytes) -> tuple[GpuEvidence, ...]:
        """Return one signed report with its chain for each device, over `nonce` (32 bytes)."""
        found = [device.evidence(nonce) for device in self._devices]
        if self._fault is GpuFault.DEVICE_MISSING:
            del found[self._position]
        if self._fault is GpuFault.DEVICE_TWICE:
            other = found[(self._position + 1) % len(found)]
            if len(found) == 1:
                found.append(other)
            found[self._position] = other
        return tuple(found)

    def endorsements(self, now: datetime) -> NvidiaEndorsements:
        """Return the manifests, and OCSP answers produced at `now` (whole minutes)."""
        moment = now.replace(second=0, microsecond=0)
        answers: dict[str, bytes] = {}
        for at, device in enumerate(self._devices):
            for label, der in self._device_answers(device, at, moment):
                answers.setdefault(label, der)
        for manifest in self._manifests:
            for label, der in self._rim_answers(manifest.authorities, moment):
                answers.setdefault(label, der)
        return NvidiaEndorsements(
            tuple(manifest.document for manifest in self._manifests),
            tuple(OcspAnswer(label, der) for label, der in answers.items()),
        )

    def _device_answers(
        self, device: Device, at: int, now: datetime
    ) -> Iterator[tuple[str, bytes]]:
        chain = self._authorities[device.gpu.chip]
        fault = self._fault if at == self._position else None
        brom = self._answer(device.brom.serial, chain.provisioner, now, fault, chain.identity)
        if brom:
            yield device.brom.sha256, brom
        for subject, issuer in ((chain.provisioner, chain.identity), (chain.identity, chain.root)):
            yield subject.sha256, self._good(subject, issuer, now)

    def _rim_answers(self, chain: _RimAuthorities, now: datetime) -> Iterator[tuple[str, bytes]]:
        statuses = {
            GpuFault.RIM_OCSP_REVOKED: OcspStatus.REVOKED,
            GpuFault.RIM_OCSP_HOLD: OcspStatus.HOLD,
        }
        if self._fault is not GpuFault.RIM_OCSP_MISSING:
            yield (
                chain.signer.sha256,
                ocsp_response(
                    serial=chain.signer.serial,
                    issuer=chain.level3,
                    signer=responder(self._seed, chain.level3, now),
                    this_update=now,
                    status=statuses.get(self._fault, OcspStatus.GOOD)
                    if self._fault
                    else OcspStatus.GOOD,
                ),
            )
        for subject, issuer in ((chain.level3, chain.ca), (chain.ca, chain.root)):
            yield subject.sha256, self._good(subject, issuer, now)

    def _good(self, subject: Authority, issuer: Authority, now: datetime) -> bytes:
        return ocsp_response(
            serial=subject.serial,
            issuer=issuer,
            signer=responder(self._seed, issuer, now),
            this_update=now,
        )

    def _answer(
        self,
        serial: int,
        issuer: Authority,
        now: datetime,
        fault: GpuFault | None,
        other_issuer: Authority,
    ) -> bytes:
        """Return the answer about one device, with `fault`; empty where there is none."""
        if fault is GpuFault.OCSP_MISSING:
            return b""
        if fault is GpuFault.OCSP_TRY_LATER:
            return ocsp_unavailable()
        if fault is GpuFault.OCSP_GARBAGE:
            return b"SIMULATED garbage"
        status = {
            GpuFault.OCSP_REVOKED: OcspStatus.REVOKED,
            GpuFault.OCSP_HOLD: OcspStatus.HOLD,
            GpuFault.OCSP_UNKNOWN: OcspStatus.UNKNOWN,
        }.get(fault or GpuFault.OCSP_MISSING, OcspStatus.GOOD)
        age = {
            GpuFault.OCSP_STALE: timedelta(hours=25),
            GpuFault.OCSP_FUTURE: timedelta(hours=-1),
        }.get(fault or GpuFault.OCSP_MISSING, timedelta(0))
        appointed = other_issuer if fault is GpuFault.OCSP_OTHER_RESPONDER else issuer
        der = ocsp_response(
            serial=serial + (fault is GpuFault.OCSP_OTHER_SERIAL),
            issuer=issuer,
            signer=responder(self._seed, appointed, now),
            this_update=now - age,
            status=status,
        )
        if fault is GpuFault.OCSP_BAD_SIGNATURE:
            der = der.replace(serial.to_bytes(9, "big"), (serial ^ 1).to_bytes(9, "big"), 1)
        return der

    def _publish(self, now: datetime) -> Iterator[_Manifest]:
        day = now.replace(hour=0, minute=0, second=0, microsecond=0)
        done: set[str] = set()
        for gpu in self._gpus:
            driver = RimContent(gpu.driver, gpu.chip, golden_values("driver", gpu.driver, b""))
            vbios = RimContent(gpu.vbios, gpu.chip, golden_values("vbios", gpu.vbios, b""))
            if self._fault is GpuFault.RIM_INDEX_CONFLICT:
                # The right value, but in the manifest of the other part.
                driver = replace(driver, golden={**driver.golden, 0: vbios.golden[0]})
            for kind, rim_id, content in (
                ("driver", rim_driver_id(gpu.chip, gpu.driver), driver),
                ("vbios", rim_vbios_id(*gpu.board, gpu.vbios), vbios),
            ):
                if rim_id not in done:
                    done.add(rim_id)
                    yield from self._manifest(kind, rim_id, content, day)

    def _manifest(
        self, kind: str, rim_id: str, content: RimContent, day: datetime
    ) -> Iterator[_Manifest]:
        fault = self._fault if kind == "driver" else None
        if fault is GpuFault.RIM_MISSING:
            return
        start, end = day - timedelta(days=30), day + timedelta(days=700)
        if fault is GpuFault.RIM_EXPIRED:
            end = day - timedelta(days=1)
        if fault is GpuFault.RIM_NOT_YET_VALID:
            start = day + timedelta(days=2)
        seed = self._seed + _FOREIGN if fault is GpuFault.RIM_FOREIGN else self._seed
        chain = _rim_authorities(seed, content.product, kind, day, Period(start, end))
        xml = _sign(_edit(content, fault), chain, fault)
        yield _Manifest(RimDocument(rim_id, xml), chain)


def _edit(content: RimContent, fault: GpuFault | None) -> RimContent:
    """Return what a publisher with the right key, but in error, would sign."""
    if fault is GpuFault.RIM_OTHER_VERSION:
        return replace(content, version="1.2.3")
    if fault is GpuFault.RIM_OTHER_CHIP:
        return replace(content, product=_OTHER_CHIP[content.product])
    if fault is GpuFault.RIM_ALL_INACTIVE:
        return replace(content, golden={})
    return content


def _sign(content: RimContent, chain: _RimAuthorities, fault: GpuFault | None) -> bytes:
    if fault is GpuFault.RIM_GARBAGE:
        return b"<SoftwareIdentity>SIMULATED garbage"
    key = chain.level3.key if fault is GpuFault.RIM_BAD_SIGNATURE else chain.signer.key
    xml = signed_rim(content, key, chain.certificates)
    if fault is GpuFault.RIM_EDITED:
        xml = xml.replace(b'active="True"', b'active="False"', 1)
    return xml
