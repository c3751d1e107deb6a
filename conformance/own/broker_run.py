"""Candidates of stage `broker`, kind `run`: what a run says it got, and ways of lying about it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from confide.broker.receipt import issue_release_receipt
from confide.errors import Reason
from confide.receipts.transcript import Transcript
from confide.wire.release_receipt import NO_STATE, ReleaseReceipt, StateStep
from conformance.own.broker_attestation import expectation
from conformance.own.broker_case import BROKER, OTHER_BROKER, make
from conformance.own.candidate import NOW, drawn

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from confide.crypto.ed25519 import Ed25519Signer
    from confide.wire.dsse import Envelope
    from confide.wire.json import JsonValue
    from conformance.own.candidate import Candidate

__all__ = ["candidates"]

_SAVED: Final = drawn("sealed state")


def _receipt(resource: str, version: bytes, state: StateStep | None = None) -> ReleaseReceipt:
    return ReleaseReceipt(
        broker=BROKER.public_key,
        resource=resource,
        version=version,
        reason=None,
        accepts="expectation",
        against=expectation().digest,
        evidence=drawn("evidence"),
        session=drawn("session"),
        tee_pubkey=drawn("thumbprint"),
        release=drawn("release"),
        jwe=drawn(f"jwe of {resource}"),
        at=NOW,
        state=state,
    )


def _honest() -> tuple[ReleaseReceipt, ReleaseReceipt, ReleaseReceipt]:
    """Return the receipts of a secret, of the first opening of a state, and of its saving."""
    opened, saved = StateStep("open", 0, NO_STATE), StateStep("save", 1, _SAVED)
    return (
        _receipt("acme/secret/dataset", drawn("version")),
        _receipt("acme/state/agent", NO_STATE, opened),
        _receipt("acme/state/agent", _SAVED, saved),
    )


def _issued(receipts: Sequence[ReleaseReceipt]) -> tuple[Envelope, ...]:
    return tuple(issue_release_receipt(BROKER, each) for each in receipts)


def _told(secret: Envelope, opened: Envelope, saved: Envelope | None = None) -> list[JsonValue]:
    """Return the events of a run that got these; it kept the old state where none was saved."""
    log = Transcript()
    log.append("run-started", mode="batch", image=drawn("image"))
    log.append("model-verified", keyset=drawn("k"), evidence=drawn("e"), nonce=drawn("n"))
    log.append("secret-released", name="dataset", version=drawn("version"), receipt=secret.digest)
    log.append("state-opened", counter=0, digest=NO_STATE, receipt=opened.digest)
    log.append("agent-started", image=drawn("image"))
    log.append("agent-exited", end="exited", status=0, egress_unreported=0)
    if saved is None:
        log.append("state-kept", reason="unavailable")
    else:
        log.append("state-saved", counter=1, digest=_SAVED, receipt=saved.digest)
    log.append("model-closed", evidence=drawn("e"), claim=drawn("c"), receipts=0)
    log.append("run-finished", result="completed")
    return log.documents()


_SECRET, _OPENED, _STORED = 2, 3, 6


def _case(
    slug: str, events: list[JsonValue], receipts: Sequence[Envelope], reason: Reason | None = None
) -> Candidate:
    files = {
        "transcript.json": json.dumps(events).encode(),
        "receipts.json": json.dumps([each.document() for each in receipts]).encode(),
        "expectation.json": expectation().canonical(),
    }
    return make("run", f"run-{slug}", reason, files)


def _changed(events: list[JsonValue], at: int, **members: Any) -> list[JsonValue]:
    event = events[at]
    if not isinstance(event, dict):
        raise TypeError("an event is an object")
    return [*events[:at], {**event, **members}, *events[at + 1 :]]


def _without(events: list[JsonValue], at: int) -> list[JsonValue]:
    rest: list[Any] = [*events[:at], *events[at + 1 :]]
    return [{**event, "seq": number} for number, event in enumerate(rest)]


def _resigned(at: int, receipt: ReleaseReceipt, by: Ed25519Signer = BROKER) -> list[Envelope]:
    """Return the receipts with one of them replaced."""
    receipts = list(_issued(_honest()))
    receipts[at] = issue_release_receipt(by, receipt)
    return receipts


def candidates() -> Iterator[Candidate]:
    """Yield every candidate."""
    secret, opened, saved = _honest()
    receipts = _issued(_honest())
    events = _told(*receipts)
    yield _case("with-a-secret-and-a-state", events, receipts)
    kept = _told(*receipts[:2])
    yield _case("that-kept-the-old-state", kept, receipts[:2])
    mismatch, fork = Reason.SECRET_MISMATCH, Reason.STATE_FORK
    another = {"digest": drawn("another").hex()}
    for slug, told, given, reason in (
        ("without-a-receipt", events, receipts[1:], Reason.RECEIPT_MISSING),
        ("with-a-receipt-twice", events, (*receipts, receipts[0]), Reason.RECEIPT_NOT_REFERENCED),
        ("silent-about-a-save", kept, receipts, Reason.RECEIPT_NOT_REFERENCED),
        ("silent-about-a-secret", _without(events, _SECRET), receipts, mismatch),
        ("of-another-secret", _changed(events, _SECRET, name="other"), receipts, mismatch),
        ("of-another-version", _changed(events, _SECRET, version=drawn("another").hex()), receipts,
         mismatch),
        ("silent-about-its-state", _without(events, _STORED), receipts, mismatch),
        ("that-saved-something-else", _changed(events, _STORED, **another), receipts, mismatch),
        ("that-left-a-number-out", _changed(events, _STORED, counter=2), receipts, fork),
        ("that-saved-what-it-opened", _changed(events, _STORED, counter=0), receipts, fork),
    ):  # fmt: skip
        yield _case(slug, told, given, reason)
    foreign = replace(secret, broker=OTHER_BROKER.public_key)
    elsewhere = replace(opened, against=drawn("another Expectation"))
    for slug, altered, reason in (
        ("of-another-broker", _resigned(0, foreign, OTHER_BROKER), Reason.RECEIPT_SIGNATURE),
        ("of-another-resource", _resigned(0, replace(secret, resource="acme/secret/b")), mismatch),
        ("under-another-expectation", _resigned(1, elsewhere), Reason.EXPECTATION_MISMATCH),
        ("with-a-save-for-an-opening", _resigned(1, replace(saved, jwe=drawn("j"))), mismatch),
    ):
        yield _case(f"receipt-{slug}", _told(*altered), altered, reason)
