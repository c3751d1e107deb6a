"""Several ranks in this process: the bits of one, few messages, nobody waits for a dead one.

Ranks here are threads with one generator between them: rows without dropout. With it, and each in
a process of its own: test_rank_processes.py.
"""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from training_jobs import chat_rows, pair_rows, text_rows, training_job

from confide.errors import ConfigurationError, Unavailable
from confide.trainer.loop import TorchTrainer
from confide.trainer.ranked import RankedSteps
from confide.trainer.ring import SocketRing
from confide.training.chain import chain_start, chain_step

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from confide.training.chain import StepRecord
    from confide.training.job import TrainingJob

TOML = "micro_batch_size = 2\ngradient_accumulation_steps = 5\nstate_every = 1\n"
PRIVATE = (
    "gradient_accumulation_steps = 2\nstate_every = 1\n"
    "[privacy]\nnoise_multiplier = 1.0\nmax_grad_norm = 1.0\ndelta = 1e-3\n"
)
JOBS: dict[str, tuple[str, Any, int]] = {
    "sft lora on two": (TOML, chat_rows, 2),
    "sft lora on four": (TOML, chat_rows, 4),
    "sft packed on three": (TOML + "sample_packing = true\nnum_epochs = 3\n", text_rows, 3),
    "dpo bf16 on two": (TOML + 'method = "dpo"\nprecision = "bf16"\n', pair_rows, 2),
    # Rows of a step are drawn: some steps have fewer than there are ranks, some none.
    "sft private on two": (PRIVATE, text_rows, 2),
    "sft private on four": ("micro_batch_size = 3\n" + PRIVATE, text_rows, 4),
    "sft full on three": (
        'adapter = "full"\ngradient_accumulation_steps = 7\nstate_every = 1\nweight_decay = 0.1\n',
        chat_rows,
        3,
    ),
}


@dataclass
class Counted:
    """A ring that keeps how many bytes went through it, message by message."""

    ring: SocketRing
    sent: list[int] = field(default_factory=list)
    received: list[int] = field(default_factory=list)

    @property
    def rank(self) -> int:
        return self.ring.rank

    @property
    def world(self) -> int:
        return self.ring.world

    def send(self, tensor: torch.Tensor) -> None:
        self.sent.append(tensor.numel() * tensor.element_size())
        self.ring.send(tensor)

    def receive(self, tensor: torch.Tensor) -> None:
        self.received.append(tensor.numel() * tensor.element_size())
        self.ring.receive(tensor)


@contextmanager
def rings(world: int) -> Iterator[list[Counted]]:
    """The rings of all ranks."""
    pairs = [socket.socketpair() for _ in range(world)]
    try:
        yield [
            Counted(SocketRing(rank, world, before=pairs[rank - 1][1], after=pairs[rank][0]))
            for rank in range(world)
        ]
    finally:
        for pair in pairs:
            for end in pair:
                end.close()


def steps_of(trainer: TorchTrainer) -> tuple[list[StepRecord], bytes]:
    """Do all steps of a prepared trainer."""
    link, records = chain_start(trainer.prepared.plan.digest), []
    for _ in range(trainer.prepared.steps):
        records.append(trainer.run_step())
        link = chain_step(link, records[-1])
    return records, link


def alone(folder: Path, job: TrainingJob) -> tuple[list[StepRecord], bytes, bytes]:
    """The job in one process, whatever its world."""
    trainer = TorchTrainer(folder)
    trainer.prepare(job)
    records, link = steps_of(trainer)
    return records, link, b"".join(trainer.save())


