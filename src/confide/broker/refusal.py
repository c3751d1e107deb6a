"""How the broker says no: one finding, of one numbered step. Pure.

Steps `broker/1` to `broker/11` are those of docs/protocols/broker.md §3 and 4.2, as `attested` and
`decision` run them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from confide.errors import ReleaseRefused
from confide.rats import Finding, Status

if TYPE_CHECKING:
    from confide.reasons import Reason

__all__ = ["DOC", "refusal"]

DOC: Final = "docs/protocols/broker.md"


def refusal(reason: Reason, detail: str, *, step: str, clause: str) -> ReleaseRefused:
    """Return the error to raise; `detail` is our own words, `clause` like `4.2`."""
    found = Finding(Status.FAIL, f"broker/{step}", f"{DOC}#{clause}", "broker", detail, reason)
    return ReleaseRefused((found,))
