"""`confide node --machine`: a machine that this is not is refused, and never simulated instead."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from confide.adapters.dstack_agent import DSTACK_SOCKETS

# The real command in a process of its own: a node forbids its process core dumps for good.
REAL = [
    ("tdx", "/sys/kernel/config/tsm/report", ["agent", "--model-url", "http://127.0.0.1:1"]),
    ("dstack", "no dstack agent", ["model", "--model", "m", "--weights", "."]),
]


@pytest.mark.parametrize(("machine", "words", "role"), REAL, ids=["tdx", "dstack"])
def test_a_real_machine_that_this_is_not_is_refused_and_not_simulated(
    machine: str, words: str, role: list[str], tmp_path: Path
) -> None:
    if any(Path(place).exists() for place in ("/dev/tdx_guest", *DSTACK_SOCKETS)):
        pytest.skip("THIS MACHINE IS A REAL ONE: not tested what it lacks")
    # No variable of the environment names another machine.
    named = {"CONFIDE_MACHINE": "simulated", "DSTACK_SIMULATOR_ENDPOINT": "http://127.0.0.1:1"}
    ran = subprocess.run(
        [sys.executable, "-m", "confide", "node", *role, "--port", "1", "--machine", machine],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), **named},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 2
    assert words in ran.stderr
    assert list(tmp_path.rglob("*")) == [], "a simulated platform was made"


def test_no_other_machine_can_be_named(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "confide", "node", "agent", "--port", "1", "--machine", "any"],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 2
    assert "simulated" in ran.stderr
