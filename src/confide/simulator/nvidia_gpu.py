"""One SIMULATED GPU: its identity, its certificates and its signed reports, byte for byte in form.

Form: docs/protocols/nvidia.md 2, 4 and 7. Names below the root are those of the genuine hierarchy;
the root says SIMULATED and TEST ONLY, and every chain ends there. Measured values are computed from
the identities of the driver and the VBIOS that the caller names.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, NamedTuple

from confide.appraisal.nvidia_policy import GpuMode
from confide.crypto.ecdsa import Curve, SigningKey, derive_signing_key
from confide.simulator.nvidia_faults import GpuFault, edit_blocks, edit_opaque, edit_raw
from confide.simulator.nvidia_pki import (
    FOREVER,
    Authority,
    Period,
    authority,
    ca_extensions,
    end_entity_extensions,
    extension,
    issue,
    key_identifier,
    name,
    pem,
    point,
)
from confide.simulator.nvidia_rim import DRIVER_INDEXES, VBIOS_INDEXES
from confide.wire.der import OCTET_STRING, OID, SEQUENCE, encode_integer, encode_oid, encode_tlv
from confide.wire.evidence import GpuEvidence
from confide.wire.spdm import MeasurementReport, encode_report, vbios_bytes

__all__ = ["Device", "DeviceAuthorities", "SimulatedGpu", "golden_values", "make_device"]

_BLOCKS: Final = 64
_SIGNATURE: Final = 96


class _Chip(NamedTuple):
    """Constants of one chip, as its genuine reports and chains have them."""

    made: datetime
    gpu_info: str
    cprinfo: str
    project: str
    project_sku: str
    chip_sku: str
    provisioner: str
    driver: str
    vbios: str


_CHIPS: Final = {
    "GH100": _Chip(
        made=datetime(2020, 10, 17, tzinfo=UTC),
        gpu_info="8001000000000000",
        cprinfo="00c00100",
        project="1010",
        project_sku="0200",
        chip_sku="882",
        provisioner="1",
        driver="580.95.05",
        vbios="96.00.9F.00.01",
    ),
    "GB100": _Chip(
        made=datetime(2023, 6, 20, tzinfo=UTC),
        gpu_info="a001000000000000",
        cprinfo="00000400",
        project="G525",
        project_sku="0220",
        chip_sku="886",
        provisioner="00000",
        driver="590.48.01",
        vbios="97.00.D9.00.35",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedGpu:
    """
    What one simulated GPU is and runs.

    `label` makes it another device. Empty versions are the chip's defaults. `driver_identity` and
    `vbios_identity` stand for the code that really runs (any bytes, for instance a digest) and
    enter every value measured; empty means the code that the manifests are published for.
    """

    label: str = "0"
    chip: str = "GH100"
    mode: GpuMode = GpuMode.SPT
    driver_version: str = ""
    vbios_version: str = ""
    driver_identity: bytes = b""
    vbios_identity: bytes = b""
    nvdec_enabled: bool = False

    def __post_init__(self) -> None:
        if self.chip not in _CHIPS:
            raise ValueError("a simulated GPU is a GH100 or a GB100")

    @property
    def driver(self) -> str:
        """The driver version that the report states."""
        return self.driver_version or _CHIPS[self.chip].driver

    @property
    def vbios(self) -> str:
        """The VBIOS version that the report states."""
        return self.vbios_version or _CHIPS[self.chip].vbios

    @property
    def board(self) -> tuple[str, str, str]:
        """Project, project SKU and chip SKU: what a VBIOS manifest id is made of."""
        chip = _CHIPS[self.chip]
        return chip.project, chip.project_sku, chip.chip_sku


def golden_values(source: str, version: str, identity: bytes) -> dict[int, bytes]:
    """
    Return the values that `source` (`driver` or `vbios`) at `version` measures to.

    Keys are manifest indexes. `identity` empty stands for the published code of that version.
    """
    indexes = DRIVER_INDEXES if source == "driver" else VBIOS_INDEXES
    code = hashlib.sha384(identity or f"SIMULATED {source} {version}".encode()).digest()
    return {
        index: hashlib.sha384(b"SIMULATED measurement %d\0" % index + code).digest()
        for index in indexes
    }


@dataclass(frozen=True, slots=True)
class DeviceAuthorities:
    """Root, identity and provisioner certificates of one chip."""

    root: Authority
    identity: Authority
    provisioner: Authority

    @classmethod
    def make(cls, seed: bytes, chip: str) -> DeviceAuthorities:
        """Derive the authorities of `chip` from `seed`; the root is the same for all chips."""
        root = authority(
            seed,
            "device root",
            name(O="SIMULATED hardware", CN="SIMULATED TEST ONLY Device Identity CA"),
            Period(datetime(2021, 11, 5, tzinfo=UTC), FOREVER),
        )
        period = Period(_CHIPS[chip].made, FOREVER)
        identity = authority(
            seed,
            f"{chip} identity",
            name(CN=f"NVIDIA {chip} Identity", O="NVIDIA Corporation"),
            period,
            parent=root,
        )
        provisioner = authority(
            seed,
            f"{chip} provisioner",
            name(
                CN=f"NVIDIA {chip} Provisioner ICA {_CHIPS[chip].provisioner}",
                O="NVIDIA Corporation",
                C="US",
            ),
            period,
            parent=identity,
        )
        return cls(root, identity, provisioner)


@dataclass(frozen=True, slots=True)
class Device:
    """A manufactured GPU: keys and certificates, ready to sign reports."""

    gpu: SimulatedGpu
    leaf_key: SigningKey = field(repr=False)
    brom: Authority
    fwid: bytes
    chain: tuple[bytes, ...] = field(repr=False)
    fault: GpuFault | None

    def evidence(self, nonce: bytes) -> GpuEvidence:
        """Return a report over `nonce`, signed now, with the chain."""
        fault = self.fault
        if fault in {GpuFault.WRONG_NONCE, GpuFault.REPLAYED_NONCE}:
            # A replayed report is a good answer to an earlier challenge.
            nonce = hashlib.sha256(b"SIMULATED earlier challenge" + nonce).digest()
        unsigned = MeasurementReport(
            nonce=nonce,
            blocks=edit_blocks(fault, _blocks(self.gpu, fault)),
            responder_nonce=hashlib.sha256(b"SIMULATED responder" + nonce + self.fwid).digest(),
            opaque=edit_opaque(fault, _opaque(self.gpu, self.fwid)),
            signature=b"",
        )
        message = encode_report(unsigned)
        raw = edit_raw(fault, message + self.leaf_key.sign(message))
        return GpuEvidence(raw, pem(self.chain))


def _blocks(gpu: SimulatedGpu, fault: GpuFault | None) -> tuple[bytes, ...]:
    other = b"SIMULATED other code"
    driver = other if fault is GpuFault.OTHER_DRIVER else gpu.driver_identity
    vbios = other if fault is GpuFault.OTHER_VBIOS else gpu.vbios_identity
    values = golden_values("driver", gpu.driver, driver)
    values |= golden_values("vbios", gpu.vbios, vbios)
    if not gpu.nvdec_enabled:
        # A disabled decoder measures to something else; index 35 must not be compared then.
        values[35] = hashlib.sha384(b"SIMULATED decoder off").digest()
    return tuple(values.get(index, bytes(48)) for index in range(_BLOCKS))


def _text(value: str, size: int = 0) -> bytes:
    return (value.encode() + b"\0").ljust(size, b"\0")


def _opaque(gpu: SimulatedGpu, fwid: bytes) -> tuple[tuple[int, bytes], ...]:
    """Return the opaque entries in the order that genuine devices emit them."""
    chip = _CHIPS[gpu.chip]
    hopper = gpu.chip == "GH100"
    bridged = gpu.mode is GpuMode.PPCIE
    flag = {GpuMode.SPT: 0, GpuMode.MPT: 1, GpuMode.PPCIE: 2}[gpu.mode]
    old = gpu.driver.startswith("535.")
    entries: list[tuple[int, bytes]] = [
        (6, vbios_bytes(gpu.vbios)),
        (14, hashlib.sha256(b"SIMULATED board").digest()[:4]),
        (15, _text(chip.chip_sku, 4 if old else 9)),
        (16, _text("0", 2 if old else 5)),
        (17, _text(chip.project)),
        (18, _text(chip.project_sku)),
        (19, _text("0")),
        (3, _text(gpu.driver)),
        (4, bytes.fromhex(chip.gpu_info)),
        (12, bytes(256)),
        (13, bytes.fromhex(chip.cprinfo)),
        (11, b"\xaa" if gpu.nvdec_enabled else b"\x55"),
    ]
    if old:
        return tuple(entries)
    entries.append((20, fwid))
    if hopper:
        entries.append((21, b"\xaa" if bridged else b"\x55"))
        if bridged:
            entries.append((22, bytes(144)))
    else:
        entries += [(33, b"\x07\x07"), (35, _text(gpu.chip))]
    entries += [(34, b"\x01\x00"), (36, flag.to_bytes(2, "little"))]
    return tuple(entries)


def _fwid_value(fwid: bytes) -> bytes:
    algorithm = encode_tlv(OID, bytes.fromhex("608648016503040202"))
    return encode_tlv(SEQUENCE, algorithm, encode_tlv(OCTET_STRING, fwid))


def _dice(chip: str, fwid: bytes, brom_point: bytes) -> bytes:
    """Return the DICE extension in the layout of `chip`."""
    if chip == "GH100":
        algorithm = encode_tlv(SEQUENCE, bytes.fromhex("06072a8648ce3d020106052b81040022"))
        spki = encode_tlv(SEQUENCE, algorithm, encode_tlv(0x03, b"\0" + brom_point))
        value = encode_tlv(SEQUENCE, encode_integer(1), spki, _fwid_value(fwid))
        return extension("2.23.133.5.4.1", value)
    value = encode_tlv(
        SEQUENCE,
        encode_tlv(0x80, b"NVIDIA"),
        encode_tlv(0x81, f"{chip} A01 GSP".encode()),
        encode_tlv(0x82, b"01"),
        bytes.fromhex("830101840100850100"),
        encode_tlv(0xA6, _fwid_value(fwid), _fwid_value(bytes(48))),
        bytes.fromhex("870500800000018801c0890100"),
    )
    return extension("2.23.133.5.4.1.1", value)


def _device_name(chip: str, pdi: bytes) -> bytes:
    text = encode_tlv(0x0C, f"NVIDIA:{chip}:48B02D{pdi[:5].hex().upper()}".encode())
    other = encode_tlv(0xA0, encode_oid("1.3.6.1.4.1.412.274.1"), encode_tlv(0xA0, text))
    return extension("2.5.29.17", encode_tlv(SEQUENCE, other))


def _make_brom(seed: bytes, gpu: SimulatedGpu, provisioner: Authority, prefix: int) -> Authority:
    pdi = hashlib.sha256(b"SIMULATED PDI\0" + gpu.label.encode() + seed).digest()[:8]
    serial = int.from_bytes(bytes([prefix]) + pdi, "big")
    key = derive_signing_key(Curve.P384, seed, f"{gpu.chip} BROM {gpu.label}")
    subject = name(
        serialNumber=f"{serial:018X}",
        C="US",
        O="NVIDIA Corporation",
        CN=f"{gpu.chip} A01 GSP BROM",
    )
    der = issue(
        subject=subject,
        subject_key=key,
        issuer=provisioner.subject,
        issuer_key=provisioner.key,
        serial=serial,
        period=Period(_CHIPS[gpu.chip].made, FOREVER),
        extensions=ca_extensions(key, provisioner.key, crl=False),
    )
    return Authority(key, subject, der, serial)


def make_device(
    seed: bytes, gpu: SimulatedGpu, authorities: DeviceAuthorities, *, fault: GpuFault | None
) -> Device:
    """Manufacture `gpu`: derive its keys and issue its chain, with `fault` built in."""
    prefix = 0x50 if fault is GpuFault.PDI_OF_A_SWITCH else 0x41
    brom = _make_brom(seed, gpu, authorities.provisioner, prefix)
    key = derive_signing_key(Curve.P384, seed, f"{gpu.chip} leaf {gpu.label}")
    fwid = hashlib.sha384(b"SIMULATED firmware\0" + gpu.vbios_identity).digest()
    identifier = key_identifier(key)
    leaf_serial = bytes([(identifier[0] & 0x7F) | 0x40]) + identifier[1:]
    chip = "GX999" if fault is GpuFault.UNKNOWN_CHIP else gpu.chip
    dice_point = point(key) if fault is GpuFault.DICE_KEY_DIFFERS else point(brom.key)
    extensions = [
        *end_entity_extensions(key, brom.key),
        _device_name(chip, brom.serial.to_bytes(9, "big")[1:]),
    ]
    if fault is not GpuFault.NO_DICE:
        extensions.append(_dice(gpu.chip, fwid, dice_point))
    made = _CHIPS[gpu.chip].made
    end = made if fault is GpuFault.CHAIN_EXPIRED else FOREVER
    leaf = issue(
        subject=name(
            serialNumber=leaf_serial.hex().upper(),
            C="US",
            O="NVIDIA Corporation",
            CN=f"{chip} A01 GSP FMC LF",
        ),
        subject_key=key,
        issuer=brom.subject,
        issuer_key=brom.key,
        serial=int.from_bytes(leaf_serial, "big"),
        period=Period(made, end),
        extensions=extensions,
    )
    above = (authorities.provisioner.der, authorities.identity.der, authorities.root.der)
    chain = _edit_chain(seed, gpu, fault, (leaf, brom.der, *above))
    return Device(gpu, key, brom, fwid, chain, fault)


def _edit_chain(
    seed: bytes, gpu: SimulatedGpu, fault: GpuFault | None, chain: tuple[bytes, ...]
) -> tuple[bytes, ...]:
    if fault is GpuFault.MISSING_CERTIFICATE:
        return chain[:2] + chain[3:]
    if fault is GpuFault.BROM_OF_ANOTHER:
        other = DeviceAuthorities.make(seed, gpu.chip)
        brom = _make_brom(seed + b"other", gpu, other.provisioner, 0x41)
        return (chain[0], brom.der, *chain[2:])
    return chain
