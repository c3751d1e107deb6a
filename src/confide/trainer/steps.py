"""The gradient of one step, by each of the three ways: answers, preferences, private answers.

docs/protocols/training.md 8.1, 9.2. Gradients are left in the parameters, which is where the
backward pass adds them up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import torch

from confide.trainer.losses import (
    Inputs,
    answer_logprobs,
    collate,
    collate_packed,
    logits,
    preference_loss,
    token_loss,
)
from confide.trainer.privacy import noise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from confide.trainer.encode import Example
    from confide.trainer.policy import Policy
    from confide.training.batches import Batch, MicroBatch
    from confide.training.recipe import Privacy

__all__ = [
    "Collator",
    "MicroLoss",
    "add_clipped_gradients",
    "add_gradients",
    "add_noise",
    "in_doubles",
    "preference_losses",
    "row_losses",
    "token_losses",
]

# The loss of one micro batch of a step, by its number: what it adds to the loss of the step.
MicroLoss: TypeAlias = "Callable[[int], torch.Tensor]"

# Of norms in float32: what is scaled down is never above the limit by a rounding.
_ROUNDED_UP = 1 + 2.0**-20


class Collator:
    """Finds the examples that a micro batch names and makes tensors of them."""

    __slots__ = ("_device", "_examples", "_packed", "_pad")

    def __init__(
        self, examples: Sequence[Example], *, pad: int, packed: bool, device: torch.device
    ) -> None:
        self._examples = examples
        self._pad = pad
        self._packed = packed
        self._device = device

    def texts(self, micro: MicroBatch) -> Inputs:
        """Return one text a row, or several where rows are packed."""
        rows = [[self._examples[row][0] for row, _ in packed] for packed in micro]
        if self._packed:
            return collate_packed(rows, pad=self._pad, device=self._device)
        return collate([row[0] for row in rows], pad=self._pad, device=self._device)

    def learnt(self, micro: MicroBatch) -> int:
        """Return how many tokens of `micro` are learnt."""
        return sum(sum(self._examples[row][0].learn) for packed in micro for row, _ in packed)

    def pairs(self, micro: MicroBatch) -> Inputs:
        """Return the chosen texts, then the rejected ones."""
        rows = [self._examples[row] for ((row, _),) in micro]
        texts = [row[side] for side in (0, 1) for row in rows]
        return collate(texts, pad=self._pad, device=self._device)


def token_losses(policy: Policy, batch: Batch, collator: Collator) -> MicroLoss:
    """Return the parts that micro batches have in the mean loss over all answer tokens."""
    count = sum(map(collator.learnt, batch))

    def loss(number: int) -> torch.Tensor:
        inputs = collator.texts(batch[number])
        with policy.computing():
            predicted = logits(policy.model, inputs)
        return token_loss(predicted, inputs) / count

    return loss


def preference_losses(
    policy: Policy, batch: Batch, collator: Collator, *, beta: float
) -> MicroLoss:
    """Return the parts that micro batches have in the mean loss over all pairs."""
    pairs = sum(map(len, batch))

    def loss(number: int) -> torch.Tensor:
        inputs = collator.pairs(batch[number])
        with policy.base() as base, policy.computing():
            reference = answer_logprobs(logits(base, inputs), inputs)
        with policy.computing():
            predicted = logits(policy.model, inputs)
        losses, _ = preference_loss(answer_logprobs(predicted, inputs), reference, beta)
        return losses.sum() / pairs

    return loss


def add_gradients(
    loss: MicroLoss, numbers: Iterable[int], *, seed: Callable[[int], int]
) -> dict[int, torch.Tensor]:
    """Add the gradients of these micro batches to those in the parameters; return the losses."""
    found: dict[int, torch.Tensor] = {}
    for number in numbers:
        torch.manual_seed(seed(number))
        each = loss(number)
        each.backward()  # type: ignore[no-untyped-call]
        found[number] = each.detach()
    return found


def in_doubles(losses: Iterable[float]) -> float:
    """Return the sum, one by one (9.2): `sum` compensates, from Python 3.12 on."""
    total = 0.0
    for loss in losses:
        total += loss
    return total


def row_losses(policy: Policy, batch: Batch, collator: Collator) -> MicroLoss:
    """Return the mean loss of each row over its answer tokens: every micro batch is a row (8.1)."""

    def loss(number: int) -> torch.Tensor:
        inputs = collator.texts(batch[number])
        with policy.computing():
            predicted = logits(policy.model, inputs)
        return token_loss(predicted, inputs) / inputs.count

    return loss


def add_clipped_gradients(
    policy: Policy,
    loss: MicroLoss,
    numbers: Iterable[int],
    *,
    limit: float,
    seed: Callable[[int], int],
) -> dict[int, torch.Tensor]:
    """
    Add the gradient of each row, scaled down to norm `limit`, to those in the parameters (8.1).

    Scaled first and then added, two roundings: as it is where the sum is on another rank
    (training-ranks.md 1.3). Returns the losses, which are the rows' and not private.
    """
    parameters = list(policy.parameters.values())
    sums = [each.grad for each in parameters]
    found: dict[int, torch.Tensor] = {}
    for number in numbers:
        torch.manual_seed(seed(number))
        policy.model.zero_grad(set_to_none=True)
        each = loss(number)
        each.backward()  # type: ignore[no-untyped-call]
        found[number] = each.detach()
        # No gradient means none of this row: an expert that it was not sent to.
        grads = {n: p.grad for n, p in enumerate(parameters) if p.grad is not None}
        norm = torch.nn.utils.get_total_norm(list(grads.values())).item()
        scale = min(1.0, limit / (norm * _ROUNDED_UP)) if norm > 0 else 1.0
        for index, grad in grads.items():
            so_far, scaled = sums[index], grad * scale
            sums[index] = scaled if so_far is None else so_far.add_(scaled)
    for parameter, summed in zip(parameters, sums, strict=True):
        parameter.grad = summed
    return found


def add_noise(policy: Policy, *, privacy: Privacy, expected: int, key: bytes, step: int) -> None:
    """Add the noise of `step` to the gradient, and divide by the `expected` rows (8.1)."""
    deviation = privacy.noise_multiplier * privacy.max_grad_norm
    for name, parameter in policy.parameters.items():
        summed = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        drawn = noise(key, step, name, tuple(parameter.shape), deviation)
        parameter.grad = (summed.detach() + drawn.to(parameter)) / expected
