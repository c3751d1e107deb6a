"""The command line in process, with a home of its own, and one genuine SIMULATED receipt."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1] / "simulators"))

from log_processes import ServedLog
from runs import OUTPUTS, tell
from sessions import Session

from confide.cli.main import app

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sessions import Cli


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home directory with nothing in it."""
    path = tmp_path / "home"
    path.mkdir()
    return path


@pytest.fixture
def cli(home: Path) -> Cli:
    """Run `confide` with these words."""

    def run(*words: object, **environment: str) -> Session:
        places = {f"XDG_{name}_HOME": "" for name in ("CONFIG", "DATA", "CACHE", "STATE")}
        result = CliRunner().invoke(
            app,
            [str(word) for word in words],
            env={"HOME": str(home), **places, "COLUMNS": "", **environment},
        )
        return Session(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture
def receipt(tmp_path: Path) -> Path:
    """The receipt of a completed run."""
    path = tmp_path / "receipt.json"
    path.write_bytes(tell().encode())
    return path


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """The outputs of that run."""
    folder = tmp_path / "outputs"
    for name, raw in OUTPUTS.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
    return folder


@pytest.fixture
def served(cli: Cli, tmp_path: Path) -> Iterator[ServedLog]:
    """A log with its witnesses, running; one of the witnesses signs with ML-DSA-44."""
    log = ServedLog(cli, tmp_path)
    try:
        log.start("a", "b", "log")
        yield log
    finally:
        log.kill()
