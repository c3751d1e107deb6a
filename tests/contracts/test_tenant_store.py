"""The contract of `ports.TenantStore`, over SQLite and PostgreSQL: tenancy.md §1.4, §3.6 and §4."""

from __future__ import annotations

import itertools
import sqlite3
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from postgres_server import PASSWORD

from confide.adapters.tenant_sql import SqlTenants, open_tenants
from confide.errors import ConfigurationError, Unavailable
from confide.tenancy.budget import Charge
from confide.tenancy.keys import Budget, KeyRecord, Limits, Period, make_key
from confide.tenancy.ledger import Find, Reserve, Settle, Spent, UsageLine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from confide.tenancy.ledger import Operation

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
DAY = NOW.replace(hour=0)
CHAT = "/v1/chat/completions"
_NUMBERS = itertools.count()


@pytest.fixture(params=["sqlite", "postgresql"])
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], SqlTenants]]:
    """Return what opens one and the same store once more."""
    if request.param == "sqlite":
        place = str(tmp_path / "keys.sqlite3")
    else:
        name = f"tenants-{next(_NUMBERS)}"
        place = request.getfixturevalue("postgres").database(name)
    opened: list[SqlTenants] = []

    def open_() -> SqlTenants:
        # The disk of a test machine may be slow, and 16 writers wait for each other.
        opened.append(open_tenants(place, password=PASSWORD, create=True, patience_seconds=60))
        return opened[-1]

    yield open_
    for store in opened:
        store.close()


@pytest.fixture
def store(opener: Callable[[], SqlTenants]) -> SqlTenants:
    return opener()


def key(number: int = 0, **changes: object) -> KeyRecord:
    made = make_key(bytes([number]) * 32)
    record = KeyRecord(id=made.id, digest=made.digest, tenant="acme", created=NOW)
    return replace(record, **changes)  # type: ignore[arg-type]


def reserve(
    tokens: int, *, budget: int | None = 100, name: str = "", who: str = "key_a"
) -> Reserve:
    return Reserve(
        reservation=name or f"r{next(_NUMBERS)}",
        key_id=who,
        endpoint=CHAT,
        period=DAY,
        budget=budget,
        tokens=tokens,
    )


def settle(held: Reserve, given: int, made: int, **changes: object) -> Settle:
    settled = Settle(
        reservation=held.reservation,
        key_id=held.key_id,
        hour=NOW,
        endpoint=held.endpoint,
        charge=Charge(given, made, estimated=False),
        failed=False,
        cancelled=False,
    )
    return replace(settled, **changes)  # type: ignore[arg-type]


def test_a_key_is_found_by_its_digest_with_all_that_was_stored(store: SqlTenants) -> None:
    limits = Limits(60, 4, Budget(2**52, Period.MONTH))
    whole = key(
        1,
        expires=NOW + timedelta(days=1),
        models=("m", "ü, n"),
        endpoints=(CHAT,),
        limits=limits,
    )
    plain = key(2)
    store.add(whole)
    store.add(plain)
    assert store.work([Find(plain.digest), Find(whole.digest), Find(bytes(32))]) == [
        plain,
        whole,
        None,
    ]
    assert set(store.all_keys()) == {whole, plain}


def test_a_key_is_stored_once(store: SqlTenants) -> None:
    store.add(key(1))
    with pytest.raises(Unavailable):
        store.add(key(1))
    assert store.all_keys() == (key(1),)


def test_a_revoked_key_stays_revoked_since_the_first_time(store: SqlTenants) -> None:
    store.add(key(1))
    first = store.revoke(key(1).id, NOW)
    again = store.revoke(key(1).id, NOW + timedelta(days=1))
    assert first == again == key(1, revoked=NOW)
    assert store.work([Find(key(1).digest)]) == [key(1, revoked=NOW)]
    assert store.revoke("key_other", NOW) is None


def test_revoking_is_seen_by_who_opened_the_store_before(
    opener: Callable[[], SqlTenants],
) -> None:
    node, operator = opener(), opener()
    operator.add(key(1))
    assert node.work([Find(key(1).digest)]) == [key(1)]
    operator.revoke(key(1).id, NOW)
    assert node.work([Find(key(1).digest)]) == [key(1, revoked=NOW)]


def test_a_budget_is_spent_to_its_last_token_and_not_beyond(store: SqlTenants) -> None:
    asked = [reserve(60), reserve(41), reserve(40), reserve(1), reserve(0)]
    assert store.work(asked) == [
        Spent(granted=True, tokens=60),
        Spent(granted=False, tokens=60),
        Spent(granted=True, tokens=100),
        Spent(granted=False, tokens=100),
        Spent(granted=True, tokens=100),
    ]


def test_keys_and_periods_have_budgets_of_their_own(store: SqlTenants) -> None:
    store.work([reserve(100)])
    tomorrow = replace(reserve(100), period=DAY + timedelta(days=1))
    assert store.work([reserve(100, who="key_b"), tomorrow, reserve(7, budget=None)]) == [
        Spent(granted=True, tokens=100),
        Spent(granted=True, tokens=100),
        Spent(granted=True, tokens=107),
    ]


def test_settling_puts_what_was_used_in_the_place_of_what_was_reserved(store: SqlTenants) -> None:
    held = reserve(90)
    store.work([held])
    assert store.work([settle(held, 10, 5)]) == [None]
    assert store.spent("key_a", DAY) == 15
    # More than was reserved: charged, and the next call is refused.
    more = reserve(80)
    store.work([more])
    store.work([settle(more, 80, 40)])
    assert store.spent("key_a", DAY) == 135
    assert store.work([reserve(1)]) == [Spent(granted=False, tokens=135)]


