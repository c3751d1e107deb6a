"""Fixtures every test may use."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from postgres_server import PostgresServer, find_postgres, run_postgres

if TYPE_CHECKING:
    from collections.abc import Iterator

# These share what a machine has once: containers, namespaces, the table of processes.
_ALONE = ("tests/containers/", "tests/e2e/")
# These start processes of their own alone, and take long.
_BESIDE = tuple(
    f"tests/e2e/test_{name}_process.py" for name in ("replay", "train_cli", "training_node")
)
_REPOSITORY = Path(__file__).resolve().parent.parent

# What a property says is true on a slow machine too.
settings.register_profile(
    "untimed", settings(deadline=None, suppress_health_check=(HealthCheck.too_slow,))
)
settings.load_profile("untimed")


def pytest_configure() -> None:
    """Take interrupts again where a shell in the background had them ignored: tests send some."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """On several cores, files stay together, and those of `_ALONE` run one after the other."""
    # Only where it is asked for.
    from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]  # noqa: PLC0415

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "alone" if file.startswith(_ALONE) and file not in _BESIDE else file

    return ByFile(config, log)


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
