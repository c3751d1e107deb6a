"""The record of a sealed state: what each decision gives, and what it refuses. state.md §4."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from state_world import NOW

from confide.broker.lease import (
    Blob,
    Lease,
    StateRecord,
    add_piece,
    begin_save,
    close_lease,
    commit_save,
    expire,
    is_repeated,
    open_lease,
    parse_state_record,
    require_holder,
)
from confide.broker.state_wire import SaveHead
from confide.errors import FormatError, Reason, ReleaseRefused
from confide.wire.json import jcs, parse_json
from confide.wire.release_receipt import NO_STATE

KEY, ID, SECRET, BLOB = bytes([1] * 32), bytes([2] * 16), bytes([3] * 32), bytes([4] * 16)
DIGEST = bytes([5] * 32)
FIRST = SaveHead(ID, 1, DIGEST)
UNTIL = NOW + timedelta(seconds=600 + 120)


def opened(record: StateRecord | None = None, session: bytes = b"one") -> StateRecord:
    return open_lease(
        record, session=session, wall_seconds=600, now=NOW, key=KEY, lease_id=ID, secret=SECRET
    ).record


def staged() -> StateRecord:
    return add_piece(begin_save(opened(), FIRST, blob_id=BLOB, now=NOW))


def saved() -> StateRecord:
    return commit_save(staged(), FIRST, size=9, now=NOW)


def test_the_first_opening_begins_a_state_under_a_fresh_key() -> None:
    record = opened()
    assert (record.key, record.counter, record.digest, record.blob) == (KEY, 0, NO_STATE, None)
    assert record.lease == Lease(ID, b"one", int(UNTIL.timestamp()), SECRET)


def test_the_key_stays_and_the_lease_is_new_after_a_save() -> None:
    again = open_lease(
        saved(), session=b"two", wall_seconds=1, now=NOW,
        key=bytes(32), lease_id=bytes(16), secret=bytes(32),
    )  # fmt: skip
    assert (again.record.key, again.record.counter, again.record.digest) == (KEY, 1, DIGEST)
    assert again.fresh
    assert again.lease.id == bytes(16)
    # What was spent is forgotten: an old save does not come again after another opening.
    assert again.record.spent is None


def test_the_holder_is_given_the_same_lease_with_the_same_end() -> None:
    record = opened()
    again = open_lease(
        record, session=b"one", wall_seconds=600, now=UNTIL - timedelta(seconds=1),
        key=bytes(32), lease_id=bytes(16), secret=bytes(32),
    )  # fmt: skip
    assert (again.record, again.lease, again.fresh) == (record, record.lease, False)


def test_another_session_waits_for_the_end_of_the_lease_and_not_longer() -> None:
    def other(now_before: float) -> StateRecord:
        return open_lease(
            staged(), session=b"two", wall_seconds=600,
            now=UNTIL - timedelta(seconds=now_before), key=KEY, lease_id=bytes(16), secret=SECRET,
        ).record  # fmt: skip

    with pytest.raises(ReleaseRefused) as refused:
        other(0.001)
    assert refused.value.reason is Reason.STATE_IN_USE
    taken = other(0)
    assert taken.lease is not None
    assert taken.lease.session == b"two"
    assert taken.staged is None, "the save under way went with its lease"


FORKS = {
    "another lease": (opened(), replace(FIRST, lease=bytes(16)), NOW),
    "the same counter": (opened(saved()), FIRST, NOW),
    "a counter too far": (opened(), replace(FIRST, counter=2), NOW),
    "late": (opened(), FIRST, UNTIL),
    "no lease": (close_lease(opened(), lease_id=ID, now=NOW), FIRST, NOW),
    "spent": (saved(), replace(FIRST, counter=2), NOW),
    "no state": (opened(), replace(FIRST, digest=NO_STATE), NOW),
}


@pytest.mark.parametrize("case", FORKS.values(), ids=FORKS)
def test_a_save_that_does_not_follow_is_a_fork(
    case: tuple[StateRecord, SaveHead, object],
) -> None:
    record, head, now = case
    with pytest.raises(ReleaseRefused) as refused:
        begin_save(record, head, blob_id=BLOB, now=now)  # type: ignore[arg-type]
    assert refused.value.reason is Reason.STATE_FORK


def test_a_save_that_began_in_time_and_ends_late_is_a_fork() -> None:
    with pytest.raises(ReleaseRefused) as refused:
        commit_save(staged(), FIRST, size=9, now=UNTIL)
    assert refused.value.reason is Reason.STATE_FORK


def test_a_save_spends_the_lease_and_is_known_when_it_comes_again() -> None:
    record = saved()
    assert (record.counter, record.digest, record.size, record.lease) == (1, DIGEST, 9, None)
    assert record.blob == Blob(BLOB, 1)
    assert is_repeated(record, FIRST)
    assert not is_repeated(record, replace(FIRST, digest=bytes([6] * 32)))
    assert not is_repeated(record, replace(FIRST, lease=bytes(16)))
    assert not is_repeated(opened(record), FIRST)


def test_only_the_holder_reads_and_only_the_open_lease_closes() -> None:
    record = staged()
    assert require_holder(record, session=b"one", now=NOW) == record
    for session, now, at in [
        (b"two", NOW, record),
        (b"one", UNTIL, record),
        (b"one", NOW, saved()),
        (b"one", NOW, None),
    ]:
        with pytest.raises(ReleaseRefused) as refused:
            require_holder(at, session=session, now=now)
        assert refused.value.reason is Reason.SESSION_UNKNOWN
    closed = close_lease(record, lease_id=ID, now=NOW)
    assert (closed.lease, closed.staged, closed.counter) == (None, None, 0)
    for lease_id, now in [(bytes(16), NOW), (ID, UNTIL)]:
        with pytest.raises(ReleaseRefused) as refused:
            close_lease(record, lease_id=lease_id, now=now)
        assert refused.value.reason is Reason.SESSION_UNKNOWN


def test_what_ends_by_its_time_ends_only_then() -> None:
    assert expire(staged(), now=UNTIL - timedelta(seconds=1)) == staged()
    assert expire(staged(), now=UNTIL).blobs == ()
    assert expire(saved(), now=UNTIL) == saved()


@pytest.mark.parametrize("record", [opened(), staged(), saved(), opened(saved())])
def test_a_record_comes_back_and_shows_no_secrets(record: StateRecord) -> None:
    assert parse_state_record(record.encode()) == record
    shown = repr(record)
    assert repr(KEY)[2:-1] not in shown
    assert repr(SECRET)[2:-1] not in shown


_NOT_ONE = {
    "a state without a counter": {"counter": 0},
    "a counter without a state": {"blob": None},
    "a counter without a digest": {"digest": "00" * 32},
    "no pieces": {"blob": {"id": "04" * 16, "pieces": 0}},
    "two leases": {"spent": {"id": "02" * 16, "secret": "03" * 32, "session": "6f", "until": 1}},
    "a save without a lease": {"lease": None},
    "a session without a name": {
        "lease": {"id": "02" * 16, "secret": "03" * 32, "session": "", "until": 1}
    },
    "a counter below zero": {"counter": -1},
    "another kind": {"type": "confide/state-record/v2"},
    "something more": {"more": 1},
}


@pytest.mark.parametrize("change", _NOT_ONE.values(), ids=_NOT_ONE)
def test_a_record_that_cannot_be_is_none(change: dict[str, object]) -> None:
    again = replace(FIRST, counter=2)
    whole = begin_save(opened(saved()), again, blob_id=bytes(16), now=NOW).encode()
    value = parse_json(whole, what="record", reason=Reason.VAULT_FORMAT)
    assert isinstance(value, dict)
    with pytest.raises(FormatError) as refused:
        parse_state_record(jcs({**value, **change}))
    assert refused.value.reason is Reason.VAULT_FORMAT


@given(st.integers(0, 10_000))
def test_no_cut_record_is_read(at: int) -> None:
    whole = saved().encode()
    with pytest.raises(FormatError):
        parse_state_record(whole[: at % len(whole)])
