"""The contract of `ports.KeyStore`, over memory, SQLite and PostgreSQL: broker.md §7.1, §7.2."""

from __future__ import annotations

import itertools
import tempfile
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from memory_store import MemoryStore
from postgres_server import PASSWORD

from confide.adapters.broker_sql import open_store
from confide.broker.record import Change, Record
from confide.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from confide.ports import KeyStore

HEADER = b"header"
_NUMBERS = itertools.count()


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], KeyStore]]:
    """Return what makes another empty store of one kind."""
    made: list[KeyStore] = []

    def new() -> KeyStore:
        made.append(_new(request, tmp_path))
        return made[-1]

    yield new
    for store in made:
        store.close()


def _new(request: pytest.FixtureRequest, folder: Path) -> KeyStore:
    number = next(_NUMBERS)
    if request.param == "memory":
        return MemoryStore()
    if request.param == "sqlite":
        return open_store(str(folder / f"{number}.store"), create=True)
    url = request.getfixturevalue("postgres").database(f"contract-{number}")
    return open_store(url, password=PASSWORD, create=True)


@pytest.fixture
def store(make: Callable[[], KeyStore]) -> KeyStore:
    """A store that was begun."""
    made = make()
    made.begin(HEADER)
    return made


def test_an_empty_store_has_no_header_and_is_begun_once(make: Callable[[], KeyStore]) -> None:
    store = make()
    assert store.header() is None
    store.begin(HEADER)
    assert store.header() == HEADER
    with pytest.raises(ConfigurationError):
        store.begin(b"another")
    assert store.header() == HEADER
    store.replace_header(b"relocked")
    assert store.header() == b"relocked"


def test_a_store_begins_with_records_as_they_are(make: Callable[[], KeyStore]) -> None:
    store = make()
    records = [Record("b", "x", 7, b"\0\xff"), Record("a", "y", 2**40, b"")]
    store.begin(HEADER, iter(records))
    assert list(store.records()) == [records[1], records[0]]
    assert store.apply([Change("b", "x", 7, b"next")])
    assert store.read("b", "x") == Record("b", "x", 8, b"next")


def test_a_beginning_that_fails_half_way_leaves_the_store_empty(
    make: Callable[[], KeyStore],
) -> None:
    store = make()

    def broken() -> Iterator[Record]:
        yield Record("a", "x", 1, b"value")
        raise LookupError

    with pytest.raises(LookupError):
        store.begin(HEADER, broken())
    assert store.header() is None
    store.begin(b"second")
    assert (store.header(), list(store.records())) == (b"second", [])


def test_what_was_put_is_read_and_its_revision_counts(store: KeyStore) -> None:
    assert store.read("a", "x") is None
    assert store.apply([Change("a", "x", 0, b"one")])
    assert store.apply([Change("a", "x", 1, b"two")])
    assert store.read("a", "x") == Record("a", "x", 2, b"two")
    assert store.read("b", "x") is None
    assert store.apply([Change("a", "x", 2, None)])
    assert store.read("a", "x") is None
    assert store.apply([])


@pytest.mark.parametrize(
    "late",
    [
        Change("a", "x", 0, b"new"),
        Change("a", "x", 1, b"late"),
        Change("a", "x", 3, b"early"),
        Change("a", "x", 1, None),
        Change("a", "x", 0, None),
        Change("b", "x", 1, b"not there"),
        Change("b", "x", 1, None),
    ],
    ids=lambda change: f"{change.kind} {change.expected} {change.sealed}",
)
def test_one_moved_revision_undoes_every_change(store: KeyStore, late: Change) -> None:
    assert store.apply([Change("a", "x", 0, b"1")])
    assert store.apply([Change("a", "x", 1, b"2")])
    # Both before and after the change that is refused.
    others = [Change("a", "w", 0, b"w"), Change("c", "z", 0, b"z")]
    assert not store.apply([*others, late])
    assert list(store.records()) == [Record("a", "x", 2, b"2")]


