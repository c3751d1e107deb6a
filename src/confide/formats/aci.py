"""ACI (`aci/1`): from its attestation report to our `Evidence`.

Clauses: docs/protocols/aci.md. Report data commit to a statement, the statement to the digest of a
keyset: both are computed here from the keyset presented. Nothing is verified.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from confide.appraisal.claim_names import ClaimName
from confide.channel.aci import keyset_digest, report_data, statement
from confide.errors import FormatError, Reason, Unsupported
from confide.formats.aci_receipt import answer_finding
from confide.formats.foreign import (
    MAX_REPORT_BYTES,
    hex_bytes,
    json_value,
    launch_bytes,
    object_of,
    present,
    report_object,
)
from confide.formats.format import Format, Request
from confide.formats.parts import refuse
from confide.wire.json import JsonLimits, parse_json
from confide.wire.service import (
    Attester,
    Evidence,
    LaunchDocument,
    PresentedKey,
    Remark,
    ReportBinding,
    SnpPart,
    TdxPart,
)

if TYPE_CHECKING:
    from confide.wire.json import JsonValue, Members
    from confide.wire.service import Capture

__all__ = ["FORMAT", "read_aci"]

_NAME: Final = "aci"
_WHAT: Final = "ACI report"
_DOC: Final = "docs/protocols/aci.md"
_API_VERSION: Final = "aci/1"
_MAX_KEYS: Final = 64
# From: AMD SEV-SNP ABI §7.3: an attestation report is 0x4A0 bytes.
_SNP_BYTES: Final = 0x4A0
# From: ISO 8601, the last second of the year 9999.
_MAX_DATE: Final = 253_402_300_799
_LIMITS: Final = (
    "The time in a receipt is the service's own, and receipts have no order.",
    "Where the source comes from, and what lies downstream, is the service's word.",
    "The report holds no evidence of GPUs or other devices.",
)
_CUSTODY: Final = "who keeps the keys is told, not measured"
_WEIGHTS: Final = "the format has no place for weights that are measured"
_AGGREGATOR: Final = "models run elsewhere, and what the service found there is its own word"
_NO_NONCE: Final = "the statement names no nonce: the report may be of any age"
_DIGEST: Final = "workload_keyset_digest is not the digest of the keyset presented"


def _recognise(raw: bytes) -> bool:
    """Whether `raw` is an ACI report; broken JSON counts where it names the members of one."""
    if len(raw) > MAX_REPORT_BYTES:
        return False
    try:
        value: JsonValue = parse_json(
            raw,
            what="report",
            reason=Reason.SERVICE_FORMAT,
            limits=JsonLimits(max_bytes=MAX_REPORT_BYTES),
        )
    except FormatError:
        return b'"workload_keyset_digest"' in raw and b'"attestation"' in raw
    return isinstance(value, dict) and {"workload_keyset_digest", "attestation"} <= value.keys()


def _plan(nonce: bytes) -> tuple[Request, ...]:
    """Return the request of a live capture."""
    path = f"/v1/aci/attestation?nonce={nonce.hex()}"
    return (Request(document="report", path=path, keeps_query=True),)


@dataclass(frozen=True, slots=True)
class _Keyset:
    """The keyset as presented, its digest, its keys, and until when it says it holds."""

    digest: str
    keys: tuple[PresentedKey, ...]
    not_after: datetime | None


def read_aci(capture: Capture) -> Evidence:
    """
    Return the evidence in an ACI report (document `report`): one attester, `service`.

    Raises `FormatError`, and `Unsupported` for another version of the format or another TEE.
    """
    top = object_of(report_object(capture, what=_WHAT), _WHAT)
    if top.text("api_version", max_chars=64) != _API_VERSION:
        raise Unsupported("ACI report: a version of the format that is not judged here")
    stated = top.text("workload_keyset_digest", max_chars=128)
    attestation = top.members("attestation")
    keyset = _parse_keyset(attestation.value("workload_keyset"))
    serving = top.members("service_capabilities").choice("serving", ("direct", "aggregator"))
    binding = _binding(attestation, keyset, capture.nonce)
    remarks = [_unproven(ClaimName.KEY_LIFETIME, _CUSTODY, 6)]
    remarks.append(_unproven(ClaimName.MODEL_WEIGHTS, _WEIGHTS, 6))
    if serving == "aggregator":
        remarks.append(_unproven(ClaimName.WORKLOAD_COMPLETE, _AGGREGATOR, 6))
    if binding.nonce is None:
        remarks.append(_unproven(ClaimName.FRESHNESS, _NO_NONCE, 2))
    if stated != keyset.digest:
        remarks.append(_failed(ClaimName.KEYS, _DIGEST, 2))
    attester = _attester(attestation, binding, keyset, tuple(remarks))
    return Evidence(
        format=_NAME,
        attesters=(attester,),
        nonce=capture.nonce,
        tls_spki_sha256=capture.tls_spki_sha256,
        limits=_LIMITS,
    )


def _unproven(claim: ClaimName, text: str, clause: int) -> Remark:
    return Remark(claim=claim, text=text, clause=f"{_DOC}#{clause}")


def _failed(claim: ClaimName, text: str, clause: int) -> Remark:
    return Remark(claim=claim, text=text, clause=f"{_DOC}#{clause}", failed=True)


def _attester(
    attestation: Members, binding: ReportBinding, keyset: _Keyset, remarks: tuple[Remark, ...]
) -> Attester:
    tee = attestation.text("tee_type", max_chars=64)
    evidence = attestation.members("evidence")
    if tee == "sev_snp":
        snp = SnpPart(report=_snp_report(evidence))
        return Attester(
            name="service",
            snp=snp,
            binding=binding,
            keys=keyset.keys,
            valid_until=keyset.not_after,
            remarks=remarks,
        )
    if tee != "tdx":
        raise Unsupported("ACI report: a TEE that is not judged here")
    log = json_value(evidence, "event_log", what=_WHAT)
    if not isinstance(log, list):
        evidence.refuse("event_log is not an array")
    launch = None
    if present(evidence, "app_compose"):
        launch = LaunchDocument(kind="dstack-compose", raw=launch_bytes(evidence, "app_compose"))
    vm_config = None
    if present(evidence, "vm_config"):
        vm_config = json_value(evidence, "vm_config", what=_WHAT)
    return Attester(
        name="service",
        tdx=TdxPart(quote=hex_bytes(evidence, "quote")),
        binding=binding,
        keys=keyset.keys,
        runtime_log=log,
        vm_config=vm_config,
        launch=launch,
        valid_until=keyset.not_after,
        remarks=remarks,
    )


def _snp_report(evidence: Members) -> bytes:
    text = evidence.text("report", max_chars=4 * _SNP_BYTES)
    # Hex has another length than base64 of as many bytes: the two forms cannot be confused.
    one = object_of({"report": text}, f"{_WHAT}: evidence")
    if len(text) == 2 * _SNP_BYTES:
        return hex_bytes(one, "report", _SNP_BYTES)
    raw = one.base64("report")
    if len(raw) != _SNP_BYTES:
        evidence.refuse(f"report is not {_SNP_BYTES} bytes of hex or base64")
    return raw


def _binding(attestation: Members, keyset: _Keyset, nonce: bytes | None) -> ReportBinding:
    """
    Return the report data that the keyset presented gives.

    The report's own `report_data` only chooses between the two statements that the format knows;
    whichever it is, hardware must have signed it.
    """
    stated = hex_bytes(attestation, "report_data", 32, 64).ljust(64, b"\0")
    unchallenged = report_data(statement(keyset.digest, None))
    expected = unchallenged
    if nonce is not None and stated != unchallenged:
        if len(nonce) != 32:
            refuse("ACI report: the nonce that was sent is not 32 bytes", clause=f"{_DOC}#2")
        expected = report_data(statement(keyset.digest, nonce.hex()))
    return ReportBinding(
        scheme="aci/1",
        expected=expected,
        nonce=None if expected == unchallenged else nonce,
        covers=frozenset({key.name for key in keyset.keys} | {"statement"}),
    )


def _parse_keyset(value: JsonValue) -> _Keyset:
    members = object_of(value, "ACI keyset")
    if not isinstance(value, dict):  # pragma: no cover - `object_of` refused it already
        raise TypeError("not an object")
    keys: list[PresentedKey] = []
    for member, name, use in (
        ("receipt_signing_keys", "receipt", "signing"),
        ("e2ee_public_keys", "e2ee", "encryption"),
        ("tls_public_keys", "tls", "tls"),
    ):
        if present(members, member):
            items = members.items(member, max_items=_MAX_KEYS)
            keys += [_key(item, name, at, use) for at, item in enumerate(items)]
    not_after = None
    if present(members, "not_after"):
        seconds = members.integer("not_after", high=_MAX_DATE)
        not_after = datetime.fromtimestamp(seconds, UTC)
    return _Keyset(keyset_digest(value), tuple(keys), not_after)


def _key(value: JsonValue, name: str, at: int, use: str) -> PresentedKey:
    entry = object_of(value, f"ACI keyset: {name} key {at}")
    if use == "tls":
        spki = hex_bytes(entry, "spki_sha256", 32)
        return PresentedKey(name=f"{name}-{at}", use=use, algorithm="spki-sha256", value=spki)
    algorithm, sizes = _algorithm(entry.text("algo", max_chars=64), use)
    return PresentedKey(
        name=f"{name}-{at}",
        use=use,
        algorithm=algorithm,
        value=hex_bytes(entry, "public_key", *sizes),
    )


def _algorithm(text: str, use: str) -> tuple[str, tuple[int, ...]]:
    """Return our word for an algorithm and the sizes of its keys in bytes."""
    if text == "ed25519" and use == "signing":
        return "ed25519", (32,)
    if text.startswith("x25519") and use == "encryption":
        return "x25519", (32,)
    if text.startswith("secp256k1"):
        return "secp256k1", (33, 64, 65)
    return "unknown", ()


FORMAT: Final = Format(
    name=_NAME,
    title="ACI attestation report (aci/1)",
    recognise=_recognise,
    read=read_aci,
    plan=_plan,
    answer=answer_finding,
)
