"""States, events and pages of a job: docs/protocols/training-node.md §4, §5."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_job_request import CONFIDE, read

from confide.errors import LocalProtocolError
from confide.training.jobs import ENDS, Job, JobCheckpoint, JobError, JobEvent, JobStatus, page

STATES: tuple[JobStatus, ...] = get_args(JobStatus)
BROKEN = JobError("trainer_ended", "it ended", resumable=True)
# From: docs/protocols/training-node.md §4.1, by hand.
ALLOWED = {
    "validating_files": "queued failed cancelled",
    "queued": "running failed cancelled",
    "running": "pausing queued succeeded failed cancelled",
    "pausing": "paused succeeded failed cancelled",
    "paused": "queued cancelled",
    "succeeded": "",
    "failed": "cancelled",
    "cancelled": "",
}


def job(status: JobStatus = "validating_files", error: JobError | None = None) -> Job:
    return Job(
        id="ftjob-" + "ab" * 16,
        training_id=bytes(32),
        request=read(suffix="mine"),
        created=100,
        status=status,
        error=error,
    )


@pytest.mark.parametrize("old", STATES)
@pytest.mark.parametrize("new", STATES)
def test_no_other_change_happens(old: JobStatus, new: JobStatus) -> None:
    error = JobError("data", "no row") if new == "failed" else None
    before = job(old, JobError("data", "no row") if old == "failed" else None)
    if new in ALLOWED[old].split():
        after = before.next(new, now=200, error=error)
        assert (after.status, after.error) == (new, error)
        assert after.finished == (200 if new in ENDS else None)
        assert after.ended == (new in ENDS)
    else:
        with pytest.raises(LocalProtocolError, match="does not become"):
            before.next(new, now=200, error=error)


def test_a_failed_job_goes_on_only_where_its_checkpoint_is_whole() -> None:
    again = job("failed", BROKEN).next("queued", now=300)
    assert (again.error, again.finished) == (None, None)
    assert not job("failed", JobError("data", "no row")).may("queued")


def test_an_error_exactly_when_it_failed() -> None:
    with pytest.raises(LocalProtocolError, match="error"):
        job().next("failed", now=1)
    with pytest.raises(LocalProtocolError, match="error"):
        job().next("queued", now=1, error=BROKEN)


def test_what_is_said_of_a_job_holds_no_secret() -> None:
    value = job().value(organization="org")
    said = repr(value)
    for secret in (CONFIDE["checkpoint_key"], CONFIDE["nonce"], bytes(32).hex()):
        assert secret not in said
    assert value["hyperparameters"] == value["method"]["supervised"]["hyperparameters"]  # type: ignore[index,call-overload]


def test_its_name_is_what_openai_would_call_it() -> None:
    assert job().name == "ft:tiny:confide:mine:abababab"


def test_of_very_many_events_the_oldest_go() -> None:
    told = job()
    for number in range(10_003):
        told = told.told(JobEvent(f"event-{number}", number, "info", "step"))
    assert len(told.events) == 10_000
    assert (told.events[0].id, told.events[-1].id) == ("event-3", "event-10002")


def test_events_with_numbers_are_metrics() -> None:
    assert JobEvent("e", 1, "info", "begun").value()["type"] == "message"
    assert JobEvent("e", 1, "info", "step 1", {"step": 1}).value()["type"] == "metrics"


def test_a_checkpoint_names_what_it_can_be_held_to() -> None:
    value = JobCheckpoint("c", 1, "ftjob-1", 5, "name", 0.5, b"\1" * 32, b"\2" * 32).value()
    assert value["confide"] == {"chain": "01" * 32, "sealed": "02" * 32}
    assert value["step_number"] == 5


@given(st.integers(0, 30), st.integers(1, 10))
def test_pages_together_are_the_list(count: int, limit: int) -> None:
    events = [JobEvent(str(number), number, "info", "x") for number in range(count)]
    seen: list[JobEvent] = []
    after, more = None, True
    while more:
        got = page(events, after=after, limit=limit)
        assert got is not None
        found, more = got
        seen += found
        after = found[-1].id if found else None
    assert seen == events


def test_a_page_after_nothing_known_is_none() -> None:
    assert page([JobEvent("a", 1, "info", "x")], after="b", limit=1) is None
