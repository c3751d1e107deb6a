"""Who decides about a repository: k of n Ed25519 keys. Pure.

Clauses: docs/protocols/release.md §1. The file that configures a broker has one table for each
repository: `owners`, a list of keys in hex, and `threshold`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from confide.broker.names import parse_repository
from confide.errors import Reason
from confide.wire.json import JsonValue, Members, jcs
from confide.wire.toml import parse_toml

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["MAX_OWNERS", "Owners", "make_owners", "parse_owners", "parse_owners_file"]

# From: release.md 1.1.
MAX_OWNERS: Final = 16
_TYPE: Final = "confide/owners/v1"
_REASON: Final = Reason.RELEASE_FORMAT
_MAX_FILE_CHARS: Final = 1 << 20
_KEY_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Owners:
    """The owners of one repository: `threshold` of `keys`, which are distinct and sorted."""

    repository: str
    threshold: int
    keys: tuple[bytes, ...]

    def document(self) -> dict[str, JsonValue]:
        """Return the JSON document of 1.1."""
        return {
            "type": _TYPE,
            "repository": self.repository,
            "threshold": self.threshold,
            "keys": [key.hex() for key in self.keys],
        }

    @property
    def digest(self) -> bytes:
        """SHA-256 of the canonical document: how statements name this set."""
        return hashlib.sha256(jcs(self.document())).digest()


def make_owners(repository: str, *, threshold: int, keys: Sequence[bytes]) -> Owners:
    """Return the set of these owners, given in any order. Raises `FormatError`."""
    document = Owners(repository, threshold, tuple(sorted(keys))).document()
    return parse_owners(document)


def parse_owners(value: JsonValue) -> Owners:
    """Parse the document of 1.1. Raises `FormatError` with RELEASE_FORMAT."""
    members = Members(value, what="owners", reason=_REASON)
    members.choice("type", (_TYPE,))
    repository = parse_repository(members.text("repository"), reason=_REASON)
    found = _parse_set(members, repository, name="keys")
    if list(found.keys) != sorted(found.keys):
        members.refuse("keys are not sorted")
    return found


def _parse_set(members: Members, repository: str, *, name: str) -> Owners:
    keys = []
    for text in members.texts(name, max_items=MAX_OWNERS):
        key = Members({"key": text}, what="owners: an owner", reason=_REASON)
        keys.append(key.hexes("key", _KEY_BYTES))
    if not keys or len(set(keys)) != len(keys):
        members.refuse(f"{name} are not 1 to {MAX_OWNERS} distinct keys")
    threshold = members.integer("threshold", low=1, high=len(keys))
    members.end()
    return Owners(repository, threshold, tuple(keys))


def parse_owners_file(text: str) -> tuple[Owners, ...]:
    """
    Parse the file that configures a broker; by repository, each with its owners in any order.

    Raises `FormatError` with RELEASE_FORMAT, also for a file that names no repository.
    """
    top = parse_toml(text, what="owners file", reason=_REASON, max_chars=_MAX_FILE_CHARS)
    found = []
    for name, table in sorted(top.items()):
        repository = parse_repository(name, reason=_REASON)
        members = Members(table, what=f"owners file: {repository}", reason=_REASON)
        listed = _parse_set(members, repository, name="owners")
        found.append(Owners(repository, listed.threshold, tuple(sorted(listed.keys))))
    if not found:
        Members({}, what="owners file", reason=_REASON).refuse("no repository has owners")
    return tuple(found)
