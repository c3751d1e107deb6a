"""What Tinfoil's documents bring along: signed statements of registers, and Intel's responses.

Clauses: docs/protocols/tinfoil.md §4 and §5. Nothing is verified here: Sigstore bundles and
collateral are judged elsewhere, under roots and identities that the caller brings.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Literal

from confide.errors import Reason
from confide.formats.parts import parse_object, refuse
from confide.wire.collateral import Collateral, encode_collateral
from confide.wire.json import JsonValue, Members, b64decode
from confide.wire.pcs import issuer_chain, revocation_list, signed_document
from confide.wire.service import ReferenceRegisters

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Platform", "read_intel_responses", "read_statement", "subject_digest"]

Platform = Literal["tdx", "snp"]

_CLAUSE: Final = "docs/protocols/tinfoil.md"
_REASON: Final = Reason.SERVICE_FORMAT
# From: tinfoil-python src/tinfoil/attestation/types.py, PredicateType.
_MULTI_PLATFORM: Final = "https://tinfoil.sh/predicate/snp-tdx-multiplatform/v1"
_REGISTER: Final = re.compile(r"[0-9a-fA-F]{96}\Z")
_DIGEST: Final = re.compile(r"[0-9a-fA-F]{64}\Z")
_MAX_SUBJECTS: Final = 1024
_MAX_RESPONSES: Final = 16
_MAX_HEADERS: Final = 64


def _statement(bundle: Mapping[str, JsonValue]) -> tuple[bytes, dict[str, JsonValue]]:
    envelope = bundle.get("dsseEnvelope")
    payload = envelope.get("payload") if isinstance(envelope, dict) else None
    if not isinstance(payload, str):
        refuse("Sigstore bundle: no DSSE envelope with a payload", clause=f"{_CLAUSE}#4")
    raw = b64decode(payload, what="Sigstore bundle: payload", reason=_REASON)
    return raw, parse_object(raw, what="statement")


def read_statement(
    bundle_raw: bytes, bundle: Mapping[str, JsonValue], platform: Platform
) -> ReferenceRegisters | None:
    """
    Return the registers that the statement inside a Sigstore bundle expects of `platform`.

    None for a predicate that says nothing about registers. RTMR3 is zero by the definition of the
    predicate. **Does not verify** the bundle. Raises `FormatError`.
    """
    raw, statement = _statement(bundle)
    predicate = statement.get("predicate")
    if statement.get("predicateType") != _MULTI_PLATFORM or not isinstance(predicate, dict):
        return None
    if platform == "snp":
        registers = {"measurement": _register(predicate.get("snp_measurement"))}
    else:
        tdx = predicate.get("tdx_measurement")
        if not isinstance(tdx, dict):
            refuse("statement: no tdx_measurement", clause=f"{_CLAUSE}#4")
        registers = {name: _register(tdx.get(name)) for name in ("rtmr1", "rtmr2")}
        registers["rtmr3"] = bytes(48)
    return ReferenceRegisters(registers=registers, statement=raw, bundle=bundle_raw)


def subject_digest(bundle: Mapping[str, JsonValue]) -> bytes | None:
    """Return the SHA-256 of the first subject of the statement, None where it names none."""
    _, statement = _statement(bundle)
    subjects = statement.get("subject")
    if not isinstance(subjects, list) or not 0 < len(subjects) <= _MAX_SUBJECTS:
        return None
    first = subjects[0]
    digest = first.get("digest") if isinstance(first, dict) else None
    value = digest.get("sha256") if isinstance(digest, dict) else None
    if not isinstance(value, str) or not _DIGEST.match(value):
        return None
    return bytes.fromhex(value)


def _register(value: JsonValue) -> bytes:
    if not isinstance(value, str) or not _REGISTER.match(value):
        refuse("statement: a register is not 48 bytes of hex", clause=f"{_CLAUSE}#4")
    return bytes.fromhex(value)


def read_intel_responses(data: JsonValue) -> bytes | None:
    """
    Return the collateral container for captured responses of Intel, None where one is missing.

    The signed documents are cut out of the bodies byte for byte. Raises `FormatError` for
    responses that are not what their addresses say.
    """
    members = Members(data, what="Intel collateral", reason=_REASON)
    found: dict[str, tuple[bytes, dict[str, str]]] = {}
    for value in members.items("responses", max_items=_MAX_RESPONSES):
        kind, body, headers = _response(value)
        if kind is not None:
            if kind in found:
                members.refuse("two responses of one kind")
            found[kind] = (body, headers)
    members.end()
    if not found.keys() >= {"tcb", "qe", "pckcrl", "rootcrl"}:
        return None
    tcb, tcb_signature = signed_document(found["tcb"][0], "tcbInfo")
    identity, identity_signature = signed_document(found["qe"][0], "enclaveIdentity")
    return encode_collateral(
        Collateral(
            root_crl=revocation_list(found["rootcrl"][0]),
            pck_crl=revocation_list(found["pckcrl"][0]),
            pck_crl_chain=issuer_chain(found["pckcrl"][1].get("sgx-pck-crl-issuer-chain", "")),
            tcb_info=tcb,
            tcb_info_signature=tcb_signature,
            tcb_info_chain=issuer_chain(found["tcb"][1].get("tcb-info-issuer-chain", "")),
            qe_identity=identity,
            qe_identity_signature=identity_signature,
            qe_identity_chain=issuer_chain(
                found["qe"][1].get("sgx-enclave-identity-issuer-chain", "")
            ),
            pck_chain=None,
        )
    )


def _response(value: JsonValue) -> tuple[str | None, bytes, dict[str, str]]:
    members = Members(value, what="Intel response", reason=_REASON)
    url = members.text("url", max_chars=1024)
    body = members.base64("body_base64")
    table = members.value("headers")
    members.end()
    if not isinstance(table, dict) or len(table) > _MAX_HEADERS:
        members.refuse("headers are not a table")
    headers: dict[str, str] = {}
    for name, lines in table.items():
        if isinstance(lines, list) and lines and isinstance(lines[0], str):
            headers[name.lower()] = lines[0]
    return _kind(url), body, headers


def _kind(url: str) -> str | None:
    # From: Intel PCS API v4; the address only says where to look, signatures decide.
    path = url.split("?", 1)[0]
    for ending, kind in (("/tdx/certification/v4/tcb", "tcb"), ("/qe/identity", "qe")):
        if path.endswith(ending):
            return kind
    if path.endswith("/pckcrl"):
        return "pckcrl"
    if path.endswith(("/rootcacrl", "/IntelSGXRootCA.der")):
        return "rootcrl"
    return None
