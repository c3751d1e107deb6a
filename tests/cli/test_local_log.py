"""The log of this machine: its keys, its processes, and that it goes on after each of them died."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from runs import Story, tell

from confide.adapters.clock import SystemClock
from confide.adapters.entropy import SystemEntropy
from confide.adapters.paths import Paths
from confide.engines.local import LocalEngine
from confide.engines.roles import ROLES
from confide.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sessions import Cli

# Processes outlive the command that started them, here a call inside this process.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture
def engine(cli: Cli, home: Path) -> Iterator[LocalEngine]:
    """The engine of `home`, stopped at the end."""
    environment = {"HOME": str(home), "PATH": os.environ["PATH"]}
    paths = Paths.from_environment(environment)
    yield LocalEngine(paths, environment, clock=SystemClock(), entropy=SystemEntropy())
    cli("down")


def add(cli: Cli, tmp_path: Path, name: str) -> dict[str, Any]:
    """Put one more receipt into the local log."""
    path = tmp_path / f"{name}.json"
    path.write_bytes(tell(Story(name)).encode())
    added = cli("log", "add", path, "--json")
    assert added.code == 0, added.err
    return added.result


def kill(engine: LocalEngine, role: str) -> None:
    (node,) = [state.node for state in engine.status() if state.node.role == role]
    os.kill(node.pid, signal.SIGKILL)
    while any(state.alive for state in engine.status() if state.node.role == role):
        time.sleep(0.01)


def test_the_local_log_needs_nothing_and_goes_on_after_kill_9(
    cli: Cli, engine: LocalEngine, home: Path, tmp_path: Path
) -> None:
    assert add(cli, tmp_path, "first")["index"] == 0
    for role in ("log", "witness"):
        kill(engine, role)
        assert add(cli, tmp_path, f"after {role}")["size"] == (2 if role == "log" else 3)
    states = {state.node.role: state for state in engine.status()}
    assert states.keys() == {"log", "witness"}
    assert states["log"].says == "size 3"
    status = cli("status", "--json")
    # Log and witness alone are not the whole stack.
    assert (status.code, status.result["running"]) == (20, False)
    policy = Path(status.result["log_policy"])
    receipt = tmp_path / "first.json"
    assert cli("down").out == "2 process(es) stopped\n"
    # Stopped, and nobody left to ask: the proof inside is enough.
    roots = tmp_path / "roots"
    roots.write_bytes(tell().roots)
    words = ("--simulated-roots", roots, "--log-policy", policy, "--require-log")
    assert cli("verify", receipt, *words).code == 0
    assert add(cli, tmp_path, "after down")["index"] == 3
    data = home / ".local" / "share" / "confide"
    for key in (data / "log" / "key", data / "witness" / "key"):
        assert key.stat().st_mode & 0o777 == 0o600
    assert "http" not in policy.read_text()


@pytest.mark.usefixtures("engine")
def test_a_log_that_lost_what_its_witness_saw_does_not_start(
    cli: Cli, home: Path, tmp_path: Path
) -> None:
    add(cli, tmp_path, "first")
    cli("down")
    entries = home / ".local" / "share" / "confide" / "log" / "entries"
    entries.rename(tmp_path / "gone")
    add_again = tmp_path / "again.json"
    add_again.write_bytes(tell(Story("again")).encode())
    seen = cli("log", "add", add_again, "--wait", "0")
    assert seen.code == 20
    assert "the log ended with status 10: rejected: " in seen.err
    assert "tlog-rollback" in (home / ".local/state/confide/log.log").read_text()
    assert (tmp_path / "again.json").read_bytes() == tell(Story("again")).encode()


def test_a_damaged_key_is_never_replaced(engine: LocalEngine, home: Path) -> None:
    engine.log_policy()
    key = home / ".local" / "share" / "confide" / "log" / "key"
    key.write_text("PRIVATE+KEY+damaged\n")
    with pytest.raises(Unavailable, match="is damaged; restore it"):
        engine.up_log(idle_seconds=None, within_seconds=60)
    assert key.read_text() == "PRIVATE+KEY+damaged\n"


def test_every_need_of_a_role_stands_before_it() -> None:
    """`LocalEngine` drops what lost what it needs in one pass over the table."""
    seen: set[str] = set()
    for role, spec in ROLES.items():
        assert seen.issuperset(spec.needs)
        seen.add(role)
