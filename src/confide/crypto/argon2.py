"""Argon2id (RFC 9106): a key from a passphrase, made expensive. Pure.

What it costs is written beside what the key locks, by whoever can write there: `PassphraseCost`
holds it between a floor and a ceiling, so that nobody makes guessing cheap or opening impossible.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from confide.errors import ConfigurationError, Unavailable

__all__ = ["SALT_BYTES", "PassphraseCost", "stretch"]

# From: RFC 9106 §3.1: 16 bytes are recommended for password hashing.
SALT_BYTES: Final = 16
_KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class PassphraseCost:
    """
    What one guess costs; the default is the least (RFC 9106 §4, second recommendation).

    `ValueError` outside 64 MiB to 1 GiB, 3 to 16 passes, 4 to 16 lanes.
    """

    memory_kib: int = 64 * 1024
    passes: int = 3
    lanes: int = 4

    def __post_init__(self) -> None:
        """Refuse what is too cheap and what is too dear."""
        if not (
            64 * 1024 <= self.memory_kib <= 1024 * 1024
            and 3 <= self.passes <= 16
            and 4 <= self.lanes <= 16
        ):
            raise ValueError("the cost of a passphrase is out of bounds")


def stretch(passphrase: bytes, *, salt: bytes, cost: PassphraseCost) -> bytes:
    """
    Return the 32-byte key of `passphrase` under a random `salt` of 16 bytes.

    Raises `Unavailable` where the memory is not there, `ConfigurationError` where OpenSSL has no
    Argon2.
    """
    if len(salt) != SALT_BYTES:
        raise ValueError(f"a salt has {SALT_BYTES} bytes")
    try:
        return Argon2id(
            salt=salt,
            length=_KEY_BYTES,
            iterations=cost.passes,
            lanes=cost.lanes,
            memory_cost=cost.memory_kib,
        ).derive(passphrase)
    except MemoryError as error:
        raise Unavailable(f"{cost.memory_kib // 1024} MiB of memory are not to be had") from error
    except UnsupportedAlgorithm as error:
        raise ConfigurationError("the OpenSSL below `cryptography` has no Argon2id") from error
