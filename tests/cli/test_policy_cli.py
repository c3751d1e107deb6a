"""`confide policy`: in words, written out, and what a misspelt file is told."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import reader_cases as cases
from services import near_case, policy_text

from confide.appraisal.policy_file import parse_policy
from confide.appraisal.service_policy import rules_of
from confide.appraisal.service_profiles import AUDIT, PROFILES, STRICT
from confide.cli.policy import toml_of

if TYPE_CHECKING:
    from pathlib import Path

    from sessions import Cli

_HEAD = 'type = "confide/policy/v1"\nname = "mine"\nprofile = "strict"\n'


@pytest.mark.parametrize("name", PROFILES)
def test_what_is_shown_is_the_same_policy(cli: Cli, tmp_path: Path, name: str) -> None:
    shown = cli("policy", "show", name)
    assert (shown.code, shown.err) == (0, "")
    path = tmp_path / "policy.toml"
    path.write_text(shown.out)
    assert parse_policy(shown.out) == PROFILES[name]
    explained = cli("policy", "explain", path, "--json")
    assert explained.events[0]["digest"] == PROFILES[name].digest
    assert cli("policy", "show", path).out == shown.out


def test_names_and_long_lists_round_trip() -> None:
    many = frozenset(f"{number:064x}" for number in range(4000))
    odd = replace(
        STRICT,
        name='a "quoted" \\ name ~',
        workload=replace(STRICT.workload, documents=many),
        provenance=replace(
            STRICT.provenance,
            identities=frozenset(
                {'https://issuer.example id"with\\quotes', "https://i.example ü€😀"}
            ),
        ),
    )
    text = toml_of(odd)
    assert parse_policy(text) == odd
    assert text.isascii()


def test_nothing_is_wrapped_where_the_terminal_is_narrow(cli: Cli) -> None:
    narrow = cli("policy", "show", "strict", COLUMNS="40", FORCE_COLOR="1")
    assert narrow.out == toml_of(STRICT)


def test_strict_says_that_it_accepts_nothing_yet(cli: Cli) -> None:
    seen = cli("policy", "explain", "strict")
    assert seen.code == 0
    lines = seen.out.splitlines()
    assert lines[0] == f"policy strict  {STRICT.digest}"
    assert lines[1].startswith("Accepts nothing as written: ")
    assert "workload.documents" in lines[1]


def test_audit_says_how_much_is_open(cli: Cli) -> None:
    seen = cli("policy", "explain", "audit")
    assert "Accepts nothing" not in seen.out
    opened = sum(line.startswith("  ! ") for line in seen.out.splitlines())
    assert f"{opened} fields are left open." in seen.out
    assert opened >= len(AUDIT.relaxations)


@pytest.mark.parametrize("name", PROFILES)
def test_every_open_field_is_said_in_words(cli: Cli, name: str) -> None:
    seen = cli("policy", "explain", name).out
    for relaxation in PROFILES[name].relaxations:
        assert f"[{relaxation.partition(':')[0]}]" in seen


def test_the_demands_of_a_written_policy_are_said(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(policy_text(near_case(), require=("hardware", "launch")))
    result = cli("policy", "explain", path, "--json").events[0]
    assert result["event"] == "result"
    fields = {sentence["field"]: sentence for sentence in result["sentences"]}
    assert fields["unsafe_simulated"]["tone"] == "open"
    assert fields["claims.require"]["text"] == "proven must be hardware, launch"
    known = {
        f"{section}.{field}"
        for section, rules in STRICT.sections().items()
        for field in rules_of(rules)
    }
    assert set(fields) <= known | {"unsafe_simulated"}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (f"{_HEAD}[tdx]\nmrdt = []\n", "tdx has no field 'mrdt' (did you mean 'mrtd'?)"),
        (f"{_HEAD}[tdxx]\nmrtd = []\n", "no section or field 'tdxx' (did you mean 'tdx'?)"),
        (f"{_HEAD}unsafe_simulatd = true\n", "did you mean 'unsafe_simulated'?"),
        (
            f'{_HEAD}[claims]\nrequire = ["harware"]\n',
            "claims.require takes names of claims, not 'harware' (did you mean 'hardware'?)",
        ),
        (f'{_HEAD}[tdx]\ntcb_status = ["uptodate"]\n', "tdx.tcb_status takes TCB statuses"),
        (f'{_HEAD}[tdx]\nmrtd = ["00"]\n', "tdx.mrtd[0] is not of the form: 96 hex digits"),
        (f"{_HEAD}[tdx]\nmrtd = 1\n", "tdx.mrtd is not a list"),
        (f"{_HEAD}[tdx]\nunsafe_debug = 1\n", "tdx.unsafe_debug is not true or false"),
        (
            f'{_HEAD}[tdx]\nmin_pck_crl_issued = "2026-01-01T00:00:00"\n',
            "tdx.min_pck_crl_issued is not a UTC time",
        ),
        (f"{_HEAD}[tdx]\nmrtd = []\nmrtd = []\n", "not TOML"),
        ("x = " + "[" * 10_000, "nested deeper than 32"),
        ("", "type is not"),
        ("[tdx]\n\x1b[2J = 1\n", "not TOML"),
        (f'{_HEAD}[tdx]\n"\\u001b[2J" = 1\n', "tdx has no field '\\x1b[2J'"),
    ],
)
def test_a_policy_with_a_mistake_is_30_and_names_the_place(
    cli: Cli, tmp_path: Path, text: str, why: str
) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(text)
    quote = tmp_path / "quote"
    quote.write_bytes(cases.quote())
    for words in (("policy", "explain", path), ("verify", quote, "--policy", path)):
        seen = cli(*words)
        assert (seen.code, seen.out) == (30, "")
        first, *rest = seen.err.splitlines()
        assert why in first
        assert "\x1b" not in seen.err
        assert any("Mend the policy file" in line for line in rest)


@pytest.mark.parametrize("raw", [b"\xff\xfet\0", b"\xef\xbb\xbftype = 1", b'name = "\xe9"', b"\0"])
def test_a_policy_in_another_encoding(cli: Cli, tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "policy.toml"
    path.write_bytes(raw)
    seen = cli("policy", "explain", path)
    assert (seen.code, seen.out) == (30, "")


def test_a_policy_that_is_no_file(cli: Cli, tmp_path: Path) -> None:
    for name in ("strickt", tmp_path):
        seen = cli("policy", "show", name)
        assert (seen.code, seen.out) == (2, "")
        assert "strict and audit" in seen.err
    large = tmp_path / "large.toml"
    large.write_bytes(b"#" * ((1 << 20) + 1))
    assert cli("policy", "show", large).code == 2
