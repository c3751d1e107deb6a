"""The `Entropy` port on the kernel's generator."""

from __future__ import annotations

import secrets  # noqa: TID251 - this is the adapter

__all__ = ["SystemEntropy"]


class SystemEntropy:
    """Draws from the operating system, seeded in a confidential VM by RDRAND too."""

    def token(self, size: int) -> bytes:
        """Return `size` bytes fit for keys and nonces."""
        return secrets.token_bytes(size)
