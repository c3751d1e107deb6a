"""OCI image layouts on disk.

OCI image-spec 1.1 `image-layout.md`. A layout is hostile until every blob was hashed: `read_image`
does that each time, so that what is loaded into an engine is what the manifest digest names.
Writing goes through a temporary directory and one rename: a layout is whole or absent.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from confide.agents.oci import (
    MEDIA_LAYER,
    MEDIA_MANIFEST,
    Descriptor,
    ImageConfig,
    ImageManifest,
    image_index,
    parse_config,
    parse_manifest,
)
from confide.agents.sandbox import AgentImage
from confide.errors import FormatError, Reason, Unavailable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import IO

__all__ = ["BlobSink", "StoredImage", "read_image", "write_image"]

_CLAUSE = "OCI image-spec 1.1 image-layout.md"
_PIECE = 1024 * 1024
_MAX_DOCUMENT = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image whose every blob was hashed and matched its descriptor."""

    path: Path
    manifest: ImageManifest
    config: ImageConfig

    @property
    def image(self) -> AgentImage:
        """The values that travel."""
        return AgentImage(
            self.manifest.digest, self.manifest.config.digest, str(self.path.resolve())
        )

    def blob(self, digest: str) -> Path:
        """Return the path of a blob."""
        return self.path / "blobs" / "sha256" / digest


class BlobSink:
    """A file that knows its digest: a context; write, then `finish`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] = path.open("xb")
        self._hash = hashlib.sha256()
        self._size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._file.close()

    def write(self, data: bytes, /) -> None:
        """Append `data`."""
        self._file.write(data)
        self._hash.update(data)
        self._size += len(data)

    def finish(self, media_type: str = MEDIA_LAYER) -> Descriptor:
        """Close the file and describe it."""
        self._file.close()
        return Descriptor(media_type, self._hash.hexdigest(), self._size)


def read_image(layout: Path, digest: str) -> StoredImage:
    """
    Read the image `digest` (hex) out of `layout` and hash every byte of it.

    `FormatError` (IMAGE_FORMAT) where a blob does not match; `Unavailable` where it cannot be read.
    """
    blobs = layout / "blobs" / "sha256"
    raw = _read_document(blobs / digest, digest)
    manifest = parse_manifest(raw)
    config = parse_config(_read_document(blobs / manifest.config.digest, manifest.config.digest))
    if len(config.diff_ids) != len(manifest.layers):
        raise _refusal("the config names another number of layers than the manifest")
    for layer in manifest.layers:
        if _hash_file(blobs / layer.digest) != (layer.digest, layer.size):
            raise _refusal("a layer does not match its digest")
    return StoredImage(layout, manifest, config)


def write_image(
    store: Path, *, manifest: bytes, config: bytes, layers: Mapping[str, Path]
) -> StoredImage:
    """
    Write a layout below `store` and return it; an existing one is read again instead.

    `layers` maps digests to files, which are linked (or copied across file systems) unchanged.
    """
    parsed = parse_manifest(manifest)
    target = store / parsed.digest
    if not target.is_dir():
        try:
            store.mkdir(parents=True, exist_ok=True)
            _write_layout(target, parsed, (manifest, config), layers)
        except OSError as error:
            raise Unavailable(f"image store: cannot write ({error.strerror})") from error
    return read_image(target, parsed.digest)


def _write_layout(
    target: Path,
    parsed: ImageManifest,
    documents: tuple[bytes, bytes],
    layers: Mapping[str, Path],
) -> None:
    manifest, config = documents
    temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=target.parent))
    try:
        blobs = temporary / "blobs" / "sha256"
        blobs.mkdir(parents=True)
        (temporary / "oci-layout").write_bytes(b'{"imageLayoutVersion":"1.0.0"}')
        described = Descriptor(MEDIA_MANIFEST, parsed.digest, len(manifest))
        (temporary / "index.json").write_bytes(image_index(described))
        (blobs / parsed.digest).write_bytes(manifest)
        (blobs / parsed.config.digest).write_bytes(config)
        for layer in parsed.layers:
            _link_or_copy(layers[layer.digest], blobs / layer.digest)
        temporary.chmod(0o755)
        # Losing a race to an equal build is success: the name is the content.
        with contextlib.suppress(FileExistsError):
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _link_or_copy(source: Path, target: Path) -> None:
    if target.exists():
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _read_document(path: Path, digest: str) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_DOCUMENT + 1)
    except OSError as error:
        raise Unavailable(f"image layout: a blob cannot be read ({error.strerror})") from error
    if len(raw) > _MAX_DOCUMENT or hashlib.sha256(raw).hexdigest() != digest:
        raise _refusal("a document does not match its digest")
    return raw


def _hash_file(path: Path) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
                size += len(piece)
    except OSError as error:
        raise Unavailable(f"image layout: a blob cannot be read ({error.strerror})") from error
    return digest.hexdigest(), size


def _refusal(why: str) -> FormatError:
    return FormatError(f"image layout: {why}", reason=Reason.IMAGE_FORMAT, clause=_CLAUSE)
