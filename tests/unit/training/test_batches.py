"""Order, packing and sampling: every row where seed and root put it, from nothing but them."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.training.batches import (
    MAX_STEPS,
    OrderedBatches,
    SampledBatches,
    batch_tokens,
    pack,
    plan_batches,
)
from confide.training.order import epoch_order, held_out, held_out_count
from confide.training.recipe import Privacy
from confide.training.recipe_file import parse_recipe_toml
from confide.training.seeds import batch_commitment, privacy_key, step_salt, step_seed

if TYPE_CHECKING:
    from confide.training.recipe import Recipe

ROOT = bytes(range(32))
BASE = parse_recipe_toml('base_model = "tiny"\nlearning_rate = 1e-3\nseed = 7\n')

lengths = st.lists(st.integers(1, 64), min_size=1, max_size=40)


def recipe(**changes: object) -> Recipe:
    return replace(BASE, **changes)  # type: ignore[arg-type]


def rows_of(batches: OrderedBatches | SampledBatches) -> list[int]:
    """All rows of a job in the order in which they are computed."""
    return [
        row
        for step in range(1, batches.steps + 1)
        for micro in batches.batch(step)
        for packed in micro
        for row, _ in packed
    ]


def test_the_order_is_the_hash_of_the_clause() -> None:
    """docs/protocols/training.md §3.2, written a second time."""
    seed, epoch = 7, 2
    expected = sorted(
        range(50),
        key=lambda row: hashlib.sha256(
            b"confide/order/v1\0"
            + seed.to_bytes(8, "big")
            + ROOT
            + epoch.to_bytes(8, "big")
            + row.to_bytes(8, "big")
        ).digest(),
    )
    assert epoch_order(seed, ROOT, epoch, range(50)) == expected
    assert epoch_order(7, ROOT, 0, range(8)) == [1, 4, 5, 3, 6, 0, 2, 7]
    assert held_out(7, ROOT, rows=8, count=3) == (0, 2, 6)


def test_seed_root_and_epoch_each_make_another_order() -> None:
    orders = {
        tuple(epoch_order(seed, root, epoch, range(30)))
        for seed in (1, 2)
        for root in (ROOT, bytes(32))
        for epoch in (0, 1)
    }
    assert len(orders) == 8


@given(lengths=lengths, epochs=st.integers(1, 3), micro=st.integers(1, 5), steps=st.integers(1, 4))
def test_each_epoch_takes_every_row_once(
    lengths: list[int], epochs: int, micro: int, steps: int
) -> None:
    batches = OrderedBatches(
        recipe(num_epochs=epochs, micro_batch_size=micro, gradient_accumulation_steps=steps),
        root=ROOT,
        lengths=lengths,
    )
    taken = rows_of(batches)
    for epoch in range(epochs):
        part = taken[epoch * len(lengths) : (epoch + 1) * len(lengths)]
        assert part == epoch_order(7, ROOT, epoch, range(len(lengths)))
    assert len(taken) == epochs * len(lengths)


@given(lengths=lengths, epochs=st.integers(1, 3), micro=st.integers(1, 3))
def test_packing_keeps_the_order_and_the_bound(lengths: list[int], epochs: int, micro: int) -> None:
    made = recipe(sample_packing=True, sequence_len=64, num_epochs=epochs, micro_batch_size=micro)
    batches = OrderedBatches(made, root=ROOT, lengths=lengths)
    plain = OrderedBatches(replace(made, sample_packing=False), root=ROOT, lengths=lengths)
    assert rows_of(batches) == rows_of(plain)
    assert batches.steps <= plain.steps
    packed = [p for step in range(1, batches.steps + 1) for m in batches.batch(step) for p in m]
    assert all(sum(tokens for _, tokens in rows) <= 64 for rows in packed)
    total = sum(batch_tokens(batches.batch(step)) for step in range(1, batches.steps + 1))
    assert total == epochs * sum(lengths)


def test_a_sequence_takes_what_still_fits_and_nothing_jumps_ahead() -> None:
    lengths = [5, 5, 3, 10, 1, 9]
    assert list(pack(range(6), lengths, 10)) == [
        ((0, 5), (1, 5)),
        ((2, 3),),
        ((3, 10),),
        ((4, 1), (5, 9)),
    ]


@given(lengths=lengths, wanted=st.integers(1, 50), packing=st.booleans())
def test_a_number_of_steps_is_kept_over_any_number_of_epochs(
    lengths: list[int], wanted: int, packing: bool
) -> None:
    made = recipe(num_epochs=None, max_steps=wanted, sample_packing=packing, sequence_len=64)
    batches = OrderedBatches(made, root=ROOT, lengths=lengths)
    assert batches.steps == wanted
    assert all(batches.batch(step) for step in range(1, wanted + 1))
    # Any step, asked for alone, is the same.
    assert OrderedBatches(made, root=ROOT, lengths=lengths).batch(wanted) == batches.batch(wanted)


@pytest.mark.parametrize("step", [0, 5, -1])
def test_a_step_beside_the_job_has_no_batch(step: int) -> None:
    with pytest.raises(ValueError, match=f"step {step} of 4"):
        OrderedBatches(recipe(), root=ROOT, lengths=[1] * 4).batch(step)


def test_held_out_rows_are_never_trained_on() -> None:
    batches = OrderedBatches(recipe(val_set_size=0.25, num_epochs=2), root=ROOT, lengths=[3] * 40)
    assert len(batches.held_out) == 10
    assert set(batches.held_out).isdisjoint(rows_of(batches))
    assert held_out_count(3.0, 40) == 3
    with pytest.raises(ValueError, match="nothing is left"):
        OrderedBatches(recipe(val_set_size=40), root=ROOT, lengths=[3] * 40)
    with pytest.raises(ValueError, match="nothing is left"):
        OrderedBatches(recipe(), root=ROOT, lengths=[])


def test_seeds_and_commitments_are_those_of_the_clauses() -> None:
    plan, salt = bytes([1]) * 32, bytes([2]) * 32
    assert step_seed(plan, 5) == 0x3115F128C5653874
    assert len({step_seed(plan, 5), step_seed(plan, 6), step_seed(plan, 5, micro=1)}) == 3
    batch = ((((3, 17), (1, 4)),), (((0, 9),),))
    assert batch_commitment(salt, 5, batch) == (
        hashlib.sha256(
            b"confide/batch/v1\0" + step_salt(salt, 5) + b"[[[[3,17],[1,4]]],[[[0,9]]]]"
        ).digest()
    )
    assert batch_commitment(salt, 5, batch) != batch_commitment(salt, 6, batch)
    with pytest.raises(ValueError, match="32 bytes"):
        step_salt(b"short", 1)


def test_sampling_is_secret_independent_and_as_likely_as_it_says() -> None:
    plan = bytes(32)
    made = recipe(micro_batch_size=20, num_epochs=50)
    one, other = (
        SampledBatches(made, root=ROOT, lengths=[4] * 400, key=privacy_key(salt, plan))
        for salt in (bytes(32), bytes([1]) * 32)
    )
    assert one.steps == 1000
    assert one.rate == 0.05
    sizes = [len(one.batch(step)) for step in range(1, 1001)]
    # 1000 draws of Binomial(400, 0.05): mean 20, variance 19; six standard errors either way.
    mean = sum(sizes) / 1000
    assert abs(mean - 20) < 6 * (19 / 1000) ** 0.5
    assert abs(sum((size - mean) ** 2 for size in sizes) / 999 - 19) < 6 * 19 * (2 / 999) ** 0.5
    taken = Counter(rows_of(one))
    assert set(taken) == set(range(400))
    assert max(taken.values()) < 50 + 7 * 7
    assert [one.batch(s) for s in (1, 2, 3)] != [other.batch(s) for s in (1, 2, 3)]


def test_a_sampled_step_may_be_empty_and_never_asks_for_more_than_there_is() -> None:
    batches = SampledBatches(recipe(num_epochs=100), root=ROOT, lengths=[4] * 3, key=bytes(32))
    assert () in [batches.batch(step) for step in range(1, batches.steps + 1)]
    with pytest.raises(ValueError, match="a step takes 4 rows of 3"):
        SampledBatches(recipe(micro_batch_size=4), root=ROOT, lengths=[4] * 3, key=bytes(32))


@pytest.mark.parametrize(
    "asked",
    [
        {"num_epochs": None, "max_steps": MAX_STEPS + 1},
        {"num_epochs": None, "max_steps": 2**31 - 1, "sample_packing": True, "sequence_len": 8},
        {"num_epochs": 2**31 - 1},
        {"num_epochs": MAX_STEPS + 1, "privacy": Privacy(1.0, 1.0, 1e-5)},
    ],
)
def test_a_job_of_more_steps_than_a_log_holds_is_refused_before_it_is_counted(asked: Any) -> None:
    with pytest.raises(ValueError, match="more than 1,000,000 steps"):
        plan_batches(
            recipe(**asked), seeding=ROOT, root=ROOT, lengths=[8] * 100, dataset_salt=bytes(32)
        )


def test_as_many_steps_as_a_log_holds_are_planned() -> None:
    most = recipe(num_epochs=None, max_steps=MAX_STEPS)
    assert OrderedBatches(most, root=ROOT, lengths=[3] * 4000).steps == MAX_STEPS
