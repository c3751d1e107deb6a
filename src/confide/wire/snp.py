"""AMD SEV-SNP attestation reports, version 2 to 5: bytes to a frozen value and back.

Layout: AMD 56860, "SEV Secure Nested Paging Firmware ABI Specification", ATTESTATION_REPORT,
TCB_VERSION, GUEST_POLICY; clauses docs/protocols/snp.md#1. Everything here is hostile: a parsed
report is only well-formed. What a security version means depends on the processor, and the report
says which processor only from version 3 on: `Tcb.components` therefore takes the product as an
argument, and appraisal passes the one that the certificate names.

Reserved bytes are kept (`raw`) and judged behind the signature (snp/8.2): a signed bit that was
flipped is first of all a broken signature.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from typing import Final

from confide.errors import FormatError, Reason
from confide.wire.reader import Reader
from confide.wire.snp_names import Product, SigningKeyKind
from confide.wire.snp_tcb import SnpTcb, Tcb, encode_tcb, product_of_cpuid

__all__ = [
    "REPORT_BYTES",
    "SIGNED_BYTES",
    "Firmware",
    "GuestPolicy",
    "PlatformInfo",
    "Product",
    "SigningKeyKind",
    "SnpReport",
    "SnpTcb",
    "Tcb",
    "encode_report",
    "encode_tcb",
    "parse_report",
    "product_of_cpuid",
    "reserved_not_zero",
]

_WHAT = "SNP report"
_DOC = "docs/protocols/snp.md"
# From: AMD 56860, ATTESTATION_REPORT: the size, and what the signature covers.
REPORT_BYTES: Final = 1184
SIGNED_BYTES: Final = 672
# From: the same, VERSION. 3 added CPUID, 4 and 5 the mitigation vectors.
_VERSIONS: Final = (2, 3, 4, 5)
_CPUID_FROM: Final = 3
_MITIGATIONS_FROM: Final = 4
# From: the same, SIGNATURE_ALGO: ECDSA P-384 with SHA-384.
_ECDSA_P384: Final = 1
# From: the same, "ECDSA P-384 with SHA-384 signature": r and s, little-endian, in 72 bytes each.
_NUMBER_BYTES: Final = 72
# From: FIPS 186-5, SP 800-186: a coordinate on P-384.
_COORDINATE_BYTES: Final = 48
_ABI_SHIFT: Final = 8
# From: AMD 56860, the word at 48h: bits 5 to 31 are reserved.
_KEY_INFO: Final = 0x1F


class GuestPolicy(IntFlag):
    """GUEST_POLICY: what the guest allows or demands. The two low bytes are the minimum ABI."""

    SMT = 1 << 16
    RESERVED_ONE = 1 << 17
    MIGRATE_MA = 1 << 18
    DEBUG = 1 << 19
    SINGLE_SOCKET = 1 << 20
    CXL_ALLOW = 1 << 21
    MEM_AES_256_XTS = 1 << 22
    RAPL_DIS = 1 << 23
    CIPHERTEXT_HIDING_DRAM = 1 << 24
    PAGE_SWAP_DISABLE = 1 << 25


class PlatformInfo(IntFlag):
    """PLATFORM_INFO: how the machine is configured. Bits that are not known here may be set."""

    SMT_EN = 1 << 0
    TSME_EN = 1 << 1
    ECC_EN = 1 << 2
    RAPL_DIS = 1 << 3
    CIPHERTEXT_HIDING_DRAM_EN = 1 << 4
    ALIAS_CHECK_COMPLETE = 1 << 5
    IOMMU_WRITE_SAFE = 1 << 6
    TIO_EN = 1 << 7


# From: AMD 56860, SIGNING_KEY; 7 means that nobody signed, the rest is reserved.
_SIGNING_KEYS: Final = {0: SigningKeyKind.VCEK, 1: SigningKeyKind.VLEK}
_KEY_NUMBERS: Final = {kind: number for number, kind in _SIGNING_KEYS.items()}


@dataclass(frozen=True, slots=True, order=True)
class Firmware:
    """A version of the SNP firmware; ordered."""

    major: int
    minor: int
    build: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.build}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpReport:
    """
    One report. Integers are unsigned, digests have 48 bytes, `report_data` and `chip_id` 64.

    `signing_key` is None where the report names neither of the two keys. `cpuid` is (family,
    model, stepping) from version 3 on. The mitigation vectors exist from version 4 on.
    `signature` is r ‖ s, big-endian, 48 bytes each, empty where a number does not fit.
    """

    version: int
    guest_svn: int
    policy: int
    family_id: bytes
    image_id: bytes
    vmpl: int
    current_tcb: Tcb
    platform_info: int
    author_key_enabled: bool
    mask_chip_key: bool
    signing_key: SigningKeyKind | None
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    report_id_ma: bytes
    reported_tcb: Tcb
    cpuid: tuple[int, int, int] | None
    chip_id: bytes
    committed_tcb: Tcb
    current: Firmware
    committed: Firmware
    launch_tcb: Tcb
    launch_mitigations: int | None
    current_mitigations: int | None
    signature: bytes
    raw: bytes

    @property
    def signed(self) -> bytes:
        """The bytes that the signature covers."""
        return self.raw[:SIGNED_BYTES]

    @property
    def abi(self) -> tuple[int, int]:
        """The minimum ABI that the guest's policy asks for, major and minor."""
        return (self.policy >> _ABI_SHIFT) & 0xFF, self.policy & 0xFF


