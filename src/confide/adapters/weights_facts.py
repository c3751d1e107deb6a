"""What a measured weights directory says of itself, and whether it was touched since.

docs/protocols/weights.md §6 (quantisation), §7 (watching) and §10 (where it leads). Reads the
beginnings of files, and whole those that name others; the digests are those of `weights_dir`.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from confide.adapters.weights_dir import measure_weights
from confide.errors import ConfigurationError, FormatError, Reason, RunRefused, Unavailable
from confide.inference.quantised import derive_quantisation, tensor_types
from confide.inference.self_contained import MAX_LEAD_BYTES, require_self_contained
from confide.rats import Finding, Status

if TYPE_CHECKING:
    from pathlib import Path

    from confide.inference.weights import WeightsManifest
    from confide.wire.quantisation import Quantisation

__all__ = ["WatchedWeights", "measure_model_folder", "read_facts", "require_contained"]

# The header of a shard with thousands of tensors is a few MiB; tokenizers in GGUF about ten.
_HEAD_BYTES = 64 * 1024 * 1024 + 8
_FIRST_BYTES = 1024 * 1024
_MAX_CONFIG_BYTES = 4 * 1024 * 1024

_Stamp = tuple[int, int, int, int, int]


def measure_model_folder(path: Path) -> tuple[WeightsManifest, Quantisation]:
    """
    Measure the directory `path` that is to be loaded, and say how its weights are quantised.

    Raises `ConfigurationError` for one that cannot be measured, whose files are not what their
    names say, or that leads out of what was measured (§10); `Unavailable` where the disk fails or
    a file changes meanwhile.
    """
    manifest = measure_weights(path)
    require_contained(path, manifest)
    return manifest, read_facts(path, manifest)


def require_contained(path: Path, manifest: WeightsManifest) -> None:
    """
    Refuse a measured directory `path` that leads out of its `manifest` (§10).

    Raises `ConfigurationError`, naming the file; `Unavailable` where the disk fails, or what is
    read is not what was measured.
    """
    digests = {entry.name: entry.sha256 for entry in manifest.entries}

    def read(name: str) -> bytes:
        raw = _head(path / name, MAX_LEAD_BYTES + 1)
        if len(raw) <= MAX_LEAD_BYTES and hashlib.sha256(raw).hexdigest() != digests[name]:
            raise Unavailable(f"weights directory: {name!r} changed while it was measured")
        return raw

    try:
        require_self_contained(digests, read)
    except OSError as error:
        raise Unavailable(f"weights directory: reading failed (errno {error.errno})") from error
    except FormatError as error:
        raise ConfigurationError(f"weights directory: {error.what} (weights.md §10)") from error


def read_facts(path: Path, manifest: WeightsManifest) -> Quantisation:
    """
    Return how the weights of the measured directory `path` are quantised.

    Raises `ConfigurationError` for files that are not what their names say, `Unavailable` where
    the disk fails.
    """
    names = [entry.name for entry in manifest.entries]
    try:
        config = _head(path / "config.json", _MAX_CONFIG_BYTES) if "config.json" in names else None
        found = [kind for name in names for kind in _types(path / name, name)]
        return derive_quantisation(config, found)
    except OSError as error:
        raise Unavailable(f"weights directory: reading failed (errno {error.errno})") from error
    except FormatError as error:
        raise ConfigurationError(f"weights directory: {error.what}") from error


def _types(path: Path, name: str) -> frozenset[str]:
    if not name.endswith((".safetensors", ".gguf")):
        return frozenset()
    size = _FIRST_BYTES
    while True:
        head = _head(path, size)
        try:
            return tensor_types(name, head)
        except FormatError:
            if len(head) < size or size >= _HEAD_BYTES:
                raise
        size = min(8 * size, _HEAD_BYTES)


def _head(path: Path, size: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        return file.read(size)


@dataclass(frozen=True, slots=True)
class WatchedWeights:
    """
    A measured directory that an engine beside the node reads: docs/protocols/weights.md §7.

    `unchanged` costs a `stat` a file, so that it can be asked before every evidence of hundreds
    of gigabytes. It proves that the kernel has recorded no change since the measurement; a root
    user who writes to the block device below the file system is not seen (dm-verity or fs-verity
    see him).
    """

    path: Path
    manifest: WeightsManifest
    quantisation: Quantisation
    stamps: tuple[tuple[str, _Stamp], ...]

    @classmethod
    def measure(cls, path: Path) -> WatchedWeights:
        """Measure `path`; `ConfigurationError`, or `Unavailable` for one that changes meanwhile."""
        names = _walk(path)
        before = _stamps(path, names)
        manifest, facts = measure_model_folder(path)
        if _stamps(path, _walk(path)) != before:
            raise Unavailable("weights directory: it changed while it was measured")
        return cls(path, manifest, facts, before)

    async def unchanged(self) -> None:
        """Raise `RunRefused` (MODEL_MISMATCH) when a file was changed, added or removed."""
        found = await asyncio.to_thread(lambda: _stamps(self.path, _walk(self.path)))
        if found != self.stamps:
            was, now = dict(self.stamps), dict(found)
            touched = sorted(n for n in was.keys() | now.keys() if was.get(n) != now.get(n))
            finding = Finding(
                Status.FAIL,
                "weights/7",
                "weights.md §7.3",
                "weights",
                f"{touched[0]!r} was touched since it was measured",
                Reason.MODEL_MISMATCH,
            )
            raise RunRefused((finding,))


def _walk(path: Path) -> list[str]:
    try:
        found = [
            os.path.relpath(os.path.join(directory, name), path)  # noqa: PTH118 - as os.walk gives
            for directory, folders, names in os.walk(path)
            for name in (*folders, *names)
        ]
    except OSError as error:
        raise Unavailable(f"weights directory: reading failed (errno {error.errno})") from error
    return sorted(found)


def _stamps(path: Path, names: list[str]) -> tuple[tuple[str, _Stamp], ...]:
    """Return what changes with every change of a file: no program can set the ctime back."""
    found = []
    for name in names:
        try:
            entry = (path / name).lstat()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise Unavailable(f"weights directory: errno {error.errno}") from error
        folder = stat.S_ISDIR(entry.st_mode)
        size = 0 if folder else entry.st_size
        found.append(
            (name, (entry.st_dev, entry.st_ino, size, entry.st_mtime_ns, entry.st_ctime_ns))
        )
    return tuple(found)
