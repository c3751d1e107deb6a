"""How the candidates of stage `broker` are written down."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from confide.crypto.ed25519 import Ed25519Signer
from confide.wire.keyset import format_time
from conformance.own.candidate import NOW, Candidate, drawn

if TYPE_CHECKING:
    from collections.abc import Mapping

    from confide.errors import Reason

__all__ = ["BROKER", "OTHER_BROKER", "make"]

BROKER: Final = Ed25519Signer(drawn("broker"))
OTHER_BROKER: Final = Ed25519Signer(drawn("another broker"))


def make(
    kind: str,
    slug: str,
    reason: Reason | None = None,
    files: Mapping[str, bytes] | None = None,
    /,
    **members: Any,
) -> Candidate:
    """
    Return a candidate that is kept; each file's role is its name up to the dot.

    `members` are those of the case beside `kind`, `files` and `now`.
    """
    files = dict(files or {})
    case: dict[str, Any] = {"kind": kind, "now": format_time(NOW), **members}
    if files:
        case["files"] = {name.partition(".")[0]: name for name in files}
    return Candidate(slug, case, files, reason, kept=True)
