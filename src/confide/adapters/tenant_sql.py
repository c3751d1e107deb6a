"""The `TenantStore` port over SQL: keys, what they spent, and the ledger. Blocking.

Clause: docs/protocols/tenancy.md §1.4 and §4. The same statements for SQLite and PostgreSQL. A
budget is kept by the condition of one UPDATE, so that of two nodes that spend the last tokens one
is told; a call is settled by taking its reservation away, so that it is settled once.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    delete,
    func,
    insert,
    inspect,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from confide.adapters.broker_database import TENANCY, Database, open_database
from confide.adapters.tenant_rows import (
    Tables,
    key_values,
    parse_key_row,
    parse_usage_row,
    seconds_of,
)
from confide.errors import ConfigurationError
from confide.tenancy.ledger import Find, Reserve, Spent

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from confide.tenancy.keys import KeyRecord
    from confide.tenancy.ledger import Operation, Outcome, Settle, UsageLine

__all__ = ["SqlTenants", "open_tenants"]

_VERSION: Final = 1
# Any number that everybody who begins a store agrees on.
_BEGINNING: Final = 0x436F6E4B657973


class SqlTenants:
    """Keys and usage in one database. Safe in any number of threads, processes and nodes."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._tables = Tables()
        self._insert = sqlite_insert if database.kind == "sqlite" else postgresql_insert

    def begin(self) -> None:
        """Make the tables where there are none. Raises `ConfigurationError` for foreign ones."""
        if self._is_begun():
            return
        if self._database.kind == "sqlite":
            with self._database.translating():
                raw = self._database.engine.raw_connection()
                try:
                    # Readers do not wait for writers, nor the node for `confide keys`.
                    raw.cursor().execute("PRAGMA journal_mode = WAL").close()
                finally:
                    raw.close()
        with self._database.transaction("write") as connection:
            if self._database.kind == "postgresql":
                connection.execute(select(func.pg_advisory_xact_lock(_BEGINNING)))
            if not inspect(connection).has_table(self._tables.header.name):
                self._tables.metadata.create_all(connection)
                connection.execute(insert(self._tables.header), {"id": 1, "version": _VERSION})

    def require_begun(self) -> None:
        """Raise `ConfigurationError` for a database that is no store of keys of this version."""
        if not self._is_begun():
            raise ConfigurationError(
                f"{self._database.label} holds no {TENANCY.store}; {TENANCY.begins} begins one"
            )

    def add(self, record: KeyRecord) -> None:
        """Store one more key."""
        with self._database.transaction("write") as connection:
            connection.execute(insert(self._tables.key), key_values(record))

    def all_keys(self) -> tuple[KeyRecord, ...]:
        """Return every key, the oldest first."""
        key = self._tables.key
        with self._database.transaction("read") as connection:
            found = connection.execute(select(key).order_by(key.c.created, key.c.key_id)).all()
        return tuple(parse_key_row(row) for row in found)

    def revoke(self, key_id: str, now: datetime) -> KeyRecord | None:
        """Revoke a key and return it; one that was stays as it is. None where there is none."""
        key = self._tables.key
        here = key.c.key_id == key_id
        with self._database.transaction("write") as connection:
            connection.execute(
                update(key).where(here, key.c.revoked.is_(None)).values(revoked=seconds_of(now))
            )
            found = connection.execute(select(key).where(here)).one_or_none()
        return None if found is None else parse_key_row(found)

    def usage(self, *, since: datetime, key_id: str | None = None) -> tuple[UsageLine, ...]:
        """Return the ledger from the hour of `since` on, by hour, key and endpoint."""
        usage, key = self._tables.usage, self._tables.key
        wanted = (
            select(usage, key.c.tenant)
            .join(key, key.c.key_id == usage.c.key_id)
            .where(usage.c.hour >= seconds_of(since))
            .order_by(usage.c.hour, usage.c.key_id, usage.c.endpoint)
        )
        if key_id is not None:
            wanted = wanted.where(usage.c.key_id == key_id)
        with self._database.transaction("read") as connection:
            return tuple(parse_usage_row(row) for row in connection.execute(wanted).all())

    def spent(self, key_id: str, period: datetime) -> int:
        """Return what a key spent in the period that began at `period`, reservations among it."""
        with self._database.transaction("read") as connection:
            return self._spent(connection, key_id, seconds_of(period))

    def work(self, operations: Sequence[Operation]) -> list[Outcome]:
        """Do all `operations` in one transaction, or none; answers in the order they were asked."""
        answers: list[Outcome] = [None] * len(operations)
        # In one order everywhere: two nodes never wait for each other in a circle.
        order = sorted(range(len(operations)), key=lambda at: _key_of(operations[at]))
        reading = all(isinstance(operation, Find) for operation in operations)
        with self._database.transaction("read" if reading else "write") as connection:
            for at in order:
                answers[at] = self._do(connection, operations[at])
        return answers

    def close(self) -> None:
        """Let go of the database."""
        self._database.close()

    def _is_begun(self) -> bool:
        with self._database.transaction("read") as connection:
            names = set(inspect(connection).get_table_names())
            if not names:
                return False
            if names != set(self._tables.metadata.tables):
                raise ConfigurationError(
                    f"{self._database.label} holds tables of another program; give the keys a "
                    "database of their own"
                )
            version = connection.execute(select(self._tables.header.c.version)).scalar_one_or_none()
        if version != _VERSION:
            raise ConfigurationError(
                f"{self._database.label} was written by another version of Confide"
            )
        return True

    def _do(self, connection: Connection, operation: Operation) -> Outcome:
        if isinstance(operation, Find):
            key = self._tables.key
            found = connection.execute(
                select(key).where(key.c.digest == operation.digest)
            ).one_or_none()
            return None if found is None else parse_key_row(found)
        if isinstance(operation, Reserve):
            return self._reserve(connection, operation)
        self._settle(connection, operation)
        return None

    def _reserve(self, connection: Connection, operation: Reserve) -> Spent:
        spent, period = self._tables.spent, seconds_of(operation.period)
        first = {"key_id": operation.key_id, "period": period, "tokens": 0}
        connection.execute(self._insert(spent).values(first).on_conflict_do_nothing())
        after = spent.c.tokens + operation.tokens
        allowed: ColumnElement[bool] = true()
        if operation.budget is not None:
            allowed = after <= operation.budget
        granted = self._changed(
            connection,
            update(spent).where(self._at(operation.key_id, period), allowed).values(tokens=after),
        )
        if granted:
            values = {**first, "reservation": operation.reservation, "tokens": operation.tokens}
            connection.execute(insert(self._tables.reservation), values)
        return Spent(granted, self._spent(connection, operation.key_id, period))

    def _settle(self, connection: Connection, operation: Settle) -> None:
        reservation = self._tables.reservation
        here = reservation.c.reservation == operation.reservation
        held = connection.execute(select(reservation).where(here)).one_or_none()
        if held is None or not self._changed(connection, delete(reservation).where(here)):
            return
        spent, charge = self._tables.spent, operation.charge
        connection.execute(
            update(spent)
            .where(self._at(held.key_id, held.period))
            .values(tokens=spent.c.tokens - held.tokens + charge.tokens)
        )
        counts = {
            "calls": 1,
            "failed": int(operation.failed),
            "cancelled": int(operation.cancelled),
            "input_tokens": charge.input_tokens,
            "output_tokens": charge.output_tokens,
            "estimated": charge.tokens if charge.estimated else 0,
        }
        usage = self._tables.usage
        line = {
            "key_id": operation.key_id,
            "hour": seconds_of(operation.hour),
            "endpoint": operation.endpoint,
        }
        added = self._insert(usage).values({**line, **counts})
        connection.execute(
            added.on_conflict_do_update(
                index_elements=list(line),
                set_={name: usage.c[name] + count for name, count in counts.items()},
            )
        )

    def _at(self, key_id: str, period: int) -> ColumnElement[bool]:
        spent = self._tables.spent.c
        return (spent.key_id == key_id) & (spent.period == period)

    def _spent(self, connection: Connection, key_id: str, period: int) -> int:
        wanted = select(self._tables.spent.c.tokens).where(self._at(key_id, period))
        found: int | None = connection.execute(wanted).scalar_one_or_none()
        return found or 0

    @staticmethod
    def _changed(connection: Connection, statement: Any) -> bool:
        done = connection.execute(statement, execution_options={"preserve_rowcount": True})
        return bool(done.rowcount == 1)


def open_tenants(
    place: str, *, password: str | None = None, create: bool = False, patience_seconds: float = 5
) -> SqlTenants:
    """
    Open the keys and the ledger at `place`; see `open_database`. `create` begins them.

    Raises `ConfigurationError` for a database that is something else, `Unavailable`.
    """
    database = open_database(
        place,
        password=password,
        create=create,
        patience_seconds=patience_seconds,
        purpose=TENANCY,
    )
    store = SqlTenants(database)
    try:
        if create:
            store.begin()
        store.require_begun()
    except BaseException:
        with suppress(Exception):
            store.close()
        raise
    return store


def _key_of(operation: Operation) -> str:
    return "" if isinstance(operation, Find) else operation.key_id
