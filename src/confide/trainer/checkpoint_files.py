"""Checkpoints on a disk: sealed, whole or not there, and never an older one in place of a newer.

docs/protocols/training.md 7.2, 7.4, 7.5. The folder is hostile: a file is believed where its bytes
are those that the caller's entry names. The key comes from whoever runs the job and is not kept.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from io import BytesIO
from typing import TYPE_CHECKING, BinaryIO, NoReturn

from confide.crypto.sealed_file import open_file_under, seal_file_under
from confide.errors import FormatError, Reason, ReceiptRejected, Unavailable
from confide.rats import Finding, Status
from confide.trainer.failures import DiskFull
from confide.training.checkpoints import CheckpointEntry
from confide.training.seeds import u64
from confide.wire.json import parse_json

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["CheckpointFiles"]

_SALT = b"confide/checkpoint-salt/v1\0"
_PIECE_BYTES = 1024 * 1024
_MAX_HEADER_BYTES = 4096


class CheckpointFiles:
    """
    The checkpoints of one plan in `folder`, under `key`.

    `session` is 32 random bytes of this run alone: the salts of what it writes follow from them.
    """

    __slots__ = ("_folder", "_key", "_plan", "_session", "_written")

    def __init__(self, folder: Path, *, plan: bytes, key: bytes, session: bytes) -> None:
        self._folder = folder
        self._plan = plan
        self._key = key
        self._session = session
        self._written = 0

    def write(
        self, step: int, plain: Iterable[bytes], *, chain: bytes, state: bytes
    ) -> CheckpointEntry:
        """
        Seal the state after `step`; durable when this returns its entry.

        Raises `Unavailable`: then nothing of it is there, and what was there before still is.
        """
        self._written += 1
        salt = hashlib.sha256(_SALT + self._session + u64(step) + u64(self._written)).digest()
        sealer = seal_file_under(self._key, name=self._name(step), salt=salt)
        place = self._place(step)
        part = place.with_suffix(".part")
        try:
            part.unlink(missing_ok=True)
            handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(handle, "wb") as file:
                for piece in plain:
                    file.writelines(sealer.write(piece))
                file.writelines(sealer.finish())
                file.flush()
                os.fsync(file.fileno())
            part.replace(place)
            _sync_folder(self._folder)
        except OSError as error:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            kind = DiskFull if DiskFull.means(error) else Unavailable
            raise kind(
                f"the checkpoint after step {step} cannot be written: {error.strerror}; "
                "the job can be resumed from the one before it"
            ) from error
        return CheckpointEntry(step, chain, state, sealer.sha256.digest())

    def read(self, entry: CheckpointEntry) -> bytes:
        """
        Return the plain state that `entry` names.

        Raises `ReceiptRejected` for other bytes (CHECKPOINT_ROLLBACK where they are an older
        checkpoint of this plan), `Unavailable` where there are none.
        """
        try:
            with self._place(entry.step).open("rb") as sealed:
                if hashlib.file_digest(sealed, "sha256").digest() != entry.sealed:
                    sealed.seek(0)
                    self._refuse(entry, sealed.read(_MAX_HEADER_BYTES))
                sealed.seek(0)
                return self._opened(entry, sealed)
        except OSError as error:
            raise Unavailable(
                f"the checkpoint after step {entry.step} cannot be read: {error.strerror}"
            ) from error

    def _opened(self, entry: CheckpointEntry, sealed: BinaryIO) -> bytes:
        """
        Return what is in the file, which memory holds once.

        Bytes that changed since they were hashed are none of this key and name, or another state:
        the caller compares that (7.4).
        """
        opener, plain = open_file_under(self._key, name=self._name(entry.step)), BytesIO()
        while piece := sealed.read(_PIECE_BYTES):
            plain.write(opener.write(piece))
        plain.write(opener.end())
        # Shares its memory with the stream until that is written to again.
        return plain.getvalue()

    def _refuse(self, entry: CheckpointEntry, begun: bytes) -> NoReturn:
        older = _named(begun) in {self._name(step) for step in range(entry.step)}
        reason = Reason.CHECKPOINT_ROLLBACK if older else Reason.CHECKPOINT_MISMATCH
        detail = f"the file of step {entry.step} is {'an older one' if older else 'another'}"
        raise ReceiptRejected(
            (
                Finding(
                    Status.FAIL,
                    "training/resume/1",
                    "training.md 7.4",
                    "checkpoint",
                    detail,
                    reason,
                ),
            )
        )

    def _name(self, step: int) -> str:
        return f"checkpoint/{self._plan.hex()}/{step}"

    def _place(self, step: int) -> Path:
        return self._folder / f"checkpoint-{step:09}.sealed"


def _named(begun: bytes) -> object:
    """Return what a sealed file says that it is; only to tell people what went wrong."""
    line = begun.partition(b"\n")[0]
    with suppress(FormatError):
        header = parse_json(line, what="sealed file", reason=Reason.CHECKPOINT_MISMATCH)
        return header.get("name") if isinstance(header, dict) else None
    return None


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
