"""A broker's receipt of one decision. Bytes to value and back; verifies nothing. Pure.

Clauses: docs/protocols/broker.md 5.1, state.md 4.6. `payload` is hostile. A receipt never tells a
value: it names a resource, a version of it, and for whom what was decided.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from confide.errors import Reason
from confide.wire.dsse import encode_statement, parse_statement_payload
from confide.wire.json import JsonValue, Members
from confide.wire.keyset import format_time, parse_time

if TYPE_CHECKING:
    from datetime import datetime

__all__ = [
    "NO_STATE",
    "SECRET_RELEASE",
    "Accepts",
    "ReleaseReceipt",
    "StateStep",
    "parse_release_receipt",
]

# The digest of a state where there is none yet: state.md 2.3.
NO_STATE: Final = bytes(32)
SECRET_RELEASE: Final = "confide:secret-release/v1"  # noqa: S105 - a name
_OUTCOMES: Final = ("released", "refused")
Accepts = Literal["expectation", "policy"]
_ACCEPTS: Final[tuple[Accepts, ...]] = ("expectation", "policy")
_ACTIONS: Final = ("open", "save")


@dataclass(frozen=True, slots=True)
class StateStep:
    """
    What was decided about a state: `open` or `save`, and of which one (state.md 4.6).

    `counter` and `digest` are None where it was refused for `reason`.
    """

    action: str
    counter: int | None
    digest: bytes | None
    reason: str | None = None

    def document(self) -> dict[str, JsonValue]:
        """Return the JSON object."""
        return {
            "action": self.action,
            "outcome": _outcome(self.reason),
            "reason": self.reason,
            "counter": self.counter,
            "digest": _hex(self.digest),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseReceipt:
    """
    The predicate of one receipt, with its subject: `resource` and `version` (None: undecided).

    `reason` is None exactly for a release. `accepts` is `expectation`, `policy` or None, `against`
    the digest of that one. `state` is there for a state alone, whose version is the digest of the
    sealed bytes. Digests are 32 bytes.
    """

    broker: bytes
    resource: str | None
    version: bytes | None
    reason: str | None
    accepts: Accepts | None
    against: bytes | None
    evidence: bytes
    session: bytes
    tee_pubkey: bytes
    release: bytes | None
    jwe: bytes | None
    at: datetime
    state: StateStep | None = None

    @property
    def released(self) -> bool:
        """Whether the value was sealed for the session."""
        return self.reason is None

    @property
    def inconsistent(self) -> str:
        """Why this cannot be: a release that leaves something open, a refusal that answers."""
        parts = (self.resource, self.version, self.accepts, self.against, self.release, self.jwe)
        if self.released and None in parts:
            return "a release says what, to whom, and by whose word"
        return "a refusal has no answer" if not self.released and self.jwe is not None else ""

    def payload(self) -> bytes:
        """Return the canonical in-toto Statement: what is signed."""
        predicate: dict[str, JsonValue] = {
            "broker": self.broker.hex(),
            "resource": self.resource,
            "version": _hex(self.version),
            "outcome": _outcome(self.reason),
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
        if self.state is not None:
            predicate["state"] = self.state.document()
        return encode_statement(SECRET_RELEASE, self.subjects, predicate)

    @property
    def subjects(self) -> tuple[tuple[str, bytes], ...]:
        """What the statement is about: none where nothing was decided about a version."""
        if self.resource is None or self.version is None:
            return ()
        return ((self.resource, self.version),)


def parse_release_receipt(payload: bytes) -> ReleaseReceipt:
    """Parse the payload of a release receipt. Raises `FormatError`; believes nothing."""
    subjects, members = parse_statement_payload(payload, predicate_type=SECRET_RELEASE)
    receipt = ReleaseReceipt(
        broker=members.hexes("broker", 32),
        resource=_text(members, "resource", 256),
        version=_digest(members, "version"),
        reason=_reason(members),
        accepts=None if members.null("accepts") else members.choice("accepts", _ACCEPTS),
        against=_digest(members, "against"),
        evidence=members.hexes("evidence", 32),
        session=members.hexes("session", 32),
        tee_pubkey=members.hexes("tee_pubkey", 32),
        release=_digest(members, "release"),
        jwe=_digest(members, "jwe"),
        at=parse_time(members.text("at"), what="at", reason=Reason.RECEIPT_FORMAT),
        state=_state_step(members.value("state")) if members.has("state") else None,
    )
    members.end()
    if receipt.inconsistent:
        members.refuse(receipt.inconsistent)
    # The subject says again what the predicate says: two readers must not see two resources.
    if subjects != receipt.subjects:
        members.refuse("the subject is not the resource of the predicate")
    return receipt


def _state_step(value: JsonValue) -> StateStep:
    inner = Members(value, what="state of a release", reason=Reason.RECEIPT_FORMAT)
    step = StateStep(
        action=inner.choice("action", _ACTIONS),
        counter=None if inner.null("counter") else inner.integer("counter"),
        digest=_digest(inner, "digest"),
        reason=_reason(inner),
    )
    inner.end()
    if (step.reason is None) != (step.counter is not None and step.digest is not None):
        inner.refuse("a state is of a counter and digest exactly where it is given")
    return step


def _reason(members: Members) -> str | None:
    """Return the reason of a refusal; `outcome` has to agree with it."""
    outcome, reason = members.choice("outcome", _OUTCOMES), _text(members, "reason", 64)
    if outcome != _outcome(reason):
        members.refuse("a release with a reason, or a refusal without one")
    return reason


def _outcome(reason: str | None) -> str:
    return "released" if reason is None else "refused"


def _hex(digest: bytes | None) -> str | None:
    return None if digest is None else digest.hex()


def _digest(members: Members, name: str) -> bytes | None:
    return None if members.null(name) else members.hexes(name, 32)


def _text(members: Members, name: str, max_chars: int) -> str | None:
    return None if members.null(name) else members.text(name, max_chars=max_chars)
