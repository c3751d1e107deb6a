"""Everything that can be made wrong with a SIMULATED token service, and what must refuse it.

A fault changes one thing; tokens stay signed unless the fault says otherwise. `EXPECTED` is the
contract between simulator and verifier.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from confide.errors import Reason

if TYPE_CHECKING:
    from collections.abc import Mapping

    from confide.appraisal.nras_policy import ReportedDevice

__all__ = ["EXPECTED", "NrasFault", "edit_device", "edit_header", "edit_overall", "edit_set"]


class NrasFault(StrEnum):
    """One thing wrong with a token or with a key set."""

    # The document and the headers, as anyone can write them.
    NOT_A_LIST = "not-a-list"
    MIXED_KINDS = "mixed-kinds"
    HEADER_BRINGS_KEY = "header-brings-key"
    ALG_NONE = "alg-none"
    ALG_HMAC = "alg-hmac"
    ALG_DEVICE = "alg-device"
    KID_UNKNOWN = "kid-unknown"
    KID_ABSENT = "kid-absent"
    # The key set.
    KEY_ON_P256 = "key-on-p256"
    X5C_OF_ANOTHER = "x5c-of-another"
    X5C_CHAIN_BROKEN = "x5c-chain-broken"
    X5C_ISSUER_NO_CA = "x5c-issuer-no-ca"
    LEAF_EXPIRED = "leaf-expired"
    # Signatures.
    FORGED_OVERALL = "forged-overall"
    FORGED_DEVICE = "forged-device"
    SHORT_SIGNATURE = "short-signature"
    # What is bound to what.
    OTHER_ISSUER = "other-issuer"
    OTHER_DEVICE_ISSUER = "other-device-issuer"
    DEVICE_REMOVED = "device-removed"
    NO_DEVICES = "no-devices"
    DEVICE_ALTERED = "device-altered"
    DIGEST_DIFFERS = "digest-differs"
    DIGEST_OTHER_HASH = "digest-other-hash"
    ERROR_DETAILS = "error-details"
    OTHER_NONCE = "other-nonce"
    OTHER_DEVICE_NONCE = "other-device-nonce"
    NO_DEVICE_NONCE = "no-device-nonce"
    # What is said.
    OVERALL_FALSE = "overall-false"
    OVERALL_ABSENT = "overall-absent"
    OVERALL_TEXT = "overall-text"
    OTHER_SUBJECT = "other-subject"
    UNKNOWN_VERSION = "unknown-version"
    MEASUREMENTS_FAIL = "measurements-fail"
    MEASUREMENTS_ABSENT = "measurements-absent"
    SECBOOT_FALSE = "secboot-false"
    DEBUG_ENABLED = "debug-enabled"
    DETAIL_FALSE = "detail-false"
    DETAIL_ABSENT = "detail-absent"
    CHAIN_REVOKED = "chain-revoked"
    CHAIN_OCSP_UNKNOWN = "chain-ocsp-unknown"
    MISMATCH_RECORDS = "mismatch-records"
    EXPIRED = "expired"
    NOT_YET_VALID = "not-yet-valid"
    NO_EXPIRY = "no-expiry"
    DEVICE_TWICE = "device-twice"
    NO_UEID = "no-ueid"
    WARNING = "warning"


_GROUPS: Final[dict[Reason, tuple[NrasFault, ...]]] = {
    Reason.TOKEN_MALFORMED: (
        NrasFault.NOT_A_LIST,
        NrasFault.MIXED_KINDS,
        NrasFault.HEADER_BRINGS_KEY,
    ),
    Reason.TOKEN_ALG: (
        NrasFault.ALG_NONE,
        NrasFault.ALG_HMAC,
        NrasFault.ALG_DEVICE,
        NrasFault.KEY_ON_P256,
    ),
    Reason.TOKEN_KID_UNKNOWN: (NrasFault.KID_UNKNOWN, NrasFault.KID_ABSENT),
    Reason.TOKEN_SIGNATURE_INVALID: (
        NrasFault.X5C_OF_ANOTHER,
        NrasFault.X5C_CHAIN_BROKEN,
        NrasFault.X5C_ISSUER_NO_CA,
        NrasFault.FORGED_OVERALL,
        NrasFault.FORGED_DEVICE,
        NrasFault.SHORT_SIGNATURE,
        NrasFault.DEVICE_ALTERED,
    ),
    Reason.TOKEN_ISSUER: (NrasFault.OTHER_ISSUER, NrasFault.OTHER_DEVICE_ISSUER),
    Reason.TOKEN_SUBMODS_MISMATCH: (NrasFault.DEVICE_REMOVED, NrasFault.NO_DEVICES),
    Reason.TOKEN_DIGEST_MISMATCH: (NrasFault.DIGEST_DIFFERS, NrasFault.DIGEST_OTHER_HASH),
    Reason.TOKEN_ERROR_DETAILS: (NrasFault.ERROR_DETAILS,),
    Reason.TOKEN_NONCE_MISMATCH: (
        NrasFault.OTHER_NONCE,
        NrasFault.OTHER_DEVICE_NONCE,
        NrasFault.NO_DEVICE_NONCE,
    ),
    Reason.TOKEN_OVERALL_FALSE: (
        NrasFault.OVERALL_FALSE,
        NrasFault.OVERALL_ABSENT,
        NrasFault.OVERALL_TEXT,
    ),
    Reason.TOKEN_CLAIMS: (
        NrasFault.OTHER_SUBJECT,
        NrasFault.UNKNOWN_VERSION,
        NrasFault.MEASUREMENTS_FAIL,
        NrasFault.MEASUREMENTS_ABSENT,
        NrasFault.SECBOOT_FALSE,
        NrasFault.DEBUG_ENABLED,
        NrasFault.DETAIL_FALSE,
        NrasFault.DETAIL_ABSENT,
        NrasFault.CHAIN_REVOKED,
        NrasFault.CHAIN_OCSP_UNKNOWN,
        NrasFault.MISMATCH_RECORDS,
        NrasFault.NO_UEID,
        NrasFault.WARNING,
    ),
    Reason.TOKEN_EXPIRED: (
        NrasFault.EXPIRED,
        NrasFault.NOT_YET_VALID,
        NrasFault.NO_EXPIRY,
        NrasFault.LEAF_EXPIRED,
    ),
    Reason.DUPLICATE_DEVICE: (NrasFault.DEVICE_TWICE,),
}
EXPECTED: Final[dict[NrasFault, Reason]] = {
    fault: reason for reason, faults in _GROUPS.items() for fault in faults
}


def edit_header(fault: NrasFault | None, header: dict[str, Any], *, overall: bool) -> None:
    """Put `fault` into the header of one token."""
    match fault:
        case NrasFault.ALG_NONE:
            header["alg"] = "none"
        case NrasFault.ALG_HMAC:
            header["alg"] = "HS256"
        case NrasFault.ALG_DEVICE if not overall:
            header["alg"] = "ES256"
        case NrasFault.KID_UNKNOWN:
            header["kid"] = "nv-eat-kid-simulated-of-yesterday"
        case NrasFault.KID_ABSENT:
            del header["kid"]
        case NrasFault.HEADER_BRINGS_KEY:
            header["jwk"] = {"kty": "EC"}
        case _:
            pass


def edit_set(fault: NrasFault | None, keys: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put `fault` into the key set; the second key is the one that signs."""
    first, second = keys[0], keys[1]
    match fault:
        case NrasFault.KEY_ON_P256:
            # From: SP 800-186 §3.2.1.3, the base point of P-256.
            second["crv"] = "P-256"
            second["x"] = "axfR8uEsQkf4vOblY6RA8ncDfYEt6zOg9KE5RdiYwpY"
            second["y"] = "T-NC4v4af5uO5-tKfA-eFivOM1drMV7Oy7ZAaDe_UfU"
            del second["x5c"]
        case NrasFault.X5C_OF_ANOTHER:
            second["x5c"] = first["x5c"]
        case NrasFault.X5C_CHAIN_BROKEN:
            # The leaf of another key stands where the issuer has to.
            second["x5c"] = [second["x5c"][0], second["x5c"][1], second["x5c"][1]]
        case NrasFault.X5C_ISSUER_NO_CA:
            second["x5c"] = [second["x5c"][0], first["x5c"][0]]
        case _:
            pass
    return keys


