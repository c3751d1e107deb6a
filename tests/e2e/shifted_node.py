"""A model node whose clock a test moves: `python shifted_node.py PORT UPSTREAM SEED SHIFT WORKERS`.

The file SHIFT holds the seconds by which this node's time, and the test's, is ahead. Everything
else is the node that `confide node model` starts.
"""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from confide.node.hardware import MachineSettings
from confide.node.serve_model import ModelNodeSettings, serve_model_node


@dataclass(frozen=True)
class ShiftedClock:
    """The system's time, and as many seconds more as `shift` says."""

    shift: Path

    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=int(self.shift.read_text()))

    def set(self, seconds: int) -> None:
        """Move the time of everybody who reads `shift`, at once and never half."""
        other = self.shift.with_suffix(".new")
        other.write_text(str(seconds))
        other.replace(self.shift)


def main(port: str, upstream: str, seed: str, shift: str, workers: str) -> None:
    settings = ModelNodeSettings(
        host="127.0.0.1",
        port=int(port),
        model="m",
        machine=MachineSettings(kind="simulated", seed=bytes.fromhex(seed)),
        state=Path(shift).parent,
        upstream_urls=(upstream,),
        workers=int(workers),
    )
    asyncio.run(serve_model_node(settings, clock=ShiftedClock(Path(shift))))
    # As the command line does: threads of the HTTP server do not survive an interpreter's end.
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
