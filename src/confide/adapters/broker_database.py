"""The two databases that a store may lie in: how each is opened, and what its errors mean.

Clause: docs/protocols/broker.md §7. A store is a file of SQLite (the default) or a database of
PostgreSQL. What a broker stores is sealed, so neither is trusted with contents; they are trusted to
be durable, which is asked of both explicitly. No message holds a user, a password or a stored
value. The keys and the usage of tenants (docs/protocols/tenancy.md §1.4) lie in the same two.
"""

from __future__ import annotations

import logging
import os
import ssl
import stat
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from sqlalchemy import (
    URL,
    Connection,
    Engine,
    create_engine,
    event,
    func,
    inspect,
    make_url,
    select,
)
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from confide.errors import ConfigurationError, FormatError, Reason, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = ["BROKER", "TENANCY", "Database", "Mode", "Purpose", "open_database"]

# `read` sees one moment of everything; `write` is alone with what it touches.
Mode = Literal["read", "write"]

_BEGIN: Final[dict[str, dict[str, str]]] = {
    "sqlite": {"read": "BEGIN", "write": "BEGIN IMMEDIATE"},
    "postgresql": {
        "read": "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY",
        # Changes name the revision they were made for, so a row that moved meanwhile matches no
        # more: PostgreSQL waits for the other writer and looks again.
        "write": "SET TRANSACTION ISOLATION LEVEL READ COMMITTED",
    },
}
# EXTRA: durable under a rollback journal too. A removed record leaves no bytes in the file.
_SQLITE_PRAGMAS: Final = (
    "PRAGMA synchronous = EXTRA",
    "PRAGMA secure_delete = ON",
    "PRAGMA trusted_schema = OFF",
    "PRAGMA cell_size_check = ON",
)
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
# One statement may take as long; beyond it PostgreSQL is as good as silent.
_STATEMENT_SECONDS: Final = 30
# By prefix of SQLite's names of errors.
_SQLITE_CAUSES: Final[Mapping[str, str]] = {
    "SQLITE_BUSY": "is locked by another writer",
    "SQLITE_LOCKED": "is locked by another writer",
    "SQLITE_FULL": "has no room: the disk is full",
    "SQLITE_READONLY": "is read-only",
    "SQLITE_CANTOPEN": "cannot be opened",
    "SQLITE_IOERR": "cannot be read or written: the disk failed or is full",
    "SQLITE_PERM": "may not be opened",
}
# By prefix of SQLSTATE (PostgreSQL, appendix A).
_POSTGRES_CAUSES: Final[Mapping[str, str]] = {
    "08": "lost the connection",
    "25006": "is read-only",
    "40": "is busy with other writers",
    "53": "has no room: disk, memory or connections",
    "55P03": "is locked by another writer",
    "57014": "did not answer in time",
    "57P": "is stopping or starting",
    "58": "failed on its own disk",
}
_POSTGRES_SETUP: Final[Mapping[str, str]] = {
    "28": "does not let this user in; mend the user or PGPASSWORD",
    "3D000": "is not there: no such database",
    "42501": "forbids this user what a store needs; grant it",
}


@dataclass(frozen=True, slots=True)
class Purpose:
    """
    What a database is for, in the words of messages: what it is, and what begins one.

    `beginning` is any number that everybody who begins one agrees on, and no other program takes.
    """

    store: str
    begins: str
    clause: str
    application: str
    beginning: int


BROKER: Final = Purpose(
    "broker's store",
    "confide broker init",
    "docs/protocols/broker.md#7.1",
    "confide broker",
    0x436F6E66696465,
)
TENANCY: Final = Purpose(
    "store of keys",
    "confide keys create",
    "docs/protocols/tenancy.md#1.4",
    "confide tenancy",
    0x436F6E4B657973,
)


