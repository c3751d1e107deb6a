"""`confide data`: what a person sees, what is written, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from dataset_rows import CHAT, COMPLETION, commit, lines, numbered, prove

if TYPE_CHECKING:
    from pathlib import Path

    from sessions import Cli

CANARY = "canary-0f3a"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(numbered(9))
    return path


def test_a_good_file_is_described(cli: Cli, rows: Path) -> None:
    seen = cli("data", "check", rows, "--json")
    assert seen.code == 0
    assert seen.result["kind"] == "completion"
    assert (seen.result["rows"], seen.result["longest"]["line"]) == (9, 1)
    said = cli("data", "check", rows).out
    assert "every line is a row" in said
    assert "Not looked at" in said
    assert list(rows.parent.glob("rows*")) == [rows]


def test_broken_lines_are_named_and_never_repeated(cli: Cli, rows: Path) -> None:
    broken = json.dumps({"prompt": CANARY, CANARY: 1, "completion": CANARY}).encode()
    rows.write_bytes(numbered(3) + broken + b"\n" + numbered(2) + lines({"completion": CANARY}))
    seen = cli("data", "check", rows)
    assert seen.code == 30
    assert "line 4: 1 unknown member(s)" in seen.err
    assert "line 7, prompt: missing" in seen.err
    assert "5 rows are good" in seen.err
    assert CANARY not in seen.out + seen.err


def test_of_many_broken_lines_the_first_are_named_and_all_are_counted(cli: Cli, rows: Path) -> None:
    rows.write_bytes(b"".join(b" " * at + b"x\n" for at in range(50)))
    seen = cli("data", "check", rows)
    assert "line 20: not JSON at 20;" in seen.err
    assert "line 21" not in seen.err
    assert "30 more lines are refused" in seen.err


def test_a_fault_of_many_lines_is_told_once_with_the_lines(cli: Cli, rows: Path) -> None:
    rows.write_bytes(numbered(1) + lines({"completion": "x"}) * 20 + b"x\n")
    seen = cli("data", "check", rows)
    assert seen.err.count("prompt: missing") == 1
    assert "the same on lines 3, 4, 5, 6, 7, 8, 9, 10 and 11 more" in seen.err
    assert "line 22: not JSON at 1" in seen.err


def test_a_commitment_and_its_salt_are_written_and_nothing_is_overwritten(
    cli: Cli, rows: Path
) -> None:
    first = cli("data", "commit", rows, "--json").result
    salt, place = (rows.with_name(f"rows.jsonl.{end}") for end in ("salt", "commitment"))
    assert first["commitment"] == commit(rows.read_bytes(), _salt(salt)).digest.hex()
    assert (first["drawn"], first["file"]) == (True, str(place))
    assert salt.stat().st_mode & 0o777 == 0o600
    again = cli("data", "commit", rows)
    assert again.code == 2
    assert "exists" in again.err
    other = cli("data", "commit", rows, "-o", rows.with_name("other"), "--json").result
    assert (other["drawn"], other["commitment"]) == (False, first["commitment"])


def _salt(path: Path) -> bytes:
    return bytes.fromhex(path.read_text())


def test_a_file_with_a_broken_row_is_not_committed_to(cli: Cli, rows: Path) -> None:
    rows.write_bytes(numbered(9) + b"{}\n")
    seen = cli("data", "commit", rows)
    assert seen.code == 30
    assert "line 10" in seen.err
    assert list(rows.parent.glob("rows*")) == [rows]


def test_a_row_is_proven_to_whoever_knows_the_commitment(cli: Cli, rows: Path) -> None:
    assert cli("data", "commit", rows).code == 0
    known = rows.with_name("rows.jsonl.commitment")
    made = cli("data", "prove", rows, 5, "--commitment", known, "--json").result
    seen = cli("data", "verify", made["file"], "--commitment", known, "--json")
    assert seen.code == 0
    assert seen.result["value"] == {"prompt": "4?", "completion": "4!"}
    assert (seen.result["row"], seen.result["rows"]) == (5, 9)
    screen = cli("data", "verify", made["file"], "--commitment", made["commitment"])
    assert "this row stands there" in screen.out
    assert "4!" in screen.out
    assert "Not proven" in screen.out


def test_a_closed_proof_holds_no_row_and_says_so(cli: Cli, rows: Path) -> None:
    cli("data", "commit", rows)
    made = cli("data", "prove", rows, 5, "--closed", "--json").result
    assert made["opened"] is False
    assert b"4!" not in rows.with_name("rows.jsonl.row-5.proof").read_bytes()
    seen = cli("data", "verify", made["file"], "--commitment", made["commitment"])
    assert seen.code == 0
    assert "this leaf stands there" in seen.out
    assert "Not shown" in seen.out


def test_a_row_that_changed_is_refused_when_proving_and_when_verifying(
    cli: Cli, rows: Path
) -> None:
    known = cli("data", "commit", rows, "--json").result["commitment"]
    rows.write_bytes(rows.read_bytes().replace(b"4!", b"5!"))
    refused = cli("data", "prove", rows, 5, "--commitment", known)
    assert refused.code == 10
    assert "dataset-mismatch" in refused.err
    assert not rows.with_name("rows.jsonl.row-5.proof").exists()
    made = cli("data", "prove", rows, 5, "--json").result
    seen = cli("data", "verify", made["file"], "--commitment", known)
    assert seen.code == 10
    assert "to do" in seen.err


def test_a_forged_proof_is_refused(cli: Cli, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    digest = commit(numbered(9)).digest.hex()
    proof.write_bytes(prove(numbered(9), 4).encode().replace(b'"4!"', b'"5!"'))
    seen = cli("data", "verify", proof, "--commitment", digest)
    assert seen.code == 10
    assert "dataset-opening" in seen.err
    proof.write_bytes(b"{}")
    assert cli("data", "verify", proof, "--commitment", digest).code == 30


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("prove", "rows.jsonl", "10"), "the file has 9 rows"),
        (("prove", "rows.jsonl", "0"), "greater than or equal to 1"),
        (("prove", "missing.jsonl", "1", "--salt", "rows.jsonl.salt"), "cannot be read"),
        (("prove", "rows.jsonl", "1", "--salt", "missing"), "cannot be read"),
        (("check", "missing.jsonl"), "cannot be read"),
        (("check", "."), "cannot be read"),
        (("verify", "rows.jsonl", "--commitment", "missing"), ""),
    ],
)
def test_what_cannot_be_done_is_said(
    cli: Cli, rows: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(rows.parent)
    cli("data", "commit", rows)
    seen = cli("data", *words)
    assert seen.code == (30 if words[0] == "verify" else 2)
    assert said in seen.err


def test_a_salt_that_others_may_read_is_refused(cli: Cli, rows: Path) -> None:
    cli("data", "commit", rows)
    salt = rows.with_name("rows.jsonl.salt")
    salt.chmod(0o644)
    seen = cli("data", "prove", rows, 1)
    assert seen.code == 2
    assert "chmod 600" in seen.err


def test_two_kinds_in_a_file_are_refused(cli: Cli, rows: Path) -> None:
    rows.write_bytes(lines(CHAT, COMPLETION))
    assert "line 2: a completion row after chat rows" in cli("data", "check", rows).err


@pytest.mark.slow
def test_a_large_file_is_read_in_little_memory(rows: Path) -> None:
    with rows.open("wb") as file:
        for _ in range(64):
            file.write(lines({"prompt": "x" * 1000, "completion": "y" * 1000}) * 1024)
    program = (
        "import re, sys; from confide.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as ended: assert not ended.code\n"
        "print(re.search('HWM:\\s*(.*) k', open('/proc/self/status').read())[1], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "data", "check", str(rows)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert rows.stat().st_size > 120 * 1024 * 1024
    assert int(done.stderr.splitlines()[-1]) < 64 * 1024
