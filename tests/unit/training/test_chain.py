"""The chain of steps: every change of what was done changes its head, or is refused by name."""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from confide.errors import Reason, ReceiptRejected
from confide.training.batches import batch_tokens, plan_batches
from confide.training.chain import (
    StepRecord,
    chain_start,
    chain_step,
    links,
    state_is_due,
)
from confide.training.plan import TrainingPlan
from confide.training.recipe_file import parse_recipe_toml
from confide.training.schedule import learning_rate
from confide.training.seeds import batch_commitment
from confide.training.steplog import LoggedStep, verify_step_log

if TYPE_CHECKING:
    from collections.abc import Callable

    from confide.training.recipe import Recipe

_SEVEN = bytes([7]) * 32
WHOLE = TrainingPlan(_SEVEN, _SEVEN, None, _SEVEN, _SEVEN, None)
PLAN = WHOLE.digest
ROOT = bytes([8]) * 32
SALT = bytes([9]) * 32
ROWS = 23
RECIPE = parse_recipe_toml(
    'base_model = "tiny"\nlearning_rate = 1e-3\nlr_scheduler = "cosine"\nwarmup_steps = 2\n'
    "num_epochs = 2\nmicro_batch_size = 2\ngradient_accumulation_steps = 2\nstate_every = 5\n"
)
PACKED = replace(RECIPE, sample_packing=True, sequence_len=40)
PRIVATE = parse_recipe_toml(
    'base_model = "tiny"\nlearning_rate = 1e-3\nmax_steps = 9\nmicro_batch_size = 4\n'
    "[privacy]\nnoise_multiplier = 1.0\nmax_grad_norm = 1.0\ndelta = 1e-5\n"
)

Log = list[LoggedStep]


def job(recipe: Recipe) -> Log:
    """A log as an honest node writes it, with made-up losses."""
    batches = plan_batches(
        recipe,
        seeding=PLAN,
        root=ROOT,
        lengths=[10 + row for row in range(ROWS)],
        dataset_salt=SALT,
    )
    log = []
    for step in range(1, batches.steps + 1):
        batch = batches.batch(step)
        due = state_is_due(recipe, step, batches.steps)
        record = StepRecord(
            step=step,
            batch=batch_commitment(SALT, step, batch),
            learning_rate=learning_rate(recipe, step, batches.steps),
            loss=2 / step,
            grad_norm=0.5,
            tokens=batch_tokens(batch),
            state=hashlib.sha256(b"%d" % step).digest() if due else None,
        )
        log.append(LoggedStep(record, batch))
    return log


def head_of(log: Log) -> bytes:
    """The head that a node would sign for `log`, whatever stands in it."""
    link = chain_start(PLAN)
    for logged in log:
        link = chain_step(link, logged.record)
    return link


def verify(log: Log, head: bytes, recipe: Recipe = RECIPE) -> None:
    verify_step_log(
        log, recipe=recipe, plan=WHOLE, root=ROOT, rows=ROWS, dataset_salt=SALT, head=head
    )


@pytest.mark.parametrize("recipe", [RECIPE, PACKED, PRIVATE], ids=["ordered", "packed", "sampled"])
def test_an_honest_log_is_the_whole_job(recipe: Recipe) -> None:
    log = job(recipe)
    verify(log, head_of(log), recipe)
    assert list(links(PLAN, [logged.record for logged in log]))[-1] == head_of(log)


def test_the_links_are_those_of_the_clauses() -> None:
    """docs/protocols/training.md §6.1 and §6.2, written a second time."""
    [first, *_] = job(RECIPE)
    record = first.record
    start = hashlib.sha256(b"confide/chain-start/v1\0" + PLAN).digest()
    assert chain_start(PLAN) == start
    plain = (
        b"confide/chain-step/v1\0"
        + start
        + struct.pack(">Q", 1)
        + record.batch
        + struct.pack(">ddd", 0.0, 2.0, 0.5)
        + struct.pack(">Q", record.tokens)
    )
    assert chain_step(start, record) == hashlib.sha256(plain + b"\0").digest()
    stated = replace(record, state=bytes(32))
    assert chain_step(start, stated) == hashlib.sha256(plain + b"\1" + bytes(32)).digest()


def test_every_member_of_a_record_is_in_the_link() -> None:
    record = job(RECIPE)[4].record
    start = chain_start(PLAN)
    changed = [
        replace(record, step=6),
        replace(record, batch=bytes(32)),
        replace(record, learning_rate=math.nextafter(record.learning_rate, 1)),
        replace(record, loss=math.nextafter(record.loss, 9)),
        replace(record, grad_norm=math.nextafter(record.grad_norm, 9)),
        replace(record, tokens=record.tokens + 1),
        replace(record, state=None),
        replace(record, state=bytes(32)),
    ]
    assert len({chain_step(start, one) for one in (record, *changed)}) == 9
    assert chain_start(PLAN) != chain_start(bytes(32))


