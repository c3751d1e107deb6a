"""Everything a SIMULATED SEV-SNP machine can do wrong, by name, and the reason it is refused for.

`FAULTS` is the contract between simulator and verifier: docs/protocols/snp.md names the step that
each reason belongs to. An edit changes an honest part *before* it is signed, unless it is about a
signature.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from confide.crypto.ecdsa import Curve
from confide.errors import Reason
from confide.wire.der import OCTET_STRING, encode_integer, encode_tlv
from confide.wire.snp import Firmware, GuestPolicy, SigningKeyKind, Tcb

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from confide.simulator.snp_pki import CertificateSpec, CrlSpec
    from confide.wire.snp import SnpReport

__all__ = ["FAULTS", "Fault", "SnpFault"]

_Specs = dict[str, "CertificateSpec"]

_AMD: Final = "1.3.6.1.4.1.3704.1"
_DAY: Final = timedelta(days=1)


class SnpFault(StrEnum):
    """One way for a machine, or for somebody between it and the verifier, to be dishonest."""

    # The bytes of the report.
    TRUNCATED_REPORT = "truncated-report"
    TRAILING_BYTE = "trailing-byte"
    OTHER_VERSION = "other-version"
    OTHER_ALGORITHM = "other-algorithm"
    # Certificates.
    WRONG_ROOT = "wrong-root"
    FORGED_ASK = "forged-ask"
    FORGED_LEAF = "forged-leaf"
    CHAIN_ORDER = "chain-order"
    CHAIN_WITHOUT_ROOT = "chain-without-root"
    CHAIN_TOO_LONG = "chain-too-long"
    ASK_IS_NO_CA = "ask-is-no-ca"
    ASK_NAME = "ask-name"
    OTHER_AUTHORITY = "other-authority"
    LEAF_IS_CA = "leaf-is-ca"
    LEAF_ON_P256 = "leaf-on-p256"
    LEAF_CRITICAL_EXTENSION = "leaf-critical-extension"
    EXPIRED_LEAF = "expired-leaf"
    FUTURE_LEAF = "future-leaf"
    EXPIRED_ASK = "expired-ask"
    # Revocation.
    MISSING_CRL = "missing-crl"
    BROKEN_CRL = "broken-crl"
    FORGED_CRL = "forged-crl"
    CRL_WITHOUT_NEXT_UPDATE = "crl-without-next-update"
    FUTURE_CRL = "future-crl"
    EXPIRED_CRL = "expired-crl"
    REVOKED_ASK = "revoked-ask"
    REVOKED_LEAF = "revoked-leaf"
    # Whose key, for which machine.
    LEAF_NAME = "leaf-name"
    OTHER_KEY_KIND = "other-key-kind"
    NO_SIGNING_KEY = "no-signing-key"
    OTHER_PRODUCT = "other-product"
    NO_PRODUCT = "no-product"
    OTHER_TCB = "other-tcb"
    MISSING_COMPONENT = "missing-component"
    UNNAMED_COMPONENT = "unnamed-component"
    OTHER_CHIP = "other-chip"
    MASKED_CHIP = "masked-chip"
    OPERATOR_AND_CHIP = "operator-and-chip"
    FORGED_REPORT = "forged-report"
    PATCHED_REPORT_DATA = "patched-report-data"
    OVERSIZED_SIGNATURE = "oversized-signature"
    RESERVED_BYTE = "reserved-byte"
    RESERVED_KEY_BIT = "reserved-key-bit"
    SIGNATURE_TAIL = "signature-tail"
    OTHER_CPUID = "other-cpuid"
    # The guest and the machine.
    DEBUG = "debug"
    MIGRATION_AGENT = "migration-agent"
    POLICY_BIT_CLEAR = "policy-bit-clear"
    POLICY_BIT_UNKNOWN = "policy-bit-unknown"
    OTHER_VMPL = "other-vmpl"
    HOST_REPORT = "host-report"
    CXL_ALLOWED = "cxl-allowed"
    OLD_ABI = "old-abi"
    NO_ALIAS_CHECK = "no-alias-check"
    OLD_REPORTED_TCB = "old-reported-tcb"
    OLD_COMMITTED_TCB = "old-committed-tcb"
    OLD_LAUNCH_TCB = "old-launch-tcb"
    OLD_FIRMWARE = "old-firmware"
    WRONG_MEASUREMENT = "wrong-measurement"
    WRONG_HOST_DATA = "wrong-host-data"
    WRONG_ID_KEY = "wrong-id-key"
    WRONG_AUTHOR_KEY = "wrong-author-key"
    REPLAYED_NONCE = "replayed-nonce"


def _nothing(_: object) -> None:
    return None


def _same_crl(spec: CrlSpec, _: _Specs) -> CrlSpec | None:
    return spec


def _same_report(report: SnpReport) -> SnpReport:
    return report


def _same_bytes(raw: bytes) -> bytes:
    return raw


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """
    The edits of one fault; the defaults change nothing.

    `report` is about the fields of the report, `body` about its bytes before they are signed,
    `patch` about them afterwards.
    """

    reason: Reason = Reason.EVIDENCE_MISSING
    seed_suffix: bytes = b""
    certificates: Callable[[_Specs], None] = _nothing
    chain: tuple[str, ...] = ("ask", "ark")
    crl: Callable[[CrlSpec, _Specs], CrlSpec | None] = _same_crl
    crl_patch: Callable[[bytes], bytes] = _same_bytes
    report: Callable[[SnpReport], SnpReport] = _same_report
    body: Callable[[bytes], bytes] = _same_bytes
    report_key: str | None = None
    patch: Callable[[bytes], bytes] = _same_bytes


def _spec(role: str, **changes: Any) -> Callable[[_Specs], None]:
    """Replace fields of one certificate."""

    def edit(specs: _Specs) -> None:
        specs[role] = replace(specs[role], **changes)

    return edit


def _life(role: str, before: timedelta, after: timedelta) -> Callable[[_Specs], None]:
    """Move the validity of one certificate around the start of the leaf's."""

    def edit(specs: _Specs) -> None:
        start = specs["leaf"].not_before
        specs[role] = replace(specs[role], not_before=start + before, not_after=start + after)

    return edit


