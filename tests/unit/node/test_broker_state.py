"""Sealed states on a store: the story of runs, cuts at every change, rollbacks. state.md §4, §5."""

from __future__ import annotations

import io
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TYPE_CHECKING

import pytest
from memory_store import MemoryStore
from state_world import (
    NOW,
    RESOURCE,
    WALL_SECONDS,
    FailingStore,
    PowerCut,
    World,
    close_at,
    open_at,
    read_at,
    save_at,
    save_body,
)

from confide.broker.lease import GRACE_SECONDS
from confide.broker.record import Record
from confide.broker.state_wire import (
    CLOSE_LABEL,
    MAX_HEAD_BYTES,
    OpenAnswer,
    encode_close,
    lease_mac,
)
from confide.errors import FormatError, Reason, ReleaseRefused, Unavailable
from confide.node.broker_store import Edit
from confide.wire.release_receipt import NO_STATE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from confide.broker.record import Change, Summary
    from confide.node.broker_state import StateDesk

FIRST, SECOND = b"the first state of all", b"the second"


def refused(desk: StateDesk, reason: Reason, body: tuple[bytes, bytes]) -> None:
    with pytest.raises(ReleaseRefused) as caught:
        desk.save(RESOURCE, io.BytesIO(body[0]), mac=body[1])
    assert caught.value.reason is reason