def together(
    folder: Path, job: TrainingJob
) -> tuple[list[StepRecord], bytes, bytes, list[Counted]]:
    """The job on as many ranks as its plan says."""
    with rings(job.world) as made, ThreadPoolExecutor(job.world) as pool:
        trainers = [TorchTrainer(folder, ring=ring) for ring in made]
        for trainer in trainers:
            trainer.prepare(job)
        for ring in made:
            ring.sent.clear()
            ring.received.clear()
        following = [pool.submit(trainer.follow) for trainer in trainers[1:]]
        records, link = steps_of(trainers[0])
        trainers[0].leave()
        for each in following:
            each.result()
        return records, link, b"".join(trainers[0].save()), made


@pytest.mark.parametrize("name", JOBS)
def test_ranks_give_the_bits_of_one(tiny: Path, name: str) -> None:
    toml, rows, world = JOBS[name]
    one = training_job(tiny, toml, rows(37))
    several = replace(one, world=world)
    records, link, saved, _ = together(tiny, several)
    # One process carries out the same plan: the same chain and checkpoints.
    assert (records, link, saved) == alone(tiny, several)
    # A plan of one rank has another digest and seed chain, and the same numbers and states.
    plain, other, _ = alone(tiny, one)
    assert plain == records
    assert other != link
    assert len(records) >= 3


def test_another_rank_learns_which_rows_are_drawn_and_no_salt(tiny: Path) -> None:
    job = replace(training_job(tiny, PRIVATE, text_rows(12)), world=2)
    unsalted = replace(job, data=replace(job.data, salt=bytes(32)))
    with rings(2) as made:
        first, second = (TorchTrainer(tiny, ring=ring) for ring in made)
        first.prepare(job)
        second.prepare(unsalted)
        steps = range(1, first.prepared.steps + 1)
        assert [second.batch(step) for step in steps] == [first.batch(step) for step in steps]
        said = [len(first.batch(step)) for step in steps]
        assert len(set(said)) > 1
    alone = TorchTrainer(tiny)
    alone.prepare(unsalted)
    assert [alone.batch(step) for step in steps] != [first.batch(step) for step in steps]


def test_the_last_batch_of_an_epoch_may_leave_ranks_without_work(tiny: Path) -> None:
    toml = "gradient_accumulation_steps = 4\nstate_every = 1\n"
    job = replace(training_job(tiny, toml, chat_rows(6)), world=4)
    records, link, saved, _ = together(tiny, job)
    assert (records, link, saved) == alone(tiny, job)
    assert len(records) == 2


@pytest.mark.parametrize("accumulated", [3, 9])
def test_a_step_is_two_messages_a_rank_however_many_micro_batches(
    tiny: Path, accumulated: int
) -> None:
    toml = f"gradient_accumulation_steps = {accumulated}\nmax_steps = 4\n"
    job = replace(training_job(tiny, toml, chat_rows(40)), world=3)
    records, _, _, made = together(tiny, job)
    trained = TorchTrainer(tiny)
    trained.prepare(job)
    tensors = list(trained._policy.parameters.values())
    values = sum(each.numel() for each in tensors)
    everything = sum(each.numel() for each in trained._policy.model.parameters())
    assert values < everything / 2, "with an adapter, only the adapter travels"
    opening, summed = 4 * (values + 1), 4 * (values + len(tensors) + accumulated)
    steps = len(records)
    # One opening more: the one that lets the others leave.
    assert made[0].sent == [opening] * (steps + 1)
    assert made[0].received == [summed] * steps
    assert made[1].sent == [opening, summed] * steps + [opening]
    assert made[1].received == [opening] * (steps + 1)
    assert made[2].sent == [summed] * steps
    assert made[2].received == [opening, summed] * steps + [opening]


