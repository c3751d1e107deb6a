"""Which micro batches a rank computes: all of them once, in order, rank 0 last."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.training.plan import TrainingPlan
from confide.training.recipe_file import parse_recipe_toml
from confide.training.shares import place_in_sum, ranks_for, require_world, share

RECIPE = parse_recipe_toml('base_model = "m"\nlearning_rate = 1e-3\n')


@given(st.integers(0, 500), st.integers(1, 40))
def test_shares_are_all_micro_batches_once_in_the_order_of_the_sum(count: int, world: int) -> None:
    ranks = sorted(range(world), key=lambda rank: place_in_sum(rank, world))
    assert ranks == [*range(1, world), 0]
    taken = [number for rank in ranks for number in share(count, rank, world)]
    assert taken == list(range(count))
    sizes = [len(share(count, rank, world)) for rank in ranks]
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(1, 100), st.integers(1, 100))
def test_as_many_ranks_as_a_job_can_use(accumulated: int, most: int) -> None:
    recipe = replace(RECIPE, gradient_accumulation_steps=accumulated)
    ranks = ranks_for(recipe, most)
    assert ranks == min(accumulated, most)
    require_world(recipe, ranks)
    with pytest.raises(ValueError, match="micro batches for"):
        require_world(recipe, accumulated + 1)


def test_seeds_do_not_know_how_many_ranks_there_are() -> None:
    plan = TrainingPlan(bytes(32), bytes(32), None, bytes(32), bytes(32), None)
    ranked = replace(plan, world=4)
    assert ranked.digest != plan.digest
    assert ranked.seeding == plan.seeding == plan.digest
