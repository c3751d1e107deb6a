"""Receipts of releases and refusals: what the broker says it decided, signed with its key. Pure.

Clauses: docs/protocols/broker.md 5.1, 5.2. A receipt binds the answer to one resource, session, key
and JWE, so that whoever sits between can withhold and not replace. It says what was decided, never
that the decision was right: the owners' release, which it names, says that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from confide.appraisal.steps import Refused, Step, established, run_steps
from confide.broker.refusal import DOC
from confide.crypto.ed25519 import verify_ed25519
from confide.crypto.errors import BadSignature
from confide.errors import Reason, ReceiptRejected
from confide.wire.dsse import Envelope, encode_statement, pae, parse_statement_payload
from confide.wire.keyset import format_time, parse_time

if TYPE_CHECKING:
    from datetime import datetime

    from confide.crypto.ed25519 import Ed25519Signer
    from confide.wire.json import JsonValue, Members

__all__ = [
    "SECRET_RELEASE",
    "SecretDecision",
    "issue_decision",
    "parse_decision",
    "verify_release",
]

SECRET_RELEASE: Final = "confide:secret-release/v1"  # noqa: S105 - a name
_Accepts = Literal["expectation", "policy"]
_REASON: Final = Reason.RECEIPT_FORMAT
_ACCEPTS: Final[tuple[_Accepts, ...]] = ("expectation", "policy")


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretDecision:
    """
    The predicate of 5.1; byte strings are 32 bytes. None where nothing was decided about it.

    `outcome` is released exactly where `reason` is None.
    """

    broker: bytes
    resource: str | None
    version: bytes | None
    reason: str | None
    accepts: _Accepts | None
    against: bytes | None
    evidence: bytes
    session: bytes
    tee_pubkey: bytes
    release: bytes | None
    jwe: bytes | None
    at: datetime

    @property
    def released(self) -> bool:
        """Whether the value was sealed for the session."""
        return self.reason is None

    def __post_init__(self) -> None:
        """Refuse a release that leaves something open (`ValueError`)."""
        parts = (self.resource, self.version, self.accepts, self.against, self.release, self.jwe)
        if self.released and None in parts:
            raise ValueError("a release says what, to whom, and by whose word")
        if not self.released and self.jwe is not None:
            raise ValueError("a refusal has no answer")

    def encode(self) -> bytes:
        """Return the payload: a canonical in-toto Statement."""
        predicate: dict[str, JsonValue] = {
            "broker": self.broker.hex(),
            "resource": self.resource,
            "version": _hex(self.version),
            "outcome": "released" if self.released else "refused",
            "reason": self.reason,
            "accepts": self.accepts,
            "against": _hex(self.against),
            "evidence": self.evidence.hex(),
            "session": self.session.hex(),
            "tee_pubkey": self.tee_pubkey.hex(),
            "release": _hex(self.release),
            "jwe": _hex(self.jwe),
            "at": format_time(self.at),
        }
        return encode_statement(SECRET_RELEASE, self._subjects(), predicate)

    def _subjects(self) -> tuple[tuple[str, bytes], ...]:
        if self.resource is None or self.version is None:
            return ()
        return ((self.resource, self.version),)


def _hex(value: bytes | None) -> str | None:
    return None if value is None else value.hex()


def issue_decision(signer: Ed25519Signer, decision: SecretDecision) -> Envelope:
    """Return the receipt of `decision`; keyid is the broker's key in hex."""
    if signer.public_key != decision.broker:
        raise ValueError("a decision of another broker")
    payload = decision.encode()
    return Envelope(payload, ((signer.public_key.hex(), signer.sign(pae(payload))),))


def parse_decision(payload: bytes) -> SecretDecision:
    """Parse the payload of a receipt. Raises `FormatError`; believes nothing."""
    _, members = parse_statement_payload(payload, predicate_type=SECRET_RELEASE)
    outcome = members.choice("outcome", ("released", "refused"))
    try:
        decision = SecretDecision(
            broker=members.hexes("broker", 32),
            resource=_text(members, "resource", 256),
            version=_digest(members, "version"),
            reason=_text(members, "reason", 64),
            accepts=None if members.null("accepts") else members.choice("accepts", _ACCEPTS),
            against=_digest(members, "against"),
            evidence=members.hexes("evidence", 32),
            session=members.hexes("session", 32),
            tee_pubkey=members.hexes("tee_pubkey", 32),
            release=_digest(members, "release"),
            jwe=_digest(members, "jwe"),
            at=parse_time(members.text("at"), what="at", reason=_REASON),
        )
    except ValueError as error:
        members.refuse(str(error))
    members.end()
    # Writing it again gives the subject as well: one that says something else is another payload.
    if (outcome == "released") != decision.released or decision.encode() != payload:
        members.refuse("outcome, reason and subject do not fit together")
    return decision


def _digest(members: Members, name: str) -> bytes | None:
    return None if members.null(name) else members.hexes(name, 32)


def _text(members: Members, name: str, max_chars: int) -> str | None:
    return None if members.null(name) else members.text(name, max_chars=max_chars)


@dataclass(slots=True)
class _State:
    envelope: Envelope
    key: bytes
    session: bytes
    tee_pubkey: bytes
    resource: str
    jwe: bytes
    decision: SecretDecision | None = None


def _signed(state: _State) -> str:
    if [keyid for keyid, _ in state.envelope.signatures] != [state.key.hex()]:
        raise Refused(Reason.RECEIPT_SIGNATURE, "not signed by this broker alone")
    try:
        verify_ed25519(state.key, state.envelope.signatures[0][1], pae(state.envelope.payload))
    except BadSignature as error:
        raise Refused(Reason.RECEIPT_SIGNATURE, error.what) from error
    decision = parse_decision(state.envelope.payload)
    if decision.broker != state.key:
        raise Refused(Reason.SECRET_MISMATCH, "names another broker")
    state.decision = decision
    return "signed by the broker that was expected"


def _about_us(state: _State) -> str:
    decision = established(state.decision)
    if (decision.session, decision.tee_pubkey) != (state.session, state.tee_pubkey):
        raise Refused(Reason.SECRET_MISMATCH, "about another session or key")
    return "about this session and key"


def _about_it(state: _State) -> str:
    decision = established(state.decision)
    if not decision.released:
        raise Refused(Reason.SECRET_MISMATCH, "a refusal")
    if (decision.resource, decision.jwe) != (state.resource, state.jwe):
        raise Refused(Reason.SECRET_MISMATCH, "about another resource or answer")
    return "about this resource and answer"


_STEPS: Final = (
    Step("broker-receipt/1", f"{DOC}#5.2", _signed),
    Step("broker-receipt/2", f"{DOC}#5.2", _about_us, ("broker-receipt/1",)),
    Step("broker-receipt/3", f"{DOC}#5.2", _about_it, ("broker-receipt/1",)),
)


def verify_release(
    envelope: Envelope,
    *,
    key: bytes,
    session: bytes,
    tee_pubkey: bytes,
    resource: str,
    jwe: bytes,
) -> SecretDecision:
    """
    Establish that the broker with `key` released `resource` in `jwe` (SHA-256 of the answer).

    To this session and this key, and to no other. Whether the receipt is in a log is for whoever
    holds its proof. Raises `ReceiptRejected`: RECEIPT_SIGNATURE, SECRET_MISMATCH, RECEIPT_FORMAT.
    """
    state = _State(envelope, key, session, tee_pubkey, resource, jwe)
    findings = run_steps(_STEPS, state, subject="broker receipt")
    if any(finding.failed for finding in findings):
        raise ReceiptRejected(findings)
    return established(state.decision)
