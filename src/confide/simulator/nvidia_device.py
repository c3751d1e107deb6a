"""SIMULATED NVIDIA devices: identity, certificates and signed reports, byte for byte in form.

Form: docs/protocols/nvidia.md 2, 4 and 7. Names below the root are those of the genuine hierarchy;
the root says SIMULATED and TEST ONLY, and every chain ends there. What a GPU or a switch reports is
made by `nvidia_gpu` and `nvidia_switch`; keys, chains and signatures are the same for both.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from confide.crypto.ecdsa import Curve, SigningKey, derive_signing_key
from confide.simulator.nvidia_faults import (
    DeviceFault,
    GpuFault,
    SystemFault,
    edit_blocks,
    edit_opaque,
    edit_raw,
)
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
from confide.wire.der import OCTET_STRING, OID, SEQUENCE, encode_integer, encode_oid, encode_tlv
from confide.wire.evidence import GpuEvidence
from confide.wire.spdm import MeasurementReport, encode_report

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Device", "DeviceAuthorities", "Identity", "device_pdi", "firmware_id", "make_device"]

_Kind = Literal["gpu", "switch"]


class _Names(NamedTuple):
    """What the certificates of one chip say; `identity` is the chip that certificate 3 names."""

    made: datetime
    certified: str
    unit: str
    prefix: int
    provisioner: str
    identity: str


_HOPPER_MADE: Final = datetime(2020, 10, 17, tzinfo=UTC)
_NAMES: Final = {
    "GH100": _Names(_HOPPER_MADE, "GH100", "GSP", 0x41, "1", "GH100"),
    "GB100": _Names(datetime(2023, 6, 20, tzinfo=UTC), "GB100", "GSP", 0x41, "00000", "GB100"),
    "LS10": _Names(_HOPPER_MADE, "LS_10", "FSP", 0x50, "1", "GH100"),
}


@dataclass(frozen=True, slots=True)
class Identity:
    """Which device: `label` makes it another one; `code` is what its first firmware is."""

    kind: _Kind
    chip: str
    label: str
    code: bytes


def device_pdi(seed: bytes, kind: _Kind, label: str) -> bytes:
    """Return the 8-byte identifier of the device `label`."""
    domain = b"SIMULATED PDI\0" if kind == "gpu" else b"SIMULATED switch PDI\0"
    return hashlib.sha256(domain + label.encode() + seed).digest()[:8]


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
        names = _NAMES[chip]
        period = Period(names.made, FOREVER)
        identity = authority(
            seed,
            f"{names.identity} identity",
            name(CN=f"NVIDIA {names.identity} Identity", O="NVIDIA Corporation"),
            period,
            parent=root,
        )
        provisioner = authority(
            seed,
            f"{chip} provisioner",
            name(
                CN=f"NVIDIA {names.certified} Provisioner ICA {names.provisioner}",
                O="NVIDIA Corporation",
                C="US",
            ),
            period,
            parent=identity,
        )
        return cls(root, identity, provisioner)


@dataclass(frozen=True, slots=True)
class Device:
    """A manufactured device: keys and certificates, ready to sign reports about itself."""

    identity: Identity
    leaf_key: SigningKey = field(repr=False)
    brom: Authority
    fwid: bytes
    chain: tuple[bytes, ...] = field(repr=False)
    blocks: tuple[bytes, ...] = field(repr=False)
    opaque: tuple[tuple[int, bytes], ...] = field(repr=False)
    fault: DeviceFault | None

    def evidence(self, nonce: bytes) -> GpuEvidence:
        """Return a report over `nonce`, signed now, with the chain."""
        fault = self.fault
        if fault in {GpuFault.WRONG_NONCE, GpuFault.REPLAYED_NONCE}:
            # A replayed report is a good answer to an earlier challenge.
            nonce = hashlib.sha256(b"SIMULATED earlier challenge" + nonce).digest()
        unsigned = MeasurementReport(
            nonce=nonce,
            blocks=edit_blocks(fault, self.blocks),
            responder_nonce=hashlib.sha256(b"SIMULATED responder" + nonce + self.fwid).digest(),
            opaque=edit_opaque(fault, self.opaque),
            signature=b"",
        )
        message = encode_report(unsigned)
        raw = edit_raw(fault, message + self.leaf_key.sign(message))
        return GpuEvidence(raw, pem(self.chain), self.identity.kind)


def _fwid_value(fwid: bytes) -> bytes:
    algorithm = encode_tlv(OID, bytes.fromhex("608648016503040202"))
    return encode_tlv(SEQUENCE, algorithm, encode_tlv(OCTET_STRING, fwid))


def _dice(chip: str, fwid: bytes, brom_point: bytes) -> bytes:
    """Return the DICE extension in the layout of `chip`."""
    if chip != "GB100":
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


def _device_name(certified: str, pdi: bytes) -> bytes:
    text = encode_tlv(0x0C, f"NVIDIA:{certified}:48B02D{pdi[:5].hex().upper()}".encode())
    other = encode_tlv(0xA0, encode_oid("1.3.6.1.4.1.412.274.1"), encode_tlv(0xA0, text))
    return extension("2.5.29.17", encode_tlv(SEQUENCE, other))


def _make_brom(seed: bytes, identity: Identity, provisioner: Authority, prefix: int) -> Authority:
    names = _NAMES[identity.chip]
    pdi = device_pdi(seed, identity.kind, identity.label)
    serial = int.from_bytes(bytes([prefix]) + pdi, "big")
    key = derive_signing_key(Curve.P384, seed, f"{identity.chip} BROM {identity.label}")
    subject = name(
        serialNumber=f"{serial:018X}",
        C="US",
        O="NVIDIA Corporation",
        CN=f"{names.certified} A01 {names.unit} BROM",
    )
    der = issue(
        subject=subject,
        subject_key=key,
        issuer=provisioner.subject,
        issuer_key=provisioner.key,
        serial=serial,
        period=Period(names.made, FOREVER),
        extensions=ca_extensions(key, provisioner.key, crl=False),
    )
    return Authority(key, subject, der, serial)


def firmware_id(code: bytes) -> bytes:
    """Return the firmware id of a device whose first firmware is `code`."""
    return hashlib.sha384(b"SIMULATED firmware\0" + code).digest()


def make_device(
    seed: bytes,
    identity: Identity,
    authorities: DeviceAuthorities,
    *,
    blocks: tuple[bytes, ...],
    opaque: tuple[tuple[int, bytes], ...],
    fault: DeviceFault | None,
) -> Device:
    """Manufacture a device that reports `blocks` and `opaque`, with `fault` built in."""
    other = {GpuFault.PDI_OF_A_SWITCH: 0x50, SystemFault.SWITCH_SERIAL_OF_A_GPU: 0x41}
    prefix = _NAMES[identity.chip].prefix
    if fault in other:
        prefix = other[fault]
    brom = _make_brom(seed, identity, authorities.provisioner, prefix)
    key = derive_signing_key(Curve.P384, seed, f"{identity.chip} leaf {identity.label}")
    leaf = _make_leaf(identity, key, brom, fault)
    above = (authorities.provisioner.der, authorities.identity.der, authorities.root.der)
    chain = _edit_chain(seed, identity, fault, (leaf, brom.der, *above))
    fwid = firmware_id(identity.code)
    return Device(identity, key, brom, fwid, chain, blocks, opaque, fault)


def _make_leaf(
    identity: Identity, key: SigningKey, brom: Authority, fault: DeviceFault | None
) -> bytes:
    names = _NAMES[identity.chip]
    certified = "GX999" if fault is GpuFault.UNKNOWN_CHIP else names.certified
    identifier = key_identifier(key)
    serial = bytes([(identifier[0] & 0x7F) | 0x40]) + identifier[1:]
    extensions = [
        *end_entity_extensions(key, brom.key),
        _device_name(certified, brom.serial.to_bytes(9, "big")[1:]),
    ]
    if fault is not GpuFault.NO_DICE:
        other_key = fault is GpuFault.DICE_KEY_DIFFERS
        below = point(key) if other_key else point(brom.key)
        extensions.append(_dice(identity.chip, firmware_id(identity.code), below))
    return issue(
        subject=name(
            serialNumber=serial.hex().upper(),
            C="US",
            O="NVIDIA Corporation",
            CN=f"{certified} A01 {names.unit} FMC LF",
        ),
        subject_key=key,
        issuer=brom.subject,
        issuer_key=brom.key,
        serial=int.from_bytes(serial, "big"),
        period=Period(names.made, names.made if fault is GpuFault.CHAIN_EXPIRED else FOREVER),
        extensions=extensions,
    )


def _edit_chain(
    seed: bytes, identity: Identity, fault: DeviceFault | None, chain: Sequence[bytes]
) -> tuple[bytes, ...]:
    if fault is GpuFault.MISSING_CERTIFICATE:
        return (*chain[:2], *chain[3:])
    if fault is GpuFault.BROM_OF_ANOTHER:
        other = DeviceAuthorities.make(seed, identity.chip)
        prefix = _NAMES[identity.chip].prefix
        brom = _make_brom(seed + b"other", identity, other.provisioner, prefix)
        return (chain[0], brom.der, *chain[2:])
    return tuple(chain)
