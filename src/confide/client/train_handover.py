"""What an owner keeps of a running job, so that it goes on when its node is gone.

docs/protocols/training-node.md §7. After each checkpoint the handover is fetched, and the sealed
checkpoint that it names; both stay in the owner's private folder, the newest only. What they say
is held to proof by the node that takes the job up.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from confide.adapters.files import write_atomically
from confide.client.train_node import NodeRefused, words_of_the_node
from confide.client.train_upload import send_state
from confide.crypto.sealed_file import open_file_for
from confide.errors import ConfigurationError, FormatError, RemoteProtocolError, Unavailable
from confide.training.handover import (
    MAX_CHECKPOINT_BYTES,
    MAX_HANDOVER_BYTES,
    parse_handover,
    parse_handover_file,
)

if TYPE_CHECKING:
    from pathlib import Path

    from confide.client.train_folder import OwnerFolder
    from confide.client.train_node import TrainingNode
    from confide.client.train_upload import PartSizes
    from confide.ports import Entropy
    from confide.training.handover import Handover
    from confide.wire.json import JsonValue

__all__ = ["KeptState", "bring_state", "is_settled", "keep_state", "kept_state"]

_JOBS: Final = "/v1/fine_tuning/jobs"
_HANDOVER: Final = "handover.json"
# Gone since it was named: the job ended meanwhile.
_GONE: Final = "not_found"
_SETTLED: Final = frozenset(
    ("no_checkpoint", "job_ended", "no_boot", "keys_ended", "checkpoint_too_large", _GONE)
)
# A sealed file is a little longer than what is in it.
_MAX_SEALED_BYTES: Final = MAX_HANDOVER_BYTES + (1 << 20)


@dataclass(frozen=True, slots=True)
class KeptState:
    """What is here of a job: after which step, and the two files that another node takes."""

    step: int
    handover: Path
    checkpoint: Path


def kept_state(folder: OwnerFolder) -> KeptState | None:
    """
    Return what was kept of the job of `folder`, None where nothing was.

    Raises `ConfigurationError` where it is not whole: nothing could be taken up from it.
    """
    place = folder.path / "handover"
    try:
        with (place / _HANDOVER).open("rb") as file:
            raw = file.read(MAX_HANDOVER_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigurationError(f"{place} cannot be read: {error.strerror}") from error
    try:
        step = _said(folder, raw).checkpoint.step
    except FormatError as error:
        raise ConfigurationError(f"{place} is broken: {error.what}") from error
    return KeptState(step, place / _HANDOVER, place / _name(step))


def _name(step: int) -> str:
    return f"checkpoint-{step:09}.sealed"


def _said(folder: OwnerFolder, raw: bytes) -> Handover:
    """Return what a handover says; it has to be of this job. Raises `FormatError`."""
    said = parse_handover(parse_handover_file(raw).envelope.payload)
    if (said.nonce, said.expectation) != (folder.nonce, folder.expectation.digest):
        raise RemoteProtocolError("a handover of another job")
    return said


async def keep_state(node: TrainingNode, folder: OwnerFolder, job: str, *, stretch: int) -> int:
    """
    Fetch how far `job` came, and its newest checkpoint; return after which step that stands.

    The checkpoint comes in ranges of `stretch` bytes. What was kept before is there until the new
    one is whole. Raises as `TrainingNode.ask`; `RemoteProtocolError` for bytes that are not those
    named, `Unavailable` for a full disk.
    """
    sealed = await node.read(f"{_JOBS}/{job}/handover", max_bytes=_MAX_SEALED_BYTES)
    opener = open_file_for(folder.recipient, name=f"{job}/handover.sealed")
    raw = opener.write(sealed) + opener.end()
    with words_of_the_node():
        said = _said(folder, raw)
    place, step = folder.path / "handover", said.checkpoint.step
    checkpoint = place / _name(step)
    try:
        place.mkdir(mode=0o700, exist_ok=True)
        part = checkpoint.with_suffix(".part")
        path = f"{_JOBS}/{job}/checkpoints/{step}/content"
        digest = await _fetch(node, path, part, stretch=stretch)
        if digest != said.checkpoint.sealed:
            part.unlink()
            raise RemoteProtocolError("a checkpoint is not the one that the handover names")
        part.replace(checkpoint)
    except OSError as error:
        raise Unavailable(f"{place} cannot be written: {error.strerror}") from error
    write_atomically(place / _HANDOVER, raw)
    for other in place.glob("checkpoint-*"):
        if other != checkpoint:
            with suppress(OSError):
                other.unlink()
    return step


async def _fetch(node: TrainingNode, path: str, place: Path, *, stretch: int) -> bytes:
    """Write a file of the node to `place`, durably; return its SHA-256."""
    sha256, left = hashlib.sha256(), MAX_CHECKPOINT_BYTES
    handle = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "wb") as file:
        async with aclosing(node.stream(path, stretch=stretch)) as pieces:
            async for piece in pieces:
                left -= len(piece)
                if left < 0:
                    raise RemoteProtocolError("a checkpoint without an end")
                sha256.update(piece)
                file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    return sha256.digest()


async def bring_state(
    node: TrainingNode, folder: OwnerFolder, *, sizes: PartSizes, entropy: Entropy
) -> dict[str, JsonValue] | None:
    """
    Send what was kept to another node; return the member `continue` (7.5), None for nothing.

    Raises as `TrainingNode.send`, `ConfigurationError`.
    """
    kept = kept_state(folder)
    if kept is None:
        return None
    member: dict[str, JsonValue] = {}
    for name, path in (("handover", kept.handover), ("checkpoint", kept.checkpoint)):
        member[name] = await send_state(node, path, sizes=sizes, entropy=entropy)
    return member


def is_settled(error: NodeRefused) -> bool:
    """Whether a node refuses a handover because there is none to make, or to take, now (7.2)."""
    return error.code in _SETTLED
