"""The root of a store, over every kind of one: whoever writes to the database is found out.

docs/protocols/broker.md §7.5. The attacker here holds the database and every state it was ever in,
and not the master key.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING

import pytest
from memory_store import MemoryStore
from postgres_server import PASSWORD

from confide.adapters.broker_backup import back_up, restore
from confide.adapters.broker_sql import SqlStore, open_store
from confide.adapters.entropy import SystemEntropy
from confide.broker.record import Change, Mark, Record, Summary
from confide.broker.root import ROOT
from confide.broker.vault import Vault
from confide.errors import FormatError, Reason, Unavailable
from confide.node.broker_audit import PENDING, RELEASED, SETTLED
from confide.node.broker_store import UNREMEMBERED, Edit, SealedStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from confide.ports import KeyStore

MASTER, HEADER = bytes(range(32)), b"header"
VAULT = Vault(MASTER)
_NUMBERS = itertools.count()
Rows = dict[tuple[str, str], Record]

# Add one to a counter, against others; a line for each time that it was acknowledged.
COUNTER = """
import sys
from confide.adapters.broker_sql import open_store
from confide.adapters.entropy import SystemEntropy
from confide.broker.vault import Vault
from confide.node.broker_store import Edit, SealedStore
place, password, own, times = sys.argv[1:]
store = open_store(place, password=password, patience_seconds=60)
sealed = SealedStore(store, Vault(bytes(range(32))), SystemEntropy())
for number in range(int(times)):
    # Of a record of one's own no revision ever moves.
    assert sealed.apply([Edit("own", own, number, b"%d" % number)])
    while True:
        found = sealed.get("counter", "x")
        if sealed.apply([Edit("counter", "x", found.revision, b"%d" % (int(found.value) + 1))]):
            break
    print(number, flush=True)
"""


def sealed(store: KeyStore) -> SealedStore:
    """A process that just started."""
    return SealedStore(store, VAULT, SystemEntropy())


def place_of(kind: str, name: str) -> tuple[str, str]:
    return (kind, VAULT.row(kind, name))


ROOT_PLACE = place_of(*ROOT)


def rows_of(store: KeyStore) -> Rows:
    return {(record.kind, record.row): record for record in store.records()}


def put(store: KeyStore, rows: Rows) -> None:
    """Make the database hold `rows` and nothing else, as its administrator can."""
    if isinstance(store, MemoryStore):
        store.rows = dict(rows)
        return
    assert isinstance(store, SqlStore)
    table = store._record
    with store._database.transaction("write") as connection:
        connection.execute(table.delete())
        for record in rows.values():
            connection.execute(
                table.insert().values(
                    kind=record.kind,
                    row_id=record.row,
                    revision=record.revision,
                    sealed=record.sealed,
                )
            )


def refuses(act: Callable[[], object], told: str = "somebody changed") -> None:
    with pytest.raises(FormatError, match=told) as refused:
        act()
    assert refused.value.reason is Reason.VAULT_FORMAT
    assert refused.value.clause == "docs/protocols/broker.md#7.5"


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[KeyStore]:
    """An empty store of each kind."""
    made: KeyStore
    if request.param == "memory":
        made = MemoryStore()
    else:
        made = open_store(_place(request, tmp_path), password=PASSWORD, create=True)
    yield made
    made.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where several processes find a store with a counter."""
    where = _place(request, tmp_path)
    made = open_store(where, password=PASSWORD, create=True)
    sealed(made).begin(HEADER, [Edit("counter", "x", 0, b"0")])
    made.close()
    return where


def _place(request: pytest.FixtureRequest, folder: Path) -> str:
    if request.param == "sqlite":
        return str(folder / "store")
    url: str = request.getfixturevalue("postgres").database(f"root-{next(_NUMBERS)}")
    return url


def history(store: KeyStore) -> list[Rows]:
    """Fill `store`; return its rows after every change."""
    process = sealed(store)
    process.begin(HEADER, [Edit("identity", "broker", 0, b"keys")])
    states = [rows_of(store)]
    for edits in (
        [Edit("secret", "a", 0, b"first"), Edit("statement", "s1", 0, b"")],
        [Edit("secret", "a", 1, b"second"), Edit("release", "r", 0, b"release")],
        [Edit("secret", "b", 0, b"value"), Edit("secret", "gone", 0, b"value")],
        [Edit("secret", "b", 1, None), Edit("secret", "gone", 1, None)],
        [Edit("secret", "b", 0, b"made again"), Edit("statement", "s2", 0, b"")],
        [Edit("revocation", "r", 0, b"revoked"), Edit("decision-pending", "d", 0, b"why")],
    ):
        assert process.apply(edits)
        states.append(rows_of(store))
    return states


