"""How well a model does on rows that it was not trained on. training.md 9.3."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from confide.trainer.losses import (
    answer_logprobs,
    correct_tokens,
    logits,
    preference_loss,
    token_loss,
)
from confide.training.job import Evaluation

if TYPE_CHECKING:
    from confide.trainer.policy import Policy
    from confide.trainer.steps import Collator
    from confide.training.batches import Batch

__all__ = ["judge_answers", "judge_preferences"]


def judge_answers(
    policy: Policy, model: torch.nn.Module, batch: Batch, collator: Collator
) -> Evaluation:
    """Judge `model`, in evaluation mode, by the answer tokens of all rows in `batch`."""
    total, count, right = 0.0, 0, 0
    for micro in batch:
        inputs = collator.texts(micro)
        with torch.no_grad(), policy.computing():
            predicted = logits(model, inputs)
        total += token_loss(predicted, inputs).item()
        right += correct_tokens(predicted, inputs)
        count += inputs.count
    return Evaluation(sum(map(len, batch)), count, total / count, right / count)


def judge_preferences(
    policy: Policy, model: torch.nn.Module, batch: Batch, collator: Collator, *, beta: float
) -> Evaluation:
    """Judge `model` by the pairs in `batch`, against the base model."""
    total, count, right = 0.0, 0, 0
    for micro in batch:
        inputs = collator.pairs(micro)
        with torch.no_grad(), policy.computing():
            own = answer_logprobs(logits(model, inputs), inputs)
        with policy.base() as base, policy.computing():
            reference = answer_logprobs(logits(base, inputs), inputs)
        losses, margin = preference_loss(own, reference, beta)
        total += losses.sum().item()
        right += int((margin > 0).sum())
        count += len(micro)
    return Evaluation(count, count, total / count, right / count)
