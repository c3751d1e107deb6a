"""The inputs of one case of stage `broker`, as its kinds read them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

__all__ = ["Inputs", "sha256"]


def sha256(raw: bytes) -> str:
    """Return the digest in hex: how a claim names bytes."""
    return hashlib.sha256(raw).hexdigest()


@dataclass(frozen=True, slots=True)
class Inputs:
    """A case, the contents of its files by role, and the time at which it is judged."""

    case: Mapping[str, Any]
    files: Mapping[str, bytes]
    now: datetime

    def octets(self, name: str) -> bytes:
        """Return the bytes of a member in hex. `KeyError` where it is absent."""
        return bytes.fromhex(self.case[name])