def tampered(states: list[Rows]) -> Iterator[tuple[str, Rows]]:
    """Every way to take out, put back or exchange one row of the newest state, and some more."""
    newest = states[-1]
    for at in newest:
        yield f"{at[0]} taken out", {key: row for key, row in newest.items() if key != at}
    olds = {(at, row.sealed): row for state in states for at, row in state.items()}
    for (at, _), row in olds.items():
        if newest.get(at) != row:
            yield f"{at[0]} of revision {row.revision} put back", newest | {at: row}
    foreign = Record("release", "ab" * 32, 1, bytes(100))
    yield "a foreign row", newest | {("release", "ab" * 32): foreign}
    one, other = place_of("statement", "s1"), place_of("statement", "s2")
    swapped = {
        one: Record(*one, newest[other].revision, newest[other].sealed),
        other: Record(*other, newest[one].revision, newest[one].sealed),
    }
    yield "two exchanged", newest | swapped
    for number, state in enumerate(states[:-1]):
        older = {at: row for at, row in state.items() if at != ROOT_PLACE}
        yield f"all but the root of state {number}", older | {ROOT_PLACE: newest[ROOT_PLACE]}


def test_a_start_refuses_every_row_that_is_not_the_last_one_written(store: KeyStore) -> None:
    states = history(store)
    sealed(store).verify()
    ways = list(tampered(states))
    assert len(ways) > 25
    for way, rows in ways:
        put(store, rows)
        with pytest.raises(FormatError) as refused:
            sealed(store).verify()
        assert refused.value.reason is Reason.VAULT_FORMAT, way
    put(store, states[-1])
    sealed(store).verify()


def test_a_start_says_what_is_wrong(store: KeyStore) -> None:
    newest = history(store)[-1]
    put(store, {at: row for at, row in newest.items() if at[0] != "revocation"})
    refuses(sealed(store).verify, "7 records, where the broker left 8; somebody changed")
    put(store, {at: row for at, row in newest.items() if at != ROOT_PLACE})
    refuses(sealed(store).verify, "no root")
    # Nor does anything begin another one.
    refuses(lambda: sealed(store).apply([Edit("secret", "c", 0, b"")]), "no root")
    assert ROOT_PLACE not in rows_of(store)


def test_a_change_over_a_tampered_row_does_not_make_it_whole(store: KeyStore) -> None:
    # Revision 1 of `b` came twice. The broker is made to replace the first, and once more, so that
    # whatever was subtracted wrongly would be subtracted twice.
    states = history(store)
    at = place_of("secret", "b")
    first = states[3][at]
    assert (first.revision, states[-1][at].revision) == (1, 1)
    for value in (b"over it", b"again"):
        put(store, rows_of(store) | {at: first})
        assert sealed(store).apply([Edit("secret", "b", 1, value)])
        refuses(sealed(store).verify, "not the one that the broker wrote last")
        put(store, rows_of(store) | {at: states[-1][at]})
        refuses(sealed(store).verify, "not the one that the broker wrote last")


def test_rows_that_only_look_like_others_are_refused(store: KeyStore) -> None:
    newest = history(store)[-1]
    victim = newest[place_of("revocation", "r")]
    rest = {at: row for at, row in newest.items() if at[0] != "revocation"}
    for kind, row, revision, contents in (
        # The same bytes, cut between kind and row at another place.
        ("revocation", "", victim.revision, victim.sealed),
        ("revocatio", "n" + victim.row, victim.revision, victim.sealed),
        ("revocation", victim.row + "0", victim.revision, victim.sealed),
        ("revocation", victim.row, 0, victim.sealed),
        ("revocation", victim.row, 1, victim.sealed[:31]),
        ("revocation", victim.row, 1, b""),
    ):
        put(store, rest | {(kind, row): Record(kind, row, revision, contents)})
        with pytest.raises(FormatError):
            sealed(store).verify()


# Under a running process.


def test_a_root_put_back_under_a_running_process_is_refused_at_the_next_change(
    store: KeyStore,
) -> None:
    states = history(store)
    newest = states[-1]
    for older in states[:-1]:
        process = sealed(store)
        process.verify()
        for rows in (older, newest | {ROOT_PLACE: older[ROOT_PLACE]}):
            put(store, rows)
            change = partial(process.apply, [Edit("secret", "c", 0, b"")])
            refuses(change, "older than one")
            refuses(process.verify, "older than one")
            assert rows_of(store) == rows
        put(store, newest)
    assert process.apply([Edit("secret", "c", 0, b"")])


