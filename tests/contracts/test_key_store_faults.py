"""What goes wrong under a store: killed writers, locks, full disks, foreign and damaged databases.

docs/protocols/broker.md §7.2. Real databases, real processes, real limits of the kernel.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import pg8000.dbapi  # type: ignore[import-untyped]
import pytest
from postgres_server import PASSWORD, PostgresServer

from confide.adapters.broker_sql import SqlStore, open_store
from confide.broker.record import Change, Record
from confide.errors import ConfideError, ConfigurationError, FormatError, Unavailable

HEADER = b"header"
_NUMBERS = itertools.count()

# Two records in every change; a line for each one that was acknowledged.
WRITER = """
import itertools, resource, sys
from confide.adapters.broker_sql import open_store
from confide.broker.record import Change
from confide.errors import Unavailable
place, password, first, limit = sys.argv[1:]
store = open_store(place, password=password)
if int(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
for number in itertools.count(int(first)):
    sealed = number.to_bytes(8, "big") * 500
    changes = [Change(kind, f"{number:08}", 0, sealed) for kind in ("left", "right")]
    try:
        assert store.apply(changes)
    except Unavailable as error:
        print(error, file=sys.stderr)
        break
    print(number, flush=True)
"""
# Add one to a counter, against others who do the same.
COUNTER = """
import sys
from confide.adapters.broker_sql import open_store
from confide.broker.record import Change
place, password, times = sys.argv[1:]
store = open_store(place, password=password, patience_seconds=60)
for _ in range(int(times)):
    while True:
        found = store.read("counter", "x")
        count = int.from_bytes(found.sealed, "big") + 1
        if store.apply([Change("counter", "x", found.revision, count.to_bytes(8, "big"))]):
            break
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a store is that was begun."""
    if request.param == "sqlite":
        where = str(tmp_path / "store")
    else:
        where = request.getfixturevalue("postgres").database(f"faults-{next(_NUMBERS)}")
    store = open_store(where, password=PASSWORD, create=True)
    store.begin(HEADER)
    store.close()
    return where


def opened(place: str, patience_seconds: float = 5) -> SqlStore:
    return open_store(place, password=PASSWORD, patience_seconds=patience_seconds)


def numbers(store: SqlStore) -> list[int]:
    """Return the number of every change that is there, each of them whole."""
    left = {record.row: record.sealed for record in store.records("left")}
    right = {record.row: record.sealed for record in store.records("right")}
    assert left == right
    for row, sealed in left.items():
        assert sealed == int(row).to_bytes(8, "big") * 500
    return [int(row) for row in left]


def writer(place: str, first: int, limit: int = 0) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", WRITER, place, PASSWORD, str(first), str(limit)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_writer_loses_nothing_it_acknowledged(place: str) -> None:
    told = -1
    for turn in range(4):
        with writer(place, told + 1) as process:
            assert process.stdout is not None
            for line in itertools.islice(process.stdout, 10 + 7 * turn):
                told = int(line)
            process.kill()
            for line in process.stdout:
                told = int(line)
        store = opened(place)
        # The change in flight may be there too, but never half.
        assert numbers(store) in (list(range(told + 1)), list(range(told + 2)))
        told = len(numbers(store)) - 1
        store.close()


def test_several_processes_count_without_losing_one(place: str) -> None:
    store = opened(place)
    assert store.apply([Change("counter", "x", 0, bytes(8))])
    words = [sys.executable, "-c", COUNTER, place, PASSWORD, "25"]
    children = [subprocess.Popen(words) for _ in range(3)]
    assert [child.wait() for child in children] == [0, 0, 0]
    assert store.read("counter", "x") == Record("counter", "x", 76, (75).to_bytes(8, "big"))
    store.close()


def test_a_full_disk_says_so_and_loses_nothing(tmp_path: Path) -> None:
    place = str(tmp_path / "store")
    store = open_store(place, create=True)
    store.begin(HEADER)
    # The kernel lets no file of this process grow beyond: the same error as a full disk.
    with writer(place, 0, limit=300_000) as process:
        out, told = process.communicate()
    assert process.returncode == 0
    assert "full" in told
    acknowledged = [int(line) for line in out.splitlines()]
    assert len(acknowledged) > 5
    assert numbers(store) == acknowledged
    # And it goes on where there is room again.
    assert store.apply([Change("left", "x", 0, b"1")])
    store.close()


def test_another_writer_on_sqlite_is_waited_for_so_long_and_no_longer(tmp_path: Path) -> None:
    place = str(tmp_path / "store")
    store = open_store(place, create=True, patience_seconds=0.2)
    store.begin(HEADER)
    other = sqlite3.connect(place, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="locked by another writer"):
        store.apply([Change("a", "x", 0, b"1")])
    assert store.read("a", "x") is None
    assert store.header() == HEADER
    other.execute("COMMIT")
    other.close()
    assert store.apply([Change("a", "x", 0, b"1")])
    store.close()


@pytest.fixture
def database(postgres: PostgresServer) -> tuple[PostgresServer, str]:
    """A server, and the name of an empty database of it."""
    name = f"faults-{next(_NUMBERS)}"
    postgres.database(name)
    return postgres, name


def test_another_writer_on_postgresql_is_waited_for_so_long_and_no_longer(
    database: tuple[PostgresServer, str],
) -> None:
    server, name = database
    store = open_store(server.url(name), password=PASSWORD, create=True, patience_seconds=0.2)
    store.begin(HEADER)
    assert store.apply([Change("a", "x", 0, b"1")])
    other = pg8000.dbapi.connect(
        "confide", "127.0.0.1", name, server.port, PASSWORD, ssl_context=False
    )
    other.cursor().execute("SELECT * FROM confide_broker_record FOR UPDATE")
    with pytest.raises(Unavailable, match="locked by another writer"):
        store.apply([Change("a", "w", 0, b"1"), Change("a", "x", 1, b"2")])
    assert [record.row for record in store.records()] == ["x"]
    other.rollback()
    other.close()
    assert store.apply([Change("a", "x", 1, b"2")])
    store.close()


def test_a_lost_connection_is_unavailable_and_then_made_again(
    database: tuple[PostgresServer, str], caplog: pytest.LogCaptureFixture
) -> None:
    server, name = database
    store = open_store(server.url(name), password=PASSWORD, create=True)
    store.begin(HEADER, [Record("a", f"{number:04}", 1, b"") for number in range(600)])
    iteration = store.records()
    next(iteration)
    _cut_connections(server)
    with pytest.raises(Unavailable, match=r"lost the connection|stopping"):
        list(iteration)
    assert store.header() == HEADER
    _cut_connections(server)
    # An idle connection that was cut is noticed before it is used.
    assert store.apply([Change("b", "x", 0, b"1")])
    store.close()
    # Nobody gets the traceback of a library to read.
    assert not caplog.records


def _cut_connections(server: PostgresServer) -> None:
    ended = server.sql(
        "SELECT bool_and(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity "
        "WHERE application_name = 'confide broker'"
    )
    assert ended == "t"


def test_postgresql_is_asked_to_be_durable_whatever_its_defaults(
    database: tuple[PostgresServer, str],
) -> None:
    server, name = database
    server.sql(f'ALTER DATABASE "{name}" SET synchronous_commit = off')
    store = open_store(server.url(name), password=PASSWORD, create=True)
    with store._database.transaction("write") as connection:
        assert connection.exec_driver_sql("SHOW synchronous_commit").scalar_one() == "on"
    store.close()


def test_sqlite_is_asked_to_be_durable_and_private(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "store"
    store = open_store(f"sqlite:///{path}", create=True)
    store.begin(HEADER)
    with store._database.transaction("write") as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar_one() == 3
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
    modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    assert modes == {"store": 0o600, "store-wal": 0o600, "store-shm": 0o600}
    store.close()
    path.chmod(0o640)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        open_store(str(path))


def test_a_read_only_database_of_postgresql_says_so(database: tuple[PostgresServer, str]) -> None:
    server, name = database
    store = open_store(server.url(name), password=PASSWORD, create=True)
    store.begin(HEADER)
    store.close()
    server.sql(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    store = open_store(server.url(name), password=PASSWORD)
    assert store.header() == HEADER
    with pytest.raises(Unavailable, match="is read-only"):
        store.apply([Change("a", "x", 0, b"1")])
    store.close()


def test_a_read_only_file_says_so() -> None:
    # Root writes to any file: a child becomes somebody who may only read this one.
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        store = open_store(str(folder / "store"), create=True)
        store.begin(HEADER, [Record("a", "x", 1, b"1")])
        store.close()
        (folder / "store").chmod(0o400)
        if os.geteuid() == 0:
            os.chown(folder / "store", 65534, 65534)
            os.chown(folder, 65534, 65534)
        child = os.fork()
        if child == 0:
            told = 70
            with suppress(BaseException):
                told = _write_as_nobody(folder / "store")
            os._exit(told)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
    finally:
        shutil.rmtree(folder)


def _write_as_nobody(path: Path) -> int:
    """Return 0 where the store is read, and a change to it refused as it should be."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    store = open_store(str(path))
    assert store.read("a", "x") == Record("a", "x", 1, b"1")
    with pytest.raises(Unavailable, match="is read-only"):
        store.apply([Change("a", "x", 1, b"2")])
    return 0


OTHERS = "CREATE TABLE confide_broker_record (kind TEXT); CREATE TABLE customers (name TEXT);"


def test_a_file_of_another_program_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "customers.sqlite"
    path.touch(mode=0o600)
    other = sqlite3.connect(path)
    other.executescript(OTHERS)
    other.close()
    before = path.read_bytes()
    for create in (False, True):
        with pytest.raises(ConfigurationError, match="tables of another program"):
            open_store(str(path), create=create)
    assert path.read_bytes() == before
    text = tmp_path / "text"
    text.touch(mode=0o600)
    text.write_text("not a database at all\n" * 100)
    for create in (False, True):
        with pytest.raises(ConfigurationError, match="is no broker's store"):
            open_store(str(text), create=create)
    with pytest.raises(ConfigurationError, match="not a file of this user alone"):
        open_store(str(tmp_path))
    with pytest.raises(ConfigurationError, match="there is no store"):
        open_store(str(tmp_path / "absent"))
    assert sorted(tmp_path.iterdir()) == [path, text]


def test_a_database_of_another_program_is_refused(database: tuple[PostgresServer, str]) -> None:
    server, name = database
    server.sql(OTHERS, name)
    for create in (False, True):
        with pytest.raises(ConfigurationError, match="tables of another program"):
            open_store(server.url(name), password=PASSWORD, create=create)


def test_another_version_or_shape_of_the_tables_is_refused(tmp_path: Path) -> None:
    place = str(tmp_path / "store")
    store = open_store(place, create=True)
    store.begin(HEADER)
    store.close()
    for statement, told in (
        ("UPDATE confide_broker_header SET version = 2", "another version"),
        ("DELETE FROM confide_broker_header", "without a header"),
        ("ALTER TABLE confide_broker_header RENAME header TO head", "no broker's store"),
    ):
        other = sqlite3.connect(place)
        other.execute(statement)
        other.commit()
        other.close()
        with pytest.raises(ConfigurationError, match=told):
            open_store(place)


def test_an_empty_database_is_no_store(
    tmp_path: Path, database: tuple[PostgresServer, str]
) -> None:
    server, name = database
    (tmp_path / "empty").touch(mode=0o600)
    for where in (server.url(name), str(tmp_path / "empty")):
        with pytest.raises(ConfigurationError, match="confide broker init"):
            open_store(where, password=PASSWORD)
        store = open_store(where, password=PASSWORD, create=True)
        with pytest.raises(ConfigurationError, match="confide broker init"):
            store.read("a", "x")
        with pytest.raises(ConfigurationError, match="confide broker init"):
            store.apply([Change("a", "x", 0, b"")])
        store.close()


def test_a_damaged_file_is_never_taken_for_a_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "store"
    store = open_store(str(path), create=True)
    records = [Record("a", f"{number:04}", 1, bytes(3000)) for number in range(100)]
    store.begin(HEADER, records)
    store.close()
    raw = bytearray(path.read_bytes())
    for at in range(8192, len(raw), 4096):
        # The head of every page but those of the schema.
        raw[at : at + 16] = b"\xff" * 16
    path.write_bytes(raw)
    with pytest.raises(FormatError, match="restore a backup"):
        list(opened(str(path)).records())


def test_who_is_not_let_in_learns_why_and_no_message_holds_the_password(
    database: tuple[PostgresServer, str], tmp_path: Path
) -> None:
    server, name = database
    wrong = "planted-wrong-password"
    with_password = f"postgresql://confide:{wrong}@127.0.0.1"
    refusals: list[ConfideError] = []
    for where, password, kind, told in (
        (server.url(name), wrong, ConfigurationError, "does not let this user in"),
        (f"{with_password}:{server.port}/{name}", None, ConfigurationError, "not let this user"),
        (server.url("absent"), PASSWORD, ConfigurationError, "no such database"),
        (f"{with_password}:1/{name}", None, Unavailable, "cannot be reached"),
        (f"{with_password}:{server.port}/{name}?sslmode=verify-full", None, Unavailable, "TLS"),
        (f"{with_password}/{name}?host={tmp_path}", None, Unavailable, "cannot be reached"),
        (f"{with_password}:port/{name}", None, ConfigurationError, "cannot be read"),
    ):
        with pytest.raises(kind, match=told) as refused:
            open_store(where, password=password)
        refusals.append(refused.value)
    for refusal in refusals:
        chain: BaseException | None = refusal
        while chain is not None:
            assert wrong not in str(chain) + repr(chain)
            assert PASSWORD not in str(chain) + repr(chain)
            chain = chain.__cause__
    store = open_store(server.url(name), password=PASSWORD, create=True)
    assert PASSWORD not in repr(store) + repr(store._database) + repr(vars(store))
    store.close()


def test_a_server_proves_who_it_is_before_it_sees_a_password(
    database: tuple[PostgresServer, str],
) -> None:
    server, name = database
    where = f"{server.url(name)}?sslmode=verify-full"
    with pytest.raises(Unavailable, match="does not prove by TLS"):
        open_store(where, password=PASSWORD, create=True)
    # A genuine certificate, of another host.
    other = where.replace("127.0.0.1", "localhost") + f"&sslrootcert={server.certificate}"
    with pytest.raises(Unavailable, match="does not prove by TLS"):
        open_store(other, password=PASSWORD, create=True)
    where += f"&sslrootcert={server.certificate}"
    store = open_store(where, password=PASSWORD, create=True)
    with store._database.transaction("read") as connection:
        asked = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        assert connection.exec_driver_sql(asked).scalar_one() is True
    store.close()


def test_a_unix_socket_is_a_host(database: tuple[PostgresServer, str]) -> None:
    server, name = database
    where = f"postgresql://confide@/{name}?host={server.folder}&port={server.port}"
    with pytest.raises(ConfigurationError, match="takes host"):
        open_store(where, password=PASSWORD)
    where = f"postgresql://confide@:{server.port}/{name}?host={server.folder}"
    store = open_store(where, password=PASSWORD, create=True)
    store.begin(HEADER)
    assert store.header() == HEADER
    store.close()


def test_a_slow_statement_is_ended(database: tuple[PostgresServer, str]) -> None:
    server, name = database
    store = open_store(server.url(name), password=PASSWORD, create=True)
    store.begin(HEADER)
    with store._database.transaction("read") as connection:
        # The bound is on the session, so that the server itself ends what takes too long.
        assert connection.exec_driver_sql("SHOW statement_timeout").scalar_one() == "30s"
    store.close()
