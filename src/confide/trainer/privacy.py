"""Differential privacy of one training: the noise of a step, and what all steps add up to.

docs/protocols/training.md §8. Gradients are clipped by the loop, one row at a time; the rows of a
step are drawn by `confide.training.batches`.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from confide.training.seeds import u64

if TYPE_CHECKING:
    from confide.training.recipe import Recipe

__all__ = ["epsilon", "noise", "spent"]

_NOISE = b"confide/dp-noise/v1\0"
# Values that are added up for one: the low bits of a single one tell what it was added to.
_SUMMED = 4
_WORD_BITS = 53


def noise(key: bytes, step: int, name: str, shape: tuple[int, ...], scale: float) -> torch.Tensor:
    """Return Gaussian noise of standard deviation `scale` for one parameter at `step` (8.4)."""
    count = int(np.prod(shape, dtype=np.int64))
    named = name.encode()
    # Box and Muller give two values for two words.
    pairs = (count * _SUMMED + 1) // 2
    drawn = hashlib.shake_256(key + _NOISE + u64(step) + u64(len(named)) + named)
    words = np.frombuffer(drawn.digest(16 * pairs), dtype=">u8") >> np.uint64(64 - _WORD_BITS)
    # In (0, 1]: the logarithm of zero is none.
    uniform = (words.astype(np.float64) + 1) / 2.0**_WORD_BITS
    radius = np.sqrt(-2.0 * np.log(uniform[0::2]))
    angle = 2.0 * np.pi * uniform[1::2]
    values = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    summed = values[: count * _SUMMED].reshape(_SUMMED, count).sum(axis=0) / np.sqrt(_SUMMED)
    return torch.from_numpy(summed * scale).reshape(shape)


def epsilon(*, rate: float, noise_multiplier: float, steps: int, delta: float) -> float:
    """
    Return the epsilon of `steps` at `delta` (8.5); infinite where the accountant finds none.

    For the Poisson-subsampled Gaussian, one row added or removed. It covers the weights alone.
    """
    # Seconds to import, and most trainings do not ask.
    import dp_accounting  # noqa: PLC0415
    from dp_accounting.pld import PLDAccountant  # noqa: PLC0415

    accountant = PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    gaussian = dp_accounting.GaussianDpEvent(noise_multiplier)
    step = dp_accounting.PoissonSampledDpEvent(rate, gaussian)
    accountant.compose(dp_accounting.SelfComposedDpEvent(step, steps))
    return float(accountant.get_epsilon(delta))


def spent(recipe: Recipe, *, rows: int, steps: int) -> float | None:
    """
    Return what `steps` by `recipe` cost (8.5), `rows` being trained on.

    None without privacy, or where no bound is finite.
    """
    privacy = recipe.privacy
    if privacy is None:
        return None
    found = epsilon(
        rate=recipe.sequences_per_step / rows,
        noise_multiplier=privacy.noise_multiplier,
        steps=steps,
        delta=privacy.delta,
    )
    return found if math.isfinite(found) else None
