"""The owner's log against its record: whatever else was trained on, or otherwise, is found.

Each bad job here is one that a dishonest node did, recorded, signed and quoted: its record alone
is accepted. What the recipe asks for finds it, without a GPU.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from arithmetic import RECIPE, SALT, ComputedJob, rows
from trainings import sha, train, verify

from confide.errors import FormatError, Reason, TrainingRejected
from confide.rats import Status
from confide.training.audit import AuditedLog, audit_log
from confide.training.chain import TrainingEvent
from confide.training.dataset import commit_rows
from confide.training.owner_log import parse_owner_log
from confide.training.seeds import batch_commitment
from confide.wire.json import jcs, parse_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from confide.training.owner_log import OwnerLog
    from confide.training.rows import Row

HONEST = ComputedJob("computed")


def audit(job: ComputedJob, **known: Any) -> AuditedLog:
    facts = {"dataset_salt": SALT, "rows": HONEST.commitment, **known}
    raw = facts.pop("raw", job.log.encode())
    return audit_log(verify(train(job).file), raw, **facts)


def refused(job: ComputedJob, **known: Any) -> dict[str, Reason]:
    """The steps that refuse, nested ones with them."""
    with pytest.raises(TrainingRejected) as rejected:
        audit(job, **known)
    return {f.step: f.reason for f in rejected.value.findings if f.reason is not None}


def test_an_honest_log_passes_every_step() -> None:
    audited = audit(HONEST)
    assert [finding.step for finding in audited.findings] == [f"audit/{n}" for n in range(1, 7)]
    assert {finding.status for finding in audited.findings} == {Status.PASS}
    assert audited.chain[-1] == audited.record.record.head


def test_the_log_survives_its_encoding() -> None:
    assert parse_owner_log(HONEST.log.encode()) == HONEST.log


def test_nobody_else_makes_the_proof() -> None:
    audited = audit(HONEST)
    with pytest.raises(TypeError):
        AuditedLog(audited.record, audited.log, audited.chain, (), seal=object())


def test_the_log_of_another_job_is_refused() -> None:
    assert refused(HONEST, raw=ComputedJob("another").log.encode())["audit/1"] is (
        Reason.TRAINING_LOG
    )


# Rows


def renumbered(kept: list[Row]) -> tuple[Row, ...]:
    return tuple(replace(row, index=index) for index, row in enumerate(kept))


def test_a_changed_row_is_found() -> None:
    other = list(rows())
    other[3] = replace(other[3], record=other[3].record.replace(b"label 3", b"label 4"))
    found = refused(HONEST, rows=commit_rows(other, SALT))
    assert found == {"audit/3": Reason.DATASET_MISMATCH}


def test_a_dropped_row_is_found() -> None:
    found = refused(HONEST, rows=commit_rows(renumbered(list(rows()[:7] + rows()[8:])), SALT))
    assert found == {"audit/3": Reason.DATASET_MISMATCH}


def test_a_duplicated_row_is_found() -> None:
    twice = renumbered(list(rows()[:8] + rows()[7:]))
    assert refused(HONEST, rows=commit_rows(twice, SALT)) == {"audit/3": Reason.DATASET_MISMATCH}


def test_swapped_rows_are_found() -> None:
    swapped = list(rows())
    swapped[0], swapped[1] = swapped[1], swapped[0]
    found = refused(HONEST, rows=commit_rows(renumbered(swapped), SALT))
    assert found == {"audit/3": Reason.DATASET_MISMATCH}


def test_without_rows_at_hand_the_rest_is_audited() -> None:
    (step,) = (f for f in audit(HONEST, rows=None).findings if f.step == "audit/3")
    assert step.detail == "no rows at hand to compare"


# Steps


def dishonest(name: str, alter: Callable[[OwnerLog], OwnerLog]) -> ComputedJob:
    return ComputedJob(name, alter=alter)


def with_step(number: int, **changed: Any) -> Callable[[OwnerLog], OwnerLog]:
    def alter(log: OwnerLog) -> OwnerLog:
        steps = list(log.steps)
        logged = steps[number - 1]
        steps[number - 1] = replace(logged, record=replace(logged.record, **changed))
        return replace(log, steps=tuple(steps))

    return alter


def test_swapped_order_is_found() -> None:
    def swap(log: OwnerLog) -> OwnerLog:
        steps = list(log.steps)
        for here, there in ((4, 5), (5, 4)):
            batch = log.steps[there].batch
            commitment = batch_commitment(SALT, here + 1, batch)
            record = replace(log.steps[here].record, batch=commitment)
            steps[here] = replace(log.steps[here], batch=batch, record=record)
        return replace(log, steps=tuple(steps))

    found = refused(dishonest("swapped order", swap))
    assert found["audit/4"] is Reason.TRAINING_CHAIN
    assert "training/steps/2" in found


def test_a_batch_that_is_not_the_committed_one_is_found() -> None:
    found = refused(dishonest("uncommitted", with_step(5, batch=bytes(32))))
    assert "training/steps/3" in found


@pytest.mark.parametrize("factor", [1.001, 0.999])
def test_a_learning_rate_off_by_a_thousandth_is_found(factor: float) -> None:
    rate = HONEST.log.steps[8].record.learning_rate * factor
    found = refused(dishonest(f"rate {factor}", with_step(9, learning_rate=rate)))
    assert found["audit/4"] is Reason.TRAINING_CHAIN
    assert "training/steps/4" in found


def test_a_skipped_step_is_found() -> None:
    def skip(log: OwnerLog) -> OwnerLog:
        steps = tuple(
            replace(each, record=replace(each.record, step=number))
            for number, each in enumerate((*log.steps[:9], *log.steps[10:], log.steps[-1]), start=1)
        )
        return replace(log, steps=steps)

    assert "training/steps/2" in refused(dishonest("skipped", skip))


def test_a_repeated_step_is_found() -> None:
    def repeat(log: OwnerLog) -> OwnerLog:
        steps = list(log.steps)
        batch = steps[9].batch
        record = replace(steps[9].record, step=11, batch=batch_commitment(SALT, 11, batch))
        steps[10] = replace(steps[9], record=record)
        return replace(log, steps=tuple(steps))

    assert "training/steps/2" in refused(dishonest("repeated", repeat))


def test_a_log_with_fewer_steps_than_the_record_is_found() -> None:
    def cut(log: OwnerLog) -> OwnerLog:
        return replace(log, steps=log.steps[:-1], events=HONEST.log.events[:-1])

    job = replace(dishonest("cut", cut), steps=31, planned=31)
    with pytest.raises(TrainingRejected):
        audit(job)


def test_another_recipe_than_the_plan_names_is_found() -> None:
    def other(log: OwnerLog) -> OwnerLog:
        return replace(log, recipe=replace(log.recipe, weight_decay=0.5))

    assert refused(dishonest("other recipe", other))["audit/2"] is Reason.TRAINING_PLAN


# Checkpoints


def with_event(number: int, **changed: Any) -> Callable[[OwnerLog], OwnerLog]:
    def alter(log: OwnerLog) -> OwnerLog:
        events = list(HONEST.log.events)
        events[number] = replace(events[number], **changed)
        return replace(log, events=tuple(events))

    return alter


def test_a_swapped_checkpoint_is_found() -> None:
    there = HONEST.log.events[2]
    other = {"state": sha("another state").hex(), "sealed": there.facts["sealed"]}
    found = refused(replace(HONEST, alter=with_event(2, facts=other)))
    assert found == {"audit/5": Reason.CHECKPOINT_MISMATCH}


def test_a_checkpoint_at_another_link_is_found() -> None:
    found = refused(replace(HONEST, alter=with_event(2, chain=sha("another link"))))
    assert found == {"audit/5": Reason.CHECKPOINT_MISMATCH}


def test_a_rollback_to_an_older_checkpoint_is_found() -> None:
    def resume_behind(log: OwnerLog) -> OwnerLog:
        events = list(HONEST.log.events)
        older = events[1]
        events.insert(4, TrainingEvent("restarted", older.step, older.chain, {}))
        return replace(log, events=tuple(events))

    found = refused(replace(HONEST, alter=resume_behind))
    assert found["audit/5"] is Reason.CHECKPOINT_ROLLBACK


# Metrics


def test_metrics_that_do_not_make_it_better_are_found() -> None:
    def worse(log: OwnerLog) -> OwnerLog:
        assert log.evaluations is not None
        base, tuned = log.evaluations
        return replace(log, evaluations=(tuned, base))

    assert refused(dishonest("worse", worse)) == {"audit/6": Reason.TRAINING_EVALUATION}


def test_an_evaluation_that_the_recipe_asks_for_cannot_be_left_out() -> None:
    def silent(log: OwnerLog) -> OwnerLog:
        return replace(log, evaluations=None)

    job = ComputedJob("silent", alter=silent, evaluated=False)
    assert refused(job) == {"audit/6": Reason.TRAINING_EVALUATION}
    assert RECIPE.val_set_size > 0


JUDGED = ComputedJob("judged", recipe=replace(RECIPE, eval_steps=6))


def test_evaluations_on_the_way_stand_where_the_recipe_says() -> None:
    log = audit(JUDGED).log
    assert [each.step for each in log.evaluated] == [6, 12, 18, 24, 30, 32]
    assert parse_owner_log(log.encode()) == log


@pytest.mark.parametrize(
    "edit",
    [
        lambda found: found[:-1],
        lambda found: found[1:],
        lambda found: (*found[:2], *found[3:]),
        lambda found: (*found, found[-1]),
        lambda found: (replace(found[0], step=5), *found[1:]),
        lambda found: (*found[:-1], replace(found[-1], loss=0.4)),
        lambda found: (*found[:-1], replace(found[-1], accuracy=1.0)),
    ],
    ids=["no end", "no beginning", "one left out", "one twice", "moved", "loss", "accuracy"],
)
def test_an_evaluation_on_the_way_cannot_be_left_out_moved_or_another_at_the_end(edit: Any) -> None:
    altered = replace(JUDGED, alter=lambda log: replace(log, evaluated=tuple(edit(log.evaluated))))
    assert refused(altered) == {"audit/6": Reason.TRAINING_EVALUATION}


def test_evaluations_that_nobody_asked_for_are_refused() -> None:
    more = JUDGED.log.evaluated
    altered = replace(HONEST, alter=lambda log: replace(log, evaluated=more))
    assert refused(altered) == {"audit/6": Reason.TRAINING_EVALUATION}


def test_a_share_that_holds_out_no_row_asks_for_no_evaluation() -> None:
    job = ComputedJob(
        "small share",
        recipe=replace(RECIPE, val_set_size=0.01),
        alter=lambda log: replace(log, evaluations=None),
        evaluated=False,
        steps=40,
        planned=40,
    )
    assert audit(job).log.evaluations is None


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("evaluated", [[1, "00" * 8]]),
        ("evaluated", [[1, "7ff8000000000001", "00" * 8]]),
        ("evaluated", [[0, "00" * 8, "00" * 8]]),
        ("type", "confide/training-log/v2"),
        ("salt", "00"),
        ("recipe", []),
        ("steps", [["00"]]),
        ("batches", [[[[0]]]]),
        ("events", [{"kind": "blessed", "step": 0, "chain": "00" * 32, "facts": {}}]),
        ("evaluations", {"base": {}}),
    ],
)
def test_what_is_no_log_is_refused(member: str, value: Any) -> None:
    document = parse_json(HONEST.log.encode(), what="log", reason=Reason.TRAINING_LOG)
    assert isinstance(document, dict)
    document[member] = value
    with pytest.raises(FormatError):
        parse_owner_log(jcs(document))


@pytest.mark.parametrize("bits", ["7ff0000000000000", "7ff8000000000001"])
def test_a_loss_that_is_no_number_is_refused(bits: str) -> None:
    document: Any = parse_json(HONEST.log.encode(), what="log", reason=Reason.TRAINING_LOG)
    document["steps"][0][2] = bits
    with pytest.raises(FormatError):
        parse_owner_log(jcs(document))
