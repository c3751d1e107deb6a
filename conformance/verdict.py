"""What judging one case gives, and how it compares with what the index expects."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Unclear", "Verdict"]


class Unclear(Exception):
    """The case asks for something that the stage does not know; never an acceptance."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """
    The outcome of one case.

    `reason` is the first failure's identifier, `reasons` those of every failed step (an index may
    name any of them), `differences` what was read and is not what the case says was there
    (claims, facts): a case with differences did not pass, whatever its outcome. `claims` is what
    an accepted case says, for the answer of `check`; a stage may leave it empty.
    """

    outcome: Literal["accept", "reject", "unsupported", "malformed"]
    reason: str = ""
    reasons: tuple[str, ...] = ()
    detail: str = ""
    differences: tuple[str, ...] = ()
    claims: dict[str, Any] = field(default_factory=dict, hash=False)
