"""Replaying 3 of 200 steps, beside the training that they were drawn from.

First in one process, torch loaded: the model is the bundled one, the training a LoRA adapter with a
sealed checkpoint and a state digest at every step; loading the model is in neither time. Steps here
are short; longer ones make both times longer, and the share of opening a checkpoint smaller.

Then as another node does it, in a training process of its own: to start that is in both times, and
they are processor time. The steps take 200 ms and more; that of 200 is computed from some.
"""
# ruff: noqa: PLC0415 - torch is not installed everywhere, and takes seconds to import

from __future__ import annotations

import hashlib
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from bench.rows import absent, cpu_seconds, row

from confide.adapters.upstream_serve import BUNDLED_WEIGHTS
from confide.trainer.frames import Frame, read_json
from confide.trainer.process import TrainingProcess
from confide.training.chain import chain_start
from confide.training.checkpoints import parse_checkpoint_entry
from confide.training.dataset import commit_rows
from confide.training.draw import draw_steps
from confide.training.job import TrainingData, TrainingJob
from confide.training.lines import Line
from confide.training.recipe_file import parse_recipe_toml
from confide.training.replay import Stretch
from confide.training.rows import parse_row
from confide.wire.json import jcs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.rows import Row

    from confide.trainer.order_form import OrderForm

_STEPS, _DRAWN = 200, 3
_SOME = 20
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
    yield from _elsewhere()


def _measure(folder: Path) -> tuple[float, float]:
    from confide.trainer.checkpoint_files import CheckpointFiles
    from confide.trainer.loop import TorchTrainer

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


def _elsewhere() -> Iterator[Row]:
    from bench.training import make_job, make_model

    from confide.trainer.order_form import OrderForm, data_name

    with tempfile.TemporaryDirectory() as place:
        job = make_job("checkpoint_every = 1\nstate_every = 1\n")
        form = OrderForm(
            recipe=job.recipe,
            data=data_name(job.data),
            validation=None,
            base=job.base,
            folder=make_model(Path(place) / "model"),
            checkpoints=Path(place),
            resume=None,
            outputs=(),
            threads=1,
            device="cpu",
        )
        start, first, step, stretches = _train(form, job)
        replayed = _replay(form, job, stretches)
    share = 100 * replayed / (first + (_STEPS - 1) * step)
    yield row("training: a process until its first step, processor time", start, "s")
    yield row("training: a step of it, processor time", 1000 * step, "ms")
    name = "replay 3 of 200 steps in another node, beside the training: processor time"
    yield row(name, share, "%", budget="<= 2.5", met=share <= 2.5 and step >= 0.2)


def _train(form: OrderForm, job: TrainingJob) -> tuple[float, float, float, list[Stretch]]:
    """Return seconds: before the first step, after it, of each other; and stretches of a step."""
    entries, begun, start = [], 0.0, 0.0
    with TrainingProcess(form) as process:
        process.begin(job, key=_SECRET, session=_SECRET)
        for kind, payload in process.frames():
            if kind is Frame.PREPARED:
                start = cpu_seconds(process.pid)
                process.go()
            elif kind is Frame.CHECKPOINT:
                entries.append(parse_checkpoint_entry(read_json(payload)))
                # The first step warms what all others use.
                if len(entries) == 1:
                    begun = cpu_seconds(process.pid)
                if len(entries) == _SOME + 1:
                    break
            elif kind is not Frame.STEP:
                raise RuntimeError("a training of the benchmark ended")
        step = (cpu_seconds(process.pid) - begun) / _SOME
    drawn = draw_steps(_SECRET, _SOME, _DRAWN)
    return start, begun, step, [Stretch(entries[each - 1], each + 1) for each in drawn]


def _replay(form: OrderForm, job: TrainingJob, stretches: list[Stretch]) -> float:
    left = list(stretches)
    with TrainingProcess(form) as process:
        process.begin(job, key=_SECRET, session=_SECRET)
        for kind, payload in process.frames():
            if kind not in {Frame.PREPARED, Frame.STEP}:
                raise RuntimeError("a replay of the benchmark ended")
            if kind is Frame.STEP and read_json(payload)["step"] != stretches[-len(left) - 1].last:
                raise RuntimeError("another step was computed")
            if not left:
                break
            process.replay(left.pop(0))
        return cpu_seconds(process.pid)