def test_what_one_run_saved_another_machine_opens() -> None:
    world = World()
    first = open_at(world.desk(), b"one")
    assert (first.counter, first.digest) == (0, NO_STATE)
    assert read_at(world.desk(), b"one") == b""
    counter, digest = save_at(world.desk(), first, FIRST)
    second = open_at(world.desk(), b"two")
    assert (second.counter, second.digest, second.key) == (counter, digest, first.key)
    assert read_at(world.desk(), b"two") == FIRST
    assert second.lease_secret != first.lease_secret
    save_at(world.desk(), second, SECOND)
    third = open_at(world.desk(), b"three")
    assert (third.counter, read_at(world.desk(), b"three")) == (2, SECOND)
    assert world.pieces() == -(-len(SECOND) // world.piece_bytes), "the old pieces are gone"


def test_states_do_not_know_each_other() -> None:
    world = World()
    desk = world.desk()
    one, other = open_at(desk, b"one"), open_at(desk, b"one", "acme/state/other")
    assert one.key != other.key
    body, mac = save_body(one, FIRST)
    with pytest.raises(ReleaseRefused) as caught:
        desk.save("acme/state/other", io.BytesIO(body), mac=mac)
    assert caught.value.reason is Reason.STATE_FORK
    save_at(desk, other, SECOND, "acme/state/other")
    assert open_at(desk, b"two", "acme/state/other").counter == 1
    save_at(desk, one, FIRST)


def test_of_two_runs_one_is_refused() -> None:
    world = World()
    open_at(world.desk(), b"one")
    with pytest.raises(ReleaseRefused) as caught:
        open_at(world.desk(), b"two")
    assert caught.value.reason is Reason.STATE_IN_USE


class Meeting(MemoryStore):
    """A store at which so many writers arrive before the first one writes."""

    def __init__(self, writers: int) -> None:
        super().__init__()
        self._meeting = Barrier(writers)

    def apply(self, changes: Sequence[Change], summary: Summary | None = None) -> bool:
        self._meeting.wait(timeout=60)
        return super().apply(changes, summary)


@pytest.mark.parametrize("processes", [2, 5])
def test_of_processes_that_open_at_the_same_moment_exactly_one_does(processes: int) -> None:
    # All of them read that nobody holds it; the change of the record decides.
    world = World(memory=Meeting(processes))

    def attempt(number: int) -> OpenAnswer | Reason:
        try:
            return open_at(world.desk(), b"session %d" % number)
        except ReleaseRefused as error:
            return error.reason

    with ThreadPoolExecutor(processes) as pool:
        found = list(pool.map(attempt, range(processes)))
    assert sum(isinstance(each, OpenAnswer) for each in found) == 1
    assert found.count(Reason.STATE_IN_USE) == processes - 1


def test_the_late_save_of_a_run_that_was_given_up_changes_nothing() -> None:
    world = World()
    save_at(world.desk(), open_at(world.desk(), b"one"), FIRST)
    late = open_at(world.desk(), b"lost")
    world.clock.move(WALL_SECONDS + GRACE_SECONDS)
    before = dict(world.memory.rows)
    refused(world.desk(), Reason.STATE_FORK, save_body(late, SECOND))
    assert world.memory.rows == before
    # Nor when somebody else holds the lease, nor when he has saved.
    now = open_at(world.desk(), b"next")
    refused(world.desk(), Reason.STATE_FORK, save_body(late, SECOND))
    save_at(world.desk(), now, b"of the next")
    refused(world.desk(), Reason.STATE_FORK, save_body(late, SECOND))
    assert open_at(world.desk(), b"last").counter == 2
    assert read_at(world.desk(), b"last") == b"of the next"


def test_a_lease_that_was_given_back_is_free_and_saves_nothing() -> None:
    world = World()
    opened = open_at(world.desk(), b"one")
    close_at(world.desk(), opened)
    refused(world.desk(), Reason.STATE_FORK, save_body(opened, FIRST))
    with pytest.raises(ReleaseRefused) as caught:
        close_at(world.desk(), opened)
    assert caught.value.reason is Reason.SESSION_UNKNOWN
    assert open_at(world.desk(), b"two").counter == 0


def test_an_answer_that_was_lost_is_given_again_and_nothing_changes_by_it() -> None:
    world = World()
    opened = open_at(world.desk(), b"one")
    assert open_at(world.desk(), b"one") == opened
    answer = save_at(world.desk(), opened, FIRST)
    before = dict(world.memory.rows)
    assert save_at(world.desk(), opened, FIRST) == answer
    refused(world.desk(), Reason.STATE_FORK, save_body(opened, SECOND))
    refused(world.desk(), Reason.STATE_FORK, save_body(opened, SECOND, counter=2))
    assert world.memory.rows == before
    open_at(world.desk(), b"two")
    refused(world.desk(), Reason.STATE_FORK, save_body(opened, FIRST))


@pytest.mark.parametrize("place", [0, 5, 40, -1])
def test_one_changed_bit_of_a_save_and_nothing_is_written(place: int) -> None:
    world = World()
    opened = open_at(world.desk(), b"one")
    before = dict(world.memory.rows)
    body, mac = save_body(opened, FIRST)
    changed = bytearray(body)
    changed[place] ^= 1
    with pytest.raises((ReleaseRefused, FormatError)):
        world.desk().save(RESOURCE, io.BytesIO(bytes(changed)), mac=mac)
    refused(world.desk(), Reason.STATE_FORK, (body, bytes(32)))
    refused(world.desk(), Reason.STATE_FORK, (body, mac[:-1]))
    assert world.memory.rows == before
    save_at(world.desk(), opened, FIRST)


def test_the_holder_too_saves_only_what_it_says() -> None:
    world = World()
    opened = open_at(world.desk(), b"one")
    long = (MAX_HEAD_BYTES + 1).to_bytes(4, "big") + b" " * (MAX_HEAD_BYTES + 1)
    for body, mac in [
        save_body(opened, FIRST, digest=bytes([7] * 32)),
        save_body(opened, b""),
        (long, bytes(32)),
        (b"\0\0", bytes(32)),
    ]:
        with pytest.raises(FormatError) as caught:
            world.desk().save(RESOURCE, io.BytesIO(body), mac=mac)
        assert caught.value.reason is Reason.BROKER_FORMAT
    refused(world.desk(), Reason.STATE_FORK, save_body(opened, FIRST, counter=2))
    assert world.pieces() == 0


def test_the_mac_of_a_close_saves_nothing_and_the_other_way_round() -> None:
    world = World()
    opened = open_at(world.desk(), b"one")
    body, _ = save_body(opened, FIRST)
    refused(
        world.desk(),
        Reason.STATE_FORK,
        (body, lease_mac(opened.lease_secret, CLOSE_LABEL, [body])),
    )
    closing = encode_close(opened.lease)
    for mac in (save_body(opened, FIRST)[1], lease_mac(bytes(32), CLOSE_LABEL, [closing])):
        with pytest.raises(ReleaseRefused) as caught:
            world.desk().close(RESOURCE, closing, mac=mac)
        assert caught.value.reason is Reason.SESSION_UNKNOWN
    save_at(world.desk(), opened, FIRST)


def test_nobody_reads_without_the_lease() -> None:
    world = World()
    save_at(world.desk(), open_at(world.desk(), b"one"), FIRST)
    open_at(world.desk(), b"two")
    for session in (b"one", b"three"):
        with pytest.raises(ReleaseRefused) as caught:
            read_at(world.desk(), session)
        assert caught.value.reason is Reason.SESSION_UNKNOWN


def test_ten_thousand_openings_by_others_leave_nothing_behind() -> None:
    world = World()
    desk = world.desk()
    open_at(desk, b"one")
    before = dict(world.memory.rows)

    def flood(numbers: range) -> None:
        for number in numbers:
            with pytest.raises(ReleaseRefused):
                open_at(desk, b"session %d" % number)

    flood(range(500))
    tracemalloc.start()
    try:
        flood(range(500, 1000))
        start = tracemalloc.get_traced_memory()[0]
        flood(range(1000, 10_000))
        grown = tracemalloc.get_traced_memory()[0] - start
    finally:
        tracemalloc.stop()
    assert world.memory.rows == before
    # Far below one byte for each that was refused.
    assert grown < 4096


# Cuts and failures.


def _changes_of_a_save() -> int:
    world = World(memory=(store := FailingStore()))
    save_at(world.desk(), open_at(world.desk(), b"zero"), b"zeroth")
    opened = open_at(world.desk(), b"one")
    before = store.changes
    save_at(world.desk(), opened, FIRST)
    return store.changes - before


CHANGES = _changes_of_a_save()


@pytest.mark.parametrize("written", [False, True], ids=["not written", "written"])
@pytest.mark.parametrize("cut", [False, True], ids=["failed", "cut"])
@pytest.mark.parametrize("number", range(CHANGES))
def test_a_save_that_goes_wrong_anywhere_leaves_the_old_state_or_the_new_one(
    number: int, cut: bool, written: bool
) -> None:
    assert CHANGES == 5, "a place, three pieces, the state"
    world = World(memory=(store := FailingStore(cut=cut, written=written)))
    save_at(world.desk(), open_at(world.desk(), b"zero"), b"zeroth")
    opened = open_at(world.desk(), b"one")
    store.at = store.changes + number
    with pytest.raises((PowerCut, Unavailable)):
        save_at(world.desk(), opened, FIRST)
    took = written and number == CHANGES - 1
    # Nobody else, until the time is over; then what is there is whole and nothing lies beside it.
    if not took:
        with pytest.raises(ReleaseRefused):
            open_at(world.desk(), b"two")
    world.clock.move(WALL_SECONDS + GRACE_SECONDS)
    assert world.desk().tidy() == (0 if took else 1)
    after = open_at(world.desk(), b"two")
    state = FIRST if took else b"zeroth"
    assert (after.counter, read_at(world.desk(), b"two")) == (2 if took else 1, state)
    assert world.pieces() == -(-len(state) // world.piece_bytes)
    save_at(world.desk(), after, SECOND)
    assert world.pieces() == -(-len(SECOND) // world.piece_bytes)


@pytest.mark.parametrize("written", [False, True], ids=["not written", "written"])
@pytest.mark.parametrize("number", range(CHANGES))
def test_a_run_whose_save_failed_sends_it_again_and_it_is_taken_once(
    number: int, written: bool
) -> None:
    world = World(memory=(store := FailingStore(written=written)))
    opened = open_at(world.desk(), b"one")
    store.at = store.changes + number
    with pytest.raises(Unavailable):
        save_at(world.desk(), opened, FIRST)
    assert save_at(world.desk(), opened, FIRST)[0] == 1
    assert world.pieces() == -(-len(FIRST) // world.piece_bytes)
    assert open_at(world.desk(), b"two").counter == 1
    assert read_at(world.desk(), b"two") == FIRST


def test_a_start_leaves_the_save_of_another_process_alone() -> None:
    world = World()
    opened = open_at(world.desk(), b"one")
    body, mac = save_body(opened, FIRST)

    class Slow(io.BytesIO):
        """Between two pieces, another broker process starts on the same store."""

        def read(self, size: int | None = -1) -> bytes:
            assert world.desk().tidy() == 0
            return super().read(size)

    assert world.desk().save(RESOURCE, Slow(body), mac=mac).counter == 1
    open_at(world.desk(), b"two")
    assert read_at(world.desk(), b"two") == FIRST


def test_a_save_that_ends_late_is_refused_though_it_began_in_time() -> None:
    world = World()
    opened = open_at(world.desk(), b"one")
    body, mac = save_body(opened, FIRST)

    class Slow(io.BytesIO):
        """The last piece comes when the lease is over."""

        def read(self, size: int | None = -1) -> bytes:
            if world.pieces() == 2:
                world.clock.at = NOW
                world.clock.move(WALL_SECONDS + GRACE_SECONDS)
            return super().read(size)

    with pytest.raises(ReleaseRefused) as caught:
        world.desk().save(RESOURCE, Slow(body), mac=mac)
    assert caught.value.reason is Reason.STATE_FORK
    assert world.desk().tidy() == 1
    assert world.pieces() == 0
    assert open_at(world.desk(), b"two").counter == 0


def test_of_two_saves_at_once_under_one_lease_one_is_taken_whole() -> None:
    world = World()
    opened = open_at(world.desk(), b"one")
    body, mac = save_body(opened, FIRST)

    class Overtaken(io.BytesIO):
        """While it is being stored, the same lease saves something else."""

        def read(self, size: int | None = -1) -> bytes:
            if world.pieces() == 2:
                save_at(world.desk(), opened, SECOND)
            return super().read(size)

    with pytest.raises(ReleaseRefused) as caught:
        world.desk().save(RESOURCE, Overtaken(body), mac=mac)
    assert caught.value.reason is Reason.STATE_FORK
    assert open_at(world.desk(), b"two").counter == 1
    assert read_at(world.desk(), b"two") == SECOND
    assert world.pieces() == -(-len(SECOND) // world.piece_bytes)


# Somebody who can write to the database.


def _two_saves() -> tuple[World, dict[tuple[str, str], Record], StateDesk]:
    """A world after two saves, its rows after the first one, and a desk that saw everything."""
    world = World()
    desk = world.desk()
    save_at(desk, open_at(desk, b"one"), FIRST)
    old = dict(world.memory.rows)
    save_at(desk, open_at(desk, b"two"), SECOND)
    return world, old, desk


def _rolls_back(desk: StateDesk) -> None:
    with pytest.raises(ReleaseRefused) as caught:
        open_at(desk, b"three")
    assert caught.value.reason is Reason.STATE_ROLLBACK


@pytest.mark.parametrize(
    "what", ["gone", "of another piece", "of the old state", "sealed by the broker"]
)
def test_pieces_that_are_not_those_saved_last_are_refused(what: str) -> None:
    world, old, _ = _two_saves()
    rows = world.memory.rows
    one, other = [place for place in rows if place[0] == "state-blob"]
    if what == "gone":
        del rows[one]
    elif what == "of another piece":
        rows[one] = Record(*one, 1, rows[other].sealed)
    elif what == "sealed by the broker":
        # Whoever has the master key too: the piece opens, and is not of the digest.
        name = world.store().entries("state-blob")[0].name
        assert world.store().apply([Edit("state-blob", name, 1, b"other")])
    else:
        sealed = next(record.sealed for place, record in old.items() if place[0] == "state-blob")
        rows[one] = Record(*one, 1, sealed)
    _rolls_back(world.desk())


def test_an_old_record_without_its_pieces_is_refused_even_after_a_restart() -> None:
    world, old, _ = _two_saves()
    world.memory.rows.update({place: row for place, row in old.items() if place[0] == "state"})
    _rolls_back(world.desk())


@pytest.mark.parametrize("how", ["older", "removed", "beside"])
def test_a_running_broker_is_shown_nothing_older_than_it_saw(how: str) -> None:
    world, old, desk = _two_saves()
    if how == "removed":
        world.memory.rows.clear()
    else:
        world.memory.rows.clear()
        world.memory.rows.update(old)
    if how == "beside":
        # Another process on the old copy makes as many changes as there were: a fork.
        fork = world.desk()
        save_at(fork, open_at(fork, b"fork"), b"of the fork")
    _rolls_back(desk)


def test_what_a_start_cannot_see_the_counters_in_the_log_show() -> None:
    # 5.3: no store alone can tell; the opening that follows repeats a counter with another digest.
    world, old, _ = _two_saves()
    world.memory.rows.clear()
    world.memory.rows.update(old)
    desk = world.desk()
    opened = open_at(desk, b"three")
    assert opened.counter == 1, "below the save of counter 2 that was logged"
    assert save_at(desk, opened, b"another second")[0] == 2, "again, with another digest"


def test_a_change_of_the_store_meanwhile_is_no_rollback() -> None:
    # Between reading the record and its pieces another process opens, after the lease ended, and
    # saves: the old pieces are gone, and that is as it should be.
    world = World()
    save_at(world.desk(), open_at(world.desk(), b"one"), FIRST)

    class Overtaken(MemoryStore):
        """The first look at a piece comes after somebody else saved."""

        overtaken = False

        def read(self, kind: str, row: str) -> Record | None:
            if kind == "state-blob" and not self.overtaken:
                self.overtaken = True
                save_at(world.desk(), open_at(world.desk(), b"faster"), SECOND)
            return super().read(kind, row)

    slow = Overtaken()
    slow.rows = world.memory.rows
    world.memory = slow
    desk = world.desk()
    assert open_at(desk, b"slower").counter == 2
    assert slow.overtaken
    assert read_at(desk, b"slower") == SECOND


def test_a_thief_of_the_database_finds_neither_key_nor_state_nor_name() -> None:
    world = World(piece_bytes=1 << 20)
    opened = open_at(world.desk(), b"one")
    save_at(world.desk(), opened, b"planted-state-0123456789")
    for record in world.memory.rows.values():
        for planted in (b"planted", opened.key, opened.key.hex().encode(), b"notes"):
            assert planted not in record.sealed
