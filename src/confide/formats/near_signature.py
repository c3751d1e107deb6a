"""NEAR AI's signature over one response: recomputed from the exact bytes, against attested keys.

Clauses: docs/protocols/near.md §5. A verified signature says that a key signed these two digests;
that the key is in a genuine machine is the claim `keys` of the attester it belongs to, and that
claim is judged elsewhere. There is no time and no nonce in it: it may be a replay.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, NoReturn

from confide.crypto.ed25519 import verify_ed25519
from confide.crypto.errors import BadSignature
from confide.crypto.ethereum import address_of, recover_personal_sign
from confide.errors import FormatError, Reason, ReceiptRejected
from confide.formats.foreign import hex_bytes, object_of, present
from confide.rats import Finding, Status
from confide.wire.json import JsonLimits, is_hex, parse_json

if TYPE_CHECKING:
    from confide.wire.json import Members
    from confide.wire.service import Attester, Capture, Evidence, PresentedKey

__all__ = ["SignedResponse", "response_finding", "verify_response"]

_STEP: Final = "near/response"
_CLAUSE: Final = "docs/protocols/near.md#5"
_MAX_ANSWER_BYTES: Final = 64 * 1024
_MAX_MODEL_CHARS: Final = 512
# From: near-wire.md §5: what the lookup answers instead of a signature, in our words.
_ERRORS: Final = {
    "STREAM_DISCONNECTED": "the client disconnected, so nothing was signed",
    "SIGNATURE_UNSUPPORTED": "the service signs nothing for this model or route",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedResponse:
    """
    A response whose signature verified, and by which key of which attester.

    `model` is the model id inside the signed text, empty in the older form; it is the service's
    text. `text` are the exact bytes that were signed.
    """

    attester: str
    key: PresentedKey
    kind: Literal["provider_tee", "gateway", ""]
    model: str
    text: bytes


def verify_response(
    answer: bytes, *, request: bytes, response: bytes, attesters: tuple[Attester, ...]
) -> SignedResponse:
    """
    Establish that a key which `attesters` commit to signed the digests of these exact bytes.

    `answer` is the body of `GET /v1/signature/{id}`. `request` and `response` are the bodies as
    they went over the wire, a stream with its final blank lines.

    **Does not check** that the attesters are genuine, nor when the signature was made. Raises
    `FormatError` (SERVICE_FORMAT) for what is no such answer, `ReceiptRejected`
    (RESPONSE_SIGNATURE) for what is not believed.
    """
    what = "NEAR signature"
    value = parse_json(
        answer,
        what=what,
        reason=Reason.SERVICE_FORMAT,
        limits=JsonLimits(max_bytes=_MAX_ANSWER_BYTES),
    )
    members = object_of(value, what)
    if present(members, "error_code"):
        code = members.text("error_code")
        _refuse(_ERRORS.get(code, "the service answers an error instead of a signature"))
    text = members.text("text")
    kind: Literal["provider_tee", "gateway", ""] = ""
    if present(members, "signature_kind"):
        kind = members.choice("signature_kind", ("provider_tee", "gateway"))
    model, request_digest, response_digest = _split(text, members)
    if request_digest != hashlib.sha256(request).hexdigest():
        _refuse("the text is about another request")
    if response_digest != hashlib.sha256(response).hexdigest():
        _refuse("the text is about another response")
    raw = text.encode("utf-8")
    algorithm, signer = _signer(members, raw)
    attester, key = _attested(attesters, algorithm, signer)
    return SignedResponse(attester=attester, key=key, kind=kind, model=model, text=raw)


def response_finding(capture: Capture, evidence: Evidence) -> Finding:
    """
    Judge the documents `signature`, `request` and `response` of `capture`.

    `subject` is the attester whose key signed, the first one where none did. NOT_PROVEN where
    documents are absent. Raises nothing for hostile documents: what is malformed has failed.
    """
    documents, first = capture.documents, evidence.attesters[0].name
    if "signature" not in documents:
        return _unproven(first, "no signature of a response was presented")
    if "request" not in documents or "response" not in documents:
        return _unproven(first, "a signature without the exact bytes of request and response")
    try:
        found = verify_response(
            documents["signature"],
            request=documents["request"],
            response=documents["response"],
            attesters=evidence.attesters,
        )
    except FormatError as error:
        return Finding(Status.FAIL, _STEP, _CLAUSE, first, error.what, error.reason)
    except ReceiptRejected as error:
        return replace(error.failures[0], subject=first)
    detail = f"signed by the attested {found.key.algorithm} key {found.key.value.hex()}"
    return Finding(Status.PASS, _STEP, _CLAUSE, found.attester, detail)


def _split(text: str, members: Members) -> tuple[str, str, str]:
    """Return model, request digest and response digest; model ids may hold colons."""
    parts = text.rsplit(":", 2)
    if len(parts) == 2:
        parts = ["", *parts]
    elif len(parts) == 3 and not parts[0]:
        members.refuse("text has an empty model")
    if len(parts) != 3 or not is_hex(parts[1], 32) or not is_hex(parts[2], 32):
        members.refuse("text does not end in two SHA-256 digests")
    if len(parts[0]) > _MAX_MODEL_CHARS:
        members.refuse(f"text has a model of more than {_MAX_MODEL_CHARS} characters")
    return parts[0], parts[1], parts[2]


def _signer(members: Members, text: bytes) -> tuple[str, bytes]:
    """Return algorithm and value of the key that made the signature over `text`."""
    if members.choice("signing_algo", ("ecdsa", "ed25519")) == "ecdsa":
        claimed = hex_bytes(members, "signing_address", 20, prefix="0x")
        signature = hex_bytes(members, "signature", 65, prefix="0x")
        try:
            found = address_of(recover_personal_sign(text, signature))
        except BadSignature as error:
            _refuse(error.what)
        if found != claimed:
            _refuse("the signature is not by the address that the answer names")
        return "ethereum-address", found
    claimed = hex_bytes(members, "signing_address", 32)
    signature = hex_bytes(members, "signature", 64)
    try:
        verify_ed25519(claimed, signature, text)
    except BadSignature as error:
        _refuse(error.what)
    return "ed25519", claimed


def _attested(
    attesters: tuple[Attester, ...], algorithm: str, value: bytes
) -> tuple[str, PresentedKey]:
    found = [
        (attester.name, key)
        for attester in attesters
        for key in attester.keys
        if (key.use, key.algorithm, key.value) == ("signing", algorithm, value)
        and key.name in attester.binding.covers
    ]
    if not found:
        # Also a genuine signature of another node, or with the other algorithm: ask again there.
        _refuse("the signing key is not one that the report commits to")
    return found[0]


def _unproven(subject: str, detail: str) -> Finding:
    return Finding(Status.NOT_PROVEN, _STEP, _CLAUSE, subject, detail)


def _refuse(detail: str) -> NoReturn:
    reason = Reason.RESPONSE_SIGNATURE
    raise ReceiptRejected((Finding(Status.FAIL, _STEP, _CLAUSE, "response", detail, reason),))
