"""What a store of keys and usage is asked, and what it answers. Pure: the words of `TenantStore`.

docs/protocols/tenancy.md §4. A ledger holds counts: no text, no sizes of single calls, no address.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from confide.tenancy.budget import Charge
    from confide.tenancy.keys import KeyRecord

__all__ = [
    "Find",
    "Operation",
    "Outcome",
    "Reserve",
    "Settle",
    "Spent",
    "UsageLine",
    "grant",
    "hour_of",
]


@dataclass(frozen=True, slots=True)
class Find:
    """Look up a key by its digest. Answer: the `KeyRecord`, or None."""

    digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserve:
    """Add `tokens` to what a key spent in the period, unless that is above `budget`: a `Spent`."""

    reservation: str
    key_id: str
    endpoint: str
    period: datetime
    budget: int | None
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Settle:
    """
    Put `charge` in the place of a reservation, and add the call to the ledger. Answer: None.

    The reservation was granted in an earlier transaction. One that is not there was settled before:
    nothing is done, so asking again is safe.
    """

    reservation: str
    key_id: str
    hour: datetime
    endpoint: str
    charge: Charge
    failed: bool
    cancelled: bool


@dataclass(frozen=True, slots=True)
class Spent:
    """What a key spent in its period, reservations among it; `granted` where one was added."""

    granted: bool
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageLine:
    """One line of the ledger: what a key used at one endpoint in one hour."""

    key_id: str
    tenant: str
    hour: datetime
    endpoint: str
    calls: int
    failed: int
    cancelled: int
    input_tokens: int
    output_tokens: int
    estimated: int


Operation: TypeAlias = "Find | Reserve | Settle"
Outcome: TypeAlias = "KeyRecord | Spent | None"


def grant(spent: int, asked: Sequence[Reserve]) -> dict[str, Spent]:
    """
    Return who of those that ask may spend, in order, where `spent` is spent already (§3.4).

    Whoever asks for too much takes nothing from those behind him.
    """
    answers = {}
    for reserve in asked:
        after = spent + reserve.tokens
        granted = reserve.budget is None or after <= reserve.budget
        spent = after if granted else spent
        answers[reserve.reservation] = Spent(granted, spent)
    return answers


def hour_of(now: datetime) -> datetime:
    """Return the hour of `now`: the finest time that a ledger holds."""
    return now.replace(minute=0, second=0, microsecond=0)
