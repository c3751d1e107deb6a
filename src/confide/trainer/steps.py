"""The gradient of one step, by each of the three ways: answers, preferences, private answers.

docs/protocols/training.md 8.1, 9.2. Gradients are left in the parameters; what is returned is the
loss for the record.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    from collections.abc import Sequence

    from confide.trainer.encode import Example
    from confide.trainer.policy import Policy
    from confide.training.batches import Batch, MicroBatch
    from confide.training.recipe import Privacy

__all__ = ["Collator", "preference_gradient", "private_gradient", "token_gradient"]

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

    def pairs(self, micro: MicroBatch) -> Inputs:
        """Return the chosen texts, then the rejected ones."""
        rows = [self._examples[row] for ((row, _),) in micro]
        texts = [row[side] for side in (0, 1) for row in rows]
        return collate(texts, pad=self._pad, device=self._device)


def token_gradient(policy: Policy, batch: Batch, collator: Collator) -> float:
    """Add up the gradients of the mean loss over all answer tokens of `batch`; return that."""
    inputs = [collator.texts(micro) for micro in batch]
    count = sum(each.count for each in inputs)
    total = 0.0
    for each in inputs:
        with policy.computing():
            predicted = logits(policy.model, each)
        loss = token_loss(predicted, each) / count
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    return total


def preference_gradient(policy: Policy, batch: Batch, collator: Collator, *, beta: float) -> float:
    """Add up the gradients of the mean loss over all pairs of `batch`; return that."""
    pairs = sum(map(len, batch))
    total = 0.0
    for micro in batch:
        inputs = collator.pairs(micro)
        with policy.base() as base, policy.computing():
            reference = answer_logprobs(logits(base, inputs), inputs)
        with policy.computing():
            predicted = logits(policy.model, inputs)
        losses, _ = preference_loss(answer_logprobs(predicted, inputs), reference, beta)
        loss = losses.sum() / pairs
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    return total


def private_gradient(
    policy: Policy,
    batch: Batch,
    collator: Collator,
    *,
    privacy: Privacy,
    expected: int,
    key: bytes,
    step: int,
) -> float:
    """
    Clip the gradient of each row, add them up, add noise, divide by the `expected` rows (8.1).

    Returns the mean loss of the rows, which is theirs and not private.
    """
    parameters = policy.parameters
    summed = {name: torch.zeros_like(each) for name, each in parameters.items()}
    total = 0.0
    for micro in batch:
        inputs = collator.texts(micro)
        policy.model.zero_grad(set_to_none=True)
        with policy.computing():
            predicted = logits(policy.model, inputs)
        loss = token_loss(predicted, inputs) / inputs.count
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
        # No gradient means none of this row: an expert that it was not sent to.
        grads = {n: p.grad for n, p in parameters.items() if p.grad is not None}
        norm = torch.nn.utils.get_total_norm(list(grads.values())).item()
        scale = min(1.0, privacy.max_grad_norm / (norm * _ROUNDED_UP)) if norm > 0 else 1.0
        for name, grad in grads.items():
            summed[name].add_(grad, alpha=scale)
    deviation = privacy.noise_multiplier * privacy.max_grad_norm
    for name, parameter in parameters.items():
        drawn = noise(key, step, name, tuple(parameter.shape), deviation)
        parameter.grad = (summed[name] + drawn.to(parameter)) / expected
    return total / len(batch) if batch else 0.0
