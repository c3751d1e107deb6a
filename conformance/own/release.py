"""Candidates of stage `release`: honest statements, and one fault at a time; what holds when."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from confide.broker.beside import Submission, seal_value, secret_version
from confide.broker.owners import Owners, make_owners
from confide.broker.statement import add_signature
from confide.broker.statement_kinds import (
    Accept,
    Addressed,
    Body,
    Listing,
    OwnersChange,
    Release,
    Removal,
    Revocation,
    Secret,
    make_payload,
)
from confide.crypto.ed25519 import Ed25519Signer
from confide.crypto.kem import load_private_key
from confide.errors import Reason
from confide.wire.dsse import Envelope
from confide.wire.keyset import format_time
from confide.wire.ohttp import Kem
from conformance.own.candidate import NOW, SEED, Candidate

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["candidates", "document"]

_DATASET: Final = "acme/secret/dataset"
_POLICY: Final = b'type = "confide/policy/v1"\nname = "theirs"\nprofile = "strict"\n'
_VALUE: Final = b"a value"


def _bytes(name: str) -> bytes:
    return hashlib.sha256(SEED + name.encode()).digest()


_OWNERS: Final = tuple(Ed25519Signer(_bytes(name)) for name in ("alice", "bob", "carol"))
_NEW: Final = Ed25519Signer(_bytes("dave"))
_STRANGER: Final = Ed25519Signer(_bytes("mallory"))
_BROKER: Final = Ed25519Signer(_bytes("broker")).public_key
_SEAL: Final = _bytes("seal")
_CODE: Final = _bytes("Expectation")


def document() -> dict[str, Any]:
    """Return the top of the index."""
    return {}


def _set(threshold: int, *signers: Ed25519Signer) -> Owners:
    keys = [each.public_key for each in signers]
    return make_owners("acme", threshold=threshold, keys=keys)


_ALL: Final = 3


def _consortium() -> Owners:
    return _set(_ALL, *_OWNERS)


def _to(*, broker: bytes = _BROKER, owners: Owners | None = None, at: datetime = NOW) -> Addressed:
    owners = owners or _consortium()
    return Addressed(broker, owners.repository, owners.digest, at, _bytes("nonce"))


def _signed(body: Body, *by: Ed25519Signer, to: Addressed | None = None) -> Envelope:
    envelope = Envelope(make_payload(to or _to(), body), ())
    for signer in by or _OWNERS:
        envelope = add_signature(envelope, signer)
    return envelope


def _release(*, days: int = 30, start: datetime = NOW, policy: bool = False) -> Release:
    accepts = [Accept("expectation", _CODE)]
    if policy:
        accepts.append(Accept("policy", hashlib.sha256(_POLICY).digest()))
    resources = (_DATASET, "acme/state/agent")
    return Release(tuple(accepts), resources, start, start + timedelta(days=days))


def _statement(
    slug: str,
    envelope: Envelope,
    reason: Reason | None = None,
    *,
    value: bytes | None = None,
    policy: bytes | None = None,
) -> Candidate:
    case = {
        "kind": "statement",
        "files": {"submission": "submission.json", "owners": "owners.json"},
        "now": format_time(NOW),
        "broker": _BROKER.hex(),
        "seal": _SEAL.hex(),
    }
    files = {
        "submission.json": Submission(envelope, value, policy).encode(),
        "owners.json": json.dumps([_consortium().document()]).encode(),
    }
    return Candidate(slug, case, files, reason)


def _put() -> Iterator[Candidate]:
    salt = _bytes("salt")
    version = secret_version(salt, _VALUE)
    key = load_private_key(Kem.X25519, _SEAL).public_key.raw
    sealed = seal_value(
        key, _VALUE, resource=_DATASET, version=version, ephemeral=_bytes("ephemeral")
    )
    secret = Secret(_DATASET, version, salt, hashlib.sha256(sealed).digest(), len(_VALUE))
    yield _statement("secret", _signed(secret), value=sealed)
    other = replace(secret, version=secret_version(salt, b"another"))
    yield _statement(
        "version-of-another-value", _signed(other), Reason.RELEASE_FORMAT, value=sealed
    )


def _statements() -> Iterator[Candidate]:
    alice, bob, carol = _OWNERS
    yield _statement("release", _signed(_release()))
    yield _statement("release-to-a-policy", _signed(_release(policy=True)), policy=_POLICY)
    yield _statement("revocation-by-one", _signed(Revocation(_bytes("release")), bob))
    yield _statement("removal", _signed(Removal(_DATASET, _bytes("version"))))
    yield _statement("listing-by-one", _signed(Listing(), carol))
    change = OwnersChange(_set(2, alice, _NEW))
    yield _statement("owners-change", _signed(change, *_OWNERS, _NEW))
    yield _statement("two-of-three", _signed(_release(), alice, bob), Reason.OWNER_THRESHOLD)
    yield _statement(
        "signed-by-a-stranger", _signed(_release(), *_OWNERS, _STRANGER), Reason.OWNER_SIGNATURE
    )
    fewer = _to(owners=_set(2, *_OWNERS))
    yield _statement("another-set", _signed(_release(), to=fewer), Reason.OWNERS_MISMATCH)
    old = _to(at=NOW - timedelta(days=7, seconds=1))
    yield _statement("a-week-old", _signed(_release(), to=old), Reason.REQUEST_TIME)


def _row(release: Release, *, logged: bool = True, revoked: bool = False) -> dict[str, Any]:
    return {"envelope": _signed(release).document(), "logged": logged, "revoked": revoked}


def _asked(
    slug: str, rows: list[dict[str, Any]], reason: Reason | None = None, *, at: datetime = NOW
) -> Candidate:
    case: dict[str, Any] = {
        "kind": "in-force",
        "files": {"releases": "releases.json"},
        "now": format_time(at),
        "resource": _DATASET,
        "accepts": "expectation",
        "digest": _CODE.hex(),
    }
    if reason is None:
        case["claims"] = {"release": _signed(_release()).digest.hex()}
    return Candidate(slug, case, {"releases.json": json.dumps(rows).encode()}, reason)


def _standings() -> Iterator[Candidate]:
    held, second = _release(), timedelta(seconds=1)
    yield _asked("from-its-first-second", [_row(held)])
    yield _asked("until-its-last-second", [_row(held)], at=held.not_after - second)
    ended = _row(_release(start=NOW - timedelta(days=60)))
    yield _asked("beside-others-that-do-not-hold", [ended, _row(held)])
    yield _asked("nothing-names-it", [], Reason.RELEASE_MISSING)
    yield _asked("not-logged", [_row(held, logged=False)], Reason.RELEASE_PENDING)
    yield _asked("before", [_row(held)], Reason.RELEASE_NOT_YET, at=NOW - second)
    yield _asked("after", [_row(held)], Reason.RELEASE_EXPIRED, at=held.not_after)
    # The one taken last says why: the first has only ended.
    revoked = _row(held, revoked=True)
    yield _asked("revoked-after-another-ended", [ended, revoked], Reason.RELEASE_REVOKED)


def candidates() -> Iterator[Candidate]:
    """Yield every candidate."""
    yield from _put()
    yield from _statements()
    yield from _standings()
