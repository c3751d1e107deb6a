"""Everything drawn in a training job, as a function of what is committed. Pure.

docs/protocols/training.md §4. Seeds of steps follow from the plan, which is public: they decide
dropout and the first adapter, and hide nothing. Salts and the key of differential privacy follow
from the owner's dataset salt and are secrets.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING

from confide.wire.json import jcs

if TYPE_CHECKING:
    from confide.training.batches import Batch

__all__ = [
    "ADAPTER_STEP",
    "batch_commitment",
    "privacy_key",
    "step_salt",
    "step_seed",
    "u64",
]

# The "step" before the first: the seed under which the adapter is made.
ADAPTER_STEP = 2**64 - 1
_SEED = b"confide/step-seed/v1\0"
_SALT = b"confide/step-salt/v1\0"
_BATCH = b"confide/batch/v1\0"
_PRIVACY = b"confide/dp/v1\0"
_SECRET_BYTES = 32


def u64(number: int) -> bytes:
    """Return eight bytes, big-endian; `OverflowError` for a number that needs more."""
    return number.to_bytes(8, "big")


def step_seed(plan: bytes, step: int, micro: int = 0) -> int:
    """
    Return the seed of every generator at the beginning of one micro batch of `step` (4.1).

    `plan` is the digest of the plan as if one rank carried it out (`TrainingPlan.seeding`).
    """
    return int.from_bytes(hashlib.sha256(_SEED + plan + u64(step) + u64(micro)).digest()[:8], "big")


def step_salt(dataset_salt: bytes, step: int) -> bytes:
    """Return the salt of one batch commitment (4.2): opening one step opens no other."""
    return _mac(dataset_salt, _SALT + u64(step))


def batch_commitment(dataset_salt: bytes, step: int, batch: Batch) -> bytes:
    """Return what the chain holds of the rows of `step` (4.2)."""
    return hashlib.sha256(_BATCH + step_salt(dataset_salt, step) + jcs(batch)).digest()


def privacy_key(dataset_salt: bytes, seeding: bytes) -> bytes:
    """Return the key of sampling and noise (8.2): another plan draws independently."""
    return _mac(dataset_salt, _PRIVACY + seeding)


def _mac(key: bytes, message: bytes) -> bytes:
    if len(key) != _SECRET_BYTES:
        raise ValueError(f"a dataset salt has {_SECRET_BYTES} bytes")
    return hmac.digest(key, message, "sha256")