_OVERALL_EDITS: Final[dict[NrasFault, tuple[str, Any]]] = {
    NrasFault.OTHER_ISSUER: ("iss", "https://nras.attestation-stg.nvidia.com"),
    NrasFault.NO_DEVICES: ("submods", {}),
    NrasFault.ERROR_DETAILS: ("x-nvidia-overall-att-result", False),
    NrasFault.OVERALL_FALSE: ("x-nvidia-overall-att-result", False),
    NrasFault.OVERALL_ABSENT: ("x-nvidia-overall-att-result", None),
    NrasFault.OVERALL_TEXT: ("x-nvidia-overall-att-result", "true"),
    NrasFault.OTHER_NONCE: ("eat_nonce", "22" * 32),
    NrasFault.OTHER_SUBJECT: ("sub", "SOMETHING-ELSE"),
    NrasFault.UNKNOWN_VERSION: ("x-nvidia-ver", "9.0"),
    NrasFault.NO_EXPIRY: ("exp", None),
}


def edit_overall(
    fault: NrasFault | None, claims: dict[str, Any], tokens: Mapping[str, str]
) -> None:
    """Put `fault` into the overall claims; they are signed afterwards."""
    if fault in _OVERALL_EDITS:
        member, value = _OVERALL_EDITS[fault]
        claims[member] = value
    entry = claims["submods"].get(next(iter(tokens)))
    if fault is NrasFault.DIGEST_DIFFERS:
        entry[1][1] = "0" * 64
    elif fault is NrasFault.DIGEST_OTHER_HASH:
        entry[1][0] = "SHA-1"


