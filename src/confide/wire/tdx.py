"""TDX quotes, version 4 and 5: bytes to a frozen value and back.

Layout: Intel TDX DCAP Quoting Library API, Appendix 3; clauses docs/protocols/tdx.md#1 to #4.
Everything here is hostile: a parsed quote is only well-formed. Its signatures, certificates and
values are judged in `appraisal/`. Fields with one permitted value are checked and not kept;
`encode_quote` writes them again, so parse and encode are inverse.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import Any, Final

from confide.errors import FormatError, Reason
from confide.wire.reader import Reader

__all__ = [
    "INTEL_QE_VENDOR",
    "QeReport",
    "TdBody10",
    "TdBody15",
    "TdxQuote",
    "encode_body",
    "encode_header",
    "encode_qe_report",
    "encode_quote",
    "parse_quote",
]

_WHAT = "TDX quote"
_DOC = "docs/protocols/tdx.md"
# Precedent: the largest genuine quote in hand has 8,000 bytes.
_MAX_QUOTE_BYTES: Final = 64 * 1024
# From: Intel TDX DCAP Quoting Library API, Appendix 3.1, "Quote header".
_ECDSA_P256: Final = 2
_TEE_TDX: Final = 0x81
INTEL_QE_VENDOR: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
# From: Appendix 3.2: (body type, size) of TD 1.0 and TD 1.5.
_BODY_TD10: Final = (2, 584)
_BODY_TD15: Final = (3, 648)
# From: Appendix 3.9: QE report certification data, and PEM chain.
_OUTER_TYPE: Final = 6
_INNER_TYPE: Final = 5


# In the order of the fields of `TdBody10`, of what `TdBody15` adds, and of `QeReport`.
_BODY_LAYOUT: Final = Struct("<16s48s48s8s8s8s48s48s48s48s48s48s48s48s64s")
_BODY15_LAYOUT: Final = Struct("<16s48s")
_QE_LAYOUT: Final = Struct("<16s4s28x16s32s32x32s96xHH60x64s")


@dataclass(frozen=True, slots=True)
class TdBody10:
    """TD report body, TD 1.0. Registers have 48 bytes; `td_attributes` and `xfam` stay raw."""

    tee_tcb_svn: bytes
    mr_seam: bytes
    mr_signer_seam: bytes
    seam_attributes: bytes
    td_attributes: bytes
    xfam: bytes
    mr_td: bytes
    mr_config_id: bytes
    mr_owner: bytes
    mr_owner_config: bytes
    rtmr: tuple[bytes, bytes, bytes, bytes]
    report_data: bytes


@dataclass(frozen=True, slots=True)
class TdBody15(TdBody10):
    """TD report body, TD 1.5: adds the module now (`tee_tcb_svn2`) and the service TD."""

    tee_tcb_svn2: bytes
    mr_service_td: bytes


@dataclass(frozen=True, slots=True)
class QeReport:
    """The quoting enclave's own report; `raw` (384 bytes) is what the PCK key signs."""

    raw: bytes
    cpu_svn: bytes
    misc_select: bytes
    attributes: bytes
    mr_enclave: bytes
    mr_signer: bytes
    isv_prod_id: int
    isv_svn: int
    report_data: bytes


@dataclass(frozen=True, slots=True)
class TdxQuote:
    """
    A well-formed quote.

    `signed` is header and body as they arrived: what `signature` (r ‖ s) covers.
    `attestation_key` is x ‖ y. `pck_chain` is PEM, in most quotes with a NUL byte at its end.
    `padding` counts the bytes after the signature data, which nothing signs.
    """

    version: int
    user_data: bytes
    body: TdBody10
    signed: bytes
    signature: bytes
    attestation_key: bytes
    qe_report: QeReport
    qe_report_signature: bytes
    auth_data: bytes
    pck_chain: bytes
    padding: int


def _refuse(reason: Reason, why: str, step: int, offset: int) -> FormatError:
    return FormatError(f"{_WHAT}: {why}", reason=reason, clause=f"{_DOC}#{step}", offset=offset)


def _reader(raw: bytes, step: int, truncated: Reason) -> Reader:
    return Reader(raw, what=_WHAT, clause=f"{_DOC}#{step}", truncated=truncated)


def parse_quote(raw: bytes, *, unsafe_trailing: bool = False) -> TdxQuote:
    """
    Parse a version 4 or 5 TDX quote.

    `unsafe_trailing` counts and drops bytes other than zero after the signature data.
    **Does not check** any signature, certificate or value beyond docs/protocols/tdx.md#1 to #4.

    Raises `FormatError`.
    """
    if len(raw) > _MAX_QUOTE_BYTES:
        raise _refuse(Reason.QUOTE_FORMAT, f"more than {_MAX_QUOTE_BYTES} bytes", 1, 0)
    reader = _reader(raw, 1, Reason.QUOTE_TRUNCATED)
    version, user_data = _parse_header(reader)
    body = _parse_body(reader, version)
    signed = raw[: reader.offset]
    data = reader.take(reader.u32le())
    padding = reader.remaining
    found = _parse_signature(
        data, version=version, user_data=user_data, body=body, signed=signed, padding=padding
    )
    if reader.rest().strip(b"\0") and not unsafe_trailing:
        raise _refuse(
            Reason.TRAILING_BYTES,
            "bytes other than zero after the signature",
            4,
            len(raw) - padding,
        )
    return found


