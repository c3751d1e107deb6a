"""Rate and calls at once against a model of both, in any order of events. tenancy.md §3.1, §3.2."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from confide.tenancy.keys import Limits
from confide.tenancy.limits import MAX_KEYS, Held, Rates

_RATE, _AT_ONCE = 6, 3
_LIMITS = Limits(rate=_RATE, concurrency=_AT_ONCE)


class Bucket(RuleBasedStateMachine):
    """One key; the model counts exactly, in tenths of a minute."""

    def __init__(self) -> None:
        super().__init__()
        self.rates = Rates()
        self.seconds = 0
        self.calls = Fraction(_RATE)
        self.active = 0
        # When each call was let in: the promise of §3.1 is about these.
        self.taken: list[int] = []

    @rule(seconds=st.integers(0, 40))
    def wait(self, seconds: int) -> None:
        self.seconds += seconds
        self.calls = min(Fraction(_RATE), self.calls + Fraction(seconds * _RATE, 60))

    @rule()
    def call(self) -> None:
        taken = self.rates.take("key_a", _LIMITS, float(self.seconds))
        if self.active == _AT_ONCE:
            assert taken.held is Held.CONCURRENCY
        elif self.calls < 1:
            assert taken.held is Held.RATE
            # As long as is said is long enough, and a second less is not.
            assert self.calls + Fraction(taken.retry_seconds * _RATE, 60) >= 1
            assert self.calls + Fraction((taken.retry_seconds - 1) * _RATE, 60) < 1
        else:
            assert taken.held is None
            self.calls -= 1
            self.active += 1
            self.taken.append(self.seconds)
        assert taken.pace is not None
        assert taken.pace.left == int(self.calls)

    @precondition(lambda self: self.active > 0)
    @rule()
    def end(self) -> None:
        self.rates.release("key_a")
        self.active -= 1

    @rule(seconds=st.integers(1, 100))
    def a_clock_that_goes_back_fills_nothing(self, seconds: int) -> None:
        early = Rates()
        early.take("key_b", Limits(rate=1), 1000.0)
        assert early.take("key_b", Limits(rate=1), 1000.0 - seconds).held is Held.RATE

    @invariant()
    def never_more_than_a_bucket_and_what_flowed_in(self) -> None:
        for index, first in enumerate(self.taken):
            among = len(self.taken) - index
            assert among <= _RATE + Fraction((self.seconds - first) * _RATE, 60)

    @invariant()
    def calls_at_once_are_counted(self) -> None:
        assert self.rates.active("key_a") == self.active <= _AT_ONCE


TestBucket = Bucket.TestCase


def test_a_second_and_nine_fill_as_much_as_ten() -> None:
    """In binary fractions of a call they do not."""
    rates, limits = Rates(), Limits(rate=6)
    taken = [rates.take("key_a", limits, seconds) for seconds in (0.0, 0.0, 1.0, 10.0)]
    assert [each.pace.left for each in taken if each.pace is not None] == [5, 4, 3, 3]


def test_keys_do_not_share() -> None:
    rates = Rates()
    one = Limits(rate=1, concurrency=1)
    assert rates.take("key_a", one, 0.0).held is None
    assert rates.take("key_a", one, 0.0).held is Held.CONCURRENCY
    assert rates.take("key_b", one, 0.0).held is None


def test_without_limits_nothing_is_held() -> None:
    rates = Rates()
    for _ in range(1000):
        taken = rates.take("key_a", Limits(), 0.0)
        assert (taken.held, taken.pace) == (None, None)
    assert rates.active("key_a") == 1000


def test_a_limit_that_was_lowered_holds_at_once() -> None:
    rates = Rates()
    assert rates.take("key_a", Limits(rate=100), 0.0).held is None
    lower = Limits(rate=1)
    assert rates.take("key_a", lower, 0.0).held is None
    assert rates.take("key_a", lower, 0.0).held is Held.RATE


def test_a_call_ends_once() -> None:
    rates = Rates()
    with pytest.raises(ValueError, match="never began"):
        rates.release("key_a")
    rates.take("key_a", Limits(), 0.0)
    rates.release("key_a")
    with pytest.raises(ValueError, match="never began"):
        rates.release("key_a")


def test_idle_keys_are_forgotten_and_busy_ones_are_not() -> None:
    rates = Rates()
    rates.take("key_busy", Limits(concurrency=1), 0.0)
    for number in range(MAX_KEYS + 10):
        rates.take(f"key_{number}", Limits(), 0.0)
        rates.release(f"key_{number}")
    assert rates.take("key_busy", Limits(concurrency=1), 0.0).held is Held.CONCURRENCY
    assert len(rates._states) == MAX_KEYS