def _extension(arc: str, der: bytes | None, *, critical: bool = False) -> Callable[[_Specs], None]:
    """Put, replace or (None) remove an extension of the leaf."""

    def edit(specs: _Specs) -> None:
        leaf = specs["leaf"]
        kept = tuple(found for found in leaf.extensions if found[0] != arc)
        added = () if der is None else ((arc, der, critical),)
        specs["leaf"] = replace(leaf, extensions=kept + added)

    return edit


def _as_ca(specs: _Specs) -> None:
    leaf, authority = specs["leaf"], specs["ask"]
    specs["leaf"] = replace(leaf, extensions=(*leaf.extensions, *authority.extensions))


def _rename_authority(name: Callable[[str], str]) -> Callable[[_Specs], None]:
    def edit(specs: _Specs) -> None:
        named = name(specs["ask"].name)
        specs["ask"] = replace(specs["ask"], name=named)
        specs["leaf"] = replace(specs["leaf"], issuer=named)

    return edit


def _dates(this_update: timedelta, next_update: timedelta) -> Callable[[CrlSpec, _Specs], CrlSpec]:
    def edit(spec: CrlSpec, _: _Specs) -> CrlSpec:
        start = spec.this_update
        return replace(spec, this_update=start + this_update, next_update=start + next_update)

    return edit


def _revoke(role: str) -> Callable[[CrlSpec, _Specs], CrlSpec]:
    return lambda spec, specs: replace(spec, revoked=(specs[role].serial,))


def _fields(**changes: Any) -> Callable[[SnpReport], SnpReport]:
    return lambda report: replace(report, **changes)


def _flip(name: str) -> Callable[[SnpReport], SnpReport]:
    """Change the last bit of a field of bytes."""

    def edit(report: SnpReport) -> SnpReport:
        value: bytes = getattr(report, name)
        return replace(report, **{name: value[:-1] + bytes((value[-1] ^ 1,))})  # type: ignore[arg-type]

    return edit


