"""Revocation: one OCSP answer about one certificate (docs/protocols/nvidia.md "OCSP").

The answer is hostile bytes. Raises `Refused` and `FormatError`, in the order of the clause.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

from confide.appraisal.nvidia_chain import (
    UNDERSTOOD,
    SignatureMemory,
    in_period,
    require_link,
)
from confide.appraisal.steps import Refused
from confide.crypto.errors import BadSignature
from confide.crypto.ocsp import (
    OcspResponse,
    OcspStatus,
    extended_key_usages,
    is_about,
    is_responder,
    parse_ocsp,
    verify_ocsp_signature,
)
from confide.errors import Reason

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from confide.crypto.x509 import Certificate

__all__ = ["require_good"]

# From: RFC 6960 §4.2.2.2, id-kp-OCSPSigning.
_OCSP_SIGNING = "1.3.6.1.5.5.7.3.9"
_STATUS_REASONS = {
    OcspStatus.REVOKED: Reason.OCSP_REVOKED,
    OcspStatus.HOLD: Reason.OCSP_HOLD,
    OcspStatus.UNKNOWN: Reason.OCSP_UNKNOWN,
}


def require_good(
    der: bytes | None,
    certificate: Certificate,
    issuer: Certificate,
    *,
    now: datetime,
    max_age: timedelta,
    memory: SignatureMemory,
    tolerate_hold: bool = False,
    nonce: bytes | None = None,
) -> datetime:
    """
    Establish that `issuer` or its responder says at `now` that `certificate` is good.

    `der` is None where nobody supplied an answer. `nonce` is the one that was sent, if one was.
    `tolerate_hold` accepts certificateHold too. Returns the instant at which the answer ends.
    **Does not check** `issuer` itself.
    """
    if der is None:
        raise Refused(Reason.OCSP_UNAVAILABLE, "no answer was supplied")
    response = parse_ocsp(der, parse=memory.certificate)
    responder = _responder(response, issuer, memory)
    try:
        memory.once(
            "ocsp",
            (response.der, responder.der),
            lambda: verify_ocsp_signature(response, responder.public_key),
        )
    except BadSignature as error:
        raise Refused(Reason.OCSP_SIGNATURE_INVALID, error.what) from error
    if not is_about(response, certificate, issuer):
        raise Refused(Reason.OCSP_CERTID_MISMATCH, "the answer is about another certificate")
    if not in_period(responder, now):
        raise Refused(
            Reason.OCSP_RESPONDER_UNAUTHORIZED, "the responder's certificate is out of its period"
        )
    not_after = _require_fresh(response, now, max_age)
    if nonce is not None and not hmac.compare_digest(response.nonce or b"", nonce):
        raise Refused(Reason.OCSP_NONCE_MISMATCH, "the answer does not carry the nonce")
    reason = _STATUS_REASONS.get(response.status)
    if reason is not None and not (tolerate_hold and response.status is OcspStatus.HOLD):
        raise Refused(reason, f"the status is {response.status}")
    return min(not_after, responder.not_after)


def _responder(response: OcspResponse, issuer: Certificate, memory: SignatureMemory) -> Certificate:
    """Return the certificate that signed: `issuer`, or a responder that `issuer` issued."""
    if is_responder(response, issuer):
        return issuer
    for candidate in response.certificates:
        if not is_responder(response, candidate):
            continue
        if (
            _OCSP_SIGNING not in extended_key_usages(candidate)
            or "digital_signature" not in candidate.key_usage
            or candidate.is_ca
            or candidate.critical - UNDERSTOOD
        ):
            break
        try:
            require_link(candidate, issuer, memory)
        except BadSignature as error:
            raise Refused(
                Reason.OCSP_RESPONDER_UNAUTHORIZED, "the issuer did not appoint the responder"
            ) from error
        return candidate
    raise Refused(Reason.OCSP_RESPONDER_UNAUTHORIZED, "no certificate that may answer")


def _require_fresh(response: OcspResponse, now: datetime, max_age: timedelta) -> datetime:
    if response.next_update is None:
        raise Refused(Reason.OCSP_STALE, "the answer does not say how long it holds")
    end = min(response.next_update, response.this_update + max_age)
    if now < response.this_update:
        raise Refused(Reason.OCSP_STALE, "the answer is from the future")
    if now > end:
        raise Refused(Reason.OCSP_STALE, "the answer is too old")
    return end
