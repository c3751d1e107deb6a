"""What each step is computed from: rows packed into sequences, sequences into batches. Pure.

docs/protocols/training.md §3. A batch names rows and token counts and holds no text. Both kinds of
plan answer the same question, `batch(step)`, for any step and without a history: that is what makes
a job resumable and a step replayable.
"""

from __future__ import annotations

import bisect
import hashlib
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

from confide.training.order import epoch_order, held_out, held_out_count
from confide.training.seeds import privacy_key, u64

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from confide.training.recipe import Recipe

__all__ = [
    "MAX_STEPS",
    "Batch",
    "Batches",
    "MicroBatch",
    "OrderedBatches",
    "PackedRows",
    "SampledBatches",
    "batch_tokens",
    "pack",
    "plan_batches",
]

# (row, tokens) of each row in one sequence: several only where rows are packed.
PackedRows: TypeAlias = tuple[tuple[int, int], ...]
MicroBatch: TypeAlias = tuple[PackedRows, ...]
Batch: TypeAlias = tuple[MicroBatch, ...]

# From: docs/protocols/training.md 3.4.
MAX_STEPS: Final = 1_000_000
_T = TypeVar("_T")
_SAMPLE = b"confide/dp-sample/v1\0"
_WORD_BYTES = 8


def batch_tokens(batch: Batch) -> int:
    """Return the tokens of a batch, padding not counted."""
    return sum(tokens for micro in batch for rows in micro for _, tokens in rows)


def pack(order: Iterable[int], lengths: Sequence[int], sequence_len: int) -> Iterator[PackedRows]:
    """
    Yield sequences of at most `sequence_len` tokens that keep `order` (3.3).

    A row goes into the sequence before it, or begins the next: no row jumps ahead, so that the
    order in the chain is the order of §3.2. That wastes more than sorting would.
    """
    open_rows: list[tuple[int, int]] = []
    used = 0
    for row in order:
        if open_rows and used + lengths[row] > sequence_len:
            yield tuple(open_rows)
            open_rows, used = [], 0
        open_rows.append((row, lengths[row]))
        used += lengths[row]
    if open_rows:
        yield tuple(open_rows)


class OrderedBatches:
    """
    Every row once an epoch, in the order of the seed.

    `lengths` are the tokens of each row of the data set. The last batch of an epoch may be smaller:
    no row is left out and none is taken from the next epoch.
    """

    __slots__ = ("_epoch", "_lengths", "_recipe", "_root", "_starts", "held_out", "rows", "steps")

    def __init__(self, recipe: Recipe, *, root: bytes, lengths: Sequence[int]) -> None:
        self.held_out, self.rows = _split(recipe, root, len(lengths))
        self._recipe = recipe
        self._root = root
        self._lengths = lengths
        self._epoch: tuple[int, list[Batch]] = (-1, [])
        # The first step of each epoch, and the step after the last.
        self._starts = [1]
        _require_steps(recipe.max_steps or 0)
        for epoch in range(recipe.num_epochs or recipe.max_steps or 0):
            if recipe.max_steps is not None and self._starts[-1] > recipe.max_steps:
                break
            self._starts.append(self._starts[-1] + self._count(epoch))
            _require_steps(self._starts[-1] - 1 if recipe.max_steps is None else 0)
        self.steps = recipe.max_steps or self._starts[-1] - 1

    def batch(self, step: int) -> Batch:
        """Return the batch of `step`, from 1; `ValueError` for a step that the job has not."""
        _require_step(step, self.steps)
        epoch = bisect.bisect_right(self._starts, step) - 1
        if self._epoch[0] != epoch:
            self._epoch = (epoch, list(self._batches(epoch)))
        return self._epoch[1][step - self._starts[epoch]]

    def _count(self, epoch: int) -> int:
        if not self._recipe.sample_packing:
            micro = -(-len(self.rows) // self._recipe.micro_batch_size)
            return -(-micro // self._recipe.gradient_accumulation_steps)
        return sum(1 for _ in self._batches(epoch))

    def _batches(self, epoch: int) -> Iterator[Batch]:
        recipe = self._recipe
        order = epoch_order(recipe.seed, self._root, epoch, self.rows)
        if recipe.sample_packing:
            sequences = list(pack(order, self._lengths, recipe.sequence_len))
        else:
            sequences = [((row, self._lengths[row]),) for row in order]
        micro = list(_groups(sequences, recipe.micro_batch_size))
        return _groups(micro, recipe.gradient_accumulation_steps)


class SampledBatches:
    """
    Poisson sampling for DP-SGD (8.3): each row is in each step with probability `rate`, alone.

    Drawn from a secret key: the accountant's bound holds against whoever cannot tell in which
    steps a row took part. A batch has no fixed size and may be empty.
    """

    __slots__ = ("_key", "_lengths", "_threshold", "held_out", "rate", "rows", "steps")

    def __init__(self, recipe: Recipe, *, root: bytes, lengths: Sequence[int], key: bytes) -> None:
        self.held_out, self.rows = _split(recipe, root, len(lengths))
        expected, rows = recipe.sequences_per_step, len(self.rows)
        if expected > rows:
            raise ValueError(f"a step takes {expected} rows of {rows}")
        self.rate = expected / rows
        # Exact: never more likely than the true rate, and less by at most 2^-64.
        self._threshold = (expected << 64) // rows
        self.steps = recipe.max_steps or -(-(recipe.num_epochs or 0) * rows // expected)
        _require_steps(self.steps)
        self._lengths = lengths
        self._key = key

    def batch(self, step: int) -> Batch:
        """Return the batch of `step`, one row in each micro batch; `ValueError` as above."""
        _require_step(step, self.steps)
        drawn = hashlib.shake_256(self._key + _SAMPLE + u64(step)).digest(
            _WORD_BYTES * len(self.rows)
        )
        words = (drawn[at : at + _WORD_BYTES] for at in range(0, len(drawn), _WORD_BYTES))
        return tuple(
            (((row, self._lengths[row]),),)
            for row, word in zip(self.rows, words, strict=True)
            if int.from_bytes(word, "big") < self._threshold
        )


Batches: TypeAlias = OrderedBatches | SampledBatches


def plan_batches(
    recipe: Recipe, *, seeding: bytes, root: bytes, lengths: Sequence[int], dataset_salt: bytes
) -> Batches:
    """
    Return the batches of a job: `seeding` is that of its plan, `root` the digest of its rows.

    `ValueError` where the recipe leaves nothing to train on.
    """
    if recipe.privacy is None:
        return OrderedBatches(recipe, root=root, lengths=lengths)
    key = privacy_key(dataset_salt, seeding)
    return SampledBatches(recipe, root=root, lengths=lengths, key=key)


def _split(recipe: Recipe, root: bytes, rows: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the rows that are held out and those that are trained on, both ascending."""
    count = held_out_count(recipe.val_set_size, rows)
    apart = held_out(recipe.seed, root, rows=rows, count=count) if count else ()
    left = set(apart)
    return apart, tuple(row for row in range(rows) if row not in left)


def _require_steps(steps: int) -> None:
    # Each is kept in memory, and stands in a log that its owner has to be able to read.
    if steps > MAX_STEPS:
        raise ValueError(f"more than {MAX_STEPS:,} steps: take larger batches, or fewer epochs")


def _require_step(step: int, steps: int) -> None:
    if not 1 <= step <= steps:
        raise ValueError(f"step {step} of {steps}")


def _groups(items: Sequence[_T], size: int) -> Iterator[tuple[_T, ...]]:
    for start in range(0, len(items), size):
        yield tuple(items[start : start + size])