def _refuse(reason: Reason, why: str, offset: int) -> FormatError:
    return FormatError(f"{_WHAT}: {why}", reason=reason, clause=f"{_DOC}#1", offset=offset)


def _firmware(reader: Reader) -> Firmware:
    build, minor, major = reader.u8(), reader.u8(), reader.u8()
    reader.u8()
    return Firmware(major, minor, build)


def _signature(reader: Reader) -> bytes:
    r, s = (reader.uint(_NUMBER_BYTES, "little") for _ in range(2))
    if max(r, s).bit_length() > 8 * _COORDINATE_BYTES:
        return b""
    return r.to_bytes(_COORDINATE_BYTES, "big") + s.to_bytes(_COORDINATE_BYTES, "big")


def parse_report(raw: bytes) -> SnpReport:
    """
    Parse a report of exactly 1,184 bytes.

    **Does not check** the signature, the certificate, reserved bytes (`reserved_not_zero`) or any
    value beyond docs/protocols/snp.md#1.

    Raises `FormatError` with REPORT_LENGTH, REPORT_VERSION or SIGNATURE_ALGORITHM.
    """
    if len(raw) != REPORT_BYTES:
        raise _refuse(Reason.REPORT_LENGTH, f"{len(raw)} bytes instead of {REPORT_BYTES}", 0)
    reader = Reader(raw, what=_WHAT, clause=f"{_DOC}#1", truncated=Reason.REPORT_LENGTH)
    take = reader.take
    version = reader.u32le()
    if version not in _VERSIONS:
        raise _refuse(Reason.REPORT_VERSION, f"version {version} is none of 2 to 5", 0)
    guest_svn, policy = reader.u32le(), reader.uint(8, "little")
    family_id, image_id = take(16), take(16)
    vmpl = reader.u32le()
    if reader.u32le() != _ECDSA_P384:
        raise _refuse(Reason.SIGNATURE_ALGORITHM, "signature algorithm is not 1", 52)
    current_tcb, platform_info = Tcb(take(8)), reader.uint(8, "little")
    key_info = reader.u32le()
    take(4)
    report_data, measurement, host_data = take(64), take(48), take(32)
    id_key_digest, author_key_digest = take(48), take(48)
    report_id, report_id_ma, reported_tcb = take(32), take(32), Tcb(take(8))
    cpuid = (reader.u8(), reader.u8(), reader.u8())
    take(21)
    chip_id, committed_tcb = take(64), Tcb(take(8))
    current, committed = _firmware(reader), _firmware(reader)
    launch_tcb = Tcb(take(8))
    launched, now = reader.uint(8, "little"), reader.uint(8, "little")
    take(SIGNED_BYTES - reader.offset)
    has_vectors = version >= _MITIGATIONS_FROM
    return SnpReport(
        version=version,
        guest_svn=guest_svn,
        policy=policy,
        family_id=family_id,
        image_id=image_id,
        vmpl=vmpl,
        current_tcb=current_tcb,
        platform_info=platform_info,
        author_key_enabled=bool(key_info & 1),
        mask_chip_key=bool(key_info & 2),
        signing_key=_SIGNING_KEYS.get((key_info >> 2) & 7),
        report_data=report_data,
        measurement=measurement,
        host_data=host_data,
        id_key_digest=id_key_digest,
        author_key_digest=author_key_digest,
        report_id=report_id,
        report_id_ma=report_id_ma,
        reported_tcb=reported_tcb,
        cpuid=cpuid if version >= _CPUID_FROM else None,
        chip_id=chip_id,
        committed_tcb=committed_tcb,
        current=current,
        committed=committed,
        launch_tcb=launch_tcb,
        launch_mitigations=launched if has_vectors else None,
        current_mitigations=now if has_vectors else None,
        signature=_signature(reader),
        raw=raw,
    )


