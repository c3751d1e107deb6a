"""The `KeyStore` port over SQL: the same statements for SQLite and PostgreSQL. Blocking.

Clause: docs/protocols/broker.md §7.1, §7.2. Two tables: the header with the version of the schema,
and the sealed records. Every change names the revision that it was made for in its own WHERE, so
that of two writers, threads or machines, one wins and the other is told. The record that sums up
the others (7.5) is locked before anything else, so that its writers come one after another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ColumnElement,
    Connection,
    Integer,
    LargeBinary,
    MetaData,
    Select,
    Table,
    Text,
    delete,
    exists,
    func,
    insert,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from confide.adapters.broker_database import Database, open_database
from confide.broker.record import Change, Mark, Record, Summary, in_order
from confide.crypto.salted import SALT_BYTES
from confide.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["SqlStore", "open_store"]

_VERSION: Final = 1
# Sizes are looked at before contents, so that a page of large records is a short one.
_PAGE_ROWS: Final = 256
_PAGE_BYTES: Final = 4 * 1024 * 1024


class _Moved(Exception):
    """A record has another revision than a change was made for."""


def _tables() -> tuple[Table, Table]:
    metadata = MetaData()
    # Order is by bytes, whatever the locale of the database.
    name = Text().with_variant(Text(collation="C"), "postgresql")
    header = Table(
        "confide_broker_header",
        metadata,
        Column("id", Integer, CheckConstraint("id = 1"), primary_key=True, autoincrement=False),
        Column("version", Integer, nullable=False),
        Column("header", LargeBinary, nullable=False),
        sqlite_strict=True,
    )
    record = Table(
        "confide_broker_record",
        metadata,
        Column("kind", name, primary_key=True),
        Column("row_id", name, primary_key=True),
        Column("revision", BigInteger().with_variant(Integer, "sqlite"), nullable=False),
        Column("sealed", LargeBinary, nullable=False),
        sqlite_strict=True,
    )
    return header, record


class SqlStore:
    """A broker's store in one database. Safe in any number of threads and processes."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._header, self._record = _tables()
        self._insert = sqlite_insert if database.kind == "sqlite" else postgresql_insert

    def require_usable(self, *, begun: bool) -> None:
        """Refuse a database that loses what it acknowledged or, with `begun`, holds no store."""
        if self._database.kind == "postgresql":
            with self._database.transaction("read") as connection:
                synced = connection.execute(text("SHOW fsync")).scalar_one()
            if synced != "on":
                raise ConfigurationError(
                    f"{self._database.label} runs with fsync off: what it acknowledges may be lost"
                )
        if self.header() is None and begun:
            raise ConfigurationError(
                f"{self._database.label} holds no broker's store; confide broker init begins one"
            )

    def header(self) -> bytes | None:
        """Return the header, None for an empty database; `ConfigurationError` for a foreign one."""
        with self._database.transaction("read") as connection:
            return self._read_header(connection) if self._is_ours(connection) else None

    def begin(self, header: bytes, records: Iterable[Record] = ()) -> None:
        """Write the header and `records` into an empty database; `ConfigurationError` otherwise."""
        with self._database.transaction("read") as connection:
            # One that is somebody else's is not touched.
            self._is_ours(connection)
        with self._database.beginning() as connection:
            if self._is_ours(connection):
                raise ConfigurationError(f"{self._database.label} holds a store already")
            self._header.metadata.create_all(connection)
            values = {"id": 1, "version": _VERSION, "header": header}
            connection.execute(insert(self._header), values)
            for record in records:
                connection.execute(insert(self._record), _values(record))

    def replace_header(self, header: bytes) -> None:
        """Put another header in the place of the first."""
        with self._database.transaction("write") as connection:
            connection.execute(update(self._header).values(header=header))

    def read(self, kind: str, row: str) -> Record | None:
        """Return one record."""
        table = self._record.c
        with self._database.transaction("read") as connection:
            found = connection.execute(
                select(self._record).where(table.kind == kind, table.row_id == row)
            ).one_or_none()
            return None if found is None else _parse(found)

    def records(self, kind: str | None = None) -> Iterator[Record]:
        """Iterate as of one moment; the transaction lasts as long as the iteration."""
        table = self._record.c
        place = tuple_(table.kind, table.row_id)
        sizes = select(table.kind, table.row_id, func.length(table.sealed))
        wanted = select(self._record)
        if kind is not None:
            sizes, wanted = sizes.where(table.kind == kind), wanted.where(table.kind == kind)
        with self._database.transaction("read") as connection:
            after = ("", "")
            while page := connection.execute(
                sizes.where(place > after).order_by(*place).limit(_PAGE_ROWS)
            ).all():
                last = _cut(page)
                rows = wanted.where(place > after, place <= last).order_by(*place)
                yield from map(_parse, connection.execute(rows).all())
                after = last

    def marks(self) -> Iterator[Mark]:
        """Iterate as of one moment; the transaction lasts as long as the iteration."""
        table = self._record.c
        place = tuple_(table.kind, table.row_id)
        with self._database.transaction("read") as connection:
            after = ("", "")
            while page := connection.execute(
                self._marks().where(place > after).order_by(*place).limit(_PAGE_ROWS)
            ).all():
                yield from map(_parse_mark, page)
                after = (page[-1][0], page[-1][1])

    def apply(self, changes: Sequence[Change], summary: Summary | None = None) -> bool:
        """Make all `changes` or, where a revision moved, none."""
        # In one order everywhere: two writers never wait for each other in a circle.
        ordered = in_order(changes)
        try:
            with self._database.transaction("write") as connection:
                if summary is None:
                    self._apply_all(connection, ordered)
                else:
                    self._sum_up(connection, ordered, summary)
        except _Moved:
            return False
        return True

    def close(self) -> None:
        """Let go of the database."""
        self._database.close()

    def _sum_up(self, connection: Connection, changes: list[Change], summary: Summary) -> None:
        locked = select(self._record).where(self._at(summary)).with_for_update()
        found = connection.execute(locked).one_or_none()
        gone = []
        for change in changes:
            if change.expected:
                marked = connection.execute(self._marks().where(self._at(change))).one_or_none()
                if marked is None or marked.revision != change.expected:
                    raise _Moved
                gone.append(_parse_mark(marked))
        self._apply_all(connection, changes)
        before = None if found is None else _parse(found)
        sealed = summary.seal(before, gone)
        expected = 0 if before is None else before.revision
        self._apply(connection, Change(summary.kind, summary.row, expected, sealed))

    def _apply_all(self, connection: Connection, changes: Iterable[Change]) -> None:
        for change in changes:
            self._apply(connection, change)

    def _at(self, which: Change | Summary) -> ColumnElement[bool]:
        return (self._record.c.kind == which.kind) & (self._record.c.row_id == which.row)

    def _marks(self) -> Select[Any]:
        table = self._record.c
        salt = func.substr(table.sealed, 1, SALT_BYTES, type_=LargeBinary).label("salt")
        return select(table.kind, table.row_id, table.revision, salt)

    def _apply(self, connection: Connection, change: Change) -> None:
        table = self._record.c
        here = self._at(change)
        current = here & (table.revision == change.expected)
        statement: Any
        if change.sealed is None and change.expected == 0:
            if connection.execute(select(exists().where(here))).scalar_one():
                raise _Moved
            return
        if change.sealed is None:
            statement = delete(self._record).where(current)
        elif change.expected == 0:
            made = Record(change.kind, change.row, 1, change.sealed)
            statement = self._insert(self._record).values(_values(made)).on_conflict_do_nothing()
        else:
            values = {"revision": change.expected + 1, "sealed": change.sealed}
            statement = update(self._record).where(current).values(values)
        done = connection.execute(statement, execution_options={"preserve_rowcount": True})
        if done.rowcount != 1:
            raise _Moved

    def _is_ours(self, connection: Connection) -> bool:
        """Return False for an empty database; `ConfigurationError` for somebody else's."""
        return self._database.holds(connection, (self._header.name, self._record.name))

    def _read_header(self, connection: Connection) -> bytes:
        found = connection.execute(select(self._header)).one_or_none()
        if found is None:
            raise ConfigurationError(f"{self._database.label} is a store without a header")
        if found.version != _VERSION:
            raise ConfigurationError(
                f"{self._database.label} was written by another version of Confide (schema "
                f"{found.version}, here {_VERSION}); use that one"
            )
        header: bytes = found.header
        return header


