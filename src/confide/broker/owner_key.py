"""The file that holds an owner's private key. Pure.

One line, `confide-owner-key/v1 <seed in hex>`: a key of another kind is never taken for it.
"""

from __future__ import annotations

from typing import Final

from confide.crypto.ed25519 import Ed25519Signer
from confide.errors import FormatError, Reason
from confide.wire.json import is_hex

__all__ = ["encode_owner_key", "load_owner_key"]

_HEAD: Final = "confide-owner-key/v1 "


def encode_owner_key(seed: bytes) -> bytes:
    """Return the file for 32 random bytes. Secret."""
    return f"{_HEAD}{seed.hex()}\n".encode()


def load_owner_key(raw: bytes) -> Ed25519Signer:
    """Return what signs. Raises `FormatError` with RELEASE_FORMAT."""
    text = raw.decode("ascii", "replace").removesuffix("\n")
    found = text.removeprefix(_HEAD)
    if found == text or not is_hex(found, 32):
        raise FormatError(
            "no private key of an owner (confide secret keygen)",
            reason=Reason.RELEASE_FORMAT,
            clause="docs/protocols/release.md#2.1",
        )
    return Ed25519Signer(bytes.fromhex(found))