@dataclass(frozen=True, slots=True)
class Database:
    """One database, not yet looked into. `label` names it in messages."""

    label: str
    engine: Engine = field(repr=False)
    purpose: Purpose = BROKER

    @property
    def kind(self) -> str:
        """`sqlite` or `postgresql`."""
        return self.engine.dialect.name

    @contextmanager
    def transaction(self, mode: Mode) -> Iterator[Connection]:
        """Run one transaction: committed where the block ends, undone where it raises."""
        with (
            self.translating(),
            self.engine.connect().execution_options(mode=mode) as connection,
            connection.begin(),
        ):
            yield connection

    @contextmanager
    def beginning(self) -> Iterator[Connection]:
        """Run the transaction that begins a store: nobody else begins one meanwhile."""
        if self.kind == "sqlite":
            self._log_ahead()
        with self.transaction("write") as connection:
            if self.kind == "postgresql":
                connection.execute(select(func.pg_advisory_xact_lock(self.purpose.beginning)))
            yield connection

    def _log_ahead(self) -> None:
        # Readers do not wait for writers then. Not within a transaction. Where a file system has no
        # shared memory SQLite keeps its rollback journal, which is as durable; a backup then makes
        # writers wait.
        with self.translating():
            raw = self.engine.raw_connection()
            try:
                raw.cursor().execute("PRAGMA journal_mode = WAL").close()
            finally:
                raw.close()

    def holds(self, connection: Connection, tables: Iterable[str]) -> bool:
        """Return False for an empty database; `ConfigurationError` for one without `tables`."""
        names = set(inspect(connection).get_table_names())
        if names and names != set(tables):
            raise ConfigurationError(
                f"{self.label} holds tables of another program; give the {self.purpose.store} a "
                "database of its own"
            )
        return bool(names)

    @contextmanager
    def translating(self) -> Iterator[None]:
        """Turn what the database raises into our errors."""
        try:
            yield
        except DBAPIError as error:
            raise self._meaning(error) from error
        except PoolTimeoutError as error:
            raise Unavailable(f"{self.label} has no connection left") from error
        except SQLAlchemyError as error:
            raise Unavailable(f"{self.label} failed ({type(error).__name__})") from error
        except ssl.SSLError as error:
            raise Unavailable(
                f"{self.label} does not prove by TLS that it is this host; sslrootcert=FILE names "
                "a CA of your own"
            ) from error

    def _meaning(self, error: DBAPIError) -> Exception:
        if self.kind == "sqlite":
            name = getattr(error.orig, "sqlite_errorname", "no cause")
            return _sqlite_meaning(self.label, name, self.purpose)
        return _postgres_meaning(self.label, _sqlstate(error), self.purpose)

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()


def _sqlite_meaning(label: str, name: str, purpose: Purpose) -> Exception:
    if name.startswith("SQLITE_NOTADB"):
        return ConfigurationError(f"{label} is no {purpose.store}")
    if name == "SQLITE_ERROR":
        return _not_begun(label, purpose)
    if name.startswith("SQLITE_CORRUPT"):
        return _damaged(label, purpose, "the file is damaged")
    return Unavailable(f"{label} {_by_prefix(_SQLITE_CAUSES, name) or f'failed ({name})'}")


def _postgres_meaning(label: str, state: str, purpose: Purpose) -> Exception:
    if state in {"42P01", "42703"}:
        return _not_begun(label, purpose)
    if setup := _by_prefix(_POSTGRES_SETUP, state):
        return ConfigurationError(f"{label} {setup}")
    if state in {"XX001", "XX002"}:
        return _damaged(label, purpose, "PostgreSQL says its files are damaged")
    if not state:
        return Unavailable(f"{label} cannot be reached, or lost the connection")
    return Unavailable(f"{label} {_by_prefix(_POSTGRES_CAUSES, state) or f'failed ({state})'}")


def _damaged(label: str, purpose: Purpose, what: str) -> FormatError:
    return FormatError(
        f"{purpose.store} {label}: {what}; restore a backup",
        reason=Reason.VAULT_FORMAT,
        clause=purpose.clause,
    )


def _not_begun(label: str, purpose: Purpose) -> ConfigurationError:
    return ConfigurationError(f"{label} holds no {purpose.store}; {purpose.begins} begins one")


def _by_prefix(causes: Mapping[str, str], name: str) -> str | None:
    return next((cause for prefix, cause in causes.items() if name.startswith(prefix)), None)


def _sqlstate(error: DBAPIError) -> str:
    told = error.orig.args[0] if error.orig is not None and error.orig.args else None
    state = told.get("C", "") if isinstance(told, dict) else ""
    # Five letters and digits, or it is not what PostgreSQL says.
    return state if isinstance(state, str) and len(state) == 5 and state.isalnum() else ""


def open_database(
    place: str,
    *,
    password: str | None = None,
    create: bool = False,
    patience_seconds: float = 5,
    purpose: Purpose = BROKER,
    outlives_power: bool = True,
) -> Database:
    """
    Open the database at `place`: a path, `sqlite:///path` or `postgresql://user@host/database`.

    `create` makes the file of SQLite where there is none; a database of PostgreSQL is there
    already. `patience_seconds` bounds the wait for another writer. Without `outlives_power` a
    commit is quicker, and may be undone by a power cut, whole. Raises `ConfigurationError`,
    `Unavailable`.
    """
    if place.startswith("postgresql://"):
        return _open_postgres(place, password, patience_seconds, (purpose, outlives_power))
    path = place.removeprefix("sqlite:///")
    if not path or "://" in path:
        raise ConfigurationError(
            "a store is a path, sqlite:///path or postgresql://user@host/database"
        )
    how = (purpose, outlives_power)
    return _open_sqlite(Path(path).absolute(), patience_seconds, how, create=create)


