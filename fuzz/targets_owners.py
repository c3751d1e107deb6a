"""Targets: what owners say to a key broker, and what it keeps and says. release.md."""

from __future__ import annotations

from log_world import NOW
from owner_world import ALICE, BOB, DATASET, KEYS, OLD_CODE, SOLE, owners, release, sealed, signed

from confide.broker.beside import Submission, open_value, parse_submission, policy_beside
from confide.broker.info import BrokerInfo, sign_broker_info, verify_broker_info
from confide.broker.ledger import (
    HeldRelease,
    HeldRevocation,
    Logged,
    Repository,
    parse_held_release,
    parse_held_revocation,
    parse_repository_record,
)
from confide.broker.owner_key import encode_owner_key, load_owner_key
from confide.broker.owners import parse_owners, parse_owners_file
from confide.broker.statement import verify_statement
from confide.broker.statement_kinds import (
    Body,
    Listing,
    OwnersChange,
    Release,
    Removal,
    Revocation,
    Secret,
    make_payload,
    parse_statement,
)
from confide.wire.json import jcs
from fuzz.driver import Target
from fuzz.pieces import document, fixed, text

_POLICY = b'type = "confide/policy/v1"\nname = "theirs"\nprofile = "strict"\n'
_FILE = f'[acme]\nowners = ["{ALICE.public_key.hex()}"]\nthreshold = 1\n'.encode()
_INFO = BrokerInfo(KEYS.key, KEYS.opener.public_key.raw, {"acme": SOLE.digest}, simulated=True)
_SECRET, _SEALED = sealed()
_BODIES: tuple[Body, ...] = (
    release(OLD_CODE, policy=_POLICY),
    _SECRET,
    OwnersChange(owners(2, ALICE, BOB)),
    Revocation(OLD_CODE),
    Removal(DATASET, OLD_CODE),
    Listing(),
)
_ENVELOPES = tuple(signed(SOLE, body, ALICE) for body in _BODIES)


def _statement(raw: bytes) -> None:
    # What is read has one spelling: the one that was read.
    found = parse_statement(raw)
    assert make_payload(found.to, found.body) == raw


def _submission(raw: bytes) -> None:
    submission = parse_submission(raw)
    found = verify_statement(
        submission.envelope, broker=KEYS.key, owners={SOLE.repository: SOLE}, now=NOW
    )
    # Whatever is accepted is what was signed.
    assert found.envelope.payload in {each.payload for each in _ENVELOPES}
    if isinstance(found.statement.body, Secret):
        open_value(found, submission.value, KEYS.opener)
    if isinstance(found.statement.body, Release):
        policy_beside(found, submission.policy)


def _submissions() -> tuple[bytes, ...]:
    beside: dict[int, tuple[bytes | None, bytes | None]] = {0: (None, _POLICY), 1: (_SEALED, None)}
    # Not the change of owners, which a new one would have to sign too.
    return tuple(
        Submission(envelope, *beside.get(at, (None, None))).encode()
        for at, envelope in enumerate(_ENVELOPES)
        if at != 2
    )


def _info(raw: bytes) -> None:
    verify_broker_info(raw, sign_broker_info(raw, KEYS.signer), key=KEYS.key)


def _releases() -> tuple[bytes, ...]:
    envelope = _ENVELOPES[0]
    statement = parse_statement(envelope.payload)
    logged = Logged(NOW, "proof")
    return (
        HeldRelease(envelope, statement, 1, NOW, _POLICY, logged).encode(),
        HeldRelease(envelope, statement, 2, NOW).encode(),
    )


OWNER_TARGETS: tuple[Target, ...] = (
    Target("owners-file", text(parse_owners_file), fixed(_FILE), tokens=(b"[a]\n", b"threshold")),
    Target("owners", document(parse_owners), fixed(jcs(SOLE.document())), json_values=True),
    Target(
        "owner-statement",
        _statement,
        lambda: tuple(each.payload for each in _ENVELOPES),
        json_values=True,
        tokens=(b"confide:", b"/v1", b"acme/", b"9999-12-31T23:59:59Z"),
    ),
    Target("owner-submission", _submission, _submissions, json_values=True),
    Target("owner-key", load_owner_key, fixed(encode_owner_key(bytes(32))), tokens=(b"\n",)),
    Target("broker-info", _info, lambda: (_INFO.encode(),), json_values=True),
    Target("held-release", parse_held_release, _releases, json_values=True),
    Target(
        "held-revocation",
        parse_held_revocation,
        fixed(HeldRevocation(_ENVELOPES[3], NOW).encode()),
        json_values=True,
    ),
    Target(
        "owners-repository",
        parse_repository_record,
        fixed(Repository(SOLE, SOLE, 3).encode()),
        json_values=True,
    ),
)