def test_a_root_of_another_history_is_refused(store: KeyStore) -> None:
    states = history(store)
    process = sealed(store)
    process.verify()
    put(store, states[-2])
    # A second process on the older store makes as many changes as there were.
    assert sealed(store).apply([Edit("secret", "c", 0, b"fork")])
    assert rows_of(store)[ROOT_PLACE].revision == states[-1][ROOT_PLACE].revision
    refuses(lambda: process.apply([Edit("secret", "d", 0, b"")]), "older than one")


def test_a_running_process_reads_nothing_that_was_put_back_or_taken_out(store: KeyStore) -> None:
    states = history(store)
    process = sealed(store)
    process.verify()
    newest = states[-1]
    for kind, name in (("revocation", "r"), ("statement", "s1"), ("release", "r"), ("secret", "a")):
        put(store, {at: row for at, row in newest.items() if at != place_of(kind, name)})
        refuses(partial(process.get, kind, name))
        refuses(partial(process.entries, kind))
    for name, state in (("a", states[1]), ("b", states[3]), ("gone", states[3])):
        at = place_of("secret", name)
        put(store, newest | {at: state[at]})
        refuses(partial(process.get, "secret", name))
        refuses(partial(process.entries, "secret"))
    put(store, newest)
    found = process.get("secret", "b")
    assert found is not None
    assert found.value == b"made again"
    assert process.get("secret", "gone") is None


def test_what_another_process_wrote_is_read_once_it_adds_up(store: KeyStore) -> None:
    history(store)
    process, other = sealed(store), sealed(store)
    process.verify()
    assert other.apply([Edit("secret", "a", 2, b"third"), Edit("secret", "b", 1, None)])
    assert other.apply([Edit("secret", "c", 0, b"new"), Edit("release", "r", 1, b"logged")])
    assert [(each.name, each.value) for each in process.entries("secret")] == [
        ("a", b"third"),
        ("c", b"new"),
    ]
    release = process.get("release", "r")
    assert release is not None
    assert release.value == b"logged"
    assert process.apply([Edit("secret", "c", 1, b"newer")])
    found = other.get("secret", "c")
    assert found is not None
    assert found.value == b"newer"


# Writers at once.


def test_threads_lose_nothing_and_are_refused_nothing(store: KeyStore) -> None:
    sealed(store).begin(HEADER, [Edit("counter", "x", 0, b"0")])
    # Half of the threads share a process, the others have one each.
    shared = sealed(store)
    refused: list[int] = []

    def work(number: int) -> None:
        process = shared if number % 2 else sealed(store)
        for count in range(6):
            if not process.apply([Edit("own", f"{number}", count, b"%d" % count)]):
                refused.append(number)
            while True:
                found = process.get("counter", "x")
                assert found is not None
                value = b"%d" % (int(found.value) + 1)
                if process.apply([Edit("counter", "x", found.revision, value)]):
                    break

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    process = sealed(store)
    process.verify()
    counter = process.get("counter", "x")
    assert counter is not None
    assert (counter.value, refused) == (b"48", [])
    assert [entry.revision for entry in process.entries("own")] == [6] * 8
    assert rows_of(store)[ROOT_PLACE].revision == 1 + 2 * 48


def counter(place: str, own: int, times: int) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", COUNTER, place, PASSWORD, str(own), str(times)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def test_processes_lose_nothing_and_are_refused_nothing(place: str) -> None:
    children = [counter(place, own, 10) for own in range(3)]
    for child in children:
        child.communicate()
    assert [child.returncode for child in children] == [0, 0, 0]
    store = open_store(place, password=PASSWORD)
    process = sealed(store)
    process.verify()
    found = process.get("counter", "x")
    assert found is not None
    assert found.value == b"30"
    assert [entry.revision for entry in process.entries("own")] == [10] * 3
    store.close()


def test_a_killed_writer_leaves_a_store_that_opens(place: str) -> None:
    for turn in range(3):
        told = -1
        with counter(place, turn, 1000) as process:
            assert process.stdout is not None
            for line in itertools.islice(process.stdout, 5 + 6 * turn):
                told = int(line)
            process.kill()
            for line in process.stdout:
                told = int(line)
        store = open_store(place, password=PASSWORD)
        after = sealed(store)
        after.verify()
        own = after.get("own", str(turn))
        assert own is not None
        # What was in flight may be there too.
        assert int(own.value) in {told, told + 1}
        assert after.apply([Edit("own", "next", turn, b"")])
        store.close()


