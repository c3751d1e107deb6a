"""What vouches for SIMULATED NVIDIA devices: manifests, and OCSP answers, with faults on demand.

Everything is signed under the simulated roots and derives from `seed` and the times given.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from confide.crypto.ecdsa import Curve, derive_signing_key
from confide.crypto.ocsp import OcspStatus
from confide.simulator.nvidia_faults import DeviceFault, GpuFault, SystemFault
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
from confide.wire.der import SEQUENCE, encode_tlv
from confide.wire.evidence import RimDocument

if TYPE_CHECKING:
    from collections.abc import Iterator

    from confide.simulator.nvidia_device import Device, DeviceAuthorities

__all__ = ["Manifest", "device_answers", "publish", "rim_answers", "rim_root"]

_FOREIGN: Final = b"\0foreign"
_OTHER_CHIP: Final = {"GH100": "GB100", "GB100": "GH100", "LS10": "GH100"}


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


@dataclass(frozen=True, slots=True)
class Manifest:
    """One manifest as it is published, and who signed it."""

    document: RimDocument
    authorities: _RimAuthorities


def rim_root(seed: bytes) -> Authority:
    """Return the simulated root of all manifests of `seed`."""
    return authority(
        seed,
        "rim root",
        name(C="US", O="SIMULATED hardware", CN="SIMULATED TEST ONLY RIM signing Root CA"),
        Period(datetime(2023, 3, 16, tzinfo=UTC), datetime(2053, 3, 8, tzinfo=UTC)),
    )


def _rim_authorities(
    seed: bytes, chip: str, kind: str, day: datetime, period: Period
) -> _RimAuthorities:
    root = rim_root(seed)
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


def publish(
    seed: bytes,
    kind: str,
    rim_id: str,
    content: RimContent,
    *,
    day: datetime,
    fault: DeviceFault | None,
) -> Manifest | None:
    """
    Return the manifest of `content`, published as `rim_id`; None where `fault` withholds it.

    `kind` is `driver`, `vbios` or `bios`. Faults of `GpuFault` concern the driver's manifest,
    those of `SystemFault` the manifest of switches. The signer is valid from 30 days before
    `day` to 700 days after.
    """
    concerned = GpuFault if kind == "driver" else SystemFault if kind == "bios" else ()
    if not isinstance(fault, concerned):
        fault = None
    if fault in {GpuFault.RIM_MISSING, SystemFault.SWITCH_RIM_MISSING}:
        return None
    start, end = day - timedelta(days=30), day + timedelta(days=700)
    if fault is GpuFault.RIM_EXPIRED:
        end = day - timedelta(days=1)
    if fault is GpuFault.RIM_NOT_YET_VALID:
        start = day + timedelta(days=2)
    signed_under = seed + _FOREIGN if fault is GpuFault.RIM_FOREIGN else seed
    chain = _rim_authorities(signed_under, content.product, kind, day, Period(start, end))
    xml = _sign(_edit(content, fault), chain, fault)
    return Manifest(RimDocument(rim_id, xml), chain)


def _edit(content: RimContent, fault: DeviceFault | None) -> RimContent:
    """Return what a publisher with the right key, but in error, would sign."""
    match fault:
        case GpuFault.RIM_OTHER_VERSION | SystemFault.SWITCH_RIM_OTHER_VERSION:
            return replace(content, version="1.2.3")
        case GpuFault.RIM_OTHER_CHIP:
            return replace(content, product=_OTHER_CHIP[content.product])
        case GpuFault.RIM_ALL_INACTIVE | SystemFault.SWITCH_RIM_ALL_INACTIVE:
            return replace(content, golden={})
        case SystemFault.SWITCH_RIM_OF_A_GPU:
            return replace(content, edition="GPU")
        case SystemFault.SWITCH_RIM_FEW_ENTRIES:
            return replace(content, golden=dict(list(content.golden.items())[:-1]))
        case _:
            return content


def _sign(content: RimContent, chain: _RimAuthorities, fault: DeviceFault | None) -> bytes:
    if fault is GpuFault.RIM_GARBAGE:
        return b"<SoftwareIdentity>SIMULATED garbage"
    key = chain.level3.key if fault is GpuFault.RIM_BAD_SIGNATURE else chain.signer.key
    xml = signed_rim(content, key, chain.certificates)
    if fault is GpuFault.RIM_EDITED:
        xml = xml.replace(b'active="True"', b'active="False"', 1)
    return xml


def device_answers(
    seed: bytes,
    device: Device,
    chain: DeviceAuthorities,
    now: datetime,
    fault: DeviceFault | None,
) -> Iterator[tuple[str, bytes]]:
    """Yield the OCSP answers about certificates 1 to 3 of `device`, by the label of each."""
    brom = _answer(seed, device.brom.serial, chain, now, fault)
    if brom:
        yield device.brom.sha256, brom
    for subject, issuer in ((chain.provisioner, chain.identity), (chain.identity, chain.root)):
        yield subject.sha256, _good(seed, subject, issuer, now)


def rim_answers(
    seed: bytes, manifest: Manifest, now: datetime, fault: DeviceFault | None
) -> Iterator[tuple[str, bytes]]:
    """Yield the OCSP answers about certificates 0 to 2 of `manifest`, by the label of each."""
    chain = manifest.authorities
    status = OcspStatus.GOOD
    if fault is GpuFault.RIM_OCSP_REVOKED:
        status = OcspStatus.REVOKED
    if fault is GpuFault.RIM_OCSP_HOLD:
        status = OcspStatus.HOLD
    if fault is not GpuFault.RIM_OCSP_MISSING:
        yield (
            chain.signer.sha256,
            ocsp_response(
                serial=chain.signer.serial,
                issuer=chain.level3,
                signer=responder(seed, chain.level3, now),
                this_update=now,
                status=status,
            ),
        )
    for subject, issuer in ((chain.level3, chain.ca), (chain.ca, chain.root)):
        yield subject.sha256, _good(seed, subject, issuer, now)


def _good(seed: bytes, subject: Authority, issuer: Authority, now: datetime) -> bytes:
    return ocsp_response(
        serial=subject.serial,
        issuer=issuer,
        signer=responder(seed, issuer, now),
        this_update=now,
    )


_STATUSES: Final[dict[DeviceFault, OcspStatus]] = {
    GpuFault.OCSP_REVOKED: OcspStatus.REVOKED,
    GpuFault.OCSP_HOLD: OcspStatus.HOLD,
    GpuFault.OCSP_UNKNOWN: OcspStatus.UNKNOWN,
}
_AGES: Final[dict[DeviceFault, timedelta]] = {
    GpuFault.OCSP_STALE: timedelta(hours=25),
    GpuFault.OCSP_FUTURE: timedelta(hours=-1),
}


def _answer(
    seed: bytes, serial: int, chain: DeviceAuthorities, now: datetime, fault: DeviceFault | None
) -> bytes:
    """Return the answer about one device, with `fault`; empty where there is none."""
    if fault is GpuFault.OCSP_MISSING:
        return b""
    if fault is GpuFault.OCSP_TRY_LATER:
        return ocsp_unavailable()
    if fault is GpuFault.OCSP_GARBAGE:
        return b"SIMULATED garbage"
    status, age = OcspStatus.GOOD, timedelta(0)
    if fault is not None:
        status, age = _STATUSES.get(fault, status), _AGES.get(fault, age)
    other = fault is GpuFault.OCSP_OTHER_RESPONDER
    der = ocsp_response(
        serial=serial + (fault is GpuFault.OCSP_OTHER_SERIAL),
        issuer=chain.provisioner,
        signer=responder(seed, chain.identity if other else chain.provisioner, now),
        this_update=now - age,
        status=status,
    )
    if fault is GpuFault.OCSP_BAD_SIGNATURE:
        der = der.replace(serial.to_bytes(9, "big"), (serial ^ 1).to_bytes(9, "big"), 1)
    return der