def test_a_call_is_settled_once_however_often_it_is_tried(store: SqlTenants) -> None:
    store.add(key(1))
    held = reserve(50, who=key(1).id)
    store.work([held])
    ended = settle(held, 3, 4)
    store.work([ended, ended])
    store.work([ended])
    assert store.spent(key(1).id, DAY) == 7
    (line,) = store.usage(since=DAY)
    assert (line.calls, line.input_tokens, line.output_tokens) == (1, 3, 4)


def test_what_is_asked_together_is_looked_up_reserved_and_settled(store: SqlTenants) -> None:
    """A settlement makes room for the next transaction, whatever the order of asking."""
    store.add(key(1))
    held, other = reserve(50), reserve(60, who="key_b")
    store.work([held])
    asked: list[Operation] = [
        other,
        settle(held, 1, 1),
        Find(key(1).digest),
        reserve(51),
        reserve(50),
    ]
    assert store.work(asked) == [
        Spent(granted=True, tokens=60),
        None,
        key(1),
        Spent(granted=False, tokens=50),
        Spent(granted=True, tokens=100),
    ]
    assert (store.spent("key_a", DAY), store.spent("key_b", DAY)) == (52, 60)


def test_the_ledger_sums_up_by_key_hour_and_endpoint(store: SqlTenants) -> None:
    store.add(key(1))
    who = key(1).id
    held = [reserve(0, who=who, budget=None) for _ in range(4)]
    store.work(held)
    estimated = Charge(2, 2, estimated=True)
    store.work(
        [
            settle(held[0], 10, 1),
            settle(held[1], 20, 2, failed=True),
            settle(held[2], 0, 0, cancelled=True, charge=estimated),
            settle(held[3], 5, 5, hour=NOW + timedelta(hours=1)),
        ]
    )
    first = UsageLine(
        key_id=who,
        tenant="acme",
        hour=NOW,
        endpoint=CHAT,
        calls=3,
        failed=1,
        cancelled=1,
        input_tokens=32,
        output_tokens=5,
        estimated=4,
    )
    lines = store.usage(since=NOW)
    assert lines[0] == first
    assert (lines[1].hour, lines[1].calls) == (NOW + timedelta(hours=1), 1)
    assert store.usage(since=NOW + timedelta(hours=1)) == lines[1:]
    assert store.usage(since=NOW, key_id="key_other") == ()


def test_what_is_done_together_is_done_or_not_together(store: SqlTenants) -> None:
    """A reservation of a name that is taken breaks the transaction: nothing of it stays."""
    store.work([reserve(10, name="taken")])
    with pytest.raises(Unavailable):
        store.work([reserve(20), reserve(30, name="taken")])
    assert store.spent("key_a", DAY) == 10


def test_many_nodes_at_once_never_overspend(opener: Callable[[], SqlTenants]) -> None:
    """64 calls of 10 tokens from 16 threads at 4 nodes, against a budget for 25 of them (§3.6)."""
    nodes = [opener() for _ in range(4)]
    granted: list[Reserve] = []
    lock, start = threading.Lock(), threading.Barrier(16)

    def call(number: int) -> None:
        start.wait()
        for _ in range(4):
            asked = reserve(10, budget=255)
            (answer,) = nodes[number % 4].work([asked])
            assert isinstance(answer, Spent)
            assert answer.tokens <= 255
            if answer.granted:
                with lock:
                    granted.append(asked)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(granted) == 25
    assert nodes[0].spent("key_a", DAY) == 250
    nodes[1].work([settle(held, 1, 1) for held in granted])
    assert nodes[2].spent("key_a", DAY) == 50


def test_a_row_that_cannot_be_read_is_no_key_without_limits(tmp_path: Path) -> None:
    place = tmp_path / "keys.sqlite3"
    store = open_tenants(str(place), create=True)
    limits = Limits(budget=Budget(5, Period.DAY))
    store.add(key(1, limits=limits))
    for column, value in (("budget", None), ("period", "year"), ("models", "7"), ("rate", 0)):
        with sqlite3.connect(place) as raw:
            before = raw.execute(f"SELECT {column} FROM confide_api_key").fetchone()  # noqa: S608
            raw.execute(f"UPDATE confide_api_key SET {column} = ?", (value,))  # noqa: S608
        raw.close()
        with pytest.raises(ConfigurationError, match="cannot be read"):
            store.work([Find(key(1).digest)])
        with sqlite3.connect(place) as raw:
            raw.execute(f"UPDATE confide_api_key SET {column} = ?", before)  # noqa: S608
        raw.close()
    assert store.work([Find(key(1).digest)]) == [key(1, limits=limits)]
    store.close()


def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    place = tmp_path / "other.sqlite3"
    place.touch(mode=0o600)
    with sqlite3.connect(place) as raw:
        raw.execute("CREATE TABLE notes (text TEXT)")
    raw.close()
    before = place.read_bytes()
    with pytest.raises(ConfigurationError, match="another program"):
        open_tenants(str(place), create=True)
    assert place.read_bytes() == before
    with pytest.raises(ConfigurationError, match="confide keys create"):
        open_tenants(str(tmp_path / "absent.sqlite3"))
    empty = tmp_path / "empty.sqlite3"
    empty.touch(mode=0o600)
    with pytest.raises(ConfigurationError, match="holds no store of keys"):
        open_tenants(str(empty))


def test_a_locked_file_is_unavailable(tmp_path: Path) -> None:
    place = tmp_path / "keys.sqlite3"
    store = open_tenants(str(place), create=True, patience_seconds=0.1)
    other = sqlite3.connect(place, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(Unavailable, match="locked"):
        store.work([reserve(1)])
    other.execute("ROLLBACK")
    other.close()
    assert store.work([reserve(1)]) == [Spent(granted=True, tokens=1)]
    store.close()
