"""States have one digest, and a job goes on from its newest checkpoint only."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from confide.errors import FormatError, Reason, ReceiptRejected
from confide.training.chain import TrainingEvent, chain_start, event_link, event_start
from confide.training.checkpoints import (
    CheckpointEntry,
    StateTensor,
    parse_checkpoint_entry,
    state_digest,
    verify_events,
)
from confide.training.plan import TrainingPlan, parse_plan

if TYPE_CHECKING:
    from collections.abc import Sequence

PLAN = bytes([3]) * 32
ONE, TWO = bytes([1]) * 32, bytes([2]) * 32


def test_a_state_is_the_hash_of_the_clause() -> None:
    """docs/protocols/training.md §7.1, written a second time; the order given does not matter."""
    tensors = [
        StateTensor("parameter/b", "F32", (2, 3), ONE),
        StateTensor("parameter/a", "BF16", (), TWO),
    ]
    rows = (
        f'[["parameter/a","BF16",[],"{TWO.hex()}"],["parameter/b","F32",[2,3],"{ONE.hex()}"]]'
    ).encode()
    expected = hashlib.sha256(b"confide/training-state/v1\0" + rows).digest()
    assert state_digest(tensors) == state_digest(tensors[::-1]) == expected
    with pytest.raises(ValueError, match="once"):
        state_digest([tensors[0], tensors[0]])


def event(kind: str, step: int, chain: bytes) -> TrainingEvent:
    return TrainingEvent(kind, step, chain, {})  # type: ignore[arg-type]


def head(events: Sequence[TrainingEvent]) -> bytes:
    link = event_start(PLAN)
    for one in events:
        link = event_link(link, one)
    return link


STORY = [
    event("restarted", 0, chain_start(PLAN)),
    event("checkpoint", 10, ONE),
    event("restarted", 10, ONE),
    event("machine", 10, ONE),
    event("checkpoint", 20, TWO),
    event("paused", 20, TWO),
    event("resumed", 20, TWO),
]


def test_a_job_may_be_disturbed_as_often_as_it_likes() -> None:
    verify_events(PLAN, STORY, head=head(STORY))
    verify_events(PLAN, [], head=event_start(PLAN))


@pytest.mark.parametrize(
    ("story", "step"),
    [
        ([*STORY[:-1], event("resumed", 10, ONE)], "training/events/2"),
        ([*STORY[:-1], event("resumed", 0, chain_start(PLAN))], "training/events/2"),
        ([*STORY[:-1], event("restarted", 20, ONE)], "training/events/2"),
        ([event("restarted", 0, ONE)], "training/events/2"),
        ([*STORY, event("checkpoint", 20, TWO)], "training/events/1"),
        ([*STORY, event("checkpoint", 10, ONE)], "training/events/1"),
    ],
)
def test_a_rollback_is_found(story: list[TrainingEvent], step: str) -> None:
    with pytest.raises(ReceiptRejected) as refused:
        verify_events(PLAN, story, head=head(story))
    assert refused.value.failures[0].step == step
    assert refused.value.reason is Reason.CHECKPOINT_ROLLBACK


def test_an_event_left_out_or_changed_is_found() -> None:
    quiet = [one for one in STORY if one.kind != "machine"]
    facts = [*STORY[:3], replace(STORY[3], facts={"evidence": "other"}), *STORY[4:]]
    for told in (quiet, facts, STORY[:-1]):
        with pytest.raises(ReceiptRejected) as refused:
            verify_events(PLAN, told, head=head(STORY))
        assert refused.value.reason is Reason.TRAINING_CHAIN


def test_entries_and_plans_travel_as_they_are() -> None:
    entry = CheckpointEntry(step=5, chain=ONE, state=TWO, sealed=ONE)
    assert parse_checkpoint_entry(entry.value()) == entry
    plan = TrainingPlan(
        recipe=ONE, dataset=TWO, validation=None, base=ONE, tokenizer=TWO, template=None
    )
    assert parse_plan(plan.value()) == plan
    for made in (plan, replace(plan, validation=ONE, template=TWO, world=2)):
        assert parse_plan(made.value()) == made
        for name in made.value():
            partial = {key: value for key, value in made.value().items() if key != name}
            with pytest.raises(FormatError):
                parse_plan(partial)
    assert plan.digest != replace(plan, base=TWO).digest


def test_facts_do_not_take_the_place_of_members() -> None:
    sly = TrainingEvent("paused", 1, ONE, {"step": 2})
    assert sly.value()["step"] == 1
