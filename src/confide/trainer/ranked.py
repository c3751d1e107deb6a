"""One step over several ranks, with the sums of one: the two passes of the ring.

docs/protocols/training-ranks.md §1 and §2. Rank 0 begins a step and ends with the whole gradient;
the others are given the parameters each time and keep nothing between steps.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

from confide.errors import ConfigurationError
from confide.training.seeds import u64
from confide.training.shares import place_in_sum, share
from confide.wire.json import jcs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from confide.trainer.ring import Ring
    from confide.training.job import PreparedTraining

    # Adds the gradients of these micro batches to those in the parameters; losses by number.
    Gather = Callable[[Iterable[int]], Mapping[int, torch.Tensor]]
    Gradient = list[torch.Tensor | None]

__all__ = ["RankedSteps"]

_HELLO = b"confide/ring/v1\0"


class RankedSteps:
    """
    What `ring.rank` does of each step: `parameters` are what is trained, in the order of the model.

    `micro_batches` is the most that a step has.
    """

    __slots__ = ("_losses", "_parameters", "_ring", "_sizes")

    def __init__(
        self, ring: Ring, parameters: Sequence[torch.nn.Parameter], micro_batches: int
    ) -> None:
        if any(each.dtype != torch.float32 for each in parameters):
            raise ValueError("what is trained is in float32")
        self._ring = ring
        self._parameters = parameters
        self._sizes = [each.numel() for each in parameters]
        self._losses = parameters[0].new_zeros(micro_batches, requires_grad=False)

    def agree(self, prepared: PreparedTraining, rows: Iterable[bytes]) -> None:
        """Require that all ranks prepared the same job in the same environment (2.3)."""
        mine = hashlib.sha256(_HELLO + prepared.plan.digest)
        for part in (jcs(dict(prepared.environment)), *rows):
            mine.update(u64(len(part)) + part)
        ours = torch.frombuffer(bytearray(mine.digest()), dtype=torch.uint8)
        ours = ours.to(self._losses.device)
        theirs = ours.clone()
        self._pass_on(theirs)
        if not torch.equal(ours, theirs):
            raise ConfigurationError(
                "this rank prepared another job than rank 0, or in another environment"
            )

    def hand_round(self, secret: bytes) -> bytes:
        """Return what rank 0 has for `secret`; of the others it says nothing but the length."""
        passed = torch.frombuffer(bytearray(secret), dtype=torch.uint8).to(self._losses.device)
        self._pass_on(passed)
        return bytes(passed.cpu().numpy())

    def begin(self, step: int) -> None:
        """On rank 0: hand the parameters round for `step`; 0 lets the others leave."""
        self._ring.send(self._opening(step))

    def awaited(self) -> int:
        """On the others: take the parameters; return the step to compute, 0 where none is left."""
        opening = self._opening(0)
        self._pass_on(opening)
        with torch.no_grad():
            for parameter, values in zip(self._parameters, self._split(opening), strict=True):
                parameter.copy_(values.view_as(parameter))
        return int(opening[-1:].view(torch.int32).item())

    def sum_up(self, gather: Gather, micro_batches: int) -> list[float]:
        """
        Compute this rank's share of a step and hand on the sum (1.3).

        On rank 0 the gradient of the step is in the parameters then; returned are its losses, in
        order. On the others both are what there was so far.
        """
        rank, world = self._ring.rank, self._ring.world
        numbers = share(micro_batches, rank, world)
        if place_in_sum(rank, world) == 0:
            self._note(gather(numbers))
            sums = self._take()
        else:
            apart = []
            for number in numbers:
                self._note(gather((number,)))
                apart.append(self._take())
            sums = self._received(numbers.start, micro_batches)
            for gradient in apart:
                _add(sums, gradient)
        if rank:
            self._ring.send(self._message(sums, micro_batches))
        else:
            for parameter, summed in zip(self._parameters, sums, strict=True):
                parameter.grad = summed
        return self._losses[:micro_batches].tolist()

    def _pass_on(self, tensor: torch.Tensor) -> None:
        """From rank 0 to the last."""
        if self._ring.rank:
            self._ring.receive(tensor)
        if self._ring.rank < self._ring.world - 1:
            self._ring.send(tensor)

    def _opening(self, step: int) -> torch.Tensor:
        number = torch.tensor([step], dtype=torch.int32).view(torch.float32)
        parts = [each.detach().reshape(-1) for each in self._parameters]
        return torch.cat([*parts, number.to(self._losses.device)])

    def _split(self, flat: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.split(flat[: sum(self._sizes)], self._sizes)

    def _note(self, losses: Mapping[int, torch.Tensor]) -> None:
        for number, loss in losses.items():
            self._losses[number] = loss

    def _take(self) -> Gradient:
        """Return the gradients that are in the parameters, and leave none there."""
        taken = [each.grad for each in self._parameters]
        for parameter in self._parameters:
            parameter.grad = None
        return taken

    def _message(self, sums: Gradient, micro_batches: int) -> torch.Tensor:
        there = [float(gradient is not None) for gradient in sums]
        parts = [
            torch.zeros_like(parameter).reshape(-1) if gradient is None else gradient.reshape(-1)
            for parameter, gradient in zip(self._parameters, sums, strict=True)
        ]
        return torch.cat([*parts, self._losses.new_tensor(there), self._losses[:micro_batches]])

    def _received(self, before: int, micro_batches: int) -> Gradient:
        """Return the sum of those before this rank; note the losses of their micro batches."""
        message = self._losses.new_empty(sum(self._sizes) + len(self._sizes) + micro_batches)
        self._ring.receive(message)
        there, losses = torch.split(message[sum(self._sizes) :], [len(self._sizes), micro_batches])
        self._losses[:before] = losses[:before]
        # Copies, each with memory of its own: as the backward pass leaves them.
        return [
            values.view_as(parameter).clone() if present else None
            for parameter, values, present in zip(
                self._parameters, self._split(message), there.tolist(), strict=True
            )
        ]


def _add(sums: Gradient, gradient: Gradient) -> None:
    """Add `gradient` to `sums` as the backward pass would have: where there is one."""
    for index, each in enumerate(gradient):
        if each is not None:
            so_far = sums[index]
            sums[index] = each if so_far is None else so_far.add_(each)
