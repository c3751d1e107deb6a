"""A training node that lies about one step: `lying_trainer.py PORT WEIGHTS STEP`.

Everything else is the node that `confide node train` starts, with the same measured software: its
processes compute rightly, and the loss of STEP is told better than it was, chain and all.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from confide.adapters.clock import SystemClock
from confide.adapters.entropy import SystemEntropy
from confide.adapters.paths import Paths
from confide.cli.foreground import end_process
from confide.engines.local import LocalEngine
from confide.node.hardware import MachineSettings
from confide.node.serve_train import TrainNodeSettings, serve_train_node
from confide.trainer.frames import Frame, read_json
from confide.trainer.process import TrainingProcess
from confide.trainer.reports import read_step
from confide.training.chain import chain_start, chain_step, f64
from confide.training.plan import parse_plan
from confide.wire.json import jcs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from confide.trainer.order_form import OrderForm


class LyingProcess(TrainingProcess):
    """A training process whose word is bent on its way, so that it stays in itself consistent."""

    def __init__(self, form: OrderForm, step: int) -> None:
        super().__init__(form)
        self._false = step

    def frames(self) -> Iterator[tuple[Frame, bytes]]:
        link = b""
        for kind, payload in super().frames():
            value: Any = None if kind is Frame.DATA else read_json(payload)
            match kind:
                case Frame.PREPARED:
                    link = chain_start(parse_plan(value["plan"]).digest)
                case Frame.STEP:
                    record = read_step(value)[0].record
                    if record.step == self._false:
                        value["loss"] = f64(record.loss * 0.9).hex()
                    link = chain_step(link, read_step(value)[0].record)
                case Frame.CHECKPOINT | Frame.ENDED:
                    value["chain"] = link.hex()
                case _:
                    yield kind, payload
                    continue
            yield kind, jcs(value)


def main(port: str, weights: str, step: str) -> None:
    """Serve until told to stop."""
    environment = dict(os.environ)
    paths = Paths.from_environment(environment)
    engine = LocalEngine(paths, environment, clock=SystemClock(), entropy=SystemEntropy())
    settings = TrainNodeSettings(
        host="127.0.0.1",
        port=int(port),
        model="tiny",
        weights=Path(weights),
        machine=MachineSettings(kind="simulated", seed=engine.seed(), fault=""),
        state=paths.state / "training" / port,
    )
    asyncio.run(serve_train_node(settings, start=lambda form: LyingProcess(form, int(step))))
    end_process()


if __name__ == "__main__":
    main(*sys.argv[1:])
