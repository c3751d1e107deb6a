"""What a broker holds under a name: a value and its version. Pure.

Clauses: docs/protocols/broker.md §4.2, §5.5.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Held"]


@dataclass(frozen=True, slots=True)
class Held:
    """A value under its version (32 bytes). The value never appears in a `repr`."""

    version: bytes
    value: bytes = field(repr=False)
