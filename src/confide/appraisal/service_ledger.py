"""What is being established about one attester: claims that only get worse, findings in order.

Clauses: docs/protocols/services.md §5. A claim is written once by the step that establishes it;
whatever comes later (a remark of the reader, a contradiction) can lower it and never raise it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from confide.rats import Claim, Status

if TYPE_CHECKING:
    from collections.abc import Iterable

    from confide.appraisal.claim_names import ClaimName
    from confide.rats import Finding
    from confide.reasons import Reason

__all__ = ["DOC", "WORST", "Ledger"]

DOC: Final = "docs/protocols/services.md"
# How bad a status is: the worse of two stands.
WORST: Final = {Status.PASS: 0, Status.NOT_PROVEN: 1, Status.FAIL: 2}


@dataclass(slots=True)
class Ledger:
    """
    Claims and findings of one attester.

    `subject` names it in findings, `reasons` says why claims failed. `prefix` is `SIMULATED `
    under simulated roots and stands before every source.
    """

    subject: str
    prefix: str = ""
    claims: dict[ClaimName, Claim] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    reasons: dict[ClaimName, Reason] = field(default_factory=dict)

    def add(self, findings: Iterable[Finding]) -> None:
        """Append the findings of a nested appraisal."""
        self.findings.extend(findings)

    def proven(self, name: ClaimName, step: str, source: str, value: str) -> None:
        """Record that `step` established `name`, on the word of `source`."""
        self._record(name, Status.PASS, step, f"{self.prefix}{source}", value)

    def open(self, name: ClaimName, step: str, why: str) -> None:
        """Record that nobody vouches for `name`, and why."""
        self._record(name, Status.NOT_PROVEN, step, "nobody", why)

    def contradicted(self, name: ClaimName, step: str, reason: Reason, why: str) -> None:
        """Record that the evidence contradicts `name`, and for which reason."""
        if self.status(name) is not Status.FAIL:
            self.reasons[name] = reason
        self._record(name, Status.FAIL, step, "nobody", why)

    def status(self, name: ClaimName) -> Status | None:
        """Return the status of a claim, None where it was not made."""
        claim = self.claims.get(name)
        return claim.status if claim is not None else None

    def holds(self, name: ClaimName) -> bool:
        """Whether `name` is proven so far."""
        return self.status(name) is Status.PASS

    def _record(self, name: ClaimName, status: Status, step: str, source: str, value: str) -> None:
        before = self.claims.get(name)
        if before is not None and WORST[before.status] >= WORST[status]:
            return
        self.claims[name] = Claim(name.value, status, source, step, _clause(step), value)


def _clause(step: str) -> str:
    return f"{DOC}#{step.removeprefix('service/')}"
