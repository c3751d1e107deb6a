"""Whatever runs, machines, crashes and restarts do: one lease, one chain of states. state.md §4."""

from __future__ import annotations

import hashlib
import io
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    rule,
)
from memory_store import MemoryStore
from state_world import (
    WALL_SECONDS,
    FailingStore,
    PowerCut,
    SetClock,
    World,
    close_at,
    open_at,
    read_at,
    save_at,
    save_body,
)

from confide.broker.lease import GRACE_SECONDS
from confide.broker.state_wire import OpenAnswer
from confide.errors import Reason, ReleaseRefused, Unavailable
from confide.node.broker_state import StateDesk
from confide.wire.release_receipt import NO_STATE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO

    from confide.broker.state_wire import SaveAnswer
    from confide.node.broker_state import StateOpening

RUNS = Bundle("runs")
contents = st.binary(min_size=1, max_size=40)
machines = st.integers(0, 2)


@dataclass(frozen=True)
class Run:
    """A run on some machine, and what it opened."""

    session: bytes
    opened: OpenAnswer


class States(RuleBasedStateMachine):
    """
    Three broker processes on one store, beside a model of what must be so.

    The model knows what was saved last, who holds the lease and until when; it decides what each
    request has to give, and the store is compared with it after every step.
    """

    def __init__(self) -> None:
        super().__init__()
        self.store = FailingStore()
        self.world = World(memory=self.store)
        self.desks = [self.world.desk() for _ in range(3)]
        self.sessions = 0
        self.counter, self.state = 0, b""
        self.holder: OpenAnswer | None = None
        self.spent: tuple[OpenAnswer, bytes] | None = None
        self.taken: list[int] = []
        self.key: bytes | None = None

    def _held(self) -> OpenAnswer | None:
        now = self.world.clock.now().timestamp()
        return self.holder if self.holder is not None and now < self.holder.until else None

    @contextmanager
    def _refused(self, reason: Reason) -> Iterator[None]:
        before = dict(self.store.rows)
        with pytest.raises(ReleaseRefused) as caught:
            yield
        assert caught.value.reason is reason
        assert self.store.rows == before, "a refusal changed something"

    @rule(target=RUNS, at=machines)
    def open(self, at: int) -> Run:
        self.sessions += 1
        session = b"%d" % self.sessions
        if (held := self._held()) is not None:
            with self._refused(Reason.STATE_IN_USE):
                open_at(self.desks[at], session)
            # A run that was refused and goes on all the same: it has nothing that opens or saves.
            nothing = OpenAnswer(held.counter, held.digest, bytes(16), 0, bytes(32), bytes(32))
            return Run(session, nothing)
        opened = open_at(self.desks[at], session)
        # What is opened is what was saved last.
        assert opened.counter == self.counter
        assert opened.digest == (hashlib.sha256(self.state).digest() if self.counter else NO_STATE)
        assert read_at(self.desks[at], session) == self.state
        assert opened.key == (self.key or opened.key)
        self.key, self.holder, self.spent = opened.key, opened, None
        return Run(session, opened)

    @rule(run=RUNS, at=machines, sealed=contents)
    def save(self, run: Run, at: int, sealed: bytes) -> None:
        opened = run.opened
        if self.spent == (opened, sealed):
            assert save_at(self.desks[at], opened, sealed)[0] == self.counter
        elif self._held() != opened:
            with self._refused(Reason.STATE_FORK):
                save_at(self.desks[at], opened, sealed)
        else:
            assert save_at(self.desks[at], opened, sealed)[0] == self.counter + 1
            self._took(opened, sealed)

    @rule(run=RUNS, at=machines)
    def send_the_last_save_again(self, run: Run, at: int) -> None:
        if self.spent is not None and self.spent[0] == run.opened:
            assert save_at(self.desks[at], *self.spent)[0] == self.counter

    @rule(
        run=RUNS, at=machines, sealed=contents,
        number=st.integers(0, 7), cut=st.booleans(), written=st.booleans(),
    )  # fmt: skip
    def save_and_lose_the_disk(
        self, run: Run, at: int, sealed: bytes, *, number: int, cut: bool, written: bool
    ) -> None:
        if self._held() != run.opened:
            return
        self.store.cut, self.store.written = cut, written
        self.store.at = self.store.changes + number
        changes = 2 - (-len(sealed) // self.world.piece_bytes)
        try:
            save_at(self.desks[at], run.opened, sealed)
            took = True
        except (PowerCut, Unavailable):
            took = written and number == changes - 1
            self.desks[at] = self.world.desk() if cut else self.desks[at]
        assert took == (number >= changes or (written and number == changes - 1))
        self.store.at = -1
        if took:
            self._took(run.opened, sealed)

    @rule(run=RUNS, at=machines, sealed=contents, ahead=st.sampled_from([-1, 0, 2, 7]))
    def save_another_counter(self, run: Run, at: int, sealed: bytes, ahead: int) -> None:
        counter = run.opened.counter + ahead
        if counter < 1 or self.spent == (run.opened, sealed):
            return
        body, mac = save_body(run.opened, sealed, counter=counter)
        with self._refused(Reason.STATE_FORK):
            self.desks[at].save("acme/state/notes", io.BytesIO(body), mac=mac)

    @rule(run=consumes(RUNS), at=machines)
    def close(self, run: Run, at: int) -> None:
        if self._held() == run.opened:
            close_at(self.desks[at], run.opened)
            self.holder = None
            return
        with self._refused(Reason.SESSION_UNKNOWN):
            close_at(self.desks[at], run.opened)

    @rule(run=RUNS, at=machines)
    def read(self, run: Run, at: int) -> None:
        if self._held() == run.opened:
            assert read_at(self.desks[at], run.session) == self.state
            return
        with self._refused(Reason.SESSION_UNKNOWN):
            read_at(self.desks[at], run.session)

    @rule(run=consumes(RUNS))
    def crash(self, run: Run) -> None:
        """The machine of a run is gone, and what it opened with it."""

    @rule(at=machines)
    def restart(self, at: int) -> None:
        self.desks[at] = self.world.desk()
        self.desks[at].tidy()

    @rule(seconds=st.sampled_from([60, WALL_SECONDS, WALL_SECONDS + GRACE_SECONDS]))
    def wait(self, seconds: int) -> None:
        self.world.clock.move(seconds)

    def _took(self, opened: OpenAnswer, sealed: bytes) -> None:
        self.counter += 1
        self.state, self.holder, self.spent = sealed, None, (opened, sealed)
        self.taken.append(self.counter)

    @invariant()
    def nothing_is_lost_and_nothing_lies_about(self) -> None:
        assert self.taken == list(range(1, self.counter + 1))
        if self._held() is None:
            # Where nobody saves, a start leaves exactly the pieces of the last state.
            copy = MemoryStore()
            copy.rows = dict(self.store.rows)
            World(memory=copy, clock=self.world.clock, entropy=self.world.entropy).desk().tidy()
            pieces = sum(kind == "state-blob" for kind, _ in copy.rows)
            assert pieces == -(-len(self.state) // self.world.piece_bytes)


States.TestCase.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    suppress_health_check=[HealthCheck.too_slow],
)
TestStates = States.TestCase


class _Forgetful(StateDesk):
    """Ends the lease there is when another session asks."""

    def open(self, resource: str, *, session: bytes, wall_seconds: int) -> StateOpening:
        seen = self._read(resource).record
        if seen is not None and seen.lease is not None:
            self.give_back(resource, lease=seen.lease.id)
        return super().open(resource, session=session, wall_seconds=wall_seconds)


class _Timeless(StateDesk):
    """Takes a save whenever it comes."""

    def save(self, resource: str, body: IO[bytes], *, mac: bytes) -> SaveAnswer:
        clock = self._clock
        self._clock = SetClock()
        try:
            return super().save(resource, body, mac=mac)
        finally:
            self._clock = clock


def _machine(broken: type[StateDesk]) -> States:
    machine = States()
    world = machine.world
    desk = broken(
        world.store(), entropy=world.entropy, clock=world.clock, piece_bytes=world.piece_bytes
    )
    machine.desks = [desk] * 3
    return machine


_SEEN = (AssertionError, ReleaseRefused, pytest.fail.Exception)


def test_the_model_sees_a_desk_that_gives_a_lease_to_two() -> None:
    machine = _machine(_Forgetful)
    machine.open(at=0)
    with pytest.raises(_SEEN):
        machine.open(at=1)


def test_the_model_sees_a_desk_that_takes_a_late_save() -> None:
    machine = _machine(_Timeless)
    run = machine.open(at=0)
    machine.wait(seconds=WALL_SECONDS + GRACE_SECONDS)
    with pytest.raises(_SEEN):
        machine.save(run, at=1, sealed=b"late")
