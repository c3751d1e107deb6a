"""Attributes of the kernel: small files whose every read and write is an act, one system call each.

configfs and sysfs give a meaning to a single `write`: a buffer that splits it, a rename, or a
second attempt after a short one would each be another request. docs/protocols/hardware.md §1.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Protocol

from confide.errors import ConfigurationError, Unavailable

__all__ = ["AttributeFiles", "KernelFiles", "refused_by_kernel"]

_DIRECTORY_MODE = 0o700
_PIECE_BYTES = 64 * 1024
_DENIED = frozenset({errno.EACCES, errno.EPERM})


class AttributeFiles(Protocol):
    """What adapters ask of configfs, sysfs and ACPI tables. Everything raises `OSError`."""

    def make_directory(self, path: str) -> None:
        """Make one directory."""
        ...

    def remove_directory(self, path: str) -> None:
        """Remove one directory."""
        ...

    def exists(self, path: str) -> bool:
        """Whether there is something at `path` that may be looked at."""
        ...

    def read(self, path: str, max_bytes: int) -> bytes:
        """Return the whole attribute; EFBIG where it holds more than `max_bytes`."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Hand `data` over in one write; EIO where the kernel took less."""
        ...


class KernelFiles:
    """The files of this machine."""

    def make_directory(self, path: str) -> None:
        """Make one directory."""
        Path(path).mkdir(_DIRECTORY_MODE)

    def remove_directory(self, path: str) -> None:
        """Remove one directory; the attributes in it go with it."""
        Path(path).rmdir()

    def exists(self, path: str) -> bool:
        """Whether there is something at `path` that may be looked at."""
        return os.access(path, os.F_OK)

    def read(self, path: str, max_bytes: int) -> bytes:
        """Return the whole attribute."""
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            found = bytearray()
            while piece := os.read(handle, _PIECE_BYTES):
                found += piece
                if len(found) > max_bytes:
                    raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
            return bytes(found)
        finally:
            os.close(handle)

    def write(self, path: str, data: bytes) -> None:
        """Hand `data` over in one write; what the kernel says on closing counts too."""
        handle = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            taken = os.write(handle, data)
        finally:
            # A binary attribute of configfs is handed over when it is closed.
            os.close(handle)
        if taken != len(data):
            raise OSError(errno.EIO, os.strerror(errno.EIO))


def refused_by_kernel(error: OSError, what: str) -> ConfigurationError | Unavailable:
    """Return the error for an operator: rights are to be mended, everything else is an edge."""
    reason = os.strerror(error.errno) if error.errno else "no reason given"
    if error.errno in _DENIED:
        return ConfigurationError(f"{what}: {reason}; run as root inside the guest")
    return Unavailable(f"{what}: {reason}")
