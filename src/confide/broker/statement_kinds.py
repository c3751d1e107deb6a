"""What owners say, kind by kind: payload to value and back. Pure; verifies nothing.

Clauses: docs/protocols/release.md §2.2 to §2.7, §3.1. in-toto Statement v1 in RFC 8785 JSON.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, ClassVar, Final, Literal, TypeAlias

from confide.broker.names import STATE, parse_repository, parse_resource
from confide.broker.owners import Owners, parse_owners
from confide.errors import FormatError, Reason
from confide.wire.dsse import encode_statement, parse_typed_payload
from confide.wire.keyset import format_time, parse_time

if TYPE_CHECKING:
    from collections.abc import Callable

    from confide.wire.json import JsonValue, Members

__all__ = [
    "MAX_RELEASE",
    "MAX_VALUE_BYTES",
    "Accept",
    "Accepts",
    "Addressed",
    "Body",
    "Listing",
    "OwnersChange",
    "Release",
    "Removal",
    "Revocation",
    "Secret",
    "Statement",
    "make_payload",
    "parse_statement",
]

# From: release.md 2.3, 3.1.
MAX_VALUE_BYTES: Final = 1 << 20
MAX_RELEASE: Final = timedelta(days=366)
_MAX_NAMES: Final = 64
_REASON: Final = Reason.RELEASE_FORMAT
_RELEASE_NAME: Final = "release"
_DOC: Final = "docs/protocols/release.md"

Accepts = Literal["expectation", "policy"]
_Subjects: TypeAlias = "tuple[tuple[str, bytes], ...]"


def _refuse(why: str, clause: str) -> FormatError:
    return FormatError(f"statement: {why}", reason=_REASON, clause=f"{_DOC}#{clause}")


@dataclass(frozen=True, slots=True)
class Addressed:
    """To whom and when: the members that every statement has (2.2)."""

    broker: bytes
    repository: str
    owners: bytes
    issued: datetime
    nonce: bytes

    def members(self) -> dict[str, JsonValue]:
        """Return the members of the predicate."""
        return {
            "broker": self.broker.hex(),
            "repository": self.repository,
            "owners": self.owners.hex(),
            "issued": format_time(self.issued),
            "nonce": self.nonce.hex(),
        }


@dataclass(frozen=True, slots=True)
class Secret:
    """A value is put: its version, and the SHA-256 of what travels sealed beside it (2.3)."""

    KIND: ClassVar = "confide:secret/v1"
    resource: str
    version: bytes
    salt: bytes
    sealed: bytes
    size: int

    def subjects(self) -> _Subjects:
        """Return the subjects."""
        return ((self.resource, self.version),)

    def members(self) -> dict[str, JsonValue]:
        """Return what the predicate has beside the common members."""
        return {"salt": self.salt.hex(), "sealed": self.sealed.hex(), "bytes": self.size}


@dataclass(frozen=True, slots=True)
class OwnersChange:
    """Other owners decide from now on (2.5)."""

    KIND: ClassVar = "confide:owners-change/v1"
    next: Owners

    def subjects(self) -> _Subjects:
        """Return the subjects."""
        return ((self.next.repository, self.next.digest),)

    def members(self) -> dict[str, JsonValue]:
        """Return what the predicate has beside the common members."""
        return {"next": self.next.document()}


@dataclass(frozen=True, slots=True)
class Accept:
    """What may open: an Expectation, or whatever a policy accepts, by its digest."""

    name: Accepts
    digest: bytes


@dataclass(frozen=True, slots=True)
class Release:
    """Resources open to what it accepts, from `not_before` on and before `not_after` (3.1)."""

    KIND: ClassVar = "confide:release/v1"
    accepts: tuple[Accept, ...]
    resources: tuple[str, ...]
    not_before: datetime
    not_after: datetime

    @property
    def policy(self) -> bytes | None:
        """The digest of the policy that it accepts, None where it accepts Expectations alone."""
        return next((each.digest for each in self.accepts if each.name == "policy"), None)

    def subjects(self) -> _Subjects:
        """Return the subjects."""
        return tuple((each.name, each.digest) for each in self.accepts)

    def members(self) -> dict[str, JsonValue]:
        """Return what the predicate has beside the common members."""
        return {
            "resources": list(self.resources),
            "not_before": format_time(self.not_before),
            "not_after": format_time(self.not_after),
        }


@dataclass(frozen=True, slots=True)
class Revocation:
    """The release whose payload has this digest ends now (2.6, 3.3)."""

    KIND: ClassVar = "confide:revocation/v1"
    release: bytes

    def subjects(self) -> _Subjects:
        """Return the subjects."""
        return ((_RELEASE_NAME, self.release),)

    def members(self) -> dict[str, JsonValue]:
        """Return what the predicate has beside the common members."""
        return {}


@dataclass(frozen=True, slots=True)
class Removal:
    """This version of a value is destroyed (2.6)."""

    KIND: ClassVar = "confide:removal/v1"
    resource: str
    version: bytes

    def subjects(self) -> _Subjects:
        """Return the subjects."""
        return ((self.resource, self.version),)

    def members(self) -> dict[str, JsonValue]:
        """Return what the predicate has beside the common members."""
        return {}


@dataclass(frozen=True, slots=True)
class Listing:
    """What is there is asked for (2.7)."""

    KIND: ClassVar = "confide:listing/v1"

    def subjects(self) -> _Subjects:
        """Return the subjects."""
        return ()

    def members(self) -> dict[str, JsonValue]:
        """Return what the predicate has beside the common members."""
        return {}


Body: TypeAlias = "Secret | OwnersChange | Release | Revocation | Removal | Listing"


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement as its payload has it; nobody vouches for it."""

    to: Addressed
    body: Body


