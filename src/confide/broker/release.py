"""Which release holds now. release.md §3. Pure.

Works on releases that were verified when they were taken, each with the proof that it is logged
where the broker holds one, and whether an owner revoked it. Decides anew each time that it is
asked: nothing is remembered of an earlier answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from confide.errors import Reason, ReleaseRefused
from confide.rats import Finding, Status

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from confide.broker.ledger import HeldRelease
    from confide.broker.statement_kinds import Accept, Release

__all__ = ["KnownRelease", "Standing", "policies_in_force", "release_in_force", "standing"]

_DOC: Final = "docs/protocols/release.md"


class Standing(StrEnum):
    """How a release stands at one moment."""

    IN_FORCE = "in-force"
    NOT_YET = "not-yet"
    PENDING = "pending"
    EXPIRED = "expired"
    REVOKED = "revoked"


_REFUSALS: Final[dict[Standing, tuple[Reason, str, str]]] = {
    Standing.NOT_YET: (Reason.RELEASE_NOT_YET, "3.2", "a release names it and has not begun"),
    Standing.PENDING: (Reason.RELEASE_PENDING, "3.2", "a release names it and is not logged yet"),
    Standing.EXPIRED: (Reason.RELEASE_EXPIRED, "3.2", "the release that named it last has ended"),
    Standing.REVOKED: (Reason.RELEASE_REVOKED, "3.3", "the release that named it last is revoked"),
}
# From: release.md 3.6. What only time or a log stands before tells more than what is over.
_NEAREST: Final = (Standing.PENDING, Standing.NOT_YET)


@dataclass(frozen=True, slots=True)
class KnownRelease:
    """A release that was taken, and whether an owner revoked it."""

    held: HeldRelease
    revoked: bool


def standing(known: KnownRelease, *, now: datetime) -> Standing:
    """Return how `known` stands at `now`: 3.2, 3.3."""
    release = known.held.release
    if known.revoked:
        return Standing.REVOKED
    if now >= release.not_after:
        return Standing.EXPIRED
    if now < release.not_before:
        return Standing.NOT_YET
    return Standing.PENDING if known.held.logged is None else Standing.IN_FORCE


def release_in_force(
    releases: Sequence[KnownRelease], *, resource: str, accept: Accept, now: datetime
) -> HeldRelease:
    """
    Return the release that lets `resource` out to `accept` at `now`; the first taken of several.

    Step release/1. Raises `ReleaseRefused`: of several that do not hold, it names what comes
    nearest (3.6). **Does not check** the evidence of whoever asks.
    """
    named = sorted(
        (each for each in releases if _names(each.held.release, resource, accept)),
        key=lambda each: each.held.number,
    )
    stands = [(standing(each, now=now), each.held) for each in named]
    for how, held in stands:
        if how is Standing.IN_FORCE:
            return held
    raise _refused([how for how, _ in stands], f"{accept.name} of {resource}")


def _names(release: Release, resource: str, accept: Accept) -> bool:
    return resource in release.resources and accept in release.accepts


def _refused(stands: list[Standing], subject: str) -> ReleaseRefused:
    reason, clause, detail = Reason.RELEASE_MISSING, "3.4", "no release names it"
    if stands:
        nearest = next((each for each in _NEAREST if each in stands), stands[-1])
        reason, clause, detail = _REFUSALS[nearest]
    where = f"{_DOC}#{clause}"
    return ReleaseRefused((Finding(Status.FAIL, "release/1", where, subject, detail, reason),))


def policies_in_force(
    releases: Sequence[KnownRelease], *, resource: str, now: datetime
) -> tuple[tuple[bytes, bytes], ...]:
    """Return (digest, TOML) of each policy that `resource` is released to at `now`."""
    found: dict[bytes, bytes] = {}
    for each in releases:
        held = each.held
        digest, policy = held.release.policy, held.policy
        if digest is None or policy is None or resource not in held.release.resources:
            continue
        if standing(each, now=now) is Standing.IN_FORCE:
            found[digest] = policy
    return tuple(sorted(found.items()))
