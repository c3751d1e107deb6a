"""`confide keys`: made once, shown once, listed without secrets, revoked, and what they used."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from postgres_server import PASSWORD

from confide.adapters.tenant_sql import open_tenants
from confide.tenancy.budget import Charge, period_start
from confide.tenancy.keys import Period, parse_key
from confide.tenancy.ledger import Find, Reserve, Settle, hour_of

if TYPE_CHECKING:
    from pathlib import Path

    from postgres_server import PostgresServer
    from sessions import Cli


def make(cli: Cli, *words: object) -> dict[str, Any]:
    seen = cli("keys", "create", *words, "--json")
    assert seen.code == 0, seen.err
    return seen.result


def test_a_key_is_shown_once_and_stored_by_its_hash(cli: Cli, home: Path) -> None:
    seen = cli("keys", "create")
    assert seen.code == 0
    text = next(word for word in seen.out.split() if word.startswith("cfd_"))
    key = parse_key(text)
    assert key is not None
    assert key.id in seen.out
    assert "shown once" in seen.err
    database = home / ".local/share/confide/keys.sqlite3"
    assert database.stat().st_mode & 0o777 == 0o600
    for path in database.parent.iterdir():
        raw = path.read_bytes()
        assert text.encode() not in raw
        assert text[4:47].encode() not in raw
    for verb in ("list", "usage"):
        assert text not in (shown := cli("keys", verb)).out + shown.err
    store = open_tenants(str(database))
    (record,) = store.work([Find(key.digest)])
    store.close()
    assert record is not None
    assert cli("keys", "list", "--json").result["keys"][0]["id"] == key.id


def test_no_two_keys_are_the_same(cli: Cli) -> None:
    assert len({make(cli)["key"] for _ in range(5)}) == 5


def test_what_a_key_may_do_is_listed(cli: Cli) -> None:
    made = make(
        cli,
        *("--tenant", "acme", "--model", "m", "--endpoint", "/v1/chat/completions"),
        *("--days", 30, "--rate", 60, "--concurrency", 4, "--budget", "1000000/month"),
    )
    (listed,) = cli("keys", "list", "--json").result["keys"]
    assert "key" not in listed
    assert {**listed, "event": "result", "key": made["key"]} == made
    assert (listed["tenant"], listed["state"], listed["usable"]) == ("acme", "good", True)
    assert (listed["models"], listed["endpoints"]) == (["m"], ["/v1/chat/completions"])
    assert (listed["rate"], listed["concurrency"], listed["budget"]) == (60, 4, "1000000/month")
    lives = datetime.fromisoformat(listed["expires"]) - datetime.fromisoformat(listed["created"])
    assert lives == timedelta(days=30)
    shown = cli("keys", "list").out
    assert all(word in shown for word in ("acme", "good", "60", "1000000/month"))


def test_a_revoked_key_is_listed_as_one(cli: Cli) -> None:
    made, other = make(cli), make(cli)
    seen = cli("keys", "revoke", made["id"], "--json")
    assert (seen.code, seen.result["state"]) == (0, "revoked")
    again = cli("keys", "revoke", made["id"], "--json")
    assert again.result["revoked"] == seen.result["revoked"]
    states = {each["id"]: each["state"] for each in cli("keys", "list", "--json").result["keys"]}
    assert states == {made["id"]: "revoked", other["id"]: "good"}


def test_what_keys_used_is_summed_up(cli: Cli, home: Path) -> None:
    made, other = make(cli, "--tenant", "acme", "--budget", "100/day"), make(cli)
    now = datetime.now(UTC)
    store = open_tenants(str(home / ".local/share/confide/keys.sqlite3"))
    for number, (key, given) in enumerate(((made, 10), (made, 20), (other, 7))):
        held = Reserve(
            reservation=str(number),
            key_id=key["id"],
            endpoint="/v1/chat/completions",
            period=period_start(Period.DAY, now),
            budget=None,
            tokens=50,
        )
        ended = Settle(
            reservation=str(number),
            key_id=key["id"],
            hour=hour_of(now - timedelta(hours=number)),
            endpoint="/v1/chat/completions",
            charge=Charge(given, 5, estimated=number == 1),
            failed=False,
            cancelled=number == 1,
        )
        store.work([held])
        store.work([ended])
    store.close()
    told = cli("keys", "usage", "--json").result
    assert sum(line["input_tokens"] for line in told["usage"]) == 37
    assert [each["spent"] for each in told["budgets"]] == [40]
    one = cli("keys", "usage", "--key", made["id"], "--json").result["usage"]
    assert {line["tenant"] for line in one} == {"acme"}
    assert sum(line["calls"] for line in one) == 2
    row = next(line for line in cli("keys", "usage").out.splitlines() if made["id"] in line)
    assert row.split() == [
        made["id"],
        "acme",
        "/v1/chat/completions",
        "2",
        "0",
        "1",
        "30",
        "10",
        "25",
    ]
    nobodys = cli("keys", "usage", "--key", "key_other")
    assert (nobodys.code, nobodys.out) == (2, "")
    assert "no key has the id key_other" in nobodys.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("create", "--tenant", "a b"), "a tenant is"),
        (("create", "--endpoint", "/v1/other"), "a scope names endpoints"),
        (("create", "--model", ""), "a scope names models"),
        (("create", "--budget", "many"), "TOKENS/day"),
        (("create", "--budget", "0/day"), "above 0"),
        (("create", "--budget", "5/year"), "TOKENS/day"),
        (("create", "--rate", 0), "rate"),
        (("create", "--days", 0), "days"),
        (("list",), "confide keys create"),
        (("revoke", "key_1"), "confide keys create"),
        (("list", "--database", "postgresql://a:planted@127.0.0.1/b"), "PGPASSWORD"),
        (("list", "--database", "mysql://a@b/c"), "postgresql://"),
    ],
)
def test_what_cannot_be_is_refused(cli: Cli, words: tuple[object, ...], said: str) -> None:
    seen = cli("keys", *words)
    assert seen.code == 2
    assert said in seen.err
    assert "planted" not in seen.err


def test_an_id_that_nobody_has_is_not_revoked(cli: Cli) -> None:
    make(cli)
    seen = cli("keys", "revoke", "key_\x1bother")
    assert seen.code == 2
    assert "no key has the id key_\\x1bother" in seen.err


def test_a_locked_database_is_unavailable(cli: Cli, home: Path) -> None:
    make(cli)
    other = sqlite3.connect(home / ".local/share/confide/keys.sqlite3", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    try:
        seen = cli("keys", "create")
    finally:
        other.close()
    assert (seen.code, "locked" in seen.err) == (20, True)
    assert "cfd_" not in seen.out, "a key that was not stored is not shown"


def test_keys_lie_in_postgresql_too(cli: Cli, postgres: PostgresServer) -> None:
    url = postgres.database("keys-cli")
    seen = cli("keys", "create", "--database", url, "--json", PGPASSWORD=PASSWORD)
    assert seen.code == 0, seen.err
    listed = cli("keys", "list", "--database", url, "--json", PGPASSWORD=PASSWORD).result["keys"]
    assert [key["id"] for key in listed] == [seen.result["id"]]