def reserved_not_zero(report: SnpReport) -> tuple[int, ...]:
    """
    Return the offsets of reserved bytes that are not zero, in order; empty where all are.

    PLATFORM_INFO and GUEST_POLICY are not looked at: the first grows with every generation and
    describes, the second has a step of its own (snp/9.3).
    """
    # From: AMD 56860, ATTESTATION_REPORT and the signature format, "Reserved. Must be zero".
    cpuid_end = 395 if report.version >= _CPUID_FROM else 392
    vectors_end = 520 if report.version >= _MITIGATIONS_FROM else 504
    regions = (
        (73, 80),
        (cpuid_end, 416),
        (491, 492),
        (495, 496),
        (vectors_end, SIGNED_BYTES),
        (SIGNED_BYTES + 2 * _NUMBER_BYTES, REPORT_BYTES),
    )
    found = [at for low, high in regions for at in range(low, high) if report.raw[at]]
    if report.raw[72] & ~_KEY_INFO:
        found.insert(0, 72)
    return tuple(found)


def _u32(value: int) -> bytes:
    return value.to_bytes(4, "little")


def _u64(value: int | None) -> bytes:
    return (value or 0).to_bytes(8, "little")


def _version(value: Firmware) -> bytes:
    return bytes((value.build, value.minor, value.major, 0))


def encode_report(report: SnpReport) -> bytes:
    """
    Return the bytes of `report`, ignoring `report.raw`; reserved bytes are zero.

    A report without a known signing key is written with the number 7, "none".
    """
    key = _KEY_NUMBERS[report.signing_key] if report.signing_key else 7
    flags = int(report.author_key_enabled) | int(report.mask_chip_key) << 1 | key << 2
    body = b"".join(
        (
            _u32(report.version),
            _u32(report.guest_svn),
            _u64(report.policy),
            report.family_id,
            report.image_id,
            _u32(report.vmpl),
            _u32(_ECDSA_P384),
            report.current_tcb.raw,
            _u64(report.platform_info),
            _u32(flags),
            bytes(4),
            report.report_data,
            report.measurement,
            report.host_data,
            report.id_key_digest,
            report.author_key_digest,
            report.report_id,
            report.report_id_ma,
            report.reported_tcb.raw,
            bytes(report.cpuid or (0, 0, 0)),
            bytes(21),
            report.chip_id,
            report.committed_tcb.raw,
            _version(report.current),
            _version(report.committed),
            report.launch_tcb.raw,
            _u64(report.launch_mitigations),
            _u64(report.current_mitigations),
            bytes(152),
        )
    )
    if len(body) != SIGNED_BYTES:
        raise ValueError("a report field has the wrong size")
    half = len(report.signature) // 2
    numbers = (report.signature[:half], report.signature[half:])
    signature = b"".join(number[::-1].ljust(_NUMBER_BYTES, b"\0") for number in numbers)
    return (body + signature).ljust(REPORT_BYTES, b"\0")
