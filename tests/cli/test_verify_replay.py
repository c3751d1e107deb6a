"""`confide verify` of what another node signed of a replay."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from replay_world import replayed, trained, two_nodes

from confide.training.record_file import parse_record_file

if TYPE_CHECKING:
    from pathlib import Path

    from sessions import Cli, Session


@dataclass(frozen=True)
class Files:
    """Results that agree and diverge, the record of the first, and another record."""

    folder: Path

    @property
    def trust(self) -> tuple[str, str]:
        roots = parse_record_file((self.folder / "record.json").read_bytes()).roots
        return "--simulated-roots", f"sha256:{hashlib.sha256(roots).hexdigest()}"

    def verify(self, cli: Cli, name: str, *words: object) -> Session:
        return cli("verify", self.folder / name, *self.trust, *words)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("results")

    async def make() -> None:
        async with two_nodes(folder / "nodes") as (first, second):
            honest = await trained(first)
            first.fate.wrong = {14: 0.25}
            false = await trained(first)
            nonce = "02" * 32
            results = {
                "agrees.json": await replayed(second, honest),
                "diverges.json": await replayed(second, false, steps=32, nonce=nonce),
            }
        for name, result in results.items():
            (folder / name).write_bytes(result.encode())
        (folder / "record.json").write_bytes(honest.record)
        (folder / "false.json").write_bytes(false.record)

    asyncio.run(make())
    return Files(folder)


def test_a_result_is_shown_with_who_executed_what(cli: Cli, files: Files) -> None:
    seen = files.verify(cli, "agrees.json", "--with", files.folder / "record.json")
    assert seen.code == 0, seen.err
    assert seen.out.startswith("ACCEPTED (SIMULATED)  replay of the training record ")
    assert "an attested node, no machine that trained" in seen.out
    assert "the record that was given" in seen.out
    assert "would have missed them" in seen.out
    assert "nobody chose the challenge" in seen.out


def test_a_program_reads_the_same(cli: Cli, files: Files) -> None:
    seen = files.verify(cli, "agrees.json", "--json", "--explain")
    assert seen.code == 0, seen.err
    result = seen.result
    assert (result["verdict"], result["agrees"], len(result["drawn"])) == ("accepted", True, 6)
    details = {each["step"]: each["detail"] for each in result["steps_run"]}
    assert details["replayed/7"] == "no record at hand to compare"


def test_a_divergence_is_exit_10_and_names_the_step(cli: Cli, files: Files) -> None:
    seen = files.verify(cli, "diverges.json", "--json")
    assert seen.code == 10
    assert seen.result["divergence"] == {"step": 14, "members": ["state"], "first": True}
    shown = files.verify(cli, "diverges.json")
    assert "step 14 is another: state" in shown.out
    assert shown.out.startswith("REJECTED")


def test_it_is_held_to_the_record_that_is_given(cli: Cli, files: Files) -> None:
    seen = files.verify(cli, "agrees.json", "--with", files.folder / "false.json")
    assert seen.code == 10
    assert "replay-result" in seen.out
    assert "not believed" in seen.out


def test_an_edited_result_is_refused(cli: Cli, files: Files) -> None:
    raw = (files.folder / "agrees.json").read_bytes()
    other = (files.folder / "diverges.json").read_bytes()
    # The evidence of one, the words of the other.
    at = raw.index(b'"result":')
    (files.folder / "mixed.json").write_bytes(raw[:at] + other[other.index(b'"result":') :])
    assert files.verify(cli, "mixed.json").code == 10


def test_simulated_roots_are_named_or_it_is_refused(cli: Cli, files: Files) -> None:
    assert cli("verify", files.folder / "agrees.json").code == 10


@pytest.mark.parametrize("words", [("--outputs", "."), ("--require-log",)])
def test_options_that_do_nothing_are_refused(
    cli: Cli, files: Files, words: tuple[str, ...]
) -> None:
    assert files.verify(cli, "agrees.json", *words).code == 2


def test_a_result_is_about_one_record(cli: Cli, files: Files) -> None:
    record = files.folder / "record.json"
    assert files.verify(cli, "agrees.json", "--with", record, "--with", record).code == 2
