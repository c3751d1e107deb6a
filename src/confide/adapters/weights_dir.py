"""Measure a weights directory, and find out whether it is still what was measured.

docs/protocols/weights.md §1 and §2. Reads every file once, without following links. What the
files hold is not looked at: a digest says which weights, not whether they are good.

Limits of `verify_weights`: it proves what was on disk while it read. Between two reads a file may
be changed and changed back; on a node the disk belongs to the measured system alone.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from confide.errors import ConfigurationError, Reason, RunRefused, Unavailable
from confide.inference.weights import (
    IGNORED_PATHS,
    WeightsManifest,
    differences,
    weights_manifest,
)
from confide.rats import Finding, Status

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["copy_weights", "measure_weights", "verify_weights"]

# The largest published checkpoints have a few thousand shards.
_MAX_FILES = 20_000
_CHUNK_BYTES = 1024 * 1024


class _Unmeasurable(Exception):
    """Something in the directory has no digest; the message names it."""


def measure_weights(path: Path) -> WeightsManifest:
    """
    Return the OMS manifest of the directory `path` (weights.md §1).

    Raises `ConfigurationError` naming what cannot be measured (a link, a device, an empty
    directory, a name that is not portable), `Unavailable` where the disk fails or a file
    changes while it is read.
    """
    try:
        return _measure(path)
    except _Unmeasurable as error:
        raise ConfigurationError(f"weights directory: {error}") from error


def verify_weights(path: Path, manifest: WeightsManifest) -> None:
    """
    Establish that the directory `path` holds exactly the files of `manifest` (weights.md §2).

    Raises `RunRefused` with one finding per file that is changed, missing or new, `Unavailable`
    where the disk fails.
    """
    try:
        found = _measure(path)
    except _Unmeasurable as error:
        raise RunRefused((_refusal(str(error)),)) from error
    told = differences(manifest, found)
    if told:
        raise RunRefused(tuple(_refusal(sentence) for sentence in told))


def copy_weights(source: Path, manifest: WeightsManifest, target: Path) -> None:
    """
    Copy the files of `manifest`, and nothing else, from `source` to `target`, read-only.

    **Does not check** what was copied: the caller measures the copy. Raises `Unavailable`.
    """
    try:
        for entry in manifest.entries:
            place = target / entry.name
            place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # A file that is gone is named by the measurement.
            with suppress(FileNotFoundError):
                shutil.copyfile(source / entry.name, place)
                place.chmod(0o400)
    except OSError as error:
        raise Unavailable(f"the weights cannot be copied (errno {error.errno})") from error


def _refusal(detail: str) -> Finding:
    return Finding(
        Status.FAIL, "weights/2", "weights.md §2.1", "weights", detail, Reason.MODEL_MISMATCH
    )


def _measure(path: Path) -> WeightsManifest:
    try:
        if not stat.S_ISDIR(path.lstat().st_mode):
            raise _Unmeasurable("it is not a directory (a link to one is refused)")
        names = sorted(_walk(path, ""))
        pairs = [(name, _digest(path / name, name)) for name in names]
    except OSError as error:
        raise Unavailable(f"weights directory: reading failed (errno {error.errno})") from error
    try:
        return weights_manifest(pairs)
    except ValueError as error:
        raise _Unmeasurable(str(error)) from error


def _walk(directory: Path, prefix: str) -> Iterator[str]:
    """Yield the relative names of all files, refusing whatever is neither file nor directory."""
    seen = 0
    waiting = [(directory, prefix)]
    while waiting:
        here, start = waiting.pop()
        with os.scandir(here) as entries:
            for entry in entries:
                name = f"{start}{entry.name}"
                # From: OMS 1.0: ignored paths are relative to the model, so at the top only.
                if not start and entry.name in IGNORED_PATHS:
                    continue
                mode = entry.stat(follow_symlinks=False).st_mode
                if stat.S_ISLNK(mode):
                    raise _Unmeasurable(f"{name!r} is a symbolic link")
                if stat.S_ISDIR(mode):
                    waiting.append((Path(entry.path), f"{name}/"))
                elif stat.S_ISREG(mode):
                    seen += 1
                    if seen > _MAX_FILES:
                        raise _Unmeasurable(f"it holds more than {_MAX_FILES} files")
                    yield name
                else:
                    raise _Unmeasurable(f"{name!r} is neither a file nor a directory")


def _digest(path: Path, name: str) -> str:
    # O_NOFOLLOW: the entry may have become a link since it was listed.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        before = os.fstat(descriptor)
        digest = hashlib.sha256()
        buffer = bytearray(_CHUNK_BYTES)
        view = memoryview(buffer)
        while count := file.readinto(buffer):
            digest.update(view[:count])
        after = os.fstat(descriptor)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise Unavailable(f"weights directory: {name!r} changed while it was read")
    return digest.hexdigest()
