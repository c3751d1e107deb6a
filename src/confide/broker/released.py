"""What a broker gave to a run: verified, wiped with the run. Pure.

Clauses: docs/protocols/broker.md §5, state.md §2. Values never appear in a `repr`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from confide.wire.dsse import Envelope

__all__ = ["OpenedState", "ReleasedSecret"]


@dataclass(frozen=True, slots=True)
class ReleasedSecret:
    """A secret by its name in the Expectation; `version` (32 bytes) tells versions apart."""

    name: str
    version: bytes
    receipt: Envelope
    value: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class OpenedState:
    """
    A state under a lease. `counter` 0, `digest` zeros and `sealed` empty where there is none yet.

    `key` (32 bytes) seals what is saved as `counter` + 1 (docs/protocols/state.md 3.1).
    """

    resource: str
    counter: int
    digest: bytes
    receipt: Envelope
    sealed: bytes = field(repr=False)
    key: bytes = field(repr=False)
