"""HMAC-SHA-256 (RFC 2104) of many short messages that begin alike, under one key. Pure."""

from __future__ import annotations

from cryptography.hazmat.primitives import hashes, hmac

__all__ = ["KeyedPrefix"]


class KeyedPrefix:
    """The key and what every message begins with, hashed once."""

    __slots__ = ("_begun",)

    def __init__(self, key: bytes, prefix: bytes) -> None:
        self._begun = hmac.HMAC(key, hashes.SHA256())
        self._begun.update(prefix)

    def digest(self, rest: bytes) -> bytes:
        """Return the HMAC of the prefix and `rest`."""
        keyed = self._begun.copy()
        keyed.update(rest)
        return keyed.finalize()