# What the port does for it.


def summary(act: Callable[[Record | None, Sequence[Mark]], bytes]) -> Summary:
    return Summary("sum", "x", act)


def test_a_summary_changes_with_the_others_or_nothing_does(store: KeyStore) -> None:
    store.begin(HEADER, [Record("a", "x", 4, b"s" * 32 + b"rest"), Record("a", "y", 1, b"t" * 40)])
    asked: list[tuple[Record | None, list[Mark]]] = []

    def note(before: Record | None, gone: Sequence[Mark]) -> bytes:
        asked.append((before, sorted(gone, key=lambda mark: mark.row)))
        return b"sum %d" % len(asked)

    assert store.apply(
        [Change("a", "y", 1, None), Change("a", "x", 4, b""), Change("a", "z", 0, b"z")],
        summary(note),
    )
    gone = [Mark("a", "x", 4, b"s" * 32), Mark("a", "y", 1, b"t" * 32)]
    assert asked == [(None, gone)]
    assert not store.apply([Change("a", "x", 4, b""), Change("a", "w", 0, b"")], summary(note))
    assert not store.apply([Change("a", "z", 0, b""), Change("a", "w", 0, b"")], summary(note))
    assert store.apply([], summary(note))
    assert asked[-1] == (Record("sum", "x", 1, b"sum 1"), [])

    def fail(_before: Record | None, _gone: Sequence[Mark]) -> bytes:
        raise LookupError

    before = rows_of(store)
    with pytest.raises(LookupError):
        store.apply([Change("a", "x", 5, b"never")], summary(fail))
    assert rows_of(store) == before
    assert {row.row: row.revision for row in before.values()} == {"x": 2, "z": 1}
    assert before["sum", "x"].revision == 2


def test_marks_are_of_every_record_and_of_one_moment(store: KeyStore) -> None:
    records = [Record("a", f"{n:04}", n + 1, bytes([n % 256]) * 40) for n in range(600)]
    store.begin(HEADER, [*records, Record("b", "short", 1, b"short"), Record("b", "none", 1, b"")])
    assert list(store.marks()) == [record.mark for record in store.records()]
    marks = store.marks()
    seen = [next(marks)]
    assert store.apply([Change("a", "0599", 600, None), Change("c", "new", 0, b"")])
    seen += marks
    assert [mark.row for mark in seen] == [*(f"{n:04}" for n in range(600)), "none", "short"]


def test_a_root_that_never_rests_is_unavailable() -> None:
    class Restless(MemoryStore):
        """Between root and marks somebody always writes."""

        def marks(self) -> Iterator[Mark]:
            assert sealed(self).apply([Edit("secret", "a", self.turn, b"")])
            self.turn += 1
            return super().marks()

        turn = 0

    store = Restless()
    sealed(store).begin(HEADER, [])
    with pytest.raises(Unavailable, match="try again"):
        sealed(store).verify()
    assert store.turn > 8


def test_what_is_not_remembered_are_decisions_and_states_alone() -> None:
    assert {PENDING, RELEASED, SETTLED, "state", "state-blob"} == UNREMEMBERED


def test_the_root_is_nobody_elses_to_write() -> None:
    store = MemoryStore()
    sealed(store).begin(HEADER, [])
    with pytest.raises(ValueError, match="the root follows"):
        sealed(store).apply([Edit(*ROOT, 1, b"")])
    with pytest.raises(ValueError, match="the root follows"):
        sealed(MemoryStore()).begin(HEADER, [Edit(*ROOT, 0, b"")])


def test_a_backup_brings_its_root_along(store: KeyStore, tmp_path: Path) -> None:
    states = history(store)
    back_up(store, MASTER, tmp_path / "backup")
    copy = open_store(str(tmp_path / "copy"), create=True)
    assert restore(tmp_path / "backup", copy, MASTER) == 9
    assert rows_of(copy) == states[-1]
    process = sealed(copy)
    process.verify()
    assert process.apply([Edit("secret", "a", 2, b"third")])
    sealed(copy).verify()
    copy.close()
    for number, (_, rows) in enumerate(tampered(states)):
        put(store, rows)
        with pytest.raises(FormatError):
            back_up(store, MASTER, tmp_path / f"tampered-{number}")
        assert not (tmp_path / f"tampered-{number}").exists()
