"""TDX collateral: what Intel says about a platform, as one JSON container and two signed documents.

Container: clause docs/protocols/tdx.md#4 and the members below. Documents: Intel PCS API v4,
TCB info version 3 and QE identity version 2; clauses #13 to #15. All of it is hostile until its
signatures verify, whoever delivered it. `tcb_info` and `qe_identity` are kept as the exact bytes
that were signed: parsing and writing them again would break the signature.
"""

from __future__ import annotations

import binascii
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from confide.errors import FormatError, Reason
from confide.wire.json import JsonLimits, JsonValue, Members, jcs, parse_json
from confide.wire.keyset import parse_time

if TYPE_CHECKING:
    from datetime import datetime

__all__ = [
    "Collateral",
    "PlatformLevel",
    "QeIdentity",
    "SvnLevel",
    "TcbInfo",
    "TcbStatus",
    "TdxModule",
    "encode_collateral",
    "parse_collateral",
    "parse_qe_identity",
    "parse_tcb_info",
]

_REASON = Reason.COLLATERAL_FORMAT
_CLAUSE = "docs/protocols/tdx.md#13"
# Precedent: the largest genuine set in hand has 24 KiB, its largest document 6 KiB.
_CONTAINER: Final = JsonLimits(max_bytes=1024 * 1024, max_depth=8)
_DOCUMENT: Final = JsonLimits(max_bytes=256 * 1024, max_depth=8)
_MAX_LEVELS: Final = 256
_MAX_IDENTITIES: Final = 64


# From: docs/protocols/tdx.md#14: the documents whose content is read.
_TDX_KIND: Final = ("TDX", 3)
_QE_KIND: Final = ("TD_QE", 2)


class TcbStatus(StrEnum):
    """What a patch level is worth. The last two never stand in a document; step 27 finds them."""

    UP_TO_DATE = "UpToDate"
    SW_HARDENING_NEEDED = "SWHardeningNeeded"
    CONFIGURATION_NEEDED = "ConfigurationNeeded"
    CONFIGURATION_AND_SW_HARDENING_NEEDED = "ConfigurationAndSWHardeningNeeded"
    OUT_OF_DATE = "OutOfDate"
    OUT_OF_DATE_CONFIGURATION_NEEDED = "OutOfDateConfigurationNeeded"
    REVOKED = "Revoked"
    TD_RELAUNCH_ADVISED = "TDRelaunchAdvised"
    TD_RELAUNCH_ADVISED_CONFIGURATION_NEEDED = "TDRelaunchAdvisedConfigurationNeeded"


_STATUSES: Final = tuple(
    status.value for status in TcbStatus if not status.value.startswith("TDRelaunch")
)


@dataclass(frozen=True, slots=True)
class SvnLevel:
    """A level of the QE or of a TDX module: everything from `isv_svn` on."""

    isv_svn: int
    date: datetime
    status: TcbStatus
    advisories: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PlatformLevel:
    """A level of the platform: 16 SGX and 16 TDX component numbers, and PCESVN."""

    sgx: bytes
    pce_svn: int
    tdx: bytes
    date: datetime
    status: TcbStatus
    advisories: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TdxModule:
    """Who signs a TDX module, and its attributes. `id` is empty for module version 0."""

    id: str
    mr_signer: bytes
    attributes: bytes
    attributes_mask: bytes
    levels: tuple[SvnLevel, ...]


@dataclass(frozen=True, slots=True)
class TcbInfo:
    """TCB info version 3, as stated. `id`, `version` and `tcb_type` are judged by step 14."""

    id: str
    version: int
    issued: datetime
    next_update: datetime
    fmspc: bytes
    pce_id: bytes
    tcb_type: int
    evaluation: int
    module: TdxModule | None
    modules: tuple[TdxModule, ...]
    levels: tuple[PlatformLevel, ...]


@dataclass(frozen=True, slots=True)
class QeIdentity:
    """QE identity version 2, as stated. `id` and `version` are judged by step 14."""

    id: str
    version: int
    issued: datetime
    next_update: datetime
    evaluation: int
    misc_select: bytes
    misc_select_mask: bytes
    attributes: bytes
    attributes_mask: bytes
    mr_signer: bytes
    isv_prod_id: int
    levels: tuple[SvnLevel, ...]


@dataclass(frozen=True, slots=True)
class Collateral:
    """
    The container. Revocation lists are DER, chains are PEM, signatures are r ‖ s.

    An absent list is empty, which docs/protocols/tdx.md#9 refuses; so is an absent
    `pck_crl_chain`, which is informative. `pck_chain` is None where it is absent, see #6 there.
    """

    root_crl: bytes
    pck_crl: bytes
    pck_crl_chain: bytes
    tcb_info: bytes
    tcb_info_signature: bytes
    tcb_info_chain: bytes
    qe_identity: bytes
    qe_identity_signature: bytes
    qe_identity_chain: bytes
    pck_chain: bytes | None


