"""What an Expectation may ask of a broker: docs/protocols/state.md §1."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from nodes import fitting_expectation, roots

from confide.agents.environment import agent_environment
from confide.errors import FormatError, Reason
from confide.expectation import NO_BROKER, BrokerSpec, Expectation, diff_expectations
from confide.expectation import parse_expectation as parse
from confide.expectation import parse_expectation_toml as parse_toml
from confide.expectation.broker import RESERVED_VARIABLES
from confide.wire.json import jcs

KEY = "ab" * 32
ASKED = BrokerSpec(KEY, "records", ("db-password", "TOKEN=api.token"), state=True)
PLAIN = fitting_expectation(roots())
WANTING = replace(PLAIN, broker=ASKED)


def document(**changed: object) -> dict[str, Any]:
    value: dict[str, Any] = WANTING.document()
    value["broker"].update(changed)
    return value


def read(**changed: object) -> Expectation:
    return parse(jcs(document(**changed)))


def refuse(**changed: object) -> str:
    with pytest.raises(FormatError) as error:
        read(**changed)
    assert error.value.reason is Reason.EXPECTATION_MISMATCH
    return str(error.value)


def test_what_is_asked_travels_and_names_its_resources() -> None:
    assert read() == WANTING
    assert [(use.name, use.variable) for use in ASKED.uses] == [
        ("db-password", None),
        ("api.token", "TOKEN"),
    ]
    assert ASKED.resource("api.token") == "records/secret/api.token"
    assert ASKED.state_resource("tests") == "records/state/tests"
    assert ASKED.wanted
    assert not NO_BROKER.wanted


def test_nobody_asks_unless_it_is_written() -> None:
    text = _toml(PLAIN)
    assert parse_toml(text).broker == NO_BROKER
    assert parse_toml(text + "\n[broker]\n").broker == NO_BROKER
    asked = parse_toml(text + f'\n[broker]\nkey = "{KEY}"\nrepository = "r"\nstate = true\n')
    assert asked.broker == BrokerSpec(KEY, "r", (), state=True)


def _toml(expectation: Expectation) -> str:
    value = expectation.document()
    del value["broker"]
    lines = [f"{n} = {jcs(v).decode()}" for n, v in value.items() if not isinstance(v, dict)]
    for name, table in value.items():
        if isinstance(table, dict):
            lines += [f"[{name}]", *(f"{n} = {jcs(v).decode()}" for n, v in table.items())]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("key", ""),
        ("key", "AB" * 32),
        ("key", "ab" * 31),
        ("repository", ""),
        ("repository", "Records"),
        ("repository", "a/b"),
        ("repository", "-a"),
        ("repository", "a" * 65),
        ("secrets", ["a/b"]),
        ("secrets", [""]),
        ("secrets", [".hidden"]),
        ("secrets", ["a\n"]),
        ("secrets", ["A=B=c"]),
        ("secrets", ["=c"]),
        ("secrets", ["lower=c"]),
        ("secrets", ["1A=c"]),
        ("secrets", ["A\n=c"]),
        ("secrets", ["c", "c"]),
        ("secrets", ["c", "A=c"]),
        ("secrets", ["A=c", "A=d"]),
        ("secrets", [f"s{number}" for number in range(65)]),
        ("secrets", "c"),
        ("state", 1),
        ("state", None),
    ],
)
def test_what_cannot_be_asked_is_refused(member: str, value: object) -> None:
    assert member in refuse(**{member: value})


@pytest.mark.parametrize("variable", [*sorted(RESERVED_VARIABLES), "LD_PRELOAD", "PYTHONPATH"])
def test_the_variables_of_the_node_are_not_to_be_set(variable: str) -> None:
    assert "not the agent's" in refuse(secrets=[f"{variable}=token"])


def test_every_variable_that_the_node_sets_is_reserved() -> None:
    names = {name for name, _ in agent_environment(token="t", model="m") if name.isupper()}
    assert names - {name for name in names if name.startswith("PYTHON")} <= RESERVED_VARIABLES


def test_a_broker_that_is_asked_for_nothing_is_not_named() -> None:
    assert "nothing" in refuse(secrets=[], state=False)
    assert "nothing" in refuse(secrets=[], state=False, key="")
    assert read(secrets=[], state=False, key="", repository="").broker == NO_BROKER


def test_an_agent_with_state_has_a_name_that_a_resource_can_have() -> None:
    for name in ("Notes of May", "", "a" * 65):
        with pytest.raises(FormatError, match="name"):
            parse(jcs({**document(), "name": name}))
        assert parse(jcs({**document(state=False), "name": name})).name == name


def test_a_change_is_told_in_words() -> None:
    changed = replace(WANTING, broker=replace(ASKED, secrets=(), state=False))
    found = diff_expectations(WANTING, changed)
    assert [(d.path, d.before, d.after) for d in found] == [
        ("broker.secrets", "db-password, TOKEN=api.token", "(none)"),
        ("broker.state", "True", "False"),
    ]
    assert "other secrets" in found[0].meaning
