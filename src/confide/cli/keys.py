"""`confide keys`: the API keys of a model node and what they used (docs/protocols/tenancy.md).

Works on the database alone. A key is shown once, when it is made; what is stored cannot show it.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from confide.cli.places import Places, require_no_password
from confide.cli.screen import Screen, fields, printable
from confide.errors import ConfigurationError
from confide.tenancy.budget import period_end, period_start
from confide.tenancy.keys import KEY_BYTES, Budget, KeyRecord, Limits, Period, Standing, make_key
from confide.tenancy.ledger import hour_of
from confide.wire.keyset import format_time

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from confide.adapters.tenant_sql import SqlTenants
    from confide.tenancy.ledger import UsageLine
    from confide.wire.json import JsonValue

app = typer.Typer(no_args_is_help=True, add_completion=False)

Database = Annotated[
    str,
    typer.Option(
        "--database",
        help="File of the keys, or postgresql://user@host/database (password from PGPASSWORD).",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]
_BUDGET = re.compile(r"([0-9]{1,15})/(day|month)\Z")
_MOST_DAYS = 3650


@app.callback()
def keys() -> None:
    """Make, list and revoke API keys of a model node; show what they used."""


@app.command()
def create(
    ctx: typer.Context,
    tenant: Annotated[
        str, typer.Option(help="Whose key it is; keys of one tenant share the engine's cache.")
    ] = "",
    model: Annotated[
        list[str] | None, typer.Option(help="Model it may use; all unless named.")
    ] = None,
    endpoint: Annotated[
        list[str] | None, typer.Option(help="Path it may use, like /v1/chat/completions.")
    ] = None,
    days: Annotated[
        int | None, typer.Option(min=1, max=_MOST_DAYS, help="Expires after so many days.")
    ] = None,
    rate: Annotated[int | None, typer.Option(min=1, help="Calls a minute, at each node.")] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Calls at once, at each node.")
    ] = None,
    budget: Annotated[
        str, typer.Option(metavar="TOKENS/day", help="Tokens a day or a month: 1000000/month.")
    ] = "",
    database: Database = "",
    as_json: AsJson = False,
) -> None:
    """Make a key and show it, once. Begins the database where there is none."""
    screen = Screen.of(ctx, as_json=as_json)
    places = Places.here()
    now = places.clock.now().replace(microsecond=0)
    key = make_key(places.entropy.token(KEY_BYTES))
    try:
        record = KeyRecord(
            id=key.id,
            digest=key.digest,
            tenant=tenant or key.id,
            created=now,
            expires=None if days is None else now + timedelta(days=days),
            models=tuple(model or ()),
            endpoints=tuple(endpoint or ()),
            limits=Limits(rate, concurrency, _read_budget(budget)),
        )
    except ValueError as error:
        raise ConfigurationError(f"no such key is possible: {error}") from error
    with _opened(places, database, create=True) as store:
        store.add(record)
    screen.show(fields([("id", key.id), ("key", key.text)]))
    screen.say("This key is shown once. It is sent as: Authorization: Bearer KEY")
    screen.event("result", {**_document(record, now), "key": key.text})


@app.command("list")
def list_(ctx: typer.Context, database: Database = "", as_json: AsJson = False) -> None:
    """List the keys: what they may do, never the keys themselves."""
    screen = Screen.of(ctx, as_json=as_json)
    places = Places.here()
    now = places.clock.now()
    with _opened(places, database) as store:
        found = store.all_keys()
    table = _table("id", "tenant", "state", "expires", "rate", "at once", "budget", "scope")
    for record in found:
        table.add_row(*_cells(record, now))
    screen.show(table)
    screen.event("result", {"keys": [_document(record, now) for record in found]})


@app.command()
def revoke(
    ctx: typer.Context,
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The id of the key: key_….")],
    database: Database = "",
    as_json: AsJson = False,
) -> None:
    """Revoke a key: its next call is refused, at every node; calls in progress go on."""
    screen = Screen.of(ctx, as_json=as_json)
    places = Places.here()
    now = places.clock.now()
    with _opened(places, database) as store:
        record = store.revoke(key_id, now)
    if record is None or record.revoked is None:
        raise _no_such_key(key_id)
    screen.show(fields([("revoked", record.id), ("since", format_time(record.revoked))]))
    screen.event("result", _document(record, now))


@app.command()
def usage(
    ctx: typer.Context,
    key_id: Annotated[str | None, typer.Option("--key", help="Of this key alone.")] = None,
    days: Annotated[int, typer.Option(min=1, max=_MOST_DAYS, help="How far back.")] = 30,
    database: Database = "",
    as_json: AsJson = False,
) -> None:
    """Show what keys used: calls and tokens, by hour and endpoint in JSON, summed up otherwise."""
    screen = Screen.of(ctx, as_json=as_json)
    places = Places.here()
    now = places.clock.now()
    with _opened(places, database) as store:
        records = store.all_keys()
        if key_id is not None and key_id not in {record.id for record in records}:
            raise _no_such_key(key_id)
        lines = store.usage(since=hour_of(now - timedelta(days=days)), key_id=key_id)
        budgets: list[JsonValue] = [
            _budget_document(store, record, budget, now)
            for record in records
            if (budget := record.limits.budget) is not None and key_id in (None, record.id)
        ]
    sums: dict[tuple[str, str, str], list[int]] = {}
    for line in lines:
        counts = _counts(line)
        sum_ = sums.setdefault((line.key_id, line.tenant, line.endpoint), [0] * len(counts))
        for at, count in enumerate(counts):
            sum_[at] += count
    names = ("calls", "failed", "left", "read", "written", "of it estimated")
    table = _table("id", "tenant", "endpoint", *names)
    for place, counts_ in sorted(sums.items()):
        table.add_row(*place, *map(str, counts_))
    screen.show(table)
    screen.event("result", {"usage": [_line_document(line) for line in lines], "budgets": budgets})


def _no_such_key(key_id: str) -> ConfigurationError:
    return ConfigurationError(f"no key has the id {printable(key_id)}; see `confide keys list`")


@contextmanager
def _opened(places: Places, database: str, *, create: bool = False) -> Iterator[SqlTenants]:
    from confide.adapters.tenant_sql import open_tenants  # noqa: PLC0415 - loads SQLAlchemy

    require_no_password(database, "--database")
    place = database or str(places.paths.api_keys)
    password = places.environment.get("PGPASSWORD")
    store = open_tenants(place, password=password, create=create)
    try:
        yield store
    finally:
        store.close()


def _read_budget(text: str) -> Budget | None:
    if not text:
        return None
    found = _BUDGET.match(text)
    if found is None:
        raise ConfigurationError("--budget is TOKENS/day or TOKENS/month, such as 1000000/month")
    return Budget(int(found[1]), Period(found[2]))


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _budget_text(record: KeyRecord) -> str:
    budget = record.limits.budget
    return "" if budget is None else f"{budget.tokens}/{budget.period}"


def _cells(record: KeyRecord, now: datetime) -> list[str]:
    standing, limits = record.standing(now), record.limits
    scope = [*record.models, *record.endpoints]
    return [
        record.id,
        record.tenant,
        standing.value,
        "" if record.expires is None else format_time(record.expires),
        str(limits.rate or ""),
        str(limits.concurrency or ""),
        _budget_text(record),
        printable(" ".join(scope)),
    ]


def _document(record: KeyRecord, now: datetime) -> dict[str, JsonValue]:
    standing = record.standing(now)
    return {
        "id": record.id,
        "tenant": record.tenant,
        "state": standing.value,
        "usable": standing is Standing.GOOD,
        "created": format_time(record.created),
        "expires": None if record.expires is None else format_time(record.expires),
        "revoked": None if record.revoked is None else format_time(record.revoked),
        "models": list(record.models),
        "endpoints": list(record.endpoints),
        "rate": record.limits.rate,
        "concurrency": record.limits.concurrency,
        "budget": _budget_text(record) or None,
    }


def _counts(line: UsageLine) -> tuple[int, ...]:
    return (
        line.calls,
        line.failed,
        line.cancelled,
        line.input_tokens,
        line.output_tokens,
        line.estimated,
    )


def _line_document(line: UsageLine) -> dict[str, JsonValue]:
    return {
        "key": line.key_id,
        "tenant": line.tenant,
        "hour": format_time(line.hour),
        "endpoint": line.endpoint,
        "calls": line.calls,
        "failed": line.failed,
        "cancelled": line.cancelled,
        "input_tokens": line.input_tokens,
        "output_tokens": line.output_tokens,
        "estimated": line.estimated,
    }


def _budget_document(
    store: SqlTenants, record: KeyRecord, budget: Budget, now: datetime
) -> dict[str, JsonValue]:
    return {
        "key": record.id,
        "budget": _budget_text(record),
        "spent": store.spent(record.id, period_start(budget.period, now)),
        "until": format_time(period_end(budget.period, now)),
    }
