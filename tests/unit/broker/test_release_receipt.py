"""Receipts of releases: one meaning, one signer, one session, one answer."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import Any

import pytest

from confide.broker.receipt import (
    issue_release_receipt,
    verify_release,
)
from confide.crypto.ed25519 import Ed25519Signer
from confide.errors import FormatError, Reason, ReceiptRejected
from confide.wire.dsse import Envelope, encode_statement, pae
from confide.wire.json import parse_json
from confide.wire.release_receipt import (
    SECRET_RELEASE,
    ReleaseReceipt,
    parse_release_receipt,
)

SIGNER = Ed25519Signer(b"b" * 32)
OTHER = Ed25519Signer(b"o" * 32)
RELEASED = ReleaseReceipt(
    broker=SIGNER.public_key,
    resource="acme/secret/key",
    version=b"v" * 32,
    reason=None,
    accepts="expectation",
    against=b"a" * 32,
    evidence=b"e" * 32,
    session=b"s" * 32,
    tee_pubkey=b"t" * 32,
    release=b"r" * 32,
    jwe=b"j" * 32,
    at=datetime(2026, 11, 22, 12, tzinfo=UTC),
)
REFUSED = replace(
    RELEASED, resource=None, version=None, reason="replayed", accepts=None, against=None,
    release=None, jwe=None,
)  # fmt: skip
EXPECTED: dict[str, Any] = {
    "key": SIGNER.public_key,
    "session": b"s" * 32,
    "tee_pubkey": b"t" * 32,
    "resource": "acme/secret/key",
    "jwe": b"j" * 32,
}


def rejected(envelope: Envelope, **changes: Any) -> set[Reason | None]:
    with pytest.raises(ReceiptRejected) as caught:
        verify_release(envelope, **{**EXPECTED, **changes})
    return {finding.reason for finding in caught.value.failures}


@pytest.mark.parametrize("decision", [RELEASED, REFUSED])
def test_a_receipt_is_read_as_it_was_written(decision: ReleaseReceipt) -> None:
    payload = issue_release_receipt(SIGNER, decision).payload
    assert parse_release_receipt(payload) == decision
    document = parse_json(payload, what="receipt", reason=Reason.RECEIPT_FORMAT)
    assert isinstance(document, dict)
    subject = [{"name": "acme/secret/key", "digest": {"sha256": (b"v" * 32).hex()}}]
    assert document["subject"] == (subject if decision is RELEASED else [])
    assert document["predicateType"] == SECRET_RELEASE


def test_a_release_that_is_about_this_answer_verifies() -> None:
    assert verify_release(issue_release_receipt(SIGNER, RELEASED), **EXPECTED) == RELEASED


@pytest.mark.parametrize("name", ["session", "tee_pubkey", "resource", "jwe"])
def test_a_receipt_about_anything_else_is_a_mismatch(name: str) -> None:
    other: Any = "acme/secret/other" if name == "resource" else b"x" * 32
    assert rejected(issue_release_receipt(SIGNER, RELEASED), **{name: other}) == {
        Reason.SECRET_MISMATCH
    }
    lying = issue_release_receipt(SIGNER, replace(RELEASED, **{name: other}))
    assert rejected(lying) == {Reason.SECRET_MISMATCH}


def test_a_refusal_releases_nothing() -> None:
    decision = replace(RELEASED, reason="replayed", jwe=None)
    assert rejected(issue_release_receipt(SIGNER, decision)) == {Reason.SECRET_MISMATCH}


def test_only_the_brokers_own_signature_counts() -> None:
    envelope = issue_release_receipt(SIGNER, RELEASED)
    foreign = OTHER.sign(pae(envelope.payload))
    own = envelope.signatures[0]
    for signatures in (
        (),
        (own, own),
        ((own[0], foreign),),
        ((OTHER.public_key.hex(), foreign),),
        (own, (OTHER.public_key.hex(), foreign)),
        ((own[0].upper(), own[1]),),
    ):
        assert rejected(Envelope(envelope.payload, signatures)) == {Reason.RECEIPT_SIGNATURE}
    assert rejected(envelope, key=OTHER.public_key) == {Reason.RECEIPT_SIGNATURE}
    # Signed by the one, about the other.
    payload = replace(RELEASED, broker=OTHER.public_key).payload()
    mixed = Envelope(payload, ((own[0], SIGNER.sign(pae(payload))),))
    assert rejected(mixed) == {Reason.SECRET_MISMATCH}
    with pytest.raises(ValueError, match="another broker"):
        issue_release_receipt(OTHER, RELEASED)


@pytest.mark.parametrize("name", ["resource", "version", "accepts", "against", "release", "jwe"])
def test_a_release_leaves_nothing_open(name: str) -> None:
    nothing: Any = None
    with pytest.raises(ValueError, match="a release says"):
        issue_release_receipt(SIGNER, replace(RELEASED, **{name: nothing}))
    with pytest.raises(ValueError, match="no answer"):
        issue_release_receipt(SIGNER, replace(REFUSED, jwe=b"j" * 32))


def _payload(**changes: Any) -> bytes:
    document: Any = parse_json(RELEASED.payload(), what="x", reason=Reason.RECEIPT_FORMAT)
    subjects = changes.pop("subjects", (("acme/secret/key", b"v" * 32),))
    return encode_statement(SECRET_RELEASE, subjects, {**document["predicate"], **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"outcome": "refused"},
        {"outcome": "released", "reason": "replayed"},
        {"subjects": ()},
        {"subjects": (("acme/secret/key", b"w" * 32),)},
        {"subjects": (("acme/secret/other", b"v" * 32),)},
        {"jwe": None},
        {"release": None},
        {"against": "00"},
        {"accepts": "anybody"},
        {"at": "2026-11-22"},
        {"more": 1},
        {"session": None},
    ],
)
def test_a_predicate_that_does_not_fit_together_is_refused(changes: dict[str, Any]) -> None:
    assert parse_release_receipt(_payload()) == RELEASED
    with pytest.raises(FormatError):
        parse_release_receipt(_payload(**changes))


def test_every_member_is_in_the_predicate() -> None:
    document: Any = parse_json(RELEASED.payload(), what="x", reason=Reason.RECEIPT_FORMAT)
    named = {field.name for field in fields(RELEASED)} - {"state"}
    assert named | {"outcome"} == set(document["predicate"])
