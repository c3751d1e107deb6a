"""Replaying 3 of 200 steps, beside the training that they were drawn from: one process, torch.

The model is the bundled one, the training a LoRA adapter with a sealed checkpoint and a state
digest at every step. Loading the model is in neither time. Steps here are short; longer ones make
both times longer, and the share of opening a checkpoint smaller.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from bench.rows import absent, row

from confide.adapters.upstream_serve import BUNDLED_WEIGHTS
from confide.training.chain import chain_start
from confide.training.dataset import commit_rows
from confide.training.draw import draw_steps
from confide.training.job import TrainingData, TrainingJob
from confide.training.lines import Line
from confide.training.recipe_file import parse_recipe_toml
from confide.training.rows import parse_row
from confide.wire.json import jcs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.rows import Row

_STEPS, _DRAWN = 200, 3
_SECRET = hashlib.sha256(b"bench").digest()
_NAME = "replay 3 of 200 steps from sealed checkpoints, beside the training"
_RECIPE = f"""
base_model = "support-notes"
learning_rate = 1e-3
lora_r = 8
sequence_len = 128
micro_batch_size = 2
max_steps = {_STEPS}
checkpoint_every = 1
state_every = 1
"""


def replay_rows() -> Iterator[Row]:
    """Yield one row: the share of the training's time that the replay takes."""
    if find_spec("torch") is None:
        yield absent(_NAME, "%", "torch is not installed")
        return
    with tempfile.TemporaryDirectory() as folder:
        trained, replayed = _measure(Path(folder))
    share = 100 * replayed / trained
    yield row(_NAME, share, "%", budget="<= 2.5", met=share <= 2.5)


def _measure(folder: Path) -> tuple[float, float]:
    # torch takes seconds to load, and is not needed by the other groups.
    from confide.trainer.checkpoint_files import CheckpointFiles  # noqa: PLC0415
    from confide.trainer.loop import TorchTrainer  # noqa: PLC0415

    rows = [
        parse_row(Line(number, jcs({"prompt": f"note {number}: the bill", "completion": " money"})))
        for number in range(1, 65)
    ]
    committed = commit_rows(rows, _SECRET)
    records = tuple(each.record for each in rows)
    data = TrainingData(committed.kind, committed.digest, committed.root, _SECRET, records)
    trainer = TorchTrainer(BUNDLED_WEIGHTS, threads=1)
    prepared = trainer.prepare(TrainingJob(parse_recipe_toml(_RECIPE), data, None, _SECRET))
    plan = prepared.plan.digest
    files = CheckpointFiles(folder, plan=plan, key=_SECRET, session=_SECRET)
    link, entries, records_of = chain_start(plan), {}, {}
    began = time.perf_counter()
    for step in range(1, _STEPS + 1):
        record = records_of[step] = trainer.run_step()
        state = record.state or _SECRET
        entries[step] = files.write(step, trainer.save(), chain=link, state=state)
    trained = time.perf_counter() - began
    drawn = draw_steps(_SECRET, _STEPS, _DRAWN)
    began = time.perf_counter()
    for step in drawn:
        trainer.load(files.read(entries[step - 1]))
        if trainer.state_digest() != entries[step - 1].state:
            raise RuntimeError("a checkpoint holds another state")
        if trainer.run_step() != records_of[step]:
            raise RuntimeError("a step was computed otherwise")
    return trained, time.perf_counter() - began
