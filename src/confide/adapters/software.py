"""Measuring the node package: one digest for a wheel, an installation and a source tree.

Clause: docs/protocols/eventlog.md §3, member `software`. The manifest lists every file of the
package that a wheel carries, by POSIX path and SHA-256; byte code caches are left out because the
interpreter makes them. Two places that hold the same files give the same digest.
"""

from __future__ import annotations

import hashlib
import platform
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from confide.errors import Unavailable
from confide.wire.json import jcs

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["measure_package", "measure_wheel", "node_software", "running_kernel"]

_PACKAGE = "confide"


def node_software() -> bytes:
    """Return the digest of the package that is running: the files that are imported."""
    return measure_package(Path(__file__).parents[1])


def running_kernel() -> str:
    """Return the release of the kernel that is running."""
    return platform.release()


def measure_package(root: Path) -> bytes:
    """Return the digest of the installed package whose directory is `root`."""
    try:
        files = [
            (path.relative_to(root).as_posix(), path.read_bytes())
            for path in root.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        ]
    except OSError as error:
        raise Unavailable(f"the node package cannot be read: {error.strerror}") from error
    return _digest(files)


def measure_wheel(wheel: Path) -> bytes:
    """Return the digest of the package inside `wheel`, the same as once installed."""
    prefix = _PACKAGE + "/"
    with zipfile.ZipFile(wheel) as archive:
        return _digest(
            (info.filename.removeprefix(prefix), archive.read(info))
            for info in archive.infolist()
            if info.filename.startswith(prefix) and not info.is_dir()
        )


def _digest(files: Iterable[tuple[str, bytes]]) -> bytes:
    entries = sorted((name, hashlib.sha256(raw).hexdigest()) for name, raw in files)
    return hashlib.sha256(
        jcs([{"name": name, "sha256": value} for name, value in entries])
    ).digest()
