"""The log and the witness of this installation: their keys, and whose word counts about them.

docs/protocols/log.md §3.2, §5.1. Made at first use, kept below the data directory, private. Log and
witness run under one user on one machine: together they order receipts and show a log that was
cut back. A witness that vouches against their owner is somebody else's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from confide.adapters.files import write_atomically
from confide.adapters.note_keys import draw_note_key
from confide.crypto.cosign import load_signer
from confide.errors import FormatError, Unavailable
from confide.wire.note import SignatureType, VerifierKey

if TYPE_CHECKING:
    from pathlib import Path

    from confide.adapters.paths import Paths
    from confide.ports import Entropy

__all__ = ["LocalLog", "local_log"]


@dataclass(frozen=True, slots=True)
class LocalLog:
    """Public keys of the local log and witness, and where their private halves and states are."""

    paths: Paths
    log_key: VerifierKey
    witness_key: VerifierKey

    @property
    def log_key_file(self) -> Path:
        """The private key of the log."""
        return _key_file(self.paths.log)

    @property
    def witness_key_file(self) -> Path:
        """The private key of the witness."""
        return _key_file(self.paths.witness)

    @property
    def log_folder(self) -> Path:
        """Where the log keeps its entries."""
        return self.paths.log / "entries"

    @property
    def witness_folder(self) -> Path:
        """Where the witness keeps what it cosigned last."""
        return self.paths.witness / "state"

    def policy(self, witness_url: str = "") -> bytes:
        """Return the policy file: the log, and its witness as the quorum."""
        lines = (
            f"log {self.log_key.encode()}",
            f"witness here {self.witness_key.encode()} {witness_url}".rstrip(),
            "quorum here",
        )
        return "".join(f"{line}\n" for line in lines).encode()

    def serving_policy(self, witness_url: str) -> Path:
        """Write what the log itself is started with: the same, and where its witness is now."""
        path = self.paths.state / "log-policy"
        write_atomically(path, self.policy(witness_url))
        return path


def local_log(paths: Paths, entropy: Entropy) -> LocalLog:
    """
    Return the log of this installation; its keys are made at first use.

    Keeps its policy where `--log-policy` finds it. One process at a time. Raises `Unavailable`.
    """
    # Names in public places say nothing about this machine.
    name = entropy.token(4).hex()
    found = LocalLog(
        paths,
        _key(paths.log, f"localhost/confide-log-{name}", SignatureType.ED25519, entropy),
        _key(
            paths.witness, f"localhost/confide-witness-{name}", SignatureType.COSIGNATURE, entropy
        ),
    )
    if not paths.log_policy.exists() or paths.log_policy.read_bytes() != found.policy():
        write_atomically(paths.log_policy, found.policy(), mode=0o644)
    return found


def _key_file(folder: Path) -> Path:
    return folder / "key"


def _key(folder: Path, name: str, kind: SignatureType, entropy: Entropy) -> VerifierKey:
    path = _key_file(folder)
    if not path.exists():
        draw_note_key(path, name, kind, entropy)
    try:
        return load_signer(path.read_text(encoding="ascii").removesuffix("\n")).key
    except (FormatError, UnicodeDecodeError) as error:
        raise Unavailable(
            f"{path} is damaged; restore it from a copy: a log goes on under its own key only"
        ) from error
