"""The draw of a replay: deterministic, without replacement, and exact about what it misses."""

from __future__ import annotations

import hashlib
from fractions import Fraction
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.training.draw import (
    draw_sample,
    draw_steps,
    false_steps,
    miss_probability,
    replay_beacon,
    steps_needed,
)

BEACON = bytes(range(32))


@given(st.binary(min_size=32, max_size=32), st.integers(1, 300), st.data())
def test_a_draw_is_of_different_steps_of_the_job(
    beacon: bytes, steps: int, data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, steps))
    drawn = draw_steps(beacon, steps, count)
    assert len(set(drawn)) == count
    assert list(drawn) == sorted(drawn)
    assert set(drawn) <= set(range(1, steps + 1))
    assert drawn == draw_steps(beacon, steps, count)
    # More steps are drawn beside these, never instead.
    assert set(drawn) <= set(draw_steps(beacon, steps, steps))


def test_the_draw_is_pinned() -> None:
    # docs/protocols/training-record.md 7.2, computed by its words.
    assert draw_steps(BEACON, 200, 3) == _by_the_words(BEACON, 200, 3)


def _by_the_words(beacon: bytes, steps: int, count: int) -> tuple[int, ...]:
    ranked = sorted(
        (hashlib.sha256(b"confide/replay-draw/v1\0" + beacon + i.to_bytes(8, "big")).digest(), i)
        for i in range(1, steps + 1)
    )
    return tuple(sorted(i for _, i in ranked[:count]))


def test_every_step_is_drawn_about_equally_often() -> None:
    counts = [0] * 21
    for number in range(2000):
        for step in draw_steps(number.to_bytes(32, "big"), 20, 4):
            counts[step] += 1
    # 400 expected, standard deviation about 18: six of them to each side.
    assert all(290 < count < 510 for count in counts[1:])


@given(st.integers(1, 9), st.data())
def test_the_probability_to_miss_is_that_of_counting(steps: int, data: st.DataObject) -> None:
    false = data.draw(st.integers(0, steps))
    drawn = data.draw(st.integers(0, steps))
    draws = list(combinations(range(steps), drawn))
    missed = sum(all(step >= false for step in draw) for draw in draws)
    assert miss_probability(steps, false, drawn) == Fraction(missed, len(draws))


@given(st.integers(1, 400), st.integers(1, 100), st.integers(1, 99))
def test_the_steps_needed_are_enough_and_one_less_is_not(
    steps: int, percent: int, miss: int
) -> None:
    false, allowed = false_steps(steps, Fraction(percent, 100)), Fraction(miss, 100)
    needed = steps_needed(steps, false, allowed)
    assert miss_probability(steps, false, needed) <= allowed
    assert needed == 1 or miss_probability(steps, false, needed - 1) > allowed


def test_the_exact_probability_is_below_the_approximation() -> None:
    exact = miss_probability(200, 20, 10)
    assert exact < Fraction(180, 200) ** 10
    assert round(float(exact), 4) == 0.3398


def test_a_sample_knows_what_it_would_have_missed() -> None:
    sample = draw_sample(
        BEACON, 10_000, count=None, fraction=Fraction(1, 100), miss=Fraction(1, 20)
    )
    assert len(sample.drawn) == steps_needed(10_000, 100, Fraction(1, 20))
    assert sample.missed <= Fraction(1, 20)
    every = draw_sample(BEACON, 10, count=10, fraction=Fraction(1, 10), miss=Fraction(1, 20))
    assert every.missed == 0


@pytest.mark.parametrize(("steps", "count"), [(3, 0), (3, 4), (0, 1)])
def test_what_cannot_be_drawn_is_refused(steps: int, count: int) -> None:
    with pytest.raises(ValueError, match="cannot be drawn"):
        draw_steps(BEACON, steps, count)


def test_a_share_of_nothing_and_a_short_challenge_are_refused() -> None:
    with pytest.raises(ValueError, match="fraction"):
        false_steps(10, Fraction(0))
    with pytest.raises(ValueError, match="probability"):
        steps_needed(10, 1, Fraction(1))
    with pytest.raises(ValueError, match="more steps"):
        miss_probability(10, 11, 1)
    with pytest.raises(ValueError, match="32 bytes"):
        replay_beacon(BEACON, challenge=b"", checkpoint=None)