def _parse_header(reader: Reader) -> tuple[int, bytes]:
    version = reader.u16le()
    if version not in {4, 5}:
        raise _refuse(Reason.QUOTE_VERSION, "version is neither 4 nor 5", 1, 0)
    if reader.u16le() != _ECDSA_P256:
        raise _refuse(Reason.ATT_KEY_TYPE, "attestation key type is not 2", 1, 2)
    if reader.u32le() != _TEE_TDX:
        raise _refuse(Reason.TEE_TYPE, "TEE type is not 0x81", 1, 4)
    if reader.u32le() != 0:
        raise _refuse(Reason.QUOTE_FORMAT, "a reserved word is not zero", 1, 8)
    if reader.take(16) != INTEL_QE_VENDOR:
        raise _refuse(Reason.QE_VENDOR, "QE vendor is not Intel", 1, 12)
    return version, reader.take(20)


def _parse_body(reader: Reader, version: int) -> TdBody10:
    kind = _BODY_TD10
    if version == 5:
        offset = reader.offset
        kind = (reader.u16le(), reader.u32le())
        if kind not in {_BODY_TD10, _BODY_TD15}:
            raise _refuse(Reason.BODY_TYPE, "body type and size are no known pair", 2, offset)
    *head, rtmr0, rtmr1, rtmr2, rtmr3, report_data = reader.unpack(_BODY_LAYOUT)
    fields: tuple[Any, ...] = (*head, (rtmr0, rtmr1, rtmr2, rtmr3), report_data)
    if kind == _BODY_TD15:
        fields += reader.unpack(_BODY15_LAYOUT)
        return TdBody15(*fields)
    return TdBody10(*fields)


def _parse_signature(
    data: bytes, *, version: int, user_data: bytes, body: TdBody10, signed: bytes, padding: int
) -> TdxQuote:
    outer = _reader(data, 3, Reason.QUOTE_FORMAT)
    signature, key = outer.take(64), outer.take(64)
    if outer.u16le() != _OUTER_TYPE:
        raise _refuse(Reason.OUTER_CERT_TYPE, "outer certification type is not 6", 3, 128)
    if outer.u32le() != outer.remaining:
        raise _refuse(Reason.QUOTE_FORMAT, "outer size is not what follows", 3, 130)
    qe_report = _parse_qe_report(outer.take(384))
    qe_signature = outer.take(64)
    auth_data = outer.take(outer.u16le())
    offset = outer.offset
    if outer.u16le() != _INNER_TYPE:
        raise _refuse(Reason.INNER_CERT_TYPE, "inner certification type is not 5", 3, offset)
    if outer.u32le() != outer.remaining:
        raise _refuse(Reason.QUOTE_FORMAT, "inner size is not what follows", 3, offset + 2)
    return TdxQuote(
        version=version,
        user_data=user_data,
        body=body,
        signed=signed,
        signature=signature,
        attestation_key=key,
        qe_report=qe_report,
        qe_report_signature=qe_signature,
        auth_data=auth_data,
        pck_chain=outer.rest(),
        padding=padding,
    )


def _parse_qe_report(raw: bytes) -> QeReport:
    # From: Intel SGX SDK, sgx_report_body_t. Reserved regions are covered by the signature.
    reader = _reader(raw, 3, Reason.QUOTE_FORMAT)
    return QeReport(raw, *reader.unpack(_QE_LAYOUT))


def _u16(value: int) -> bytes:
    return value.to_bytes(2, "little")


def _u32(value: int) -> bytes:
    return value.to_bytes(4, "little")


def encode_header(version: int, user_data: bytes) -> bytes:
    """Return the 48-byte header."""
    fixed = _u16(version) + _u16(_ECDSA_P256) + _u32(_TEE_TDX) + bytes(4) + INTEL_QE_VENDOR
    return fixed + user_data


def encode_body(version: int, body: TdBody10) -> bytes:
    """Return the body, with the descriptor that version 5 puts before it."""
    raw = b"".join(
        (
            body.tee_tcb_svn,
            body.mr_seam,
            body.mr_signer_seam,
            body.seam_attributes,
            body.td_attributes,
            body.xfam,
            body.mr_td,
            body.mr_config_id,
            body.mr_owner,
            body.mr_owner_config,
            *body.rtmr,
            body.report_data,
        )
    )
    kind = _BODY_TD10
    if isinstance(body, TdBody15):
        raw += body.tee_tcb_svn2 + body.mr_service_td
        kind = _BODY_TD15
    if len(raw) != kind[1] or (version == 4 and kind != _BODY_TD10):
        raise ValueError("a body field has the wrong size, or version 4 was asked for TD 1.5")
    return raw if version == 4 else _u16(kind[0]) + _u32(kind[1]) + raw


def encode_qe_report(report: QeReport) -> bytes:
    """Return the 384 bytes of `report`, ignoring `report.raw`; reserved regions are zero."""
    raw = b"".join(
        (
            report.cpu_svn,
            report.misc_select,
            bytes(28),
            report.attributes,
            report.mr_enclave,
            bytes(32),
            report.mr_signer,
            bytes(96),
            _u16(report.isv_prod_id),
            _u16(report.isv_svn),
            bytes(60),
            report.report_data,
        )
    )
    if len(raw) != 384:
        raise ValueError("a QE report field has the wrong size")
    return raw


def encode_quote(quote: TdxQuote) -> bytes:
    """Return the bytes of `quote`."""
    inner = b"".join(
        (
            quote.qe_report.raw,
            quote.qe_report_signature,
            _u16(len(quote.auth_data)),
            quote.auth_data,
            _u16(_INNER_TYPE),
            _u32(len(quote.pck_chain)),
            quote.pck_chain,
        )
    )
    data = quote.signature + quote.attestation_key + _u16(_OUTER_TYPE) + _u32(len(inner)) + inner
    return quote.signed + _u32(len(data)) + data + bytes(quote.padding)
