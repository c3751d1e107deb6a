"""What the attesters of Confidential Containers write, one shape for each kind of machine.

Clauses: docs/protocols/trustee.md §2 and §3. The kind is not in the evidence: it is told by the
shape, and by the request where it was captured. Nothing is verified.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from confide.appraisal.claim_names import ClaimName
from confide.appraisal.launch import init_data_digest
from confide.crypto.x509 import split_pem_chain
from confide.errors import EvidenceRejected, FormatError, Reason, Unsupported
from confide.formats.parts import refuse
from confide.formats.snp_json import read_cert_chain, read_report_json
from confide.rats import Finding, Status
from confide.wire.azure import parse_hcl_report, runtime_data_binding
from confide.wire.init_data import parse_init_data
from confide.wire.json import JsonValue, Members
from confide.wire.service import Remark, SnpPart, TdxPart
from confide.wire.tdx import parse_quote

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Machine", "read_tee", "tee_of"]

_CLAUSE: Final = "docs/protocols/trustee.md"
_REASON: Final = Reason.SERVICE_FORMAT
# From: Intel TDX DCAP Quoting Library API, Appendix 3.1: TEE type at 4.
_TEE_TDX: Final = 0x81
_MAX_BLOB: Final = 64 * 1024
_MAX_LOG: Final = 4 << 20
# From: AMD 56860, ATTESTATION_REPORT.
_REPORT_DATA_AT, _HOST_DATA_AT = 80, 192
# From: guest-components attestation-agent/attester/src/*/mod.rs: the members of each attester.
_SHAPES: Final[tuple[tuple[str, frozenset[str], frozenset[str]], ...]] = (
    ("tdx", frozenset(("quote", "cc_eventlog")), frozenset(("aa_eventlog",))),
    ("csv", frozenset(("attestation_report", "cert_chain", "serial_number")), frozenset()),
    ("snp", frozenset(("attestation_report", "cert_chain")), frozenset()),
    (
        "az-tdx-vtpm",
        frozenset(("tpm_quote", "hcl_report", "td_quote")),
        frozenset(("version",)),
    ),
    ("az-snp-vtpm", frozenset(("tpm_quote", "hcl_report", "vcek")), frozenset(("version",))),
    ("az-snp-vtpm", frozenset(("quote", "report", "vcek")), frozenset()),
    ("sample", frozenset(("svn", "report_data")), frozenset(("init_data",))),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """
    What one attester wrote.

    `report_data` is what the quote or report carries, for choosing a hash and nothing else.
    `expected` is what a paravisor's report must carry, None elsewhere.
    """

    report_data: bytes
    tdx: TdxPart | None = None
    snp: SnpPart | None = None
    firmware_log: bytes | None = None
    paravisor: bool = False
    expected: bytes | None = None
    remarks: tuple[Remark, ...] = ()


def tee_of(value: Mapping[str, JsonValue]) -> str | None:
    """Return the kind that the shape of `value` tells, None for an unknown shape."""
    names = frozenset(value)
    for tee, required, optional in _SHAPES:
        if required <= names <= required | optional:
            return tee
    return None


def read_tee(value: JsonValue, *, told: str | None, init_data: bytes | None) -> Machine:
    """
    Read the evidence of one attester.

    `told` is the kind named in the request, where it was captured. `init_data` is compared with
    what the hardware holds: a difference becomes a failed remark.

    Raises `FormatError`, `Unsupported` for other kinds of machines, `EvidenceRejected` for the
    sample attester, which proves nothing.
    """
    tee = tee_of(value) if isinstance(value, dict) else None
    if isinstance(value, dict) and tee is None and frozenset(value) == {"quote"}:
        tee = "tdx"
    if "sample" in (tee, told):
        raise EvidenceRejected((_SAMPLE,))
    if tee is None or tee == "csv" or (told is not None and told not in _JUDGED):
        raise Unsupported(
            "evidence of another kind of machine; of Confidential Containers this verifier reads "
            "tdx, snp, az-tdx-vtpm and az-snp-vtpm"
        )
    if told is not None and told != tee:
        refuse("the request names another kind of machine", clause=f"{_CLAUSE}#2")
    members = Members(value, what=f"{tee} evidence", reason=_REASON)
    return _READERS[tee](members, init_data)


_JUDGED: Final = ("tdx", "snp", "az-tdx-vtpm", "az-snp-vtpm")
_SAMPLE: Final = Finding(
    Status.FAIL,
    "trustee/1",
    f"{_CLAUSE}#2",
    "guest",
    "sample evidence: no hardware signed it",
    Reason.TEE_TYPE,
)


def _read_tdx(members: Members, init_data: bytes | None) -> Machine:
    quote = members.base64("quote")
    log = None
    if members.has("cc_eventlog") and not members.null("cc_eventlog"):
        log = members.base64("cc_eventlog")
        if len(log) > _MAX_LOG:
            members.refuse(f"a log of {len(log)} bytes")
    remarks: list[Remark] = []
    if members.has("aa_eventlog") and not members.null("aa_eventlog"):
        members.text("aa_eventlog", max_chars=_MAX_LOG)
        text = "events of the agent came as text, which this verifier does not replay"
        remarks.append(_open(ClaimName.EVENT_LOG, text))
    members.end()
    if int.from_bytes(quote[4:8], "little") != _TEE_TDX and len(quote) >= 48:
        raise Unsupported("an SGX quote: this verifier judges TDX and SEV-SNP")
    body = parse_quote(quote).body
    remarks += _compare(init_data, body.mr_config_id)
    return Machine(
        report_data=body.report_data,
        tdx=TdxPart(quote=quote),
        firmware_log=log,
        remarks=tuple(remarks),
    )


def _read_snp(members: Members, init_data: bytes | None) -> Machine:
    report = read_report_json(members.value("attestation_report"))
    part = read_cert_chain(report, members.value("cert_chain"))
    members.end()
    return Machine(
        report_data=report[_REPORT_DATA_AT : _REPORT_DATA_AT + 64],
        snp=part,
        remarks=_compare(init_data, report[_HOST_DATA_AT : _HOST_DATA_AT + 32]),
    )


def _read_azure_tdx(members: Members, init_data: bytes | None) -> Machine:
    _version(members)
    members.value("tpm_quote")
    hcl = parse_hcl_report(_blob(members, "hcl_report"))
    quote = _blob(members, "td_quote")
    members.end()
    if hcl.kind != "tdx":
        members.refuse("the paravisor's report is not of TDX")
    return Machine(
        report_data=parse_quote(quote).body.report_data,
        tdx=TdxPart(quote=quote),
        paravisor=True,
        expected=runtime_data_binding(hcl.runtime_data),
        remarks=_azure(init_data),
    )


def _read_azure_snp(members: Members, init_data: bytes | None) -> Machine:
    _version(members)
    first = members.has("tpm_quote")
    members.value("tpm_quote" if first else "quote")
    hcl = parse_hcl_report(_blob(members, "hcl_report" if first else "report"))
    if first:
        leaf = _blob(members, "vcek")
    else:
        # From: trustee deps/verifier/src/az_snp_vtpm/compat.rs, EvidenceV0: PEM.
        pem = members.text("vcek", max_chars=_MAX_BLOB).encode()
        leaf = split_pem_chain(pem, max_certificates=1, what="vcek", reason=_REASON)[0]
    members.end()
    if hcl.kind != "snp":
        members.refuse("the paravisor's report is not of SEV-SNP")
    return Machine(
        report_data=hcl.report_data,
        snp=SnpPart(report=hcl.report, leaf_der=leaf),
        paravisor=True,
        expected=runtime_data_binding(hcl.runtime_data),
        remarks=_azure(init_data),
    )


_READERS: Final = {
    "tdx": _read_tdx,
    "snp": _read_snp,
    "az-tdx-vtpm": _read_azure_tdx,
    "az-snp-vtpm": _read_azure_snp,
}


def _version(members: Members) -> None:
    if members.has("version"):
        members.integer("version", low=1, high=2)


def _blob(members: Members, name: str) -> bytes:
    """Return bytes written as an array of octets (version 0) or as base64url with padding."""
    value = members.value(name)
    if isinstance(value, list) and len(value) <= _MAX_BLOB:
        numbers = [item for item in value if type(item) is int and 0 <= item <= 255]
        if len(numbers) == len(value):
            return bytes(numbers)
    if isinstance(value, str) and len(value) <= 2 * _MAX_BLOB:
        try:
            raw = base64.b64decode(value.encode("ascii"), altchars=b"-_", validate=True)
        except (UnicodeEncodeError, binascii.Error) as error:
            raise FormatError(
                f"{name}: not base64url", reason=_REASON, clause="RFC 4648 §5"
            ) from error
        if base64.urlsafe_b64encode(raw).decode("ascii") == value:
            return raw
    return members.refuse(f"{name} is neither octets nor base64url")


def _compare(init_data: bytes | None, register: bytes) -> tuple[Remark, ...]:
    if init_data is None:
        return ()
    algorithm = parse_init_data(init_data).algorithm
    size: Literal[32, 48] = 48 if len(register) == 48 else 32
    if register == init_data_digest(init_data, algorithm, size=size):
        return ()
    text = "the hardware holds the hash of other init-data"
    return (Remark(claim=ClaimName.WORKLOAD, text=text, clause=f"{_CLAUSE}#5", failed=True),)


def _azure(init_data: bytes | None) -> tuple[Remark, ...]:
    if init_data is not None:
        parse_init_data(init_data)
    why = "the virtual TPM says so, which this verifier does not judge"
    return tuple(
        _open(claim, why)
        for claim in (
            ClaimName.KEYS,
            ClaimName.FRESHNESS,
            ClaimName.LAUNCH,
            ClaimName.EVENT_LOG,
            ClaimName.WORKLOAD,
        )
    )


def _open(claim: ClaimName, text: str) -> Remark:
    return Remark(claim=claim, text=text, clause=f"{_CLAUSE}#6")