_DEVICE_EDITS: Final[dict[NrasFault, tuple[str, Any]]] = {
    NrasFault.OTHER_DEVICE_ISSUER: ("iss", "https://nras.attestation.nvidia.com.example"),
    NrasFault.OTHER_DEVICE_NONCE: ("eat_nonce", "22" * 32),
    NrasFault.NO_DEVICE_NONCE: ("eat_nonce", None),
    NrasFault.MEASUREMENTS_FAIL: ("measres", "fail"),
    NrasFault.MEASUREMENTS_ABSENT: ("measres", None),
    NrasFault.SECBOOT_FALSE: ("secboot", False),
    NrasFault.DEBUG_ENABLED: ("dbgstat", "enabled"),
    NrasFault.MISMATCH_RECORDS: ("x-nvidia-mismatch-measurement-records", [{"index": 9}]),
    NrasFault.NO_UEID: ("ueid", None),
    NrasFault.WARNING: ("x-nvidia-attestation-warning", "SIMULATED: A SIGNER IS ON HOLD"),
}


def edit_device(
    fault: NrasFault | None, claims: dict[str, Any], devices: tuple[ReportedDevice, ...]
) -> None:
    """Put `fault` into the claims of the last of `devices`; they are signed afterwards."""
    last = devices[-1]
    if fault is None or claims["ueid"] != last.ueid:
        return
    prefix = f"x-nvidia-{last.kind}-"
    if fault in _DEVICE_EDITS:
        member, value = _DEVICE_EDITS[fault]
        claims[member] = value
    chain = claims.get(f"{prefix}attestation-report-cert-chain", {})
    match fault:
        case NrasFault.DETAIL_FALSE:
            claims[f"{prefix}vbios-rim-signature-verified"] = False
        case NrasFault.DETAIL_ABSENT:
            del claims[f"{prefix}attestation-report-signature-verified"]
        case NrasFault.CHAIN_REVOKED:
            chain["x-nvidia-cert-status"] = "revoked"
        case NrasFault.CHAIN_OCSP_UNKNOWN:
            chain["x-nvidia-cert-ocsp-status"] = "unknown"
        case NrasFault.DEVICE_TWICE:
            claims["ueid"] = devices[0].ueid
        case NrasFault.ERROR_DETAILS:
            kept = {name: claims[name] for name in ("iss", "nbf", "exp", "iat", "jti")}
            claims.clear()
            claims |= kept
            claims["x-nvidia-error-details"] = {
                "code": 4010,
                "fieldName": "nonce",
                "httpStatus": "400 BAD_REQUEST",
                "message": "NONCE_NOT_MATCHING",
                "description": "SIMULATED",
            }
        case _:
            pass
