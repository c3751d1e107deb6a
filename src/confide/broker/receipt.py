"""Receipts of releases and refusals: what the broker says it decided, signed with its key. Pure.

Clauses: docs/protocols/broker.md 5.1, 5.2. A receipt binds the answer to one resource, session, key
and JWE, so that whoever sits between can withhold and not replace. It says what was decided, never
that the decision was right: the owners' release, which it names, says that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from confide.appraisal.steps import Refused, Step, established, run_steps
from confide.broker.refusal import DOC
from confide.crypto.ed25519 import verify_ed25519
from confide.crypto.errors import BadSignature
from confide.errors import Reason, ReceiptRejected
from confide.wire.dsse import Envelope, pae
from confide.wire.release_receipt import ReleaseReceipt, parse_release_receipt

if TYPE_CHECKING:
    from confide.crypto.ed25519 import Ed25519Signer

__all__ = ["issue_release_receipt", "verify_release"]


def issue_release_receipt(signer: Ed25519Signer, decision: ReleaseReceipt) -> Envelope:
    """Return the receipt of `decision`; keyid is the broker's key in hex."""
    if signer.public_key != decision.broker:
        raise ValueError("a decision of another broker")
    if decision.inconsistent:
        raise ValueError(decision.inconsistent)
    payload = decision.payload()
    return Envelope(payload, ((signer.public_key.hex(), signer.sign(pae(payload))),))


@dataclass(slots=True)
class _State:
    envelope: Envelope
    key: bytes
    session: bytes
    tee_pubkey: bytes
    resource: str
    jwe: bytes
    decision: ReleaseReceipt | None = None


def _signed(state: _State) -> str:
    if [keyid for keyid, _ in state.envelope.signatures] != [state.key.hex()]:
        raise Refused(Reason.RECEIPT_SIGNATURE, "not signed by this broker alone")
    try:
        verify_ed25519(state.key, state.envelope.signatures[0][1], pae(state.envelope.payload))
    except BadSignature as error:
        raise Refused(Reason.RECEIPT_SIGNATURE, error.what) from error
    decision = parse_release_receipt(state.envelope.payload)
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
) -> ReleaseReceipt:
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
