"""Rate and concurrency of each key, in the memory of one node. Pure: time is an argument.

docs/protocols/tenancy.md §3.1 and §3.2. A bucket holds as many calls as a minute permits and fills
evenly. Seconds are those of a clock that never goes back; one that does fills nothing. Counted in
whole numbers: who waited as long as was said is let in.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from confide.tenancy.keys import Limits

__all__ = ["MAX_KEYS", "Held", "Pace", "Rates", "Taken"]

# Only keys that were found in the database have an entry; idle ones are forgotten first.
MAX_KEYS = 10_000
_SECOND = 1_000_000_000
# One call, in the unit of a bucket: a rate of one fills one unit in a nanosecond.
_CALL = 60 * _SECOND


class Held(StrEnum):
    """What held a call back."""

    RATE = "rate"
    CONCURRENCY = "concurrency"


@dataclass(slots=True)
class _State:
    units: int
    at: int
    active: int = 0


@dataclass(frozen=True, slots=True)
class Pace:
    """How a key stands with its rate: calls left now, and seconds until all are there again."""

    limit: int
    left: int
    reset_seconds: float


@dataclass(frozen=True, slots=True)
class Taken:
    """Whether a call may go on; where `held`, after how many seconds another may be tried."""

    held: Held | None
    retry_seconds: int = 0
    pace: Pace | None = None


class Rates:
    """
    The buckets and the counts of calls in progress.

    Every `take` that was not held is followed by exactly one `release`.
    """

    def __init__(self) -> None:
        self._states: OrderedDict[str, _State] = OrderedDict()

    def take(self, key_id: str, limits: Limits, seconds: float) -> Taken:
        """Begin a call of this key at `seconds`, or say what holds it, which costs nothing."""
        state = self._state(key_id, limits, seconds)
        rate = limits.rate
        if limits.concurrency is not None and state.active >= limits.concurrency:
            return Taken(Held.CONCURRENCY, 1, _pace(state, rate))
        if rate is not None:
            if state.units < _CALL:
                wait = -((state.units - _CALL) // (rate * _SECOND))
                return Taken(Held.RATE, wait, _pace(state, rate))
            state.units -= _CALL
        state.active += 1
        return Taken(None, 0, _pace(state, rate))

    def release(self, key_id: str) -> None:
        """End a call that `take` began."""
        state = self._states.get(key_id)
        if state is None or state.active < 1:
            raise ValueError("a call ends that never began")
        state.active -= 1

    def active(self, key_id: str) -> int:
        """Return how many calls of this key are in progress."""
        state = self._states.get(key_id)
        return 0 if state is None else state.active

    def _state(self, key_id: str, limits: Limits, seconds: float) -> _State:
        rate, now = limits.rate or 0, int(seconds * _SECOND)
        state = self._states.get(key_id)
        if state is None:
            self._forget()
            state = self._states[key_id] = _State(rate * _CALL, now)
        self._states.move_to_end(key_id)
        # A limit that was lowered holds at once.
        state.units = min(rate * _CALL, state.units + max(0, now - state.at) * rate)
        state.at = max(state.at, now)
        return state

    def _forget(self) -> None:
        if len(self._states) >= MAX_KEYS:
            idle = next((key for key, state in self._states.items() if not state.active), None)
            if idle is not None:
                del self._states[idle]


def _pace(state: _State, rate: int | None) -> Pace | None:
    if rate is None:
        return None
    return Pace(rate, state.units // _CALL, (rate * _CALL - state.units) / (rate * _SECOND))