def test_a_step_without_a_finite_number_is_no_step() -> None:
    record = job(RECIPE)[0].record
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="finite"):
            replace(record, loss=bad)
        with pytest.raises(ValueError, match="finite"):
            replace(record, grad_norm=bad)
    with pytest.raises(ValueError, match="32 bytes"):
        replace(record, batch=b"")


def changed(log: Log, index: int, **members: object) -> Log:
    record = replace(log[index].record, **members)  # type: ignore[arg-type]
    return [*log[:index], replace(log[index], record=record), *log[index + 1 :]]


def swap_rows(log: Log) -> Log:
    """The node takes two batches in the other order, and commits to what it did."""
    made = list(log)
    for here, there in ((1, 2), (2, 1)):
        batch = log[there].batch
        record = replace(
            log[here].record,
            batch=batch_commitment(SALT, here + 1, batch),
            tokens=batch_tokens(batch),
        )
        made[here] = LoggedStep(record, batch)
    return made


def renumbered(log: Log) -> Log:
    return [
        replace(logged, record=replace(logged.record, step=step))
        for step, logged in enumerate(log, start=1)
    ]


TAMPERED: dict[str, tuple[Callable[[Log], Log], str]] = {
    "rate": (
        lambda log: changed(log, 4, learning_rate=log[4].record.learning_rate * 1.001),
        "training/steps/4",
    ),
    "rate by one bit": (
        lambda log: changed(log, 4, learning_rate=math.nextafter(log[4].record.learning_rate, 1)),
        "training/steps/4",
    ),
    "order swapped": (swap_rows, "training/steps/2"),
    "step skipped": (lambda log: [*log[:3], *log[4:]], "training/steps/1"),
    "step skipped, renumbered": (lambda log: renumbered([*log[:3], *log[4:]]), "training/steps/2"),
    "step repeated": (lambda log: [*log[:3], log[2], *log[3:]], "training/steps/1"),
    "step repeated, renumbered": (
        lambda log: renumbered([*log[:3], log[2], *log[3:]]),
        "training/steps/2",
    ),
    "last step missing": (lambda log: log[:-1], "training/steps/1"),
    "one step more": (lambda log: renumbered([*log, log[-1]]), "training/steps/1"),
    "another commitment": (lambda log: changed(log, 3, batch=bytes(32)), "training/steps/3"),
    "tokens": (lambda log: changed(log, 3, tokens=1), "training/steps/5"),
    "state left out": (lambda log: changed(log, 4, state=None), "training/steps/5"),
    "state too often": (lambda log: changed(log, 3, state=bytes(32)), "training/steps/5"),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_a_node_that_did_something_else_is_found(name: str) -> None:
    tamper, step = TAMPERED[name]
    log = tamper(job(RECIPE))
    with pytest.raises(ReceiptRejected) as refused:
        verify(log, head_of(log))  # the node signs the head of what it did
    assert refused.value.failures[0].step == step
    assert refused.value.reason is Reason.TRAINING_CHAIN


def test_a_log_that_was_edited_afterwards_is_not_that_of_the_head() -> None:
    log = job(RECIPE)
    with pytest.raises(ReceiptRejected) as refused:
        verify(changed(log, 2, loss=1.0), head_of(log))
    assert refused.value.failures[0].step == "training/steps/6"


def test_a_row_has_one_length_and_is_in_the_data_set() -> None:
    log = job(RECIPE)
    twice = replace(log[-1], batch=(((((0, 999),)),),))
    beside = replace(log[-1], batch=(((((ROWS, 5),)),),))
    for bad in (twice, beside):
        with pytest.raises(ReceiptRejected, match="is not there, or has two lengths"):
            verify([*log[:-1], bad], head_of(log))


def test_a_job_cut_off_by_a_number_of_steps_is_whole() -> None:
    recipe = replace(PACKED, num_epochs=None, max_steps=2)
    log = job(recipe)
    assert len(log) == 2
    verify(log, head_of(log), recipe)


def test_links_refuse_steps_out_of_order() -> None:
    records = [logged.record for logged in job(RECIPE)]
    for bad in (records[1:], [records[0], *records], [records[1], records[0]]):
        with pytest.raises(ValueError, match="belongs"):
            list(links(PLAN, bad))
