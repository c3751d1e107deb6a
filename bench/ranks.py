"""Several ranks beside one process that does the work of all: the wall time of a step.

Three ways to compute the same steps of one plan for two ranks, in turns: one process; two ranks of
one seat; two seats of one rank each, over mutually attested TLS on loopback (SIMULATED evidence).
Steps are asked for as a replay asks for them, so that nobody computes while another is measured.
One thread each. With two free cores two ranks need half the time, and the passes between them.
"""
# ruff: noqa: PLC0415 - torch is not installed everywhere, and takes seconds to import

from __future__ import annotations

import statistics
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.rows import Row, absent, cpu_seconds, row

from confide.trainer.frames import Frame, read_json
from confide.training.replay import Stretch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_ROUNDS = 5
_STEPS = 4
_RANKS = 2
_KEY = bytes(range(32))
_NAME = "training: a step of two ranks"
_TURN = Stretch(None, _STEPS + 1)


def rank_rows() -> Iterator[Row]:
    """Yield the rows of this group."""
    try:
        from bench.training import make_job, make_model
    except ImportError:
        yield absent(_NAME, "ms", "torch and peft are not installed")
        return
    from seat_links import two_seats

    from confide.trainer.group import TrainingGroup
    from confide.trainer.order_form import OrderForm, data_name
    from confide.trainer.process import TrainingProcess

    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        job = replace(make_job(), world=_RANKS)
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
            world=_RANKS,
        )

        def begun(process: Any, *, first: bool = True) -> Any:
            secret = _KEY if first else bytes(32)
            process = stack.enter_context(process)
            process.begin(job, key=secret, session=secret)
            return process

        alone = begun(TrainingProcess(form))
        ranks = begun(TrainingGroup(form, ranks=range(_RANKS)))
        links = stack.enter_context(two_seats())
        seats = begun(TrainingGroup(form, ranks=range(1), outer=links[0].outer))
        other = begun(
            TrainingGroup(form, ranks=range(1, _RANKS), outer=links[1].outer), first=False
        )
        # Rank 0 is who is asked; it takes the others along.
        arms = (
            _arm(alone, (alone.pid,)),
            _arm(ranks._processes[0], ranks.pids),  # noqa: SLF001
            _arm(seats._processes[0], seats.pids + other.pids),  # noqa: SLF001
        )
        yield from _compare(arms)


def _arm(process: Any, pids: tuple[int, ...]) -> Callable[[], tuple[float, float]]:
    told = process.frames()

    def spent() -> float:
        # The links of seats are of this process.
        return time.process_time() + sum(map(cpu_seconds, pids))

    kind, _ = next(told)
    if kind is not Frame.PREPARED:
        raise RuntimeError("a training process of the benchmark did not start")

    def steps() -> tuple[float, float]:
        """Return wall and processor seconds of a step, the first and what is before it apart."""
        process.replay(_TURN)
        began = work = 0.0
        for number in range(_TURN.first, _TURN.last + 1):
            kind, payload = next(told)
            if kind is not Frame.STEP or read_json(payload)["step"] != number:
                raise RuntimeError("a step of the benchmark was not computed")
            if not began:
                began, work = time.perf_counter(), spent()
        return (time.perf_counter() - began) / _STEPS, (spent() - work) / _STEPS

    return steps


def _compare(arms: tuple[Callable[[], tuple[float, float]], ...]) -> Iterator[Row]:
    for arm in arms:
        arm()
    found = [[arm() for arm in arms] for _ in range(_ROUNDS)]
    columns = zip(*found, strict=True)
    (alone, cpu), (ranks, ranks_cpu), (seats, seats_cpu) = (
        tuple(statistics.median(each) * 1000 for each in zip(*column, strict=True))
        for column in columns
    )
    one, two = "beside one process that does both", "beside two in one seat"
    yield row(f"{_NAME} in one seat, {one}", ranks, "ms", peer=alone)
    yield row(f"{_NAME} in one seat, {one}: processor time", ranks_cpu, "ms", peer=cpu)
    yield row(f"{_NAME} in two seats over TLS, {two}", seats, "ms", peer=ranks)
    yield row(
        f"{_NAME} in two seats over TLS, {two}: processor time", seats_cpu, "ms", peer=ranks_cpu
    )
