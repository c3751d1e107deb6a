"""A statement in words, for whoever is about to sign it. Decides nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from confide.broker.statement_kinds import (
    Listing,
    OwnersChange,
    Release,
    Removal,
    Revocation,
    Secret,
)
from confide.wire.keyset import format_time

if TYPE_CHECKING:
    from confide.broker.statement_kinds import Statement

__all__ = ["statement_rows"]


def statement_rows(statement: Statement) -> list[tuple[str, str]]:
    """Return (label, value) for everything that `statement` says."""
    to = statement.to
    return [
        ("kind", statement.body.KIND),
        ("broker", to.broker.hex()),
        ("repository", to.repository),
        ("issued", format_time(to.issued)),
        *_body_rows(statement),
    ]


def _body_rows(statement: Statement) -> list[tuple[str, str]]:
    match statement.body:
        case Secret() as secret:
            return [
                ("puts", secret.resource),
                ("version", secret.version.hex()),
                ("bytes", str(secret.size)),
            ]
        case Removal() as removal:
            return [("destroys", removal.resource), ("version", removal.version.hex())]
        case Release() as release:
            accepted = ", ".join(f"{each.name} {each.digest.hex()}" for each in release.accepts)
            return [
                ("releases", ", ".join(release.resources)),
                ("to", accepted),
                ("from", format_time(release.not_before)),
                ("until", format_time(release.not_after)),
            ]
        case Revocation() as revocation:
            return [("revokes", revocation.release.hex())]
        case OwnersChange() as change:
            keys = ", ".join(key.hex() for key in change.next.keys)
            return [("owners", keys), ("threshold", str(change.next.threshold))]
        case Listing():
            return [("asks", "what is there")]