def _listen(engine: Engine) -> None:
    # Its pool logs tracebacks of connections that were lost; whoever asked is told in our words.
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)

    def begin(connection: Connection) -> None:
        mode = connection.get_execution_options().get("mode", "read")
        connection.exec_driver_sql(_BEGIN[engine.dialect.name][mode])

    event.listen(engine, "begin", begin)


def _open_sqlite(
    path: Path, patience_seconds: float, how: tuple[Purpose, bool], *, create: bool
) -> Database:
    purpose, outlives_power = how
    try:
        if create:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # SQLite gives its other files the mode of this one.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        found = path.stat()
    except (FileNotFoundError, ValueError):
        raise ConfigurationError(
            f"there is no store at {path}; {purpose.begins} begins one"
        ) from None
    except OSError as error:
        raise Unavailable(f"{path} cannot be opened: {error.strerror}") from error
    if not stat.S_ISREG(found.st_mode) or found.st_mode & 0o077:
        raise ConfigurationError(f"{path} is not a file of this user alone; chmod 600 {path}")
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        connect_args={"timeout": patience_seconds},
        pool_timeout=patience_seconds,
        hide_parameters=True,
    )

    def connected(connection: Any, _record: object) -> None:
        # Transactions begin where we say so, not where the driver guesses.
        connection.isolation_level = None
        for pragma in _SQLITE_PRAGMAS:
            connection.execute(pragma)
        if not outlives_power:
            connection.execute("PRAGMA synchronous = NORMAL")

    event.listen(engine, "connect", connected)
    _listen(engine)
    return Database(str(path), engine, purpose)


def _open_postgres(
    place: str, password: str | None, patience_seconds: float, how: tuple[Purpose, bool]
) -> Database:
    purpose, outlives_power = how
    try:
        url = make_url(place)
    except (ArgumentError, ValueError):
        raise ConfigurationError("the URL of the store cannot be read") from None
    options = {name: value for name, value in url.query.items() if isinstance(value, str)}
    if set(url.query) - {"host", "sslmode", "sslrootcert"} or len(options) != len(url.query):
        raise ConfigurationError("the URL of a store takes host, sslmode and sslrootcert, once")
    host = options.get("host") or url.host
    if not host or not url.username or not url.database:
        raise ConfigurationError("the URL of a store names user, host and database")
    local = host.startswith("/")
    connect: dict[str, Any] = {
        "timeout": patience_seconds + _STATEMENT_SECONDS,
        "application_name": purpose.application,
        "ssl_context": _tls(options, local=local or host in _LOOPBACK),
    }
    if local:
        connect["unix_sock"] = f"{host}/.s.PGSQL.{url.port or 5432}"
    engine = create_engine(
        URL.create(
            "postgresql+pg8000",
            username=url.username,
            password=url.password or password,
            host="localhost" if local else host,
            port=url.port or 5432,
            database=url.database,
        ),
        connect_args=connect,
        pool_pre_ping=True,
        pool_timeout=patience_seconds,
        hide_parameters=True,
    )

    def connected(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        for name, value in (
            ("lock_timeout", f"{int(patience_seconds * 1000)}ms"),
            ("statement_timeout", f"{_STATEMENT_SECONDS}s"),
            # Whatever the server's default is: what was acknowledged is on its disk.
            ("synchronous_commit", "on" if outlives_power else "off"),
        ):
            cursor.execute("SELECT set_config(%s, %s, false)", (name, value))
        connection.commit()
        cursor.close()

    event.listen(engine, "connect", connected)
    _listen(engine)
    return Database(f"postgresql://{host}/{url.database}", engine, purpose)


def _tls(options: Mapping[str, str], *, local: bool) -> ssl.SSLContext | bool:
    """Return how a connection is protected: on this machine not at all, elsewhere always."""
    mode = options.get("sslmode", "disable" if local else "verify-full")
    if mode == "disable" and local:
        return False
    if mode != "verify-full":
        raise ConfigurationError("sslmode is verify-full; on this machine also disable")
    try:
        return ssl.create_default_context(cafile=options.get("sslrootcert"))
    except (OSError, ValueError) as error:
        raise ConfigurationError("sslrootcert is no file of certificates") from error