def test_removing_what_is_not_there_is_no_change(store: KeyStore) -> None:
    assert store.apply([Change("a", "x", 0, None), Change("a", "y", 0, b"y")])
    assert [record.row for record in store.records()] == ["y"]


def test_a_record_is_changed_once_at_a_time(store: KeyStore) -> None:
    with pytest.raises(ValueError, match="two changes"):
        store.apply([Change("a", "x", 0, b"1"), Change("a", "x", 1, b"2")])
    assert store.read("a", "x") is None


def test_records_come_by_kind_and_row_as_bytes_order_them(store: KeyStore) -> None:
    places = [("b", "Z"), ("b", "a"), ("A", "x"), ("a-b", "x"), ("a", "_"), ("ab", "x")]
    assert store.apply([Change(kind, row, 0, b"") for kind, row in places])
    assert [(each.kind, each.row) for each in store.records()] == sorted(places)
    assert [each.row for each in store.records("b")] == ["Z", "a"]
    assert list(store.records("c")) == []


def test_many_records_and_large_ones_all_come(store: KeyStore) -> None:
    small = [Change("small", f"{number:04}", 0, bytes([number % 256])) for number in range(700)]
    large = [Change("large", f"{number}", 0, bytes([number]) * 3_000_000) for number in range(4)]
    assert store.apply([*small, *large])
    found = [(each.kind, each.row, each.sealed) for each in store.records()]
    expected = [(each.kind, each.row, each.sealed) for each in [*large, *small]]
    assert found == expected


def test_an_iteration_sees_one_moment(store: KeyStore) -> None:
    assert store.apply([Change("a", f"{number:04}", 0, b"old") for number in range(600)])
    iteration = store.records()
    seen = [next(iteration)]
    assert store.apply([Change("a", "0599", 1, b"new"), Change("z", "x", 0, b"new")])
    assert store.apply([Change("a", "0300", 1, None)])
    seen += iteration
    assert len(seen) == 600
    assert {record.sealed for record in seen} == {b"old"}
    assert len(list(store.records())) == 600


def test_an_iteration_may_be_left(store: KeyStore) -> None:
    assert store.apply([Change("a", "x", 0, b"1"), Change("a", "y", 0, b"1")])
    for _ in range(40):
        next(store.records())
    assert store.apply([Change("a", "x", 1, b"2")])


def test_of_many_writers_exactly_one_wins_each_revision(store: KeyStore) -> None:
    rounds, writers = 10, 4
    won: list[tuple[int, int]] = []
    gate = threading.Barrier(writers)

    def write(writer: int) -> None:
        for revision in range(rounds):
            gate.wait()
            # Both records in either order: nobody waits for the other for ever.
            changes = [
                Change("a", "x", revision, bytes([writer])),
                Change("a", "y", revision, bytes([writer])),
            ]
            if store.apply(changes[:: 1 if writer % 2 else -1]):
                won.append((revision, writer))

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(revision for revision, _ in won) == list(range(rounds))
    last = bytes([dict(won)[rounds - 1]])
    assert [record.sealed for record in store.records()] == [last, last]


CHANGES = st.lists(
    st.builds(
        Change,
        kind=st.sampled_from(["a", "b"]),
        row=st.sampled_from(["x", "y", "z"]),
        expected=st.integers(0, 3),
        sealed=st.none() | st.binary(max_size=4),
    ),
    unique_by=lambda change: (change.kind, change.row),
    max_size=4,
)


@settings(
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(CHANGES, max_size=12))
def test_sqlite_does_what_memory_does(history: list[list[Change]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        memory, database = MemoryStore(), open_store(f"{folder}/store", create=True)
        memory.begin(HEADER)
        database.begin(HEADER)
        for changes in history:
            assert database.apply(changes) == memory.apply(changes)
            assert list(database.records()) == list(memory.records())
        database.close()
