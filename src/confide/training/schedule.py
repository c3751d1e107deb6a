"""The learning rate of a step, to the last bit. Pure.

docs/protocols/training.md §5. The factors are those of the schedules of `transformers`. The cosine
is computed in integers and rounded once: the C library's may differ in the last bit from one
processor to the next, and the chain holds the bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from confide.training.recipe import Recipe

__all__ = ["learning_rate"]

_BITS = 160
_ONE = 1 << _BITS
# pi * 2^160, rounded down.
_PI = 0x3243F6A8885A308D313198A2E03707344A4093822


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Return the rate at `step`, from 1, of a job of `steps`; `ValueError` for one beside it."""
    if not 1 <= step <= steps:
        raise ValueError(f"step {step} of {steps}")
    done = step - 1
    if done < recipe.warmup_steps:
        return recipe.learning_rate * (done / recipe.warmup_steps)
    if recipe.lr_scheduler == "constant":
        return recipe.learning_rate
    left = max(1, steps - recipe.warmup_steps)
    if recipe.lr_scheduler == "linear":
        return recipe.learning_rate * ((steps - done) / left)
    return recipe.learning_rate * _half_cosine(done - recipe.warmup_steps, left)


def _half_cosine(part: int, whole: int) -> float:
    """Return (1 + cos(pi * part / whole)) / 2 as the nearest double."""
    mirrored = 2 * part > whole
    angle = _PI * (whole - part if mirrored else part) // whole
    square = angle * angle >> _BITS
    total = term = _ONE
    factor = 0
    while term:
        factor += 2
        term = -((term * square >> _BITS) // (factor * (factor - 1)))
        total += term
    return (_ONE - total if mirrored else _ONE + total) / (2 * _ONE)
