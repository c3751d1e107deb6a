"""Fixtures every test may use."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from postgres_server import PostgresServer, find_postgres, run_postgres

if TYPE_CHECKING:
    from collections.abc import Iterator

# These share what a machine has once: containers, namespaces, the table of processes.
_ALONE = frozenset({"containers", "e2e"})
_TESTS = Path(__file__).resolve().parent
_REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `--dist loadgroup`, files stay together, and those of `_ALONE` run one at a time."""
    for item in items:
        inside = item.path.relative_to(_TESTS).parts
        item.add_marker(
            pytest.mark.xdist_group("alone" if inside[0] in _ALONE else "/".join(inside))
        )


@pytest.fixture(scope="session")
def vectors() -> Path:
    """The shared evidence with expected verdicts; skipped loudly where it is absent."""
    root = Path(os.environ.get("CONFIDE_VECTORS", _REPOSITORY.parent / "shared" / "vectors"))
    if not root.is_dir():
        pytest.skip(f"SHARED VECTORS ABSENT: {root} (set CONFIDE_VECTORS)")
    return root


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """PostgreSQL, started for these tests."""
    programs = find_postgres()
    if programs is None:
        pytest.skip("NOT TESTED OVER POSTGRESQL: no initdb and postgres on this machine")
    yield from run_postgres(programs)
