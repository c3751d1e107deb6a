"""The learning rate of every step, to the bit."""

from __future__ import annotations

import math
from dataclasses import replace
from decimal import Decimal, getcontext
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.training.recipe_file import parse_recipe_toml
from confide.training.schedule import learning_rate

if TYPE_CHECKING:
    from confide.training.recipe import Recipe, Scheduler

BASE = parse_recipe_toml('base_model = "tiny"\nlearning_rate = 1.0\n')


def recipe(kind: Scheduler, warmup: int = 0) -> Recipe:
    return replace(BASE, lr_scheduler=kind, warmup_steps=warmup)


def rates(made: Recipe, steps: int) -> list[float]:
    return [learning_rate(made, step, steps) for step in range(1, steps + 1)]


def test_schedules_as_people_know_them() -> None:
    assert rates(recipe("constant"), 3) == [1, 1, 1]
    assert rates(recipe("constant", warmup=4), 6) == [0, 0.25, 0.5, 0.75, 1, 1]
    assert rates(recipe("linear"), 4) == [1, 0.75, 0.5, 0.25]
    assert rates(recipe("linear", warmup=2), 6) == [0, 0.5, 1, 0.75, 0.5, 0.25]
    assert rates(recipe("cosine"), 4) == [1, 0.8535533905932737, 0.5, 0.14644660940672624]
    assert rates(recipe("cosine", warmup=2), 4) == [0, 0.5, 1, 0.5]


def test_a_warm_up_longer_than_the_job_only_warms_up() -> None:
    assert rates(recipe("linear", warmup=10), 3) == [0, 0.1, 0.2]


@pytest.mark.parametrize("step", [0, 4])
def test_a_step_beside_the_job_has_no_rate(step: int) -> None:
    with pytest.raises(ValueError, match=f"step {step} of 3"):
        learning_rate(recipe("linear"), step, 3)


def exact_half_cosine(part: int, whole: int) -> float:
    """(1 + cos(pi part / whole)) / 2 in sixty decimal digits."""
    getcontext().prec = 60
    pi = Decimal("3.14159265358979323846264338327950288419716939937510582097494459")
    angle = pi * part / whole
    total = term = Decimal(1)
    for factor in range(2, 80, 2):
        term = -term * angle * angle / (factor * (factor - 1))
        total += term
    return float((1 + total) / 2)


@given(whole=st.integers(1, 10**6), data=st.data())
def test_the_cosine_is_the_nearest_double(whole: int, data: st.DataObject) -> None:
    part = data.draw(st.integers(0, whole - 1))
    rate = learning_rate(recipe("cosine"), part + 1, whole)
    assert rate == exact_half_cosine(part, whole)
    assert math.isclose(rate, 0.5 * (1 + math.cos(math.pi * part / whole)), abs_tol=1e-15)
