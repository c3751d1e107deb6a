"""`confide compare`: the same claims in the same words, for two services side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from service_files import AT, Files, service, write

from confide.appraisal.claim_names import ClaimName
from confide.trust.roots import encode_roots_file

if TYPE_CHECKING:
    from pathlib import Path

    from sessions import Cli

_LOOK = ("--at", AT)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Files, Files]:
    """Two services of one simulation: Tinfoil and Trustee."""
    found = []
    for kind in ("tinfoil", "trustee"):
        folder = tmp_path / kind
        folder.mkdir()
        found.append(write(service(kind), folder))
    return found[0], found[1]


def test_every_claim_stands_beside_its_counterpart(cli: Cli, pair: tuple[Files, Files]) -> None:
    one, two = pair
    seen = cli("compare", one.bundle, two.bundle, *one.trust)
    assert (seen.code, seen.err) == (0, "")
    lines = seen.out.splitlines()
    assert lines[0].startswith(" SIMULATED ")
    assert lines[1].split() == ["claim", "A:", "service.bundle", "(tinfoil)", "B:",
                                "service.bundle", "(trustee)"]  # fmt: skip
    names = [line[2:].split("  ")[0] for line in lines[4 : 4 + len(ClaimName)]]
    assert names == [name.value for name in ClaimName]
    assert len(lines) <= 45
    assert "What no check shows about A alone" in seen.out


def test_differences_are_marked_and_listed(cli: Cli, pair: tuple[Files, Files]) -> None:
    one, two = pair
    words = ("compare", one.bundle, two.bundle, *one.trust)
    result = cli(*words, "--json").result
    assert result["simulated"] is True
    assert [side["outcome"] for side in result["sides"]] == ["accepted", "accepted"]
    differ = {name for name, (a, b) in result["claims"].items() if a != b}
    assert differ == set(result["differ"])
    assert {"workload", "event-log"} <= differ
    marked = {line[2:].split("  ")[0] for line in cli(*words).out.splitlines() if line[0:1] == "≠"}
    assert marked == differ


def test_a_service_equals_itself(cli: Cli, pair: tuple[Files, Files]) -> None:
    one, _ = pair
    result = cli("compare", one.bundle, one.bundle, *one.trust, "--json").result
    assert result["differ"] == []


def test_what_is_simulated_counts_only_under_its_roots(cli: Cli, pair: tuple[Files, Files]) -> None:
    one, two = pair
    result = cli("compare", one.bundle, two.bundle, *_LOOK, "--json").result
    assert result["simulated"] is False
    assert result["claims"]["hardware"] == ["fail", "fail"]
    assert [side["outcome"] for side in result["sides"]] == ["rejected", "rejected"]


def test_two_simulations_have_two_roots(
    cli: Cli, tmp_path: Path, pair: tuple[Files, Files]
) -> None:
    other = tmp_path / "near"
    other.mkdir()
    near = write(service("near"), other)
    seen = cli("compare", pair[0].bundle, near.bundle, *pair[0].trust, "--json")
    assert seen.code == 0
    assert seen.result["claims"]["hardware"] == ["pass", "fail"]


def test_a_policy_holds_both(cli: Cli, pair: tuple[Files, Files]) -> None:
    one, two = pair
    result = cli(
        "compare", one.bundle, two.bundle, *one.trust, "--policy", "strict", "--json"
    ).result
    assert [side["outcome"] for side in result["sides"]] == ["rejected", "rejected"]


def test_what_cannot_be_read_is_an_error_of_the_whole(
    cli: Cli, tmp_path: Path, pair: tuple[Files, Files]
) -> None:
    one, _ = pair
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"garbage")
    for words in ((one.bundle, garbage), (garbage, one.bundle)):
        seen = cli("compare", *words, *one.trust)
        assert (seen.code, seen.out) == (30, "")
        assert "of no known format" in seen.err
    assert cli("compare", one.bundle, tmp_path / "missing").code == 2
    assert cli("compare", "-", "-").code == 2
    assert cli("compare", one.bundle, one.bundle, "--policy", "strickt").code == 2


def test_vendor_roots_are_no_simulated_roots(cli: Cli, pair: tuple[Files, Files]) -> None:
    one, two = pair
    assert cli("compare", one.bundle, two.bundle, "--simulated-roots", "vendor").code == 2
    assert encode_roots_file(one.service.roots) == one.roots.read_bytes()
