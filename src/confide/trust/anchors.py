"""The type of a trust anchor: a root the caller passes on purpose, and the names under it.

Pure data. An anchor is never chosen by evidence: appraisal uses the ones it is given.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

__all__ = ["TdxAnchor", "TdxNames"]


@dataclass(frozen=True, slots=True)
class TdxNames:
    """Common names expected under a TDX root; clauses docs/protocols/tdx.md#7 and #11."""

    root: str
    pck_authorities: tuple[str, ...]
    pck_leaf: str
    tcb_signer: str


@dataclass(frozen=True, slots=True)
class TdxAnchor:
    """
    A root certificate (`der`) trusted for TDX, and the names it vouches for.

    `simulated` travels into every verdict that rests on this anchor.
    """

    der: bytes = field(repr=False)
    names: TdxNames = field(repr=False)
    simulated: bool

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) over `der`: the name of this anchor in verdicts."""
        return hashlib.sha256(self.der).hexdigest()
