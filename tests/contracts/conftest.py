"""A database server for the suites that run over every adapter of a port."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from postgres_server import PostgresServer, find_postgres, run_postgres

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """PostgreSQL, started for these tests."""
    programs = find_postgres()
    if programs is None:
        pytest.skip("NOT TESTED OVER POSTGRESQL: no initdb and postgres on this machine")
    yield from run_postgres(programs)
