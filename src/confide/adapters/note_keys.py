"""Key files of logs, witnesses and directories: drawn once, private. docs/protocols/log.md §3.2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from confide.adapters.files import write_atomically
from confide.crypto.cosign import NoteSigner
from confide.wire.note import PrivateKeyText

if TYPE_CHECKING:
    from pathlib import Path

    from confide.ports import Entropy
    from confide.wire.note import SignatureType, VerifierKey

__all__ = ["draw_note_key"]

_SEED_BYTES: Final = 32


def draw_note_key(path: Path, name: str, kind: SignatureType, entropy: Entropy) -> VerifierKey:
    """
    Draw a key, write it to `path` with mode 0600, and return its public half.

    Raises `ValueError` for a name that no key can have, before anything is written.
    """
    seed = entropy.token(_SEED_BYTES)
    key = NoteSigner(name, kind, seed).key
    text = PrivateKeyText(name, kind, key.key_id, seed).encode()
    write_atomically(path, text.encode() + b"\n", mode=0o600)
    return key
