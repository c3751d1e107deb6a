"""The tables of keys and usage, and their rows as values of `confide.tenancy`.

Clause: docs/protocols/tenancy.md §1.4 and §4. Times are Unix seconds, lists JSON. A row that cannot
be read is an error; it never becomes a key without limits.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
)

from confide.errors import ConfigurationError
from confide.tenancy.keys import Budget, KeyRecord, Limits, Period
from confide.tenancy.ledger import UsageLine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Row

    from confide.tenancy.ledger import Reserve, Settle

__all__ = [
    "USAGE_COUNTS",
    "Held",
    "Tables",
    "key_values",
    "parse_key_row",
    "parse_usage_row",
    "reservation_values",
    "seconds_of",
    "usage_values",
]

USAGE_COUNTS: Final = (
    "calls",
    "failed",
    "cancelled",
    "input_tokens",
    "output_tokens",
    "estimated",
)


class Tables:
    """The five tables, all of one name's beginning."""

    def __init__(self) -> None:
        self.metadata = MetaData()
        big = BigInteger().with_variant(Integer, "sqlite")
        name = Text().with_variant(Text(collation="C"), "postgresql")

        def table(title: str, *columns: Column[Any]) -> Table:
            return Table(f"confide_{title}", self.metadata, *columns, sqlite_strict=True)

        def number(title: str, *, key: bool = False, nullable: bool = False) -> Column[Any]:
            return Column(title, big, primary_key=key, nullable=nullable, autoincrement=False)

        self.header = table(
            "tenancy_header",
            Column("id", Integer, CheckConstraint("id = 1"), primary_key=True, autoincrement=False),
            Column("version", Integer, nullable=False),
        )
        self.key = table(
            "api_key",
            Column("digest", LargeBinary, primary_key=True),
            Column("key_id", name, nullable=False, unique=True),
            Column("tenant", name, nullable=False),
            Column("models", Text, nullable=False),
            Column("endpoints", Text, nullable=False),
            number("created"),
            number("expires", nullable=True),
            number("revoked", nullable=True),
            number("rate", nullable=True),
            number("concurrency", nullable=True),
            number("budget", nullable=True),
            Column("period", Text),
        )
        self.spent = table(
            "tokens_spent",
            Column("key_id", name, primary_key=True),
            number("period", key=True),
            number("tokens"),
        )
        self.reservation = table(
            "reservation",
            Column("reservation", name, primary_key=True),
            Column("key_id", name, nullable=False),
            number("period"),
            number("tokens"),
        )
        self.usage = table(
            "usage",
            Column("key_id", name, primary_key=True),
            number("hour", key=True),
            Column("endpoint", name, primary_key=True),
            *(number(count) for count in USAGE_COUNTS),
        )


def seconds_of(moment: datetime) -> int:
    """Return a time as it is stored."""
    return int(moment.timestamp())


def _moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def key_values(record: KeyRecord) -> dict[str, object]:
    """Return the row of a key."""
    limits = record.limits
    return {
        "digest": record.digest,
        "key_id": record.id,
        "tenant": record.tenant,
        "models": json.dumps(record.models),
        "endpoints": json.dumps(record.endpoints),
        "created": seconds_of(record.created),
        "expires": None if record.expires is None else seconds_of(record.expires),
        "revoked": None if record.revoked is None else seconds_of(record.revoked),
        "rate": limits.rate,
        "concurrency": limits.concurrency,
        "budget": None if limits.budget is None else limits.budget.tokens,
        "period": None if limits.budget is None else limits.budget.period.value,
    }


def parse_key_row(row: Row[Any]) -> KeyRecord:
    """Return the key of a row. Raises `ConfigurationError` for one that cannot be read."""
    try:
        budget = None
        if row.budget is not None or row.period is not None:
            budget = Budget(row.budget, Period(row.period))
        return KeyRecord(
            id=row.key_id,
            digest=bytes(row.digest),
            tenant=row.tenant,
            created=_moment(row.created),
            expires=None if row.expires is None else _moment(row.expires),
            revoked=None if row.revoked is None else _moment(row.revoked),
            models=_names(row.models),
            endpoints=_names(row.endpoints),
            limits=Limits(row.rate, row.concurrency, budget),
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigurationError("a stored key cannot be read; somebody changed it") from error


@dataclass(frozen=True, slots=True)
class Held:
    """What a reservation held: of the period that began at this second, so many tokens."""

    period: int
    tokens: int


def reservation_values(reserve: Reserve) -> dict[str, object]:
    """Return the row of a reservation."""
    return {
        "reservation": reserve.reservation,
        "key_id": reserve.key_id,
        "period": seconds_of(reserve.period),
        "tokens": reserve.tokens,
    }


def usage_values(settles: Sequence[Settle]) -> list[dict[str, object]]:
    """Return what is to be added to the ledger, one row for each line of it, in order."""
    lines: dict[tuple[str, int, str], Counter[str]] = {}
    for settle in settles:
        charge = settle.charge
        counts = lines.setdefault(
            (settle.key_id, seconds_of(settle.hour), settle.endpoint), Counter()
        )
        counts.update(
            calls=1,
            failed=int(settle.failed),
            cancelled=int(settle.cancelled),
            input_tokens=charge.input_tokens,
            output_tokens=charge.output_tokens,
            estimated=charge.tokens if charge.estimated else 0,
        )
    return [
        {"key_id": key_id, "hour": hour, "endpoint": endpoint}
        | {name: counts[name] for name in USAGE_COUNTS}
        for (key_id, hour, endpoint), counts in sorted(lines.items())
    ]


def _names(text: str) -> tuple[str, ...]:
    found = json.loads(text)
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise ValueError("not a list of names")
    return tuple(found)


def parse_usage_row(row: Row[Any]) -> UsageLine:
    """Return the line of the ledger that a row is; the tenant comes from the row of its key."""
    return UsageLine(
        key_id=row.key_id,
        tenant=row.tenant,
        hour=_moment(row.hour),
        endpoint=row.endpoint,
        **{name: getattr(row, name) for name in USAGE_COUNTS},
    )
