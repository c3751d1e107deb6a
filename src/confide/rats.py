"""The values of remote attestation, in the words of RFC 9334 (RATS).

Frozen, serialisable, without behaviour beyond reading themselves. A `Finding` records one
numbered step; a `Claim` is what a person wants to know; an `AttestationResult` holds the
claims of one appraisal together with everything that was assumed: roots, policy digest, time.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from confide.reasons import Reason

__all__ = ["AttestationResult", "Claim", "Finding", "Status"]


class Status(StrEnum):
    """Three values, because absence of a check is not a pass."""

    PASS = "pass"  # noqa: S105 - a verdict, not a password
    FAIL = "fail"
    NOT_PROVEN = "not-proven"


@dataclass(frozen=True, slots=True)
class Finding:
    """
    What one numbered step found.

    `step` is the stable id (`tdx/21`), `clause` the sentence it implements, `subject` what it
    looked at (`model-node/gpu[0]`), `detail` our own words: sizes, indexes, digests; never
    text chosen by a peer. `reason` is set exactly when `status` is FAIL.
    """

    status: Status
    step: str
    clause: str
    subject: str
    detail: str = ""
    reason: Reason | None = None

    def __post_init__(self) -> None:
        if (self.status is Status.FAIL) != (self.reason is not None):
            raise ValueError("a finding has a reason exactly when it failed")

    @property
    def failed(self) -> bool:
        """True when the step was run and refused."""
        return self.status is Status.FAIL

    def __str__(self) -> str:
        cause = f"{self.reason}: " if self.reason is not None else ""
        detail = f"{cause}{self.detail}".rstrip(": ")
        return f"step {self.step} {self.status} on {self.subject}" + (
            f": {detail}" if detail else ""
        )


@dataclass(frozen=True, slots=True)
class Claim:
    """
    One named statement about the attester, as a relying party reads it.

    `source` says who vouches (`Intel`, `NVIDIA`, `measured node software`, or `nobody`);
    `step` and `clause` say where it was established; `value` is the fact, printable.
    """

    name: str
    status: Status
    source: str
    step: str
    clause: str
    value: str = ""


@dataclass(frozen=True, slots=True)
class AttestationResult:
    """
    The verdict of one appraisal. Never a boolean: read the claims.

    `simulated` is true when any root in `roots` is a simulated one. `policy_digest` and
    `roots` are SHA-256 hex. `not_after` is the earliest instant at which an input expires.
    `parts` are the results of the attesters or devices that this one is about, each complete in
    itself; a claim of the whole is no better than that claim of any part. `limits` says in words
    what this result does not show, whatever its claims say.
    """

    subject: str
    simulated: bool
    roots: tuple[str, ...]
    policy_digest: str
    now: datetime
    not_after: datetime
    claims: tuple[Claim, ...]
    findings: tuple[Finding, ...]
    parts: tuple[AttestationResult, ...] = ()
    limits: tuple[str, ...] = ()

    def claim(self, name: str) -> Claim:
        """Return the claim called `name`; `KeyError` where the appraisal did not make it."""
        for claim in self.claims:
            if claim.name == name:
                return claim
        raise KeyError(name)
