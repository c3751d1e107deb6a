"""Tokens: what a call reserves before it, what it is charged after it, and in which period. Pure.

docs/protocols/tenancy.md §3.3 to §3.6. Nobody knows how many tokens a call will use before the
engine did the work, so a call reserves, and is settled by what was counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from confide.inference.digest import Finish
from confide.inference.plan import Endpoint
from confide.tenancy.keys import Period

if TYPE_CHECKING:
    from datetime import datetime

    from confide.inference.digest import InferenceRecord
    from confide.inference.plan import InferencePlan

__all__ = [
    "BYTES_PER_TOKEN",
    "UNCAPPED_OUTPUT",
    "Charge",
    "Demand",
    "EventCount",
    "charge_of",
    "demand_of",
    "period_end",
    "period_start",
]

# From: tenancy.md §3.4.
BYTES_PER_TOKEN = 4
UNCAPPED_OUTPUT = 4096
_MAX_INPUT = 131_072
_MAX_OUTPUT = 1 << 20
# Above what any call uses: what an engine reports does not make sums overflow.
_MAX_REPORTED = 1 << 31
_WRITING = frozenset((Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.RESPONSES))
_READING = frozenset((Endpoint.EMBEDDINGS, Endpoint.RERANK, Endpoint.RERANK_SHORT, Endpoint.SCORE))


@dataclass(frozen=True, slots=True)
class Demand:
    """What a call reserves: estimated tokens of its input, and the most it may write."""

    input_tokens: int
    output_tokens: int

    @property
    def tokens(self) -> int:
        """Both together."""
        return self.input_tokens + self.output_tokens


@dataclass(frozen=True, slots=True)
class Charge:
    """What a call is settled with; `estimated` where the engine did not say."""

    input_tokens: int
    output_tokens: int
    estimated: bool

    @property
    def tokens(self) -> int:
        """Both together."""
        return self.input_tokens + self.output_tokens


class EventCount:
    """
    Counts what came from the engine: bytes, and the events of a stream, however it is cut.

    An event ends with a blank line; no text of a model holds one, because JSON escapes it.
    """

    __slots__ = ("_tail", "bytes", "events")

    def __init__(self) -> None:
        self._tail = b""
        self.bytes = 0
        self.events = 0

    def feed(self, chunk: bytes) -> None:
        """Take in bytes of the engine's answer."""
        self.bytes += len(chunk)
        seen = self._tail + chunk
        ends = seen.count(b"\n\n") + seen.count(b"\r\n\r\n")
        # What the tail alone holds was counted when it came.
        self.events += ends - self._tail.count(b"\n\n") - self._tail.count(b"\r\n\r\n")
        self._tail = seen[-3:]


def demand_of(plan: InferencePlan) -> Demand:
    """Return what a call reserves (§3.4)."""
    writing = plan.endpoint in _WRITING
    if not writing and plan.listed and plan.endpoint not in _READING:
        return Demand(0, 0)
    most = plan.served.max_context or _MAX_INPUT
    given = min(-(-len(plan.body) // BYTES_PER_TOKEN), most)
    if not writing and plan.listed:
        return Demand(given, 0)
    asked = UNCAPPED_OUTPUT if plan.output_cap is None else plan.output_cap
    return Demand(given, min(asked, _MAX_OUTPUT))


def charge_of(demand: Demand, record: InferenceRecord, counted: EventCount) -> Charge:
    """
    Return what a call that ended as `record` says is charged.

    (1) What the engine reported. (2) Nothing where the engine gave no answer, or an error. (3) Of
    a stream, its input and an output token for each event that came. (4) As it was reserved, where
    the caller did not wait for a whole answer. (5) Otherwise by the bytes of the answer (§3.5).
    """
    if record.usage is not None:  # (1)
        given, made = record.usage.input_tokens, record.usage.output_tokens
        return Charge(min(given, _MAX_REPORTED), min(made, _MAX_REPORTED), estimated=False)
    left = record.finish is Finish.CLIENT_CANCELLED
    if record.status >= 400 and not left:  # (2)
        return Charge(0, 0, estimated=False)
    if record.streamed:  # (3)
        return Charge(demand.input_tokens, counted.events, estimated=True)
    if left:  # (4)
        return Charge(demand.input_tokens, demand.output_tokens, estimated=demand.tokens > 0)
    made = -(-counted.bytes // BYTES_PER_TOKEN) if demand.output_tokens else 0  # (5)
    return Charge(demand.input_tokens, made, estimated=demand.tokens > 0)


def period_start(period: Period, now: datetime) -> datetime:
    """Return the midnight (UTC) at which the period of `now` began."""
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    return midnight if period is Period.DAY else midnight.replace(day=1)


def period_end(period: Period, now: datetime) -> datetime:
    """Return the midnight (UTC) at which the next period begins."""
    start = period_start(period, now)
    if period is Period.DAY:
        return start + timedelta(days=1)
    return (start + timedelta(days=32)).replace(day=1)