def _hex(members: Members, name: str, size: int | None = None) -> bytes:
    # Intel writes hex in both cases.
    text = members.text(name, max_chars=1 << 20)
    if size is None or len(text) == 2 * size:
        # Unlike `bytes.fromhex` this refuses blanks between the digits.
        with suppress(ValueError):
            return binascii.unhexlify(text)
    return members.refuse(f"{name} is not hex" + (f" of {size} bytes" if size is not None else ""))


def _crl(members: Members, name: str) -> bytes:
    # Absent, null and empty are one thing, and step 9 has a name for it.
    return b"" if members.null(name) or not members.has(name) else _hex(members, name)


def _pem(members: Members, name: str) -> bytes:
    text = members.text(name, max_chars=64 * 1024)
    if not text.isascii():
        members.refuse(f"{name} is not ASCII")
    return text.encode("ascii")


def _optional_pem(members: Members, name: str) -> bytes | None:
    return None if members.null(name) or not members.has(name) else _pem(members, name)


def _document(members: Members, name: str) -> bytes:
    text = members.text(name, max_chars=_DOCUMENT.max_bytes)
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        # A lone surrogate, which JSON can escape and UTF-8 cannot say.
        raise FormatError(f"{name}: not text", reason=_REASON, clause="RFC 7493 §2.1") from error


def _signed(members: Members, name: str, wrapper: str) -> tuple[bytes, bytes]:
    """Return a document and its signature, which Intel's own libraries leave in one text."""
    document = _document(members, name)
    if members.has(f"{name}_signature"):
        return document, _hex(members, f"{name}_signature", 64)
    from confide.wire.pcs import signed_document  # noqa: PLC0415 - the rare form, and not for free

    return signed_document(document, wrapper)


def parse_collateral(raw: bytes) -> Collateral:
    """
    Parse the collateral container; a member that it does not know is one that nobody reads.

    **Does not check** any signature, and does not look into the two documents.

    Raises `FormatError`.
    """
    value = parse_json(raw, what="TDX collateral", reason=_REASON, limits=_CONTAINER)
    members = Members(value, what="TDX collateral", reason=_REASON)
    tcb_info, tcb_info_signature = _signed(members, "tcb_info", "tcbInfo")
    qe_identity, qe_identity_signature = _signed(members, "qe_identity", "enclaveIdentity")
    return Collateral(
        root_crl=_crl(members, "root_ca_crl"),
        pck_crl=_crl(members, "pck_crl"),
        pck_crl_chain=_optional_pem(members, "pck_crl_issuer_chain") or b"",
        tcb_info=tcb_info,
        tcb_info_signature=tcb_info_signature,
        tcb_info_chain=_pem(members, "tcb_info_issuer_chain"),
        qe_identity=qe_identity,
        qe_identity_signature=qe_identity_signature,
        qe_identity_chain=_pem(members, "qe_identity_issuer_chain"),
        pck_chain=_optional_pem(members, "pck_certificate_chain"),
    )


def encode_collateral(collateral: Collateral) -> bytes:
    """Return the container as JSON; the signed documents stay byte for byte what they are."""
    value: dict[str, JsonValue] = {
        "root_ca_crl": collateral.root_crl.hex(),
        "pck_crl": collateral.pck_crl.hex(),
        "pck_crl_issuer_chain": collateral.pck_crl_chain.decode("ascii"),
        "tcb_info": collateral.tcb_info.decode(),
        "tcb_info_signature": collateral.tcb_info_signature.hex(),
        "tcb_info_issuer_chain": collateral.tcb_info_chain.decode("ascii"),
        "qe_identity": collateral.qe_identity.decode(),
        "qe_identity_signature": collateral.qe_identity_signature.hex(),
        "qe_identity_issuer_chain": collateral.qe_identity_chain.decode("ascii"),
    }
    if collateral.pck_chain is not None:
        value["pck_certificate_chain"] = collateral.pck_chain.decode("ascii")
    return jcs(value)


def _time(members: Members, name: str) -> datetime:
    return parse_time(members.text(name, max_chars=32), what=name, reason=_REASON)


def _status(members: Members) -> tuple[datetime, TcbStatus, tuple[str, ...]]:
    date = _time(members, "tcbDate")
    status = TcbStatus(members.choice("tcbStatus", _STATUSES))
    advisories = members.texts("advisoryIDs") if members.has("advisoryIDs") else ()
    return date, status, advisories


def _svn_levels(members: Members, what: str) -> tuple[SvnLevel, ...]:
    found: list[SvnLevel] = []
    for value in members.items("tcbLevels", max_items=_MAX_LEVELS):
        level = Members(value, what=f"{what}: level", reason=_REASON)
        svn = level.members("tcb").integer("isvsvn", high=0xFFFF)
        found.append(SvnLevel(svn, *_status(level)))
    return tuple(found)


