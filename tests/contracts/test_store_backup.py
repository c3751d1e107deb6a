"""Backups over real databases: from one to the other and back, of one moment, whole or not at all.

docs/protocols/broker.md §7.4.
"""

from __future__ import annotations

import itertools
import threading
import tracemalloc
from typing import TYPE_CHECKING

import pytest
from memory_store import MemoryStore
from postgres_server import PASSWORD, PostgresServer

from confide.adapters.broker_backup import back_up, read_header, restore
from confide.adapters.broker_sql import SqlStore, open_store
from confide.adapters.entropy import SystemEntropy
from confide.broker.record import Change
from confide.broker.vault import Vault
from confide.errors import ConfigurationError, FormatError, Unavailable
from confide.node.broker_store import Edit, SealedStore

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from confide.broker.record import Record
    from confide.ports import KeyStore

MASTER, HEADER = bytes(range(32)), b"header"
_NUMBERS = itertools.count()


def sealed(store: KeyStore) -> SealedStore:
    return SealedStore(store, Vault(MASTER), SystemEntropy())


def sqlite(folder: Path) -> SqlStore:
    return open_store(str(folder / f"{next(_NUMBERS)}.store"), create=True)


def filled(store: SqlStore) -> SqlStore:
    """A store with some history."""
    vault = sealed(store)
    vault.begin(HEADER, [])
    names = [f"acme/secret/{number}" for number in range(300)]
    assert vault.apply([Edit("secret", name, 0, name.encode()) for name in names])
    assert vault.apply([Edit("secret", name, 1, b"second") for name in names[::3]])
    assert vault.apply([Edit("secret", name, 1, None) for name in names[1::3]])
    assert vault.apply([Edit("blob", "large", 0, bytes(300_000)), Edit("blob", "none", 0, b"")])
    return store


