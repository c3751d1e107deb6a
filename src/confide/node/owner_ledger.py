"""The owners' records in the store, by name: values out, edits in. Blocking.

Clauses: docs/protocols/release.md §1.2, §2.2, §3. Every edit of one statement goes into the store
together, with one to the record of its repository: of two statements at once, one is tried again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from confide.broker.ledger import (
    HeldRelease,
    HeldRevocation,
    HeldSecret,
    Logged,
    Repository,
    parse_held_release,
    parse_held_revocation,
    parse_held_secret,
    parse_repository_record,
)
from confide.broker.release import KnownRelease
from confide.errors import Reason
from confide.node.broker_store import Edit
from confide.wire.json import Members, jcs, parse_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from confide.node.broker_store import Entry, SealedStore

__all__ = ["OwnerLedger", "Unlogged"]

# Kinds of records (broker.md 7.1).
_OWNERS: Final = "owners"
_SECRET: Final = "secret"  # noqa: S105 - a kind of record
_RELEASE: Final = "release"
_REVOCATION: Final = "revocation"
# What a resource was ever released by, so that a request reads no release of another one.
_RELEASED: Final = "released"
_SEEN: Final = "statement"
_UNLOGGED: Final = "unlogged"


@dataclass(frozen=True, slots=True)
class Unlogged:
    """Something that has to go into the log: the kind and name of its record, and its digest."""

    kind: str
    name: str
    digest: bytes

    @property
    def entry(self) -> str:
        """The name of the record that remembers it."""
        return f"{self.kind}/{self.name}"


class OwnerLedger:
    """Typed access to the records of a `SealedStore` that statements change."""

    def __init__(self, store: SealedStore) -> None:
        self._store = store

    def apply(self, edits: Sequence[Edit]) -> bool:
        """Make all `edits`; False where somebody was faster: read again."""
        return self._store.apply(edits)

    # Repositories.

    def repositories(self) -> dict[str, Repository]:
        """Return every repository by name."""
        return {
            entry.name: parse_repository_record(entry.value)
            for entry in self._store.entries(_OWNERS)
        }

    def repository(self, name: str) -> tuple[Repository, int] | None:
        """Return a repository and the revision of its record."""
        entry = self._store.get(_OWNERS, name)
        return None if entry is None else (parse_repository_record(entry.value), entry.revision)

    def put_repository(self, record: Repository, *, expected: int) -> Edit:
        """Return the edit that writes `record` over revision `expected`."""
        return Edit(_OWNERS, record.began.repository, expected, record.encode())

    # Statements, each taken once.

    def seen(self, digest: bytes) -> bool:
        """Whether the statement was taken."""
        return self._store.get(_SEEN, digest.hex()) is not None

    def put_seen(self, digest: bytes) -> Edit:
        """Return the edit that remembers that the statement was taken."""
        return Edit(_SEEN, digest.hex(), 0, b"")

    # Values.

    def secret(self, resource: str) -> HeldSecret | None:
        """Return the value of `resource`."""
        entry = self._store.get(_SECRET, resource)
        return None if entry is None else parse_held_secret(entry.value)

    def secrets(self, repository: str) -> list[tuple[str, HeldSecret]]:
        """Return the values of a repository, by name."""
        return [
            (entry.name, parse_held_secret(entry.value))
            for entry in self._store.entries(_SECRET)
            if entry.name.startswith(f"{repository}/")
        ]

    def put_secret(self, resource: str, secret: HeldSecret | None) -> Edit:
        """Return the edit that replaces the value of `resource`; None destroys it."""
        value = None if secret is None else secret.encode()
        return Edit(_SECRET, resource, self._revision(_SECRET, resource), value)

    # Releases.

    def releases_of(self, resource: str) -> list[KnownRelease]:
        """Return every release that ever named `resource`, with what became of it."""
        found = (self._store.get(_RELEASE, name) for name in self._released(resource))
        return [self._known(entry) for entry in found if entry is not None]

    def releases(self, repository: str) -> list[KnownRelease]:
        """Return the releases of a repository in the order in which they were taken."""
        every = (self._known(entry) for entry in self._store.entries(_RELEASE))
        own = [each for each in every if each.held.statement.to.repository == repository]
        return sorted(own, key=lambda each: each.held.number)

    def known(self, digest: bytes) -> KnownRelease | None:
        """Return one release."""
        entry = self._store.get(_RELEASE, digest.hex())
        return None if entry is None else self._known(entry)

    def _known(self, entry: Entry) -> KnownRelease:
        held = parse_held_release(entry.value)
        # Read after the release: a revocation that came between counts.
        return KnownRelease(held, self.revoked(held.statement.to.repository, held.digest))

    def _released(self, resource: str) -> list[str]:
        entry = self._store.get(_RELEASED, resource)
        if entry is None:
            return []
        value = parse_json(entry.value, what=_RELEASED, reason=Reason.VAULT_FORMAT)
        members = Members({"names": value}, what=_RELEASED, reason=Reason.VAULT_FORMAT)
        return list(members.texts("names", max_items=1 << 20))

    def put_release(self, held: HeldRelease) -> list[Edit]:
        """Return the edits that keep a new release, under each of its resources, to be logged."""
        name = held.digest.hex()
        edits = [Edit(_RELEASE, name, 0, held.encode())]
        for resource in held.release.resources:
            names = jcs([*self._released(resource), name])
            edits.append(Edit(_RELEASED, resource, self._revision(_RELEASED, resource), names))
        return [*edits, _to_log(Unlogged(_RELEASE, name, held.digest))]

    # Revocations. Named by the repository too: its owners revoke its own releases alone.

    def revoked(self, repository: str, release: bytes) -> bool:
        """Whether an owner of `repository` revoked `release`, known here or not."""
        return self._store.get(_REVOCATION, f"{repository}/{release.hex()}") is not None

    def put_revocation(self, repository: str, release: bytes, held: HeldRevocation) -> list[Edit]:
        """Return the edits that keep a revocation, to be logged."""
        name = f"{repository}/{release.hex()}"
        unlogged = Unlogged(_REVOCATION, name, held.envelope.digest)
        return [Edit(_REVOCATION, name, 0, held.encode()), _to_log(unlogged)]

    # The log.

    def unlogged(self) -> list[Unlogged]:
        """Return everything that is not in the log yet."""
        found = []
        for entry in self._store.entries(_UNLOGGED):
            kind, _, name = entry.name.partition("/")
            found.append(Unlogged(kind, name, entry.value))
        return found

    def mark_logged(self, what: Unlogged, logged: Logged) -> bool:
        """Keep the proof of `what`; False where somebody was faster."""
        waiting = self._store.get(_UNLOGGED, what.entry)
        entry = self._store.get(what.kind, what.name)
        if waiting is None or entry is None:
            return True
        held: HeldRelease | HeldRevocation
        if what.kind == _RELEASE:
            held = replace(parse_held_release(entry.value), logged=logged)
        else:
            held = replace(parse_held_revocation(entry.value), logged=logged)
        kept = Edit(what.kind, what.name, entry.revision, held.encode())
        return self.apply([kept, Edit(_UNLOGGED, what.entry, waiting.revision, None)])

    def proof(self, what: Unlogged) -> str | None:
        """Return the proof that `what` is logged, None while it is not."""
        entry = self._store.get(what.kind, what.name)
        if entry is None:
            return None
        parse = parse_held_release if what.kind == _RELEASE else parse_held_revocation
        logged = parse(entry.value).logged
        return None if logged is None else logged.proof

    def _revision(self, kind: str, name: str) -> int:
        entry = self._store.get(kind, name)
        return 0 if entry is None else entry.revision


def _to_log(what: Unlogged) -> Edit:
    return Edit(_UNLOGGED, what.entry, 0, what.digest)
