"""The statements of a store of keys that every call needs, made once: docs/protocols/tenancy.md §4.

Making a statement costs more than carrying it out; what changes from batch to batch is bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy import bindparam, delete, insert, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from confide.adapters.tenant_rows import USAGE_COUNTS

if TYPE_CHECKING:
    from sqlalchemy import Delete, Insert, Select, Update
    from sqlalchemy.sql.dml import ReturningDelete

    from confide.adapters.tenant_rows import Tables

__all__ = ["Statements"]


@dataclass(frozen=True, slots=True)
class Statements:
    """
    What is bound: `find` has `digests`, `take_away` `reservations`, `lock` `places`.

    `begin`, `reserve` and `count` take rows; `spend` takes `at_key`, `at_period` and `tokens`.
    """

    find: Select[Any]
    take_away: Delete | ReturningDelete[Any]
    begin: Insert
    lock: Select[Any]
    reserve: Insert
    spend: Update
    count: Insert

    @classmethod
    def of(cls, tables: Tables, kind: str) -> Self:
        """Make the statements for a database of this kind."""
        upsert = sqlite_insert if kind == "sqlite" else postgresql_insert
        key, spent, usage = tables.key, tables.spent, tables.usage
        held = tables.reservation
        place = tuple_(spent.c.key_id, spent.c.period)
        here = (spent.c.key_id == bindparam("at_key")) & (spent.c.period == bindparam("at_period"))
        counting = upsert(usage)
        return cls(
            find=select(key).where(key.c.digest.in_(bindparam("digests", expanding=True))),
            take_away=delete(held)
            .where(held.c.reservation.in_(bindparam("reservations", expanding=True)))
            .returning(held.c.reservation, held.c.period, held.c.tokens),
            begin=upsert(spent).on_conflict_do_nothing(),
            # In one order everywhere: two nodes never wait for each other in a circle.
            lock=select(spent)
            .where(place.in_(bindparam("places", expanding=True)))
            .order_by(*place)
            .with_for_update(),
            reserve=insert(held),
            spend=update(spent).where(here).values(tokens=bindparam("tokens")),
            count=counting.on_conflict_do_update(
                index_elements=["key_id", "hour", "endpoint"],
                set_={name: usage.c[name] + counting.excluded[name] for name in USAGE_COUNTS},
            ),
        )
