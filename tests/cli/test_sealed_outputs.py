"""`confide key`, `confide open`: a sealed output opens for its key, under a receipt that holds."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest
from nodes import roots
from runs import OUTPUTS

from confide.agents.recipients import Recipient, seal_output
from confide.receipts.file import parse_receipt_file
from confide.receipts.statement import parse_run_statement
from confide.trust.roots import encode_roots_file

if TYPE_CHECKING:
    from pathlib import Path

    from sessions import Cli

NAME = "labels.csv"


@pytest.fixture
def key(cli: Cli, tmp_path: Path) -> tuple[Path, Recipient]:
    """A private key file and the recipient it opens for."""
    path = tmp_path / "key"
    said = cli("key", path, "--json").result
    assert path.stat().st_mode & 0o077 == 0
    return path, Recipient(bytes.fromhex(said["recipient"].removeprefix("x25519:")))


def seal(receipt: Path, recipient: Recipient, data: bytes, folder: Path) -> Path:
    statement = parse_run_statement(parse_receipt_file(receipt.read_bytes()).run.payload)
    path = folder / f"{NAME}.0.sealed"
    path.write_bytes(
        seal_output(recipient, data, run=statement.run, path=NAME, ephemeral=b"e" * 32)
    )
    return path


def trusted() -> str:
    return "sha256:" + hashlib.sha256(encode_roots_file(roots())).hexdigest()


def test_the_recipient_gets_the_output_that_the_receipt_names(
    cli: Cli, tmp_path: Path, receipt: Path, key: tuple[Path, Recipient]
) -> None:
    sealed = seal(receipt, key[1], OUTPUTS[NAME], tmp_path)
    out = tmp_path / "opened"
    words = ("open", sealed, "--key", key[0], "--receipt", receipt, "--output", out)
    session = cli(*words, "--simulated-roots", trusted())
    assert session.code == 0, session.err
    assert "SIMULATED" in session.out
    assert out.read_bytes() == OUTPUTS[NAME]


def test_nothing_is_opened_under_a_receipt_that_does_not_hold(
    cli: Cli, tmp_path: Path, receipt: Path, key: tuple[Path, Recipient]
) -> None:
    sealed = seal(receipt, key[1], OUTPUTS[NAME], tmp_path)
    out = tmp_path / "opened"
    session = cli("open", sealed, "--key", key[0], "--receipt", receipt, "--output", out)
    assert session.code == 10
    assert not out.exists()


def test_bytes_the_run_did_not_make_are_refused(
    cli: Cli, tmp_path: Path, receipt: Path, key: tuple[Path, Recipient]
) -> None:
    sealed = seal(receipt, key[1], b"something else", tmp_path)
    out = tmp_path / "opened"
    words = ("open", sealed, "--key", key[0], "--receipt", receipt, "--output", out)
    session = cli(*words, "--simulated-roots", trusted())
    assert session.code == 10
    assert "output-mismatch" in session.err
    assert not out.exists()


def test_another_key_opens_nothing(
    cli: Cli, tmp_path: Path, receipt: Path, key: tuple[Path, Recipient]
) -> None:
    sealed = seal(receipt, key[1], OUTPUTS[NAME], tmp_path)
    other = tmp_path / "other"
    assert cli("key", other).code == 0
    words = ("open", sealed, "--key", other, "--receipt", receipt, "--output", tmp_path / "o")
    assert cli(*words, "--simulated-roots", trusted()).code == 10


def test_a_key_is_never_overwritten(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "key"
    assert cli("key", path).code == 0
    before = path.read_bytes()
    assert cli("key", path).code == 2
    assert path.read_bytes() == before