def _policy(bits: int) -> Callable[[SnpReport], SnpReport]:
    return lambda report: replace(report, policy=report.policy ^ bits)


def _lower(name: str) -> Callable[[SnpReport], SnpReport]:
    """Lower the microcode, the last byte in every layout."""

    def edit(report: SnpReport) -> SnpReport:
        raw: bytes = getattr(report, name).raw
        return replace(report, **{name: Tcb(raw[:-1] + bytes((raw[-1] - 1,)))})  # type: ignore[arg-type]

    return edit


def _xor(offset: int, value: int = 1) -> Callable[[bytes], bytes]:
    return lambda raw: raw[:offset] + bytes((raw[offset] ^ value,)) + raw[offset + 1 :]


def _with_operator(specs: _Specs) -> None:
    _extension(f"{_AMD}.4", encode_tlv(OCTET_STRING, bytes(64)))(specs)
    _extension(f"{_AMD}.5", encode_tlv(0x16, b"CN=other.example"))(specs)


def _lower_leaf(specs: _Specs) -> None:
    arc = f"{_AMD}.3.8"
    (der,) = [found[1] for found in specs["leaf"].extensions if found[0] == arc]
    _extension(arc, encode_integer(int.from_bytes(der[2:], "big") - 1))(specs)


_BYTES: Final = {
    SnpFault.TRUNCATED_REPORT: Fault(reason=Reason.REPORT_LENGTH, patch=lambda raw: raw[:-1]),
    SnpFault.TRAILING_BYTE: Fault(reason=Reason.REPORT_LENGTH, patch=lambda raw: raw + b"\0"),
    SnpFault.OTHER_VERSION: Fault(reason=Reason.REPORT_VERSION, report=_fields(version=6)),
    SnpFault.OTHER_ALGORITHM: Fault(reason=Reason.SIGNATURE_ALGORITHM, body=_xor(52, 3)),
}
_CERTIFICATES: Final = {
    SnpFault.WRONG_ROOT: Fault(reason=Reason.ARK_NOT_PINNED, seed_suffix=b"/other"),
    SnpFault.FORGED_ASK: Fault(
        reason=Reason.CHAIN, certificates=_spec("ask", signing_key="foreign")
    ),
    SnpFault.FORGED_LEAF: Fault(
        reason=Reason.CHAIN, certificates=_spec("leaf", signing_key="foreign")
    ),
    SnpFault.CHAIN_ORDER: Fault(reason=Reason.ARK_NOT_PINNED, chain=("ark", "ask")),
    SnpFault.CHAIN_WITHOUT_ROOT: Fault(reason=Reason.CHAIN, chain=("ask",)),
    SnpFault.CHAIN_TOO_LONG: Fault(reason=Reason.CHAIN, chain=("leaf", "ask", "ark")),
    SnpFault.ASK_IS_NO_CA: Fault(reason=Reason.CHAIN, certificates=_spec("ask", extensions=())),
    SnpFault.ASK_NAME: Fault(
        reason=Reason.CHAIN,
        # Without "Simulated ": what a genuine authority is called.
        certificates=_rename_authority(lambda name: name.removeprefix("Simulated ")),
    ),
    SnpFault.OTHER_AUTHORITY: Fault(
        reason=Reason.CHAIN,
        certificates=_rename_authority(
            lambda name: (
                name.replace("VLEK-", "") if "VLEK" in name else name.replace("SEV-", "SEV-VLEK-")
            )
        ),
    ),
    SnpFault.LEAF_IS_CA: Fault(reason=Reason.CHAIN, certificates=_as_ca),
    SnpFault.LEAF_ON_P256: Fault(reason=Reason.CHAIN, certificates=_spec("leaf", curve=Curve.P256)),
    SnpFault.LEAF_CRITICAL_EXTENSION: Fault(
        reason=Reason.CHAIN,
        certificates=_extension("1.3.6.1.4.1.99999.1", b"\x05\x00", critical=True),
    ),
    SnpFault.EXPIRED_LEAF: Fault(
        reason=Reason.CERT_TIME, certificates=_life("leaf", -2 * _DAY, -_DAY)
    ),
    SnpFault.FUTURE_LEAF: Fault(
        reason=Reason.CERT_TIME, certificates=_life("leaf", _DAY, 2 * _DAY)
    ),
    SnpFault.EXPIRED_ASK: Fault(
        reason=Reason.CERT_TIME, certificates=_life("ask", -2 * _DAY, -_DAY)
    ),
}
_REVOCATION: Final = {
    SnpFault.MISSING_CRL: Fault(reason=Reason.CRL_MISSING, crl=lambda *_: None),
    SnpFault.BROKEN_CRL: Fault(reason=Reason.CRL_FORMAT, crl_patch=lambda raw: raw + b"\0"),
    SnpFault.FORGED_CRL: Fault(
        reason=Reason.CRL_SIGNATURE, crl=lambda spec, _: replace(spec, signing_key="foreign")
    ),
    SnpFault.CRL_WITHOUT_NEXT_UPDATE: Fault(
        reason=Reason.CRL_NO_NEXT_UPDATE, crl=lambda spec, _: replace(spec, next_update=None)
    ),
    SnpFault.FUTURE_CRL: Fault(reason=Reason.CRL_NOT_YET_VALID, crl=_dates(_DAY, 2 * _DAY)),
    SnpFault.EXPIRED_CRL: Fault(reason=Reason.CRL_EXPIRED, crl=_dates(-2 * _DAY, -_DAY)),
    SnpFault.REVOKED_ASK: Fault(reason=Reason.CERT_REVOKED, crl=_revoke("ask")),
    SnpFault.REVOKED_LEAF: Fault(reason=Reason.CERT_REVOKED, crl=_revoke("leaf")),
}
_IDENTITY: Final = {
    SnpFault.LEAF_NAME: Fault(
        reason=Reason.SIGNING_KEY_TYPE, certificates=_spec("leaf", name="Simulated SEV-CEK")
    ),
    SnpFault.OTHER_KEY_KIND: Fault(
        reason=Reason.SIGNING_KEY_TYPE,
        report=lambda report: replace(
            report,
            signing_key=next(kind for kind in SigningKeyKind if kind is not report.signing_key),
        ),
    ),
    SnpFault.NO_SIGNING_KEY: Fault(
        reason=Reason.SIGNING_KEY_TYPE, report=_fields(signing_key=None)
    ),
    SnpFault.OTHER_PRODUCT: Fault(
        reason=Reason.PRODUCT_MISMATCH,
        certificates=_extension(f"{_AMD}.2", encode_tlv(0x16, b"Rome-B0")),
    ),
    SnpFault.NO_PRODUCT: Fault(
        reason=Reason.PRODUCT_MISMATCH, certificates=_extension(f"{_AMD}.2", None)
    ),
    SnpFault.OTHER_TCB: Fault(
        reason=Reason.TCB_MISMATCH, certificates=_extension(f"{_AMD}.3.8", encode_integer(255))
    ),
    SnpFault.MISSING_COMPONENT: Fault(
        reason=Reason.TCB_MISMATCH, certificates=_extension(f"{_AMD}.3.2", None)
    ),
    SnpFault.UNNAMED_COMPONENT: Fault(reason=Reason.TCB_MISMATCH, body=_xor(384 + 4)),
    SnpFault.OTHER_CHIP: Fault(
        reason=Reason.CHIP_ID, report=lambda report: replace(report, chip_id=b"\1" * 64)
    ),
    SnpFault.MASKED_CHIP: Fault(reason=Reason.CHIP_ID, report=_fields(chip_id=bytes(64))),
    SnpFault.OPERATOR_AND_CHIP: Fault(
        reason=Reason.CHIP_ID,
        certificates=_with_operator,
    ),
    SnpFault.FORGED_REPORT: Fault(reason=Reason.REPORT_SIGNATURE, report_key="foreign"),
    SnpFault.PATCHED_REPORT_DATA: Fault(reason=Reason.REPORT_SIGNATURE, patch=_xor(80)),
    SnpFault.OVERSIZED_SIGNATURE: Fault(reason=Reason.REPORT_SIGNATURE, patch=_xor(672 + 48)),
    SnpFault.RESERVED_BYTE: Fault(reason=Reason.REPORT_RESERVED, body=_xor(600)),
    SnpFault.RESERVED_KEY_BIT: Fault(reason=Reason.REPORT_RESERVED, body=_xor(72, 0x20)),
    SnpFault.SIGNATURE_TAIL: Fault(reason=Reason.REPORT_RESERVED, patch=_xor(1183)),
    SnpFault.OTHER_CPUID: Fault(reason=Reason.PRODUCT_MISMATCH, report=_fields(cpuid=(23, 1, 1))),
}
_GUEST: Final = {
    SnpFault.DEBUG: Fault(reason=Reason.DEBUG, report=_policy(GuestPolicy.DEBUG)),
    SnpFault.MIGRATION_AGENT: Fault(
        reason=Reason.MIGRATION_AGENT, report=_policy(GuestPolicy.MIGRATE_MA)
    ),
    SnpFault.POLICY_BIT_CLEAR: Fault(
        reason=Reason.POLICY_RESERVED, report=_policy(GuestPolicy.RESERVED_ONE)
    ),
    SnpFault.POLICY_BIT_UNKNOWN: Fault(reason=Reason.POLICY_RESERVED, report=_policy(1 << 40)),
    SnpFault.OTHER_VMPL: Fault(
        reason=Reason.VMPL, report=lambda report: replace(report, vmpl=report.vmpl + 1)
    ),
    SnpFault.HOST_REPORT: Fault(reason=Reason.VMPL, report=_fields(vmpl=0xFFFFFFFF)),
    SnpFault.CXL_ALLOWED: Fault(reason=Reason.GUEST_POLICY, report=_policy(GuestPolicy.CXL_ALLOW)),
    SnpFault.OLD_ABI: Fault(
        reason=Reason.GUEST_POLICY, report=lambda report: replace(report, policy=report.policy - 1)
    ),
    SnpFault.NO_ALIAS_CHECK: Fault(reason=Reason.PLATFORM_INFO, report=_fields(platform_info=1)),
    SnpFault.OLD_REPORTED_TCB: Fault(
        reason=Reason.TCB_FLOOR,
        # The leaf agrees: KDS certifies old levels too. Only a floor can tell.
        certificates=_lower_leaf,
        report=_lower("reported_tcb"),
    ),
    SnpFault.OLD_COMMITTED_TCB: Fault(reason=Reason.TCB_FLOOR, report=_lower("committed_tcb")),
    SnpFault.OLD_LAUNCH_TCB: Fault(reason=Reason.TCB_FLOOR, report=_lower("launch_tcb")),
    SnpFault.OLD_FIRMWARE: Fault(
        reason=Reason.TCB_FLOOR, report=_fields(committed=Firmware(1, 55, 255))
    ),
    SnpFault.WRONG_MEASUREMENT: Fault(
        reason=Reason.MEASUREMENT_MISMATCH, report=_flip("measurement")
    ),
    SnpFault.WRONG_HOST_DATA: Fault(reason=Reason.HOST_DATA_MISMATCH, report=_flip("host_data")),
    SnpFault.WRONG_ID_KEY: Fault(reason=Reason.ID_KEY_MISMATCH, report=_flip("id_key_digest")),
    SnpFault.WRONG_AUTHOR_KEY: Fault(
        reason=Reason.ID_KEY_MISMATCH, report=_flip("author_key_digest")
    ),
    SnpFault.REPLAYED_NONCE: Fault(
        reason=Reason.REPORT_DATA_MISMATCH, report=_fields(report_data=b"\1" * 64)
    ),
}


FAULTS: Final[Mapping[SnpFault, Fault]] = {
    **_BYTES,
    **_CERTIFICATES,
    **_REVOCATION,
    **_IDENTITY,
    **_GUEST,
}
