"""What a broker keeps of what owners said: forms of its records. Pure.

Clauses: docs/protocols/release.md §1.2, §2, §3. Records are sealed (broker.md §7): what is read
here was written by the broker itself, after it had verified it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from confide.broker.holdings import Held
from confide.broker.owners import Owners, parse_owners
from confide.broker.statement_kinds import Release, Statement, parse_statement
from confide.errors import Reason
from confide.wire.dsse import Envelope, parse_envelope
from confide.wire.json import JsonValue, Members, b64encode, jcs, parse_json
from confide.wire.keyset import format_time, parse_time

if TYPE_CHECKING:
    from datetime import datetime

__all__ = [
    "HeldRelease",
    "HeldRevocation",
    "HeldSecret",
    "Logged",
    "Repository",
    "parse_held_release",
    "parse_held_revocation",
    "parse_held_secret",
    "parse_repository_record",
]

_REASON: Final = Reason.VAULT_FORMAT
_REPOSITORY: Final = "confide/broker-repository/v1"
_SECRET: Final = "confide/broker-secret/v1"  # noqa: S105 - the name of a form
_RELEASE: Final = "confide/broker-release/v1"
_REVOCATION: Final = "confide/broker-revocation/v1"


def _open(raw: bytes, kind: str) -> Members:
    members = Members(parse_json(raw, what=kind, reason=_REASON), what=kind, reason=_REASON)
    members.choice("type", (kind,))
    return members


def _moment(members: Members, name: str) -> datetime:
    return parse_time(members.text(name), what=name, reason=_REASON)


@dataclass(frozen=True, slots=True)
class Logged:
    """
    A proof that was verified, as it was (log.md §6).

    `by` is the time of log.md 5.3, None where nobody vouches for one.
    """

    by: datetime | None
    proof: str

    def document(self) -> dict[str, JsonValue]:
        """Return the JSON document."""
        return {"by": None if self.by is None else format_time(self.by), "proof": self.proof}


def _parse_logged(members: Members) -> Logged | None:
    if members.null("logged"):
        return None
    inner = members.members("logged")
    by = None if inner.null("by") else _moment(inner, "by")
    logged = Logged(by, inner.text("proof", max_chars=1 << 21))
    inner.end()
    return logged


@dataclass(frozen=True, slots=True)
class Repository:
    """
    The owners that a repository began with, those that decide now, and how many statements it took.

    Every statement counts one on: two that are taken at once are so told apart (1.3, 2.2).
    """

    began: Owners
    current: Owners
    taken: int

    def encode(self) -> bytes:
        """Return the record."""
        return jcs(
            {
                "type": _REPOSITORY,
                "began": self.began.document(),
                "current": self.current.document(),
                "taken": self.taken,
            }
        )


def parse_repository_record(raw: bytes) -> Repository:
    """Parse what `Repository.encode` returned. Raises `FormatError`."""
    members = _open(raw, _REPOSITORY)
    found = Repository(
        parse_owners(members.value("began")),
        parse_owners(members.value("current")),
        members.integer("taken"),
    )
    members.end()
    return found


@dataclass(frozen=True, slots=True)
class HeldSecret:
    """A value, its version, and the statement that put it."""

    held: Held = field(repr=False)
    statement: bytes
    put: datetime

    def encode(self) -> bytes:
        """Return the record. Secret."""
        return jcs(
            {
                "type": _SECRET,
                "version": self.held.version.hex(),
                "value": b64encode(self.held.value),
                "statement": self.statement.hex(),
                "put": format_time(self.put),
            }
        )


def parse_held_secret(raw: bytes) -> HeldSecret:
    """Parse what `HeldSecret.encode` returned. Raises `FormatError`."""
    members = _open(raw, _SECRET)
    held = Held(members.hexes("version", 32), members.base64("value"))
    found = HeldSecret(held, members.hexes("statement", 32), _moment(members, "put"))
    members.end()
    return found


@dataclass(frozen=True, slots=True)
class HeldRelease:
    """
    A release that was taken: verified then, in force or not.

    `statement` is what `envelope` says; `number` counts the statements of its repository; `policy`
    is the policy's own bytes.
    """

    envelope: Envelope
    statement: Statement
    number: int
    taken: datetime
    policy: bytes | None = None
    logged: Logged | None = None

    @property
    def digest(self) -> bytes:
        """How revocations, receipts and the log name it."""
        return self.envelope.digest

    @property
    def release(self) -> Release:
        """What it releases to whom; `TypeError` where the statement says something else."""
        body = self.statement.body
        if not isinstance(body, Release):
            raise TypeError("not a release")
        return body

    def encode(self) -> bytes:
        """Return the record."""
        return jcs(
            {
                "type": _RELEASE,
                "envelope": self.envelope.document(),
                "number": self.number,
                "taken": format_time(self.taken),
                "policy": None if self.policy is None else b64encode(self.policy),
                "logged": None if self.logged is None else self.logged.document(),
            }
        )


def parse_held_release(raw: bytes) -> HeldRelease:
    """Parse what `HeldRelease.encode` returned. Raises `FormatError`."""
    members = _open(raw, _RELEASE)
    envelope = parse_envelope(members.value("envelope"), reason=_REASON)
    found = HeldRelease(
        envelope,
        parse_statement(envelope.payload),
        members.integer("number"),
        _moment(members, "taken"),
        None if members.null("policy") else members.base64("policy"),
        _parse_logged(members),
    )
    members.end()
    if not isinstance(found.statement.body, Release):
        members.refuse("the statement is no release")
    return found


@dataclass(frozen=True, slots=True)
class HeldRevocation:
    """A revocation that was taken: it holds, logged or not (3.3)."""

    envelope: Envelope
    taken: datetime
    logged: Logged | None = None

    def encode(self) -> bytes:
        """Return the record."""
        return jcs(
            {
                "type": _REVOCATION,
                "envelope": self.envelope.document(),
                "taken": format_time(self.taken),
                "logged": None if self.logged is None else self.logged.document(),
            }
        )


def parse_held_revocation(raw: bytes) -> HeldRevocation:
    """Parse what `HeldRevocation.encode` returned. Raises `FormatError`."""
    members = _open(raw, _REVOCATION)
    found = HeldRevocation(
        parse_envelope(members.value("envelope"), reason=_REASON),
        _moment(members, "taken"),
        _parse_logged(members),
    )
    members.end()
    return found
