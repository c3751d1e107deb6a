"""The account of a job takes steps and checkpoints in the one order there is, and goes back."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from arithmetic import ComputedJob
from nodes import NOW

from confide.errors import RemoteProtocolError
from confide.training.account import Account
from confide.training.chain import event_link, event_start
from confide.training.checkpoints import verify_events
from confide.training.job import EvaluatedStep

if TYPE_CHECKING:
    from collections.abc import Callable

JOB = ComputedJob()
LOG = JOB.log


def account(steps: int = 0) -> Account:
    """An account of the first `steps` of a job, with their checkpoints."""
    found = Account(JOB.plan, LOG.dataset.root, JOB.planned, {"isa": "none"})
    for logged in LOG.steps[:steps]:
        found.step(logged)
        for each in LOG.checkpoints:
            if each.step == logged.record.step:
                found.checkpoint(each)
    return found


def test_it_ends_at_the_head_of_the_job() -> None:
    whole = account(32)
    assert whole.head == JOB.chain(32)
    assert tuple(whole.checkpoints) == LOG.checkpoints
    assert whole.tokens == sum(each.record.tokens for each in LOG.steps)
    whole.require_end(JOB.chain(32))
    verify_events(JOB.plan.digest, whole.events, head=whole.events_head)


def test_it_goes_back_to_the_newest_checkpoint_and_on_from_there() -> None:
    found = account(11)
    found.happened("restarted")
    found.go_back()
    assert (len(found.steps), found.head) == (8, JOB.chain(8))
    for logged in LOG.steps[8:11]:
        found.step(logged)
    assert found.head == JOB.chain(11)
    turn = found.turn("paused", boot=0, at=NOW)
    assert (turn.step, turn.chain, found.turns) == (8, JOB.chain(8), [])
    verify_events(JOB.plan.digest, found.events, head=found.events_head)


def test_what_was_told_elsewhere_is_taken_up_as_it_was_told() -> None:
    before = account(16)
    before.happened("paused")
    steps, events, _ = before.so_far()
    found = Account(JOB.plan, LOG.dataset.root, JOB.planned, {"isa": "none"})
    found.take_up(steps=steps, events=events, turns=[found.turn("started", boot=0, at=NOW)])
    assert (found.head, found.events_head) == (before.head, before.events_head)
    assert (found.steps, found.checkpoints) == (before.steps, before.checkpoints)
    for logged in LOG.steps[16:20]:
        found.step(logged)
    assert found.head == JOB.chain(20)


def test_so_far_ends_at_the_newest_checkpoint() -> None:
    steps, events, _ = account(11).so_far()
    assert (len(steps), [each.step for each in events]) == (8, [4, 8])
    assert account(3).so_far() == ((), (), ())


def judged(found: Account, *steps: int) -> None:
    """Go on to the last of `steps`, with an evaluation after each of them."""
    for logged in LOG.steps[len(found.steps) : steps[-1]]:
        found.step(logged)
        step = logged.record.step
        if step in steps:
            found.judged(EvaluatedStep(step, 1 / step, 0.5))
        for each in LOG.checkpoints:
            if each.step == step:
                found.checkpoint(each)


def test_evaluations_stand_as_far_as_the_checkpoint_and_are_done_again_after_it() -> None:
    found = account()
    judged(found, 3, 8, 11)
    assert [each.step for each in found.so_far().evaluated] == [3, 8]
    before = list(found.evaluated)
    found.go_back()
    assert found.evaluated == before[:2]
    judged(found, 11)
    assert found.evaluated == before


@pytest.mark.parametrize("step", [7, 8, 10])
def test_an_evaluation_stands_after_the_last_step_once_and_before_its_checkpoint(step: int) -> None:
    found = account()
    judged(found, 7)
    if step == 8:
        found.step(LOG.steps[7])
        found.checkpoint(LOG.checkpoints[1])
    with pytest.raises(RemoteProtocolError, match="does not stand after the last step"):
        found.judged(EvaluatedStep(step, 0.5, 0.5))


@pytest.mark.parametrize("wrong", ["skipped", "repeated", "moved event", "too many", "no steps"])
def test_what_nobody_could_have_told_is_not_taken_up(wrong: str) -> None:
    before = account(8)
    before.happened("paused")
    steps, events, _ = before.so_far()
    if wrong == "skipped":
        steps = (*steps[:2], *steps[3:])
    elif wrong == "repeated":
        steps = (*steps[:3], *steps[2:])
    elif wrong == "moved event":
        events = (*events[:-1], replace(events[-1], step=4))
    elif wrong == "too many":
        steps = (*steps, LOG.steps[8])
    else:
        steps = ()
    found = Account(JOB.plan, LOG.dataset.root, JOB.planned, {"isa": "none"})
    with pytest.raises(RemoteProtocolError):
        found.take_up(steps=steps, events=events, turns=())


def test_before_the_first_checkpoint_it_goes_back_to_the_beginning() -> None:
    found = account(3)
    found.happened("restarted")
    found.go_back()
    assert (found.steps, found.head, found.newest) == ([], found.start, None)
    assert found.turn("restarted", boot=1, at=NOW).chain == JOB.chain(0)
    event = found.events[0]
    assert found.events_head == event_link(event_start(JOB.plan.digest), event)


_checkpoint = LOG.checkpoints[0]

WRONG: list[tuple[int, Callable[[Account], None]]] = [
    (4, lambda found: found.step(LOG.steps[3])),
    (4, lambda found: found.step(LOG.steps[5])),
    (32, lambda found: found.step(LOG.steps[31])),
    (0, lambda found: found.checkpoint(_checkpoint)),
    (5, lambda found: found.checkpoint(_checkpoint)),
    (4, lambda found: found.checkpoint(_checkpoint)),
    (2, lambda found: found.checkpoint(replace(_checkpoint, step=2))),
    (2, lambda found: found.checkpoint(replace(_checkpoint, step=2, chain=JOB.chain(2)))),
    (31, lambda found: found.require_end(JOB.chain(31))),
    (32, lambda found: found.require_end(JOB.chain(31))),
    (4, lambda found: found.require_same(JOB.plan, 31, found.environment)),
    (4, lambda found: found.require_same(JOB.plan, 32, {"isa": "avx2"})),
    (4, lambda found: found.require_same(replace(JOB.plan, world=2), 32, found.environment)),
]


@pytest.mark.parametrize(("steps", "then"), WRONG)
def test_what_comes_out_of_order_is_refused(steps: int, then: Callable[[Account], None]) -> None:
    found = account(steps)
    with pytest.raises(RemoteProtocolError):
        then(found)


def test_an_end_needs_its_checkpoint() -> None:
    found = account(32)
    del found.checkpoints[-1]
    with pytest.raises(RemoteProtocolError, match="no checkpoint of the end"):
        found.require_end(JOB.chain(32))


def test_a_pause_stands_where_no_state_was_recorded() -> None:
    found = account(5)
    entry = replace(_checkpoint, step=5, chain=JOB.chain(5))
    found.checkpoint(entry)
    assert found.newest == entry