def test_a_store_goes_to_postgresql_and_back(tmp_path: Path, postgres: PostgresServer) -> None:
    first = filled(sqlite(tmp_path))
    records = list(first.records())
    assert back_up(first, MASTER, tmp_path / "one") == (tmp_path / "one").stat().st_size
    url = postgres.database(f"backup-{next(_NUMBERS)}")
    second = open_store(url, password=PASSWORD, create=True)
    assert restore(tmp_path / "one", second, MASTER) == len(records) == 203
    assert list(second.records()) == records
    back_up(second, MASTER, tmp_path / "two")
    assert (tmp_path / "two").read_bytes() == (tmp_path / "one").read_bytes()
    third = sqlite(tmp_path)
    assert restore(tmp_path / "two", third, MASTER) == 203
    assert third.header() == read_header(tmp_path / "two") == HEADER
    entry = sealed(third).get("secret", "acme/secret/3")
    assert entry is not None
    assert (entry.value, entry.revision) == (b"second", 2)
    assert sealed(third).apply([Edit("secret", "acme/secret/3", 2, b"and on")])
    for store in (first, second, third):
        store.close()


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_backup_is_of_one_moment(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if kind == "sqlite":
        store = sqlite(tmp_path)
    else:
        server: PostgresServer = request.getfixturevalue("postgres")
        url = server.database(f"backup-{next(_NUMBERS)}")
        store = open_store(url, password=PASSWORD, create=True)
    vault, stop = sealed(store), threading.Event()
    vault.begin(HEADER, [])
    names = [("first", "x"), ("last", "x"), *(("middle", f"{n}") for n in range(600))]
    assert vault.apply([Edit(kind, name, 0, bytes(8)) for kind, name in names])

    def write() -> None:
        for count in itertools.count(1):
            # The first and the last record that a backup takes always hold the same.
            value = count.to_bytes(8, "big")
            edits = [Edit(kind, "x", count, value) for kind in ("first", "last")]
            assert vault.apply(edits)
            if stop.is_set():
                return

    writer = threading.Thread(target=write)
    writer.start()
    for number in range(5):
        back_up(store, MASTER, tmp_path / f"backup-{number}")
    stop.set()
    writer.join()
    seen = []
    for number in range(5):
        copy = MemoryStore()
        restore(tmp_path / f"backup-{number}", copy, MASTER)
        first, last = sealed(copy).get("first", "x"), sealed(copy).get("last", "x")
        assert first is not None
        assert last is not None
        assert first.value == last.value
        seen.append(int.from_bytes(first.value, "big"))
    assert seen == sorted(seen)
    assert seen[-1] > 0
    store.close()


def test_memory_stays_flat(tmp_path: Path) -> None:
    store, copy = sqlite(tmp_path), sqlite(tmp_path)
    vault = sealed(store)
    vault.begin(HEADER, [])
    for number in range(48):
        assert vault.apply([Edit("blob", f"{number}", 0, bytes(1_000_000))])
    tracemalloc.start()
    back_up(store, MASTER, tmp_path / "backup")
    restore(tmp_path / "backup", copy, MASTER)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (tmp_path / "backup").stat().st_size > 48_000_000
    assert peak < 16_000_000
    store.close()
    copy.close()


def test_only_an_empty_store_is_restored_into(tmp_path: Path) -> None:
    store = filled(sqlite(tmp_path))
    back_up(store, MASTER, tmp_path / "backup")
    before = list(store.records())
    with pytest.raises(ConfigurationError, match="not empty"):
        restore(tmp_path / "backup", store, MASTER)
    assert list(store.records()) == before
    with pytest.raises(ConfigurationError, match="never overwritten"):
        back_up(store, MASTER, tmp_path / "backup")
    empty = sqlite(tmp_path)
    with pytest.raises(ConfigurationError, match="nothing in the store"):
        back_up(empty, MASTER, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    empty.close()
    store.close()


def test_a_backup_that_is_not_believed_writes_nothing(tmp_path: Path) -> None:
    store = filled(sqlite(tmp_path))
    back_up(store, MASTER, tmp_path / "backup")
    store.close()
    raw = (tmp_path / "backup").read_bytes()
    empty = sqlite(tmp_path)
    for wrong in (raw[:-1], raw + b"\0", raw[:5000] + b"\0" + raw[5001:], raw[:-32] + bytes(32)):
        (tmp_path / "wrong").write_bytes(wrong)
        with pytest.raises(FormatError):
            restore(tmp_path / "wrong", empty, MASTER)
        assert empty.header() is None
    with pytest.raises(FormatError):
        restore(tmp_path / "backup", empty, bytes(32))
    assert empty.header() is None
    assert restore(tmp_path / "backup", empty, MASTER) == 203
    empty.close()


def test_a_backup_that_changes_while_it_is_restored_writes_nothing(tmp_path: Path) -> None:
    store = filled(sqlite(tmp_path))
    back_up(store, MASTER, tmp_path / "backup")
    file = tmp_path / "backup"

    class Changing(SqlStore):
        """A store before which the verified backup is exchanged."""

        def begin(self, header: bytes, records: Iterable[Record] = ()) -> None:
            raw = bytearray(file.read_bytes())
            raw[-40] ^= 1
            file.write_bytes(raw)
            super().begin(header, records)

    empty = Changing(sqlite(tmp_path)._database)
    with pytest.raises(FormatError):
        restore(file, empty, MASTER)
    assert empty.header() is None
    empty.close()
    store.close()


def test_a_damaged_record_is_found_when_the_backup_is_made(tmp_path: Path) -> None:
    store = filled(sqlite(tmp_path))
    row = Vault(MASTER).row("blob", "none")
    assert store.apply([Change("blob", row, 1, bytes(80))])
    with pytest.raises(FormatError, match="a record of kind blob does not open"):
        back_up(store, MASTER, tmp_path / "backup")
    assert [path.name for path in tmp_path.iterdir() if "backup" in path.name] == []
    store.close()


def test_where_a_backup_cannot_be_written_there_is_none(tmp_path: Path) -> None:
    store = filled(sqlite(tmp_path))
    with pytest.raises(Unavailable, match="cannot be written"):
        back_up(store, MASTER, tmp_path / "absent" / "backup")
    with pytest.raises(Unavailable, match="cannot be read"):
        read_header(tmp_path / "absent")
    store.close()
