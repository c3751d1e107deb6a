"""Which steps a replay executes again, and what it would have missed. Pure.

Clauses: docs/protocols/training-record.md 7.1 to 7.3. The draw is a function of a beacon that did
not exist when the head was committed to; probabilities are exact, never the approximation (1-f)^k.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "CHALLENGE_BYTES",
    "Sample",
    "draw_sample",
    "draw_steps",
    "false_steps",
    "miss_probability",
    "replay_beacon",
    "steps_needed",
]

CHALLENGE_BYTES: Final = 32
_BEACON: Final = b"confide/replay-beacon/v1\0"
_DRAW: Final = b"confide/replay-draw/v1\0"


def replay_beacon(head: bytes, *, challenge: bytes, checkpoint: bytes | None) -> bytes:
    """
    Return the beacon of a replay (7.1).

    `challenge` are 32 bytes that the replayer drew when it held the record; `checkpoint` is a log
    checkpoint that covers the record, verbatim, or None. **Does not check** that it does.
    """
    if len(challenge) != CHALLENGE_BYTES:
        raise ValueError(f"a challenge has {CHALLENGE_BYTES} bytes")
    note = checkpoint or b""
    return hashlib.sha256(_BEACON + head + challenge + len(note).to_bytes(8, "big") + note).digest()


def draw_steps(beacon: bytes, steps: int, count: int) -> tuple[int, ...]:
    """Return `count` of the steps 1 to `steps`, ascending, without replacement (7.2)."""
    if not 0 < count <= steps:
        raise ValueError(f"{count} of {steps} steps cannot be drawn")
    begun = hashlib.sha256(_DRAW + beacon)

    def rank(step: int) -> bytes:
        state = begun.copy()
        state.update(step.to_bytes(8, "big"))
        return state.digest()

    return tuple(sorted(heapq.nsmallest(count, range(1, steps + 1), key=rank)))


def false_steps(steps: int, fraction: Fraction) -> int:
    """Return how many of `steps` are false where `fraction` of them are: rounded up, at least 1."""
    if not 0 < fraction <= 1:
        raise ValueError("a fraction lies above 0 and not above 1")
    return math.ceil(fraction * steps)


def miss_probability(steps: int, false: int, drawn: int) -> Fraction:
    """Return the probability that `drawn` of `steps` hit none of `false` ones: hypergeometric."""
    if not (0 <= false <= steps and 0 <= drawn <= steps):
        raise ValueError("more steps than there are")
    return Fraction(math.comb(steps - false, drawn), math.comb(steps, drawn))


def steps_needed(steps: int, false: int, miss: Fraction) -> int:
    """Return the smallest draw that misses `false` of `steps` with at most probability `miss`."""
    if false < 1 or not 0 < miss < 1:
        raise ValueError("nothing false, or a probability that is none")

    def enough(drawn: int) -> bool:
        return miss_probability(steps, false, drawn) <= miss

    return _first(1, steps, enough)


def _first(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """Return the first number from `low` to `high` that holds; whatever follows it does too."""
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low


@dataclass(frozen=True, slots=True)
class Sample:
    """The steps of one replay, and against what they were chosen."""

    beacon: bytes
    steps: int
    drawn: tuple[int, ...]
    fraction: Fraction

    @property
    def missed(self) -> Fraction:
        """The probability that all drawn steps are right although `fraction` of all are false."""
        false = false_steps(self.steps, self.fraction)
        return miss_probability(self.steps, false, len(self.drawn))


def draw_sample(
    beacon: bytes, steps: int, *, count: int | None, fraction: Fraction, miss: Fraction
) -> Sample:
    """Draw `count` steps, or with None as many as are needed against `fraction` and `miss`."""
    needed = steps_needed(steps, false_steps(steps, fraction), miss) if count is None else count
    return Sample(beacon, steps, draw_steps(beacon, steps, needed), fraction)