def make_payload(to: Addressed, body: Body) -> bytes:
    """
    Return the payload to sign.

    Raises `FormatError` for one that no broker would take: nobody signs what cannot hold.
    """
    payload = encode_statement(body.KIND, body.subjects(), {**to.members(), **body.members()})
    parse_statement(payload)
    return payload


def parse_statement(payload: bytes) -> Statement:
    """Parse the payload of a statement of any kind. Raises `FormatError` with RELEASE_FORMAT."""
    kind, subjects, predicate = parse_typed_payload(
        payload, predicate_types=tuple(_PARSERS), reason=_REASON
    )
    to = Addressed(
        predicate.hexes("broker", 32),
        parse_repository(predicate.text("repository"), reason=_REASON),
        predicate.hexes("owners", 32),
        _time(predicate, "issued"),
        predicate.hexes("nonce", 32),
    )
    body = _PARSERS[kind](subjects, predicate, to.repository)
    predicate.end()
    return Statement(to, body)


def _time(predicate: Members, name: str) -> datetime:
    return parse_time(predicate.text(name), what=f"statement: {name}", reason=_REASON)


def _only(subjects: _Subjects, clause: str) -> tuple[str, bytes]:
    if len(subjects) != 1:
        raise _refuse("it has one subject", clause)
    return subjects[0]


def _owned(name: str, repository: str, clause: str) -> str:
    """Return the name of a resource that belongs to `repository`."""
    if parse_resource(name, reason=_REASON).repository != repository:
        raise _refuse("a resource of another repository", clause)
    return name


def _secret(subjects: _Subjects, predicate: Members, repository: str) -> Secret:
    name, version = _only(subjects, "2.3")
    if parse_resource(_owned(name, repository, "2.3"), reason=_REASON).type == STATE:
        raise _refuse("a state holds no value that somebody puts", "2.3")
    salt, sealed = predicate.hexes("salt", 32), predicate.hexes("sealed", 32)
    size = predicate.integer("bytes", low=1, high=MAX_VALUE_BYTES)
    return Secret(name, version, salt, sealed, size)


def _owners_change(subjects: _Subjects, predicate: Members, repository: str) -> OwnersChange:
    change = OwnersChange(parse_owners(predicate.value("next")))
    if change.next.repository != repository or change.subjects() != subjects:
        raise _refuse("subject and next are not the same set of this repository", "2.5")
    return change


def _release(subjects: _Subjects, predicate: Members, repository: str) -> Release:
    accepts = tuple(Accept(_accepts(name), digest) for name, digest in subjects)
    resources = predicate.texts("resources", max_items=_MAX_NAMES)
    for name in resources:
        _owned(name, repository, "3.1")
    for listed in (accepts, resources):
        if not 1 <= len(listed) <= _MAX_NAMES or len(set(listed)) != len(listed):
            raise _refuse(f"subjects and resources are 1 to {_MAX_NAMES}, each once", "3.1")
    if sum(each.name == "policy" for each in accepts) > 1:
        raise _refuse("more than one policy", "3.1")
    start, end = _time(predicate, "not_before"), _time(predicate, "not_after")
    if not timedelta() < end - start <= MAX_RELEASE:
        raise _refuse(f"it holds for more than 0 and at most {MAX_RELEASE.days} days", "3.1")
    return Release(accepts, resources, start, end)


def _accepts(name: str) -> Accepts:
    match name:
        case "expectation" | "policy":
            return name
    raise _refuse("a subject is neither an expectation nor a policy", "3.1")


def _revocation(subjects: _Subjects, _predicate: Members, _repository: str) -> Revocation:
    name, digest = _only(subjects, "2.6")
    if name != _RELEASE_NAME:
        raise _refuse("its subject is not a release", "2.6")
    return Revocation(digest)


def _removal(subjects: _Subjects, _predicate: Members, repository: str) -> Removal:
    name, version = _only(subjects, "2.6")
    return Removal(_owned(name, repository, "2.6"), version)


def _listing(subjects: _Subjects, _predicate: Members, _repository: str) -> Listing:
    if subjects:
        raise _refuse("a listing has no subject", "2.7")
    return Listing()


_PARSERS: Final[dict[str, Callable[[_Subjects, Members, str], Body]]] = {
    Secret.KIND: _secret,
    OwnersChange.KIND: _owners_change,
    Release.KIND: _release,
    Revocation.KIND: _revocation,
    Removal.KIND: _removal,
    Listing.KIND: _listing,
}
