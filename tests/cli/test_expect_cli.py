"""`confide expect`: TOML in, canonical JSON out, differences in words."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from runs import expectation_and_roots

from confide.expectation import BrokerSpec

if TYPE_CHECKING:
    from pathlib import Path

    from sessions import Cli

    from confide.expectation import Expectation


def toml(document: dict[str, Any]) -> str:
    """The TOML that a person would have written for `document`."""
    flat = {key: value for key, value in document.items() if not isinstance(value, dict)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in flat.items()]
    for section, members in document.items():
        if isinstance(members, dict):
            lines += [f"[{section}]"]
            lines += [f"{key} = {json.dumps(value)}" for key, value in members.items()]
    return "\n".join(lines) + "\n"


@pytest.fixture
def known() -> Expectation:
    return expectation_and_roots()[0]


def save(path: Path, expectation: Expectation) -> Path:
    path.write_bytes(expectation.canonical())
    return path


def test_toml_becomes_canonical_json_on_stdout(
    cli: Cli, tmp_path: Path, known: Expectation
) -> None:
    source = tmp_path / "expectation.toml"
    source.write_text(toml(known.document()))
    seen = cli("expect", source)
    assert seen.code == 0
    assert seen.out.encode() == known.canonical()
    assert f"sha256:{known.digest.hex()}" in seen.err
    assert "SIMULATED" in seen.err


def test_toml_becomes_a_file(cli: Cli, tmp_path: Path, known: Expectation) -> None:
    source, target = tmp_path / "e.toml", tmp_path / "e.json"
    source.write_text(toml(known.document()))
    seen = cli("expect", "-o", target, source)
    assert (seen.code, seen.out) == (0, "")
    assert target.read_bytes() == known.canonical()


def test_json_result(cli: Cli, tmp_path: Path, known: Expectation) -> None:
    source = tmp_path / "e.toml"
    source.write_text(toml(known.document()))
    result = cli("expect", source, "--json").result
    assert result["digest"] == known.digest.hex()
    assert result["simulated"] is True
    assert result["expectation"] == known.document()


def test_a_misspelt_field_is_malformed_and_named(
    cli: Cli, tmp_path: Path, known: Expectation
) -> None:
    source = tmp_path / "e.toml"
    source.write_text("egres = []\n" + toml(known.document()))
    seen = cli("expect", source)
    assert seen.code == 30
    assert "egres" in seen.err


def test_equal_expectations(cli: Cli, tmp_path: Path, known: Expectation) -> None:
    one, two = save(tmp_path / "1.json", known), save(tmp_path / "2.json", known)
    seen = cli("expect", "diff", one, two)
    assert (seen.code, seen.out) == (0, f"equal: sha256:{known.digest.hex()}\n")


def test_a_difference_shows_path_values_and_meaning(
    cli: Cli, tmp_path: Path, known: Expectation
) -> None:
    one = save(tmp_path / "1.json", known)
    two = save(tmp_path / "2.json", replace(known, egress=("api.example:443",)))
    seen = cli("expect", "diff", one, two)
    assert seen.code == 10
    assert seen.out.splitlines() == [
        "egress  the agent may send data to other places",
        "  - (none)",
        "  + api.example:443",
    ]
    result = cli("expect", "diff", one, two, "--json").result
    assert result["equal"] is False
    assert [item["path"] for item in result["differences"]] == ["egress"]


def test_show_names_every_field_and_says_simulated(
    cli: Cli, tmp_path: Path, known: Expectation
) -> None:
    seen = cli("expect", "show", save(tmp_path / "e.json", known))
    assert seen.code == 0
    assert " SIMULATED " in seen.out
    for section, members in known.document().items():
        if isinstance(members, dict):
            assert section in seen.out.splitlines()
            assert all(f"  {name}" in seen.out for name in members)


def test_show_names_what_is_asked_of_a_broker(cli: Cli, tmp_path: Path, known: Expectation) -> None:
    asked = BrokerSpec("ab" * 32, "records", ("db-password", "TOKEN=token"), state=True)
    seen = cli("expect", "show", save(tmp_path / "e.json", replace(known, broker=asked)))
    assert seen.code == 0
    for shown in ("ab" * 32, "records", "db-password", "TOKEN=token"):
        assert shown in seen.out


def test_a_misspelt_field_of_the_broker_is_named(
    cli: Cli, tmp_path: Path, known: Expectation
) -> None:
    source = tmp_path / "e.toml"
    source.write_text(toml(known.document()).replace("repository = ", "repositories = "))
    seen = cli("expect", source)
    assert seen.code == 30
    assert "broker.repositories" in seen.err


def test_what_is_not_canonical_is_malformed(cli: Cli, tmp_path: Path, known: Expectation) -> None:
    path = tmp_path / "e.json"
    path.write_text(json.dumps(known.document(), indent=1))
    assert cli("expect", "show", path).code == 30


def test_a_final_newline_of_an_editor_is_not_held_against_it(
    cli: Cli, tmp_path: Path, known: Expectation
) -> None:
    path = tmp_path / "e.json"
    path.write_bytes(known.canonical() + b"\n")
    assert cli("expect", "show", path, "--json").result["digest"] == known.digest.hex()


def test_a_missing_file_is_a_usage_error(cli: Cli, tmp_path: Path) -> None:
    assert cli("expect", tmp_path / "none.toml").code == 2
    assert cli("expect", "show", tmp_path / "none.json").code == 2
