"""One candidate for a vector: its case, its files, and the reason that must refuse it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from confide.errors import Reason

__all__ = ["NONCE", "NOW", "REPORT_DATA", "SEED", "Candidate", "drawn"]

SEED: Final = b"conformance"
NOW: Final = datetime(2026, 11, 22, 8, 30, tzinfo=UTC)
NONCE: Final = bytes(range(32))
REPORT_DATA: Final = bytes(range(64))


def drawn(name: str, size: int = 32) -> bytes:
    """Return bytes that stand for random ones, the same for the same `name`."""
    return hashlib.shake_256(SEED + b"/" + name.encode()).digest(size)


@dataclass(frozen=True, slots=True)
class Candidate:
    """
    `case` names files as they are called in `files`; equal contents are stored once.

    `reason` is None where the case must be accepted. One that is `kept` becomes a vector also where
    another shows its reason, and generating fails where the verifier judges it otherwise.
    """

    slug: str
    case: dict[str, Any]
    files: dict[str, bytes]
    reason: Reason | None = None
    check: str = ""
    roles: tuple[str, ...] = field(default=())
    kept: bool = False
