"""A training node that hides that a job moved to it: `silent_node.py PORT WEIGHTS LABEL`.

Its machine, keys and evidence are genuine, with the same measured software. What it says of the job
is that the machine before was restarted; it signs that, proves it before its first step, and hands
the record over without looking at it.
"""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from confide.adapters.clock import SystemClock
from confide.adapters.entropy import SystemEntropy
from confide.adapters.paths import Paths
from confide.cli.foreground import end_process
from confide.engines.local import LocalEngine
from confide.node import train_jobs, train_proof
from confide.node.hardware import MachineSettings
from confide.node.serve_train import TrainNodeSettings, serve_train_node

if TYPE_CHECKING:
    from confide.node.identity import Identity
    from confide.training.account import Account
    from confide.training.boots import Turn
    from confide.training.predicates import HardwareOfBoot
    from confide.wire.evidence import EvidenceBundle


class SilentProof(train_proof.JobProof):
    """Takes itself for the machine before, and names its own where that is held to evidence."""

    async def introduce(self, account: Account) -> Turn | None:
        turn = await super().introduce(account)
        if turn is not None:
            self.hardware[-1] = self._genuine
        return turn

    async def _machine(self, speaker: Identity) -> bytes:
        del speaker
        return self.hardware[-1].machine

    async def _prove(
        self, account: Account, turn: Turn, speaker: Identity
    ) -> tuple[EvidenceBundle, HardwareOfBoot]:
        bundle, self._genuine = await super()._prove(account, turn, speaker)
        return bundle, replace(self._genuine, machine=self.hardware[-1].machine)


def unverified(*_given: Any, **_named: Any) -> Any:
    """What this node does with its own record."""


def main(port: str, weights: str, label: str) -> None:
    """Serve until told to stop."""
    train_jobs.JobProof = SilentProof  # type: ignore[attr-defined]
    train_proof.verify_record = unverified  # type: ignore[attr-defined]
    environment = dict(os.environ)
    paths = Paths.from_environment(environment)
    engine = LocalEngine(paths, environment, clock=SystemClock(), entropy=SystemEntropy())
    machine = MachineSettings(kind="simulated", seed=engine.seed(), label=label)
    settings = TrainNodeSettings(
        host="127.0.0.1",
        port=int(port),
        model="tiny",
        weights=Path(weights),
        machine=machine,
        state=paths.state / "training" / port,
    )
    asyncio.run(serve_train_node(settings))
    end_process()


if __name__ == "__main__":
    main(*sys.argv[1:])
