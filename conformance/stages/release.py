"""Stage `release`: what owners signed, and what holds now, to a verdict. docs/protocols/release.md.

Members, beside those of every case: `now`. By `kind`:
`statement`: `files.submission` (the body of 2.8), `files.owners` (a JSON list of the sets of owners
that decide, 1.1), `broker` (its Ed25519 key, hex), `seal` (its X25519 private key, hex).
`in-force`: `files.releases`, a JSON list of `{envelope, logged, revoked}` in the order in which
they were taken; and what is asked: `resource`, `accepts` (`expectation`, `policy`), `digest` (hex).
Accepted with the claim `release`: the digest of the statement that holds.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

from confide.broker.beside import open_value, parse_submission, policy_beside
from confide.broker.ledger import HeldRelease, Logged
from confide.broker.owners import parse_owners
from confide.broker.release import KnownRelease, release_in_force
from confide.broker.statement import verify_statement
from confide.broker.statement_kinds import Accept, Release, Secret, parse_statement
from confide.crypto.kem import load_private_key
from confide.errors import FormatError, Reason, Rejected
from confide.wire.dsse import parse_envelope
from confide.wire.ohttp import Kem
from conformance.verdict import Unclear, Verdict

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["judge"]


def judge(case: dict[str, Any], folder: Path) -> Verdict:
    """Judge one case whose files are relative to `folder`."""
    now = datetime.fromisoformat(case["now"])
    files = {role: (folder / name).read_bytes() for role, name in case["files"].items()}
    try:
        match case.get("kind"):
            case "statement":
                digest = _statement(case, files, now)
            case "in-force":
                digest = _in_force(case, files, now)
            case kind:
                raise Unclear(f"no such kind: {kind}")
    except Rejected as refusal:
        reasons = tuple(str(finding.reason) for finding in refusal.failures)
        return Verdict("reject", reasons[0], reasons, str(refusal.failures[0]))
    except FormatError as error:
        return Verdict("malformed", error.reason, (error.reason,), error.what)
    claims = {"release": digest.hex()}
    stated = case.get("claims", {})
    wrong = tuple(name for name, value in stated.items() if claims.get(name) != value)
    return Verdict("accept", differences=wrong, claims=claims)


def _statement(case: dict[str, Any], files: dict[str, bytes], now: datetime) -> bytes:
    submission = parse_submission(files["submission"])
    sets = [parse_owners(each) for each in json.loads(files["owners"])]
    verified = verify_statement(
        submission.envelope,
        broker=bytes.fromhex(case["broker"]),
        owners={each.repository: each for each in sets},
        now=now,
    )
    body = verified.statement.body
    if isinstance(body, Secret):
        opener = load_private_key(Kem.X25519, bytes.fromhex(case["seal"]))
        open_value(verified, submission.value, opener)
    if isinstance(body, Release):
        policy_beside(verified, submission.policy)
    return verified.digest


def _in_force(case: dict[str, Any], files: dict[str, bytes], now: datetime) -> bytes:
    known = []
    for number, each in enumerate(json.loads(files["releases"])):
        envelope = parse_envelope(each["envelope"], reason=Reason.RELEASE_FORMAT)
        logged = Logged(None, "") if each["logged"] else None
        statement = parse_statement(envelope.payload)
        held = HeldRelease(envelope, statement, number, now, None, logged)
        known.append(KnownRelease(held, each["revoked"]))
    accept = Accept(case["accepts"], bytes.fromhex(case["digest"]))
    return release_in_force(known, resource=case["resource"], accept=accept, now=now).digest
