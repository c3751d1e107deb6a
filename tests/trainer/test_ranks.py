"""Several ranks: the same bits as one, few messages, and no rank that waits for a dead one."""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass, replace
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
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from confide.training.chain import StepRecord
    from confide.training.job import TrainingJob

TOML = "micro_batch_size = 2\ngradient_accumulation_steps = 5\nlora_dropout = 0.1\nstate_every = 1\n"
JOBS: dict[str, tuple[str, Any, int]] = {
    "sft lora, two": (TOML, chat_rows, 2),
    "sft lora, three": (TOML, chat_rows, 3),
    "sft packed, three": (TOML + "sample_packing = true\n", text_rows, 3),
    "dpo lora bf16, two": (TOML + 'method = "dpo"\nprecision = "bf16"\n', pair_rows, 2),
    "sft full, two": (
        'adapter = "full"\ngradient_accumulation_steps = 3\nstate_every = 1\nweight_decay = 0.1\n',
        chat_rows,
        2,
    ),
}


@dataclass
class CountingRing:
    """A ring that counts what goes through this rank."""

    ring: SocketRing
    sent: list[int]
    received: list[int]

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


def rings(world: int) -> list[CountingRing]:
    """The rings of all ranks, linked in this process."""
    pairs = [socket.socketpair() for _ in range(world)]
    return [
        CountingRing(
            SocketRing(rank, world, before=pairs[rank - 1][1], after=pairs[rank][0]), [], []
        )
        for rank in range(world)
    ]
