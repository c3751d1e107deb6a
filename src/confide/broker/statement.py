"""Signing and verifying what owners say. release.md §2. Pure.

The envelope is hostile; the verifier brings its own key, the sets of owners that decide, and the
time. Performs the steps owner/1 to owner/6.

What the caller still must do: take a statement once, look at what travels beside it
(`broker/beside.py`), and act only on a `VerifiedStatement`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from confide.appraisal.steps import Refused, Step, established, run_steps
from confide.broker.statement_kinds import (
    Listing,
    OwnersChange,
    Revocation,
    Statement,
    parse_statement,
)
from confide.crypto.ed25519 import verify_ed25519
from confide.crypto.errors import BadSignature
from confide.errors import Reason, ReleaseRefused
from confide.wire.dsse import Envelope, pae
from confide.wire.json import is_hex

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from confide.broker.owners import Owners
    from confide.crypto.ed25519 import Ed25519Signer
    from confide.rats import Finding

__all__ = ["STEPS", "VerifiedStatement", "add_signature", "verify_statement"]

_DOC: Final = "docs/protocols/release.md"
_SEAL: Final = object()
# From: release.md 2.2.
_AHEAD: Final = timedelta(seconds=300)
_BEHIND: Final = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class VerifiedStatement:
    """
    A statement to this broker that enough owners of its repository signed.

    `signers` are their keys, sorted. Only `verify_statement` can make one. Says nothing about
    whether it was taken before, nor about what travels beside it.
    """

    envelope: Envelope
    statement: Statement
    signers: tuple[bytes, ...]
    findings: tuple[Finding, ...]
    seal: object = field(repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.seal is not _SEAL:
            raise TypeError("only verify_statement makes a VerifiedStatement")

    @property
    def digest(self) -> bytes:
        """SHA-256 of the payload: how revocations, receipts and the log name it."""
        return self.envelope.digest


@dataclass(slots=True)
class _State:
    envelope: Envelope
    broker: bytes
    owners: Mapping[str, Owners]
    now: datetime
    statement: Statement | None = None
    deciding: Owners | None = None
    signers: frozenset[bytes] = frozenset()


def _form(state: _State) -> str:
    state.statement = parse_statement(state.envelope.payload)
    return state.statement.body.KIND


def _for_this_broker(state: _State) -> None:
    if established(state.statement).to.broker != state.broker:
        raise Refused(Reason.RELEASE_FORMAT, "it is a statement to another broker")


def _set_that_decides(state: _State) -> str:
    to = established(state.statement).to
    owners = state.owners.get(to.repository)
    if owners is None:
        raise Refused(Reason.OWNERS_MISMATCH, "this broker has no owners of that repository")
    if owners.digest != to.owners:
        raise Refused(Reason.OWNERS_MISMATCH, "another set of owners than the one that decides")
    state.deciding = owners
    return f"{owners.threshold} of {len(owners.keys)}"


def _fresh(state: _State) -> None:
    issued = established(state.statement).to.issued
    if issued > state.now + _AHEAD:
        raise Refused(Reason.REQUEST_TIME, "it was issued in the future")
    if issued < state.now - _BEHIND:
        raise Refused(Reason.REQUEST_TIME, f"it was issued more than {_BEHIND.days} days ago")


def _new_keys(state: _State) -> frozenset[bytes]:
    """Return the keys that a change of owners brings in, none for any other statement."""
    body = established(state.statement).body
    if not isinstance(body, OwnersChange):
        return frozenset()
    return frozenset(body.next.keys) - frozenset(established(state.deciding).keys)


def _signatures(state: _State) -> str:
    allowed = frozenset(established(state.deciding).keys) | _new_keys(state)
    message = pae(state.envelope.payload)
    seen: set[bytes] = set()
    for keyid, signature in state.envelope.signatures:
        key = bytes.fromhex(keyid) if is_hex(keyid, 32) else b""
        if key not in allowed:
            raise Refused(Reason.OWNER_SIGNATURE, "signed with a key that is no owner's")
        try:
            verify_ed25519(key, signature, message)
        except BadSignature as error:
            raise Refused(Reason.OWNER_SIGNATURE, "a signature does not verify") from error
        seen.add(key)
    state.signers = frozenset(seen)
    return f"{len(seen)} owner(s)"


def _threshold(state: _State) -> str:
    owners, body = established(state.deciding), established(state.statement).body
    needed = 1 if isinstance(body, Revocation | Listing) else owners.threshold
    signed = len(state.signers & frozenset(owners.keys))
    if signed < needed:
        raise Refused(Reason.OWNER_THRESHOLD, f"{signed} of {needed} owners signed")
    if not _new_keys(state) <= state.signers:
        raise Refused(Reason.OWNER_THRESHOLD, "a key that is new did not sign")
    return f"{signed} of {needed}"


STEPS: tuple[Step[_State], ...] = (
    Step("owner/1", f"{_DOC}#2.1", _form),
    Step("owner/2", f"{_DOC}#2.2", _for_this_broker, ("owner/1",)),
    Step("owner/3", f"{_DOC}#2.2", _set_that_decides, ("owner/1",)),
    Step("owner/4", f"{_DOC}#2.2", _fresh, ("owner/1",)),
    Step("owner/5", f"{_DOC}#2.1", _signatures, ("owner/3",)),
    Step("owner/6", f"{_DOC}#2.1", _threshold, ("owner/5",)),
)


def verify_statement(
    envelope: Envelope, *, broker: bytes, owners: Mapping[str, Owners], now: datetime
) -> VerifiedStatement:
    """
    Establish that `envelope` is a statement to `broker` by enough owners of its repository.

    `broker` is the broker's Ed25519 key, `owners` the set that decides for each repository. Steps
    owner/1 to owner/6. Raises `ReleaseRefused` with one finding a step. **Does not check**
    whether it was taken before (2.2).
    """
    state = _State(envelope, broker, owners, now)
    findings = run_steps(STEPS, state, subject="statement")
    if any(finding.failed for finding in findings):
        raise ReleaseRefused(findings)
    signers = tuple(sorted(state.signers))
    return VerifiedStatement(envelope, established(state.statement), signers, findings, _SEAL)


def add_signature(envelope: Envelope, signer: Ed25519Signer) -> Envelope:
    """
    Return `envelope` with the signature of one more owner, once.

    Raises `FormatError` for a payload that is no statement: nobody signs what cannot be read.
    """
    parse_statement(envelope.payload)
    mine = (signer.public_key.hex(), signer.sign(pae(envelope.payload)))
    return Envelope(envelope.payload, tuple(sorted({*envelope.signatures, mine})))
