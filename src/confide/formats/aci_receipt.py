"""ACI receipts and sessions held against the exact bytes of one exchange.

Clauses: docs/protocols/aci.md §5. A receipt is the word of whoever holds a key of the keyset; that
the key is in a genuine machine is the claim `keys`, judged elsewhere. What a receipt says about
other machines (`upstream.verified`) stays the word of the service, session documents too.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, NoReturn

from confide.channel.aci import AciReceipt, session_id, verify_receipt
from confide.errors import FormatError, Reason, ReceiptRejected
from confide.formats.foreign import object_of, report_object
from confide.rats import Finding, Status
from confide.wire.json import JsonLimits, Members, b64decode, is_hex, parse_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from confide.wire.json import JsonValue
    from confide.wire.service import Capture, Evidence

__all__ = [
    "AciAnswer",
    "AciSession",
    "answer_finding",
    "verify_answer",
    "verify_session",
]

_STEP: Final = "aci/response"
_CLAUSE: Final = "docs/protocols/aci.md#5"
_MAX_RECEIPT_BYTES: Final = 1 << 20
_MAX_SESSION_BYTES: Final = 4 << 20
_MAX_EVENTS: Final = 1024
_STATUSES: Final = ("asserted", "refuted", "unknown")


@dataclass(frozen=True, slots=True, kw_only=True)
class AciAnswer:
    """
    An exchange for which a receipt verified, body digests included.

    `sessions` are the ids (hex) of upstream sessions that the service says it verified;
    `unverified` counts upstreams that it says it could not verify and was not required to.
    """

    receipt: AciReceipt
    sessions: tuple[str, ...]
    unverified: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AciSession:
    """
    A session document whose id and evidence digest fit; its statements are the service's words.

    Times are seconds since 1970. `asserted` are the names of claims that the service asserts,
    `evidence` the exact bytes that it keeps.
    """

    id: str
    established_at: int
    expires_at: int
    asserted: tuple[str, ...]
    evidence: bytes


def verify_answer(
    receipt: bytes, *, keyset: Mapping[str, JsonValue], request: bytes, response: bytes
) -> AciAnswer:
    """
    Establish that a key of `keyset` signed a receipt for these exact bytes.

    `request` and `response` are the bodies as they went over the wire. **Does not check** the
    keyset, nor anything that the receipt says about time or upstreams, except that no required
    upstream check has failed. Raises `FormatError` for what is no receipt, `ReceiptRejected` for
    what is not believed.
    """
    if len(receipt) > _MAX_RECEIPT_BYTES:
        _malformed(f"{len(receipt)} bytes, at most {_MAX_RECEIPT_BYTES}")
    verified = verify_receipt(receipt, keyset=keyset)
    value = parse_json(receipt, what="ACI receipt", reason=Reason.RECEIPT_FORMAT)
    members = Members(value, what="ACI receipt", reason=Reason.RECEIPT_FORMAT)
    events = [
        Members(item, what=f"ACI receipt: event {at}", reason=Reason.RECEIPT_FORMAT)
        for at, item in enumerate(members.items("event_log", max_items=_MAX_EVENTS))
    ]
    named = [(event.text("type", max_chars=128), event) for event in events]
    _require_body(named, "request.received", request)
    _require_body(named, "response.returned", response)
    sessions, unverified = _upstreams(named)
    return AciAnswer(receipt=verified, sessions=sessions, unverified=unverified)


def _require_body(events: Sequence[tuple[str, Members]], name: str, body: bytes) -> None:
    found = [event for kind, event in events if kind == name]
    if len(found) != 1:
        _refuse(f"{name} stands {len(found)} times", Reason.TRANSCRIPT_BROKEN)
    if found[0].text("body_hash") != f"sha256:{hashlib.sha256(body).hexdigest()}":
        _refuse(f"{name} is about other bytes", Reason.RESPONSE_SIGNATURE)


def _upstreams(events: Sequence[tuple[str, Members]]) -> tuple[tuple[str, ...], int]:
    sessions, unverified = [], 0
    for kind, event in events:
        if kind != "upstream.verified":
            continue
        required = event.boolean("required")
        if event.choice("result", ("verified", "failed")) == "verified":
            session = event.text("session_id", max_chars=64)
            if not is_hex(session, 32):
                event.refuse("session_id is not 32 bytes of hex")
            sessions.append(session)
        elif required:
            _refuse("an answer although a required check has failed", Reason.RESPONSE_SIGNATURE)
        else:
            unverified += 1
    return tuple(sessions), unverified


def verify_session(raw: bytes, *, sessions: Sequence[str]) -> AciSession:
    """
    Establish that `raw` is the session document of one of the ids in `sessions` (hex).

    Raises `FormatError` (SERVICE_FORMAT), or `ReceiptRejected` where the id is another one or the
    evidence in it does not have the digest it states.
    """
    limits = JsonLimits(max_bytes=_MAX_SESSION_BYTES)
    what = "ACI session"
    value = parse_json(raw, what=what, reason=Reason.SERVICE_FORMAT, limits=limits)
    members = object_of(value, what)
    if not isinstance(value, dict):  # pragma: no cover - `object_of` refused it already
        raise TypeError("not an object")
    found = session_id(value)
    members.choice("api_version", ("aci/1",))
    claims = members.value("claims")
    if not isinstance(claims, dict):
        members.refuse("claims is not an object")
    evidence = members.members("evidence")
    digest, data = evidence.text("digest"), evidence.value("data")
    if not isinstance(data, str):
        evidence.refuse("data is not a string")
    head, comma, body = data.partition(";base64,")
    if not comma or not head.startswith("data:"):
        evidence.refuse("data is not a data URI in base64")
    kept = b64decode(body, what=f"{what}: evidence", reason=Reason.SERVICE_FORMAT)
    session = AciSession(
        id=found,
        established_at=members.integer("established_at"),
        expires_at=members.integer("expires_at"),
        asserted=_asserted(claims, what),
        evidence=kept,
    )
    if found not in sessions:
        _refuse("the session is not one that the receipt names", Reason.RECEIPT_NOT_REFERENCED)
    if digest != f"sha256:{hashlib.sha256(kept).hexdigest()}":
        _refuse("the evidence of the session is not what it states", Reason.DIGEST_MISMATCH)
    return session


def _asserted(claims: Mapping[str, JsonValue], what: str) -> tuple[str, ...]:
    found = []
    for name, value in claims.items():
        # From: channels-and-receipts.md §7: `extra` holds whatever the service likes.
        if name == "extra":
            continue
        claim = object_of(value, f"{what}: a claim")
        if claim.choice("status", _STATUSES) == "asserted":
            found.append(name)
    return tuple(sorted(found))


def answer_finding(capture: Capture, evidence: Evidence) -> Finding:
    """
    Judge the documents `receipt`, `request`, `response` and, where present, `session`.

    `subject` is the attester. NOT_PROVEN where documents are absent. Raises nothing for hostile
    documents: what is malformed has failed.
    """
    documents, subject = capture.documents, evidence.attesters[0].name
    if "receipt" not in documents:
        return _unproven(subject, "no receipt of an exchange was presented")
    if "request" not in documents or "response" not in documents:
        return _unproven(subject, "a receipt without the exact bytes of request and response")
    try:
        answer = verify_answer(
            documents["receipt"],
            keyset=_keyset(capture),
            request=documents["request"],
            response=documents["response"],
        )
        if "session" in documents:
            verify_session(documents["session"], sessions=answer.sessions)
    except FormatError as error:
        return Finding(Status.FAIL, _STEP, _CLAUSE, subject, error.what, error.reason)
    except ReceiptRejected as error:
        return replace(error.failures[0], subject=subject)
    upstream = f"{len(answer.sessions)} upstream sessions verified, in its own words"
    if answer.unverified:
        upstream += f", {answer.unverified} not"
    return Finding(Status.PASS, _STEP, _CLAUSE, subject, upstream)


def _keyset(capture: Capture) -> Mapping[str, JsonValue]:
    top = object_of(report_object(capture, what="ACI report"), "ACI report")
    keyset = top.members("attestation").value("workload_keyset")
    if not isinstance(keyset, dict):  # pragma: no cover - the reader of the report refused it
        top.refuse("workload_keyset is not an object")
    return keyset


def _unproven(subject: str, detail: str) -> Finding:
    return Finding(Status.NOT_PROVEN, _STEP, _CLAUSE, subject, detail)


def _malformed(why: str) -> NoReturn:
    raise FormatError(f"ACI receipt: {why}", reason=Reason.RECEIPT_FORMAT, clause=_CLAUSE)


def _refuse(detail: str, reason: Reason) -> NoReturn:
    raise ReceiptRejected((Finding(Status.FAIL, _STEP, _CLAUSE, "response", detail, reason),))
