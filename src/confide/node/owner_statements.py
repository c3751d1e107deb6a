"""What each kind of statement changes: a verified one in, edits and the answer out. Blocking.

Clauses: docs/protocols/release.md §2.3 to §2.7, §3. Writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from confide.broker.beside import open_value, policy_beside
from confide.broker.holdings import Held
from confide.broker.ledger import HeldRelease, HeldRevocation, HeldSecret, Repository
from confide.broker.release import KnownRelease, standing
from confide.broker.statement_kinds import (
    Listing,
    OwnersChange,
    Release,
    Removal,
    Revocation,
    Secret,
)
from confide.errors import Reason, ReleaseRefused
from confide.node.owner_ledger import Unlogged
from confide.rats import Finding, Status
from confide.wire.keyset import format_time

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from confide.broker.beside import Submission
    from confide.broker.statement import VerifiedStatement
    from confide.crypto.kem import PrivateKey
    from confide.node.broker_store import Edit
    from confide.node.owner_ledger import OwnerLedger
    from confide.wire.json import JsonValue

__all__ = ["TakenStatement", "prepare"]


@dataclass(frozen=True, slots=True)
class TakenStatement:
    """
    What a statement does to the store, and how it is answered.

    `unlogged` has to go into the log; `standing` then says how it stands at a time.
    """

    repository: Repository
    edits: Sequence[Edit]
    answer: dict[str, JsonValue]
    unlogged: Unlogged | None = None
    standing: Callable[[datetime], str] | None = None


@dataclass(frozen=True, slots=True)
class _Case:
    verified: VerifiedStatement
    submission: Submission
    repository: Repository
    ledger: OwnerLedger
    opener: PrivateKey
    now: datetime

    def taken(self, state: str, edits: Sequence[Edit] = ()) -> TakenStatement:
        return TakenStatement(self.repository, edits, {"state": state})


def prepare(
    verified: VerifiedStatement,
    submission: Submission,
    *,
    repository: Repository,
    ledger: OwnerLedger,
    opener: PrivateKey,
    now: datetime,
) -> TakenStatement:
    """Return what `verified` does to `repository` as it was read. Raises `ReleaseRefused`."""
    counted = replace(repository, taken=repository.taken + 1)
    case = _Case(verified, submission, counted, ledger, opener, now)
    body = verified.statement.body
    _require_nothing_else(submission, body)
    match body:
        case Secret():
            return _put(case, body)
        case Removal():
            return _remove(case, body)
        case Release():
            return _release(case)
        case Revocation():
            return _revoke(case, body)
        case OwnersChange():
            return _change_owners(case, body)
        case Listing():
            return TakenStatement(counted, (), {"state": "listed", "listing": _listing(case)})


def _require_nothing_else(submission: Submission, body: object) -> None:
    if submission.value is not None and not isinstance(body, Secret):
        raise _refused("owner/7", "2.8", Reason.RELEASE_FORMAT, "a value beside no secret")
    if submission.policy is not None and not isinstance(body, Release):
        raise _refused("owner/8", "2.8", Reason.RELEASE_FORMAT, "a policy beside no release")


def _put(case: _Case, secret: Secret) -> TakenStatement:
    value = open_value(case.verified, case.submission.value, case.opener)
    held = HeldSecret(Held(secret.version, value), case.verified.digest, case.now)
    return case.taken("held", [case.ledger.put_secret(secret.resource, held)])


def _remove(case: _Case, removal: Removal) -> TakenStatement:
    found = case.ledger.secret(removal.resource)
    if found is None or found.held.version != removal.version:
        raise _refused("owner/10", "2.6", Reason.RESOURCE_UNKNOWN, "no such version is held")
    return case.taken("removed", [case.ledger.put_secret(removal.resource, None)])


def _release(case: _Case) -> TakenStatement:
    policy = policy_beside(case.verified, case.submission.policy)
    held = HeldRelease(
        case.verified.envelope,
        case.verified.statement,
        case.repository.taken,
        case.now,
        policy,
    )
    if case.ledger.revoked(case.verified.statement.to.repository, held.digest):
        raise _refused("owner/10", "3.3", Reason.RELEASE_REVOKED, "revoked before it was taken")
    edits = case.ledger.put_release(held)

    def stands(now: datetime) -> str:
        known = case.ledger.known(held.digest)
        return standing(known or KnownRelease(held, revoked=False), now=now)

    unlogged = Unlogged("release", held.digest.hex(), held.digest)
    return TakenStatement(case.repository, edits, {}, unlogged, stands)


def _revoke(case: _Case, revocation: Revocation) -> TakenStatement:
    name = case.verified.statement.to.repository
    if case.ledger.revoked(name, revocation.release):
        return case.taken("revoked")
    held = HeldRevocation(case.verified.envelope, case.now)
    edits = case.ledger.put_revocation(name, revocation.release, held)
    unlogged = Unlogged("revocation", f"{name}/{revocation.release.hex()}", case.verified.digest)
    return TakenStatement(case.repository, edits, {"state": "revoked"}, unlogged)


def _change_owners(case: _Case, change: OwnersChange) -> TakenStatement:
    repository = replace(case.repository, current=change.next)
    return TakenStatement(repository, (), {"state": "changed"})


def _listing(case: _Case) -> dict[str, JsonValue]:
    name = case.repository.began.repository
    return {
        "owners": case.repository.current.document(),
        "secrets": [_secret_row(*each) for each in case.ledger.secrets(name)],
        "releases": [_release_row(each, case.now) for each in case.ledger.releases(name)],
    }


def _secret_row(name: str, secret: HeldSecret) -> dict[str, JsonValue]:
    return {
        "resource": name,
        "version": secret.held.version.hex(),
        "bytes": len(secret.held.value),
        "put": format_time(secret.put),
    }


def _release_row(known: KnownRelease, now: datetime) -> dict[str, JsonValue]:
    held, release = known.held, known.held.release
    return {
        "statement": held.digest.hex(),
        "state": standing(known, now=now),
        "accepts": [{each.name: each.digest.hex()} for each in release.accepts],
        "resources": list(release.resources),
        "not_before": format_time(release.not_before),
        "not_after": format_time(release.not_after),
    }


def _refused(step: str, clause: str, reason: Reason, detail: str) -> ReleaseRefused:
    where = f"docs/protocols/release.md#{clause}"
    return ReleaseRefused((Finding(Status.FAIL, step, where, "statement", detail, reason),))