def test_a_parameter_without_a_gradient_has_none_on_the_way_either() -> None:
    """An expert that no row was sent to: zeros would make the optimizer decay it."""
    parameters = [torch.nn.Parameter(torch.ones(2)) for _ in range(3)]
    grads = {0: (0, -0.0), 1: (1, 4.0), 2: (0, -0.0)}

    def gather(numbers: Iterable[int]) -> dict[int, torch.Tensor]:
        for number in numbers:
            index, value = grads[number]
            (parameters[index] * torch.tensor(value)).sum().backward()  # type: ignore[no-untyped-call]
        return {number: torch.tensor(number + 0.5) for number in numbers}

    with rings(3) as made:
        ranks = [RankedSteps(ring, parameters, 3) for ring in made]
        for rank in (1, 2):
            ranks[rank].sum_up(gather, 3)
        losses = ranks[0].sum_up(gather, 3)
    assert losses == [0.5, 1.5, 2.5]
    first, second, third = (each.grad for each in parameters)
    assert first is not None
    assert second is not None
    assert third is None
    assert torch.signbit(first).all(), "zero plus minus zero would be zero"
    assert second.tolist() == [4.0, 4.0]


def test_only_what_is_added_in_float32_is_taken() -> None:
    with rings(2) as made, pytest.raises(ValueError, match="float32"):
        RankedSteps(made[0], [torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))], 2)


def test_a_rank_that_prepared_something_else_refuses(tiny: Path) -> None:
    job = replace(training_job(tiny, "gradient_accumulation_steps = 2\n", chat_rows(6)), world=2)
    others = {
        "commitment": replace(
            training_job(tiny, "gradient_accumulation_steps = 2\n", chat_rows(7)), world=2
        ),
        "recipe": replace(job, recipe=replace(job.recipe, learning_rate=0.010_01)),
        "base": replace(job, base=bytes(32)),
        "rows": replace(job, data=replace(job.data, rows=job.data.rows[::-1])),
    }
    for other in others.values():
        with rings(2) as made:
            TorchTrainer(tiny, ring=made[0]).prepare(job)
            with pytest.raises(ConfigurationError, match="prepared another job than rank 0"):
                TorchTrainer(tiny, ring=made[1]).prepare(other)
    with rings(2) as made:
        TorchTrainer(tiny, ring=made[0]).prepare(job)
        with pytest.raises(ConfigurationError, match="in another environment"):
            TorchTrainer(tiny, threads=2, ring=made[1]).prepare(job)


@pytest.mark.parametrize(
    ("toml", "world", "said"),
    [
        ("gradient_accumulation_steps = 2\n", 3, "2 micro batches for 3 ranks"),
        (
            PRIVATE,
            3,
            "2 micro batches for 3 ranks",
        ),
        ("", 0, "1 to 1024 ranks"),
        ("gradient_accumulation_steps = 2000\n", 1025, "1 to 1024 ranks"),
    ],
)
def test_a_job_that_cannot_be_shared_does_not_begin(
    tiny: Path, toml: str, world: int, said: str
) -> None:
    job = replace(training_job(tiny, toml, text_rows(12)), world=world)
    with pytest.raises(ConfigurationError, match=said):
        TorchTrainer(tiny).prepare(job)


def test_who_loses_a_neighbour_ends() -> None:
    with rings(3) as made:
        made[1].ring._after.close()
        with pytest.raises(Unavailable, match="one of the ranks is gone"):
            made[2].receive(torch.empty(4))
        with pytest.raises(Unavailable, match="one of the ranks is gone"):
            made[1].send(torch.empty(4))
        made[0].ring._after.sendall((16).to_bytes(8, "big") + b"half of it")
        made[0].ring._after.close()
        with pytest.raises(Unavailable, match="one of the ranks is gone"):
            made[1].receive(torch.empty(4))


def test_a_message_of_another_length_is_none() -> None:
    with rings(2) as made:
        made[0].send(torch.zeros(5))
        with pytest.raises(Unavailable, match="of another length"):
            made[1].receive(torch.empty(4))


def test_a_rank_of_its_own_follows_nobody(tiny: Path) -> None:
    trainer = TorchTrainer(tiny)
    trainer.prepare(training_job(tiny, "", text_rows(2)))
    with pytest.raises(ValueError, match="nobody to follow"):
        trainer.follow()
    trainer.leave()
