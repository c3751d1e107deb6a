"""`confide node model` by a clock that a test moves: `clocked_node.py PORT MODEL UPSTREAM SECONDS`.

The last is a file that holds how many seconds its clock is ahead of this machine's.
"""

from __future__ import annotations

import asyncio
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from confide.adapters.clock import SystemClock
from confide.adapters.entropy import SystemEntropy
from confide.adapters.paths import Paths
from confide.cli.foreground import end_process
from confide.engines.local import LocalEngine
from confide.node.hardware import MachineSettings
from confide.node.serve_model import ModelNodeSettings, serve_model_node

if TYPE_CHECKING:
    from datetime import datetime


class MovedClock:
    """This machine's time and what the file says; the same clock for a node and for its test."""

    def __init__(self, ahead: Path) -> None:
        self._ahead = ahead

    def now(self) -> datetime:
        """Return the time."""
        return SystemClock().now() + timedelta(seconds=int(self._ahead.read_text()))

    def move(self, by: timedelta) -> None:
        """Let `by` pass, for everybody who reads the file."""
        ahead = int(self._ahead.read_text()) + int(by.total_seconds())
        beside = self._ahead.with_suffix(".new")
        beside.write_text(str(ahead))
        beside.replace(self._ahead)


def main(port: str, model: str, upstream: str, ahead: str) -> None:
    """Serve until told to stop."""
    environment = dict(os.environ)
    paths = Paths.from_environment(environment)
    engine = LocalEngine(paths, environment, clock=SystemClock(), entropy=SystemEntropy())
    settings = ModelNodeSettings(
        host="127.0.0.1",
        port=int(port),
        model=model,
        machine=MachineSettings(kind="simulated", seed=engine.seed(), fault=""),
        state=paths.state,
        # Twice the places (inference.md §9.4): 64 streams are held, and as many more are asked.
        upstream_urls=(upstream, upstream),
    )
    asyncio.run(serve_model_node(settings, clock=MovedClock(Path(ahead))))
    end_process()


if __name__ == "__main__":
    main(*sys.argv[1:])