def open_store(
    place: str, *, password: str | None = None, create: bool = False, patience_seconds: float = 5
) -> SqlStore:
    """
    Open the store at `place`; see `open_database`.

    Raises `ConfigurationError` for a database that is not a broker's store or, with `create`, is
    neither that nor empty; for one of another version; for one that is not durable.
    """
    database = open_database(
        place, password=password, create=create, patience_seconds=patience_seconds
    )
    store = SqlStore(database)
    try:
        store.require_usable(begun=not create)
    except BaseException:
        store.close()
        raise
    return store


def _values(record: Record) -> dict[str, object]:
    return {
        "kind": record.kind,
        "row_id": record.row,
        "revision": record.revision,
        "sealed": record.sealed,
    }


def _parse(found: Any) -> Record:
    return Record(found.kind, found.row_id, found.revision, found.sealed)


def _parse_mark(found: Any) -> Mark:
    # Of nothing, the beginning is NULL to SQLite.
    return Mark(found.kind, found.row_id, found.revision, found.salt or b"")


def _cut(page: Sequence[Any]) -> tuple[str, str]:
    """Return where a page ends that is at least one record, and not much more than it may be."""
    total, last = 0, (page[0][0], page[0][1])
    for kind, row, size in page:
        total += size
        if total > _PAGE_BYTES:
            break
        last = (kind, row)
    return last
