"""What a broker holds for owners, as whoever decides about a release sees it. A Protocol, pure.

Clauses: docs/protocols/broker.md 4.2, release.md §3. What stands behind it blocks: call it from a
worker thread. Only what the owners signed can be read through it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from confide.wire.json import JsonValue

__all__ = ["Held", "Holdings"]


@dataclass(frozen=True, slots=True)
class Held:
    """The value of a resource; `version` (32 bytes) tells versions apart and tells nothing."""

    version: bytes
    value: bytes = field(repr=False)


class Holdings(Protocol):
    """Values of owners, and what they signed about them."""

    def value(self, resource: str) -> Held | None:
        """
        Return the value of `resource`, None where there is none.

        Raises `FormatError` for one that does not open, `Unavailable` without a store.
        """
        ...

    def require_release(
        self,
        resource: str,
        *,
        accepts: Literal["expectation", "policy"],
        digest: bytes,
        now: datetime,
    ) -> bytes:
        """
        Return the digest of the release in force now that lets `digest` open `resource`.

        Raises `ReleaseRefused` (RELEASE_MISSING, _PENDING, _NOT_YET, _EXPIRED, _REVOKED).
        """
        ...

    def policies(self, resource: str, *, now: datetime) -> Sequence[tuple[bytes, bytes]]:
        """Return digest and TOML bytes of each policy with a release in force for `resource`."""
        ...

    def repositories(self) -> dict[str, bytes]:
        """Return by repository the digest of the set of owners that decides (1.3)."""
        ...

    async def take(self, body: bytes) -> dict[str, JsonValue]:
        """Take a statement of owners (release.md 2.8); the answer. Does not block."""
        ...
