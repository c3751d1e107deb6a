"""Which rows are held out, and in which order the others come. Pure.

docs/protocols/training.md §3. A permutation by hashing: no state, so that nothing is lost when a
machine is; two programs that agree on SHA-256 agree on the order.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

from confide.training.seeds import u64

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["epoch_order", "held_out", "held_out_count"]

_ORDER = b"confide/order/v1\0"
_HELD_OUT = b"confide/held-out/v1\0"


def held_out_count(val_set_size: float, rows: int) -> int:
    """Return how many of `rows` are held out (3.1). `ValueError` where none is left to train on."""
    count = math.floor(val_set_size * rows) if val_set_size < 1 else int(val_set_size)
    if count >= rows:
        raise ValueError(f"val_set_size holds out {count} of {rows} rows: nothing is left")
    return count


def held_out(seed: int, root: bytes, *, rows: int, count: int) -> tuple[int, ...]:
    """Return the `count` of `rows` that are never trained on, in ascending order (3.1)."""
    ranked = _sorted_by_hash(_HELD_OUT + u64(seed) + root, range(rows))
    return tuple(sorted(ranked[:count]))


def epoch_order(seed: int, root: bytes, epoch: int, rows: Iterable[int]) -> list[int]:
    """Return `rows` in the order of `epoch`, which counts from 0 (3.2)."""
    return _sorted_by_hash(_ORDER + u64(seed) + root + u64(epoch), rows)


def _sorted_by_hash(prefix: bytes, rows: Iterable[int]) -> list[int]:
    begun = hashlib.sha256(prefix)

    def key(row: int) -> tuple[bytes, int]:
        state = begun.copy()
        state.update(u64(row))
        return state.digest(), row

    return sorted(rows, key=key)
