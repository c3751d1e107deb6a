"""The `TenantStore` port over SQL: keys, what they spent, and the ledger. Blocking.

Clause: docs/protocols/tenancy.md §1.4 and §4. The same statements for SQLite and PostgreSQL. What a
key spent is read and written under its lock, so that of two nodes that spend the last tokens one is
told; a call is settled by taking its reservation away, so that it is settled once.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

from sqlalchemy import (
    Connection,
    insert,
    inspect,
    select,
    update,
)

from confide.adapters.broker_database import TENANCY, Database, open_database
from confide.adapters.tenant_rows import (
    Held,
    Tables,
    key_values,
    parse_key_row,
    parse_usage_row,
    reservation_values,
    seconds_of,
    usage_values,
)
from confide.adapters.tenant_statements import Statements
from confide.errors import ConfigurationError
from confide.tenancy.ledger import Find, Reserve, Settle, Spent, grant

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from confide.tenancy.keys import KeyRecord
    from confide.tenancy.ledger import Operation, Outcome, UsageLine

    # A key and the second at which a period of it began.
    _Place = tuple[str, int]

__all__ = ["SqlTenants", "open_tenants"]

_VERSION: Final = 1


class SqlTenants:
    """Keys and usage in one database. Safe in any number of threads, processes and nodes."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._tables = Tables()
        self._statements = Statements.of(self._tables, database.kind)

    def begin(self) -> None:
        """Make the tables where there are none. Raises `ConfigurationError` for foreign ones."""
        if self._is_begun():
            return
        with self._database.beginning() as connection:
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
        """
        Do all `operations` in one transaction, or none; answers in the order they were asked.

        Look-ups come first, then reservations, then settlements; a handful of statements, however
        many operations there are.
        """
        finds = [each for each in operations if isinstance(each, Find)]
        reserves = [each for each in operations if isinstance(each, Reserve)]
        settles = [each for each in operations if isinstance(each, Settle)]
        with self._database.transaction("write" if reserves or settles else "read") as connection:
            found = self._find(connection, finds) if finds else {}
            answers: Mapping[str, Spent] = {}
            if reserves or settles:
                ended = self._take_away(connection, settles) if settles else []
                answers = self._spend(connection, reserves, ended)
                if ended:
                    lines = usage_values([settle for settle, _ in ended])
                    connection.execute(self._statements.count, lines)
        return [_answer(each, found, answers) for each in operations]

    def close(self) -> None:
        """Let go of the database."""
        self._database.close()

    def _is_begun(self) -> bool:
        with self._database.transaction("read") as connection:
            if not self._database.holds(connection, self._tables.metadata.tables):
                return False
            version = connection.execute(select(self._tables.header.c.version)).scalar_one_or_none()
        if version != _VERSION:
            raise ConfigurationError(
                f"{self._database.label} was written by another version of Confide"
            )
        return True

    def _find(self, connection: Connection, finds: Sequence[Find]) -> dict[bytes, KeyRecord]:
        digests = {"digests": list({find.digest for find in finds})}
        records = map(parse_key_row, connection.execute(self._statements.find, digests).all())
        return {record.digest: record for record in records}

    def _take_away(
        self, connection: Connection, settles: Sequence[Settle]
    ) -> list[tuple[Settle, Held]]:
        """Delete the reservations that are settled; one that is gone was settled before."""
        asked = {settle.reservation: settle for settle in settles}
        named = {"reservations": list(asked)}
        gone = connection.execute(self._statements.take_away, named).all()
        return [(asked[row.reservation], Held(row.period, row.tokens)) for row in gone]

    def _spend(
        self,
        connection: Connection,
        reserves: Sequence[Reserve],
        ended: Sequence[tuple[Settle, Held]],
    ) -> dict[str, Spent]:
        """Charge what ended and grant what is asked for, with every row in question locked."""
        asked: dict[_Place, list[Reserve]] = {}
        charged: dict[_Place, int] = {}
        for reserve in reserves:
            asked.setdefault((reserve.key_id, seconds_of(reserve.period)), []).append(reserve)
        for settle, held in ended:
            place = (settle.key_id, held.period)
            charged[place] = charged.get(place, 0) + settle.charge.tokens - held.tokens
        places = sorted(asked.keys() | charged.keys())
        if not places:
            return {}
        before = self._locked(connection, places)
        answers: dict[str, Spent] = {}
        granted: list[dict[str, object]] = []
        after: list[dict[str, object]] = []
        for place in places:
            key_id, period = place
            told = grant(before[place], asked.get(place, ()))
            answers |= told
            made = [each for each in asked.get(place, ()) if told[each.reservation].granted]
            granted += [reservation_values(each) for each in made]
            now = before[place] + sum(each.tokens for each in made) + charged.get(place, 0)
            after.append({"at_key": key_id, "at_period": period, "tokens": now})
        if granted:
            connection.execute(self._statements.reserve, granted)
        connection.execute(self._statements.spend, after)
        return answers

    def _locked(self, connection: Connection, places: Sequence[_Place]) -> dict[_Place, int]:
        """Return what was spent at each of `places`, made where it is not there."""
        first = [{"key_id": key, "period": period, "tokens": 0} for key, period in places]
        connection.execute(self._statements.begin, first)
        locked = connection.execute(self._statements.lock, {"places": list(places)}).all()
        return {(row.key_id, row.period): row.tokens for row in locked}

    def _spent(self, connection: Connection, key_id: str, period: int) -> int:
        spent = self._tables.spent.c
        wanted = select(spent.tokens).where(spent.key_id == key_id, spent.period == period)
        found: int | None = connection.execute(wanted).scalar_one_or_none()
        return found or 0


def _answer(
    operation: Operation, found: Mapping[bytes, KeyRecord], answers: Mapping[str, Spent]
) -> Outcome:
    if isinstance(operation, Find):
        return found.get(operation.digest)
    return answers[operation.reservation] if isinstance(operation, Reserve) else None


def open_tenants(
    place: str,
    *,
    password: str | None = None,
    create: bool = False,
    patience_seconds: float = 5,
    counting: bool = False,
) -> SqlTenants:
    """
    Open the keys and the ledger at `place`; see `open_database`. `create` begins them.

    With `counting` a commit outlives this process, and not a power cut in the next moments (4.2).

    Raises `ConfigurationError` for a database that is something else, `Unavailable`.
    """
    database = open_database(
        place,
        password=password,
        create=create,
        patience_seconds=patience_seconds,
        purpose=TENANCY,
        outlives_power=not counting,
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