def _components(tcb: Members, name: str) -> bytes:
    """Return exactly 16 component numbers; a shorter list would be compared in part."""
    items = tcb.items(name, max_items=16)
    if len(items) != 16:
        tcb.refuse(f"{name} has {len(items)} components instead of 16")
    numbers = bytearray()
    for item in items:
        # Members would be clearer; thirty-two of these stand in every level.
        if not isinstance(item, dict):
            tcb.refuse(f"{name} holds something that is not a component")
        svn = item.get("svn")
        if type(svn) is not int or not 0 <= svn <= 255:
            tcb.refuse(f"{name} holds a number that is not from 0 to 255")
        numbers.append(svn)
    return bytes(numbers)


def _platform_levels(members: Members) -> tuple[PlatformLevel, ...]:
    found: list[PlatformLevel] = []
    for value in members.items("tcbLevels", max_items=_MAX_LEVELS):
        level = Members(value, what="TCB info: level", reason=_REASON)
        tcb = level.members("tcb")
        sgx = _components(tcb, "sgxtcbcomponents")
        pce_svn = tcb.integer("pcesvn", high=0xFFFF)
        tdx = _components(tcb, "tdxtcbcomponents")
        found.append(PlatformLevel(sgx, pce_svn, tdx, *_status(level)))
    return tuple(found)


def _module(members: Members, *, identity: bool) -> TdxModule:
    return TdxModule(
        id=members.text("id", max_chars=64) if identity else "",
        mr_signer=_hex(members, "mrsigner", 48),
        attributes=_hex(members, "attributes", 8),
        attributes_mask=_hex(members, "attributesMask", 8),
        levels=_svn_levels(members, "TDX module") if identity else (),
    )


def parse_tcb_info(raw: bytes) -> TcbInfo:
    """
    Parse the signed bytes of a TCB info, version 3 for TDX.

    Members that this reader does not know are ignored: Intel adds some within a version. Of another
    kind or version nothing but the name has to be readable; what else is, step 14 refuses.

    **Does not check** the signature, the identifier or the dates.

    Raises `FormatError`.
    """
    value = parse_json(raw, what="TCB info", reason=_REASON, limits=_DOCUMENT)
    members = Members(value, what="TCB info", reason=_REASON)
    kind = _kind(members)
    try:
        return _tcb_info(kind, members)
    except FormatError as error:
        if kind == _TDX_KIND:
            raise
        raise _another_kind("TCB info", Reason.TCB_INFO_ID) from error


def _kind(members: Members) -> tuple[str, int]:
    """Return id and version; documents before version 3 may have no id."""
    version = members.integer("version")
    if version < 3 and not members.has("id"):
        return "", version
    return members.text("id", max_chars=16), version


def _another_kind(what: str, reason: Reason) -> FormatError:
    return FormatError(f"{what}: of another kind", reason=reason, clause="docs/protocols/tdx.md#14")


def _tcb_info(kind: tuple[str, int], members: Members) -> TcbInfo:
    modules: tuple[TdxModule, ...] = ()
    if members.has("tdxModuleIdentities"):
        modules = tuple(
            _module(Members(item, what="TDX module", reason=_REASON), identity=True)
            for item in members.items("tdxModuleIdentities", max_items=_MAX_IDENTITIES)
        )
    module = members.members("tdxModule") if members.has("tdxModule") else None
    return TcbInfo(
        id=kind[0],
        version=kind[1],
        issued=_time(members, "issueDate"),
        next_update=_time(members, "nextUpdate"),
        fmspc=_hex(members, "fmspc", 6),
        pce_id=_hex(members, "pceId", 2),
        tcb_type=members.integer("tcbType"),
        evaluation=members.integer("tcbEvaluationDataNumber"),
        module=None if module is None else _module(module, identity=False),
        modules=modules,
        levels=_platform_levels(members),
    )


def parse_qe_identity(raw: bytes) -> QeIdentity:
    """
    Parse the signed bytes of a QE identity, version 2, in the manner of `parse_tcb_info`.

    **Does not check** the signature, the identifier or the dates.

    Raises `FormatError`.
    """
    value = parse_json(raw, what="QE identity", reason=_REASON, limits=_DOCUMENT)
    members = Members(value, what="QE identity", reason=_REASON)
    kind = _kind(members)
    try:
        return _qe_identity(kind, members)
    except FormatError as error:
        if kind == _QE_KIND:
            raise
        raise _another_kind("QE identity", Reason.QE_IDENTITY_ID) from error


def _qe_identity(kind: tuple[str, int], members: Members) -> QeIdentity:
    return QeIdentity(
        id=kind[0],
        version=kind[1],
        issued=_time(members, "issueDate"),
        next_update=_time(members, "nextUpdate"),
        evaluation=members.integer("tcbEvaluationDataNumber"),
        misc_select=_hex(members, "miscselect", 4),
        misc_select_mask=_hex(members, "miscselectMask", 4),
        attributes=_hex(members, "attributes", 16),
        attributes_mask=_hex(members, "attributesMask", 16),
        mr_signer=_hex(members, "mrsigner", 32),
        isv_prod_id=members.integer("isvprodid", high=0xFFFF),
        levels=_svn_levels(members, "QE identity"),
    )
