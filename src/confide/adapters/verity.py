"""Whether the kernel keeps a weights directory as it is: fs-verity and dm-verity.

docs/protocols/weights.md §8. Both are read, never set up. What they prove: every later read of
these bytes is checked by the kernel against a root that cannot change while they are there, below
this node and below the engine. What they do not prove: that the engine reads them.

The two questions to the kernel are arguments, so that a stand-in can answer them. Constants: Linux
include/uapi/linux/fsverity.h and dm-ioctl.h.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from confide.errors import Unavailable
from confide.wire.json import is_hex

if TYPE_CHECKING:
    from collections.abc import Callable

    from confide.inference.weights import WeightsManifest

__all__ = ["Kernel", "Verity", "read_verity"]

_FS_IOC_MEASURE_VERITY = 0xC0046686
_FS_VERITY_SHA256 = 1
_DM_TABLE_STATUS = 0xC138FD0C
_DM_STATUS_TABLE_FLAG = 1 << 4
# struct dm_ioctl: version[3], data_size, data_start, target_count, open_count, flags, event_nr,
# padding, dev, then name, uuid and data up to 312 bytes.
_DM_HEADER = struct.Struct("<3IIIIiIIIQ264x")
# struct dm_target_spec: sector_start, length, status, next, target_type; its parameters follow.
_DM_TARGET = struct.Struct("<QQiI16s")
_DM_BYTES = 16 * 1024
_NOT_THERE = (errno.ENODATA, errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL)


def _ioctl(descriptor: int, request: int, buffer: bytearray) -> None:
    fcntl.ioctl(descriptor, request, buffer, True)  # noqa: FBT003 - as fcntl takes it


@dataclass(frozen=True, slots=True)
class Kernel:
    """How the kernel is asked: an `ioctl` that fills the buffer, and where devices are listed."""

    ioctl: Callable[[int, int, bytearray], None] = _ioctl
    sysfs: Path = Path("/sys")
    control: Path = Path("/dev/mapper/control")


@dataclass(frozen=True, slots=True)
class Verity:
    """
    What holds the files in place.

    `kind` is "fs-verity", with a digest for each file in the order of the manifest, or
    "dm-verity", with the root hash of the device; lower-case hex.
    """

    kind: str
    digests: tuple[str, ...]


def read_verity(path: Path, manifest: WeightsManifest, kernel: Kernel) -> Verity | None:
    """
    Return what holds the measured files of `path` in place, None where nothing does.

    fs-verity counts only where every file has it. Raises `Unavailable` where the kernel answers
    with something that is neither yes nor no.
    """
    digests = []
    for entry in manifest.entries:
        digest = _file_digest(path / entry.name, kernel)
        if digest is None:
            break
        digests.append(digest)
    else:
        return Verity("fs-verity", tuple(digests))
    root = _device_root(path, kernel)
    return None if root is None else Verity("dm-verity", (root,))


def _file_digest(path: Path, kernel: Kernel) -> str | None:
    # struct fsverity_digest: the algorithm, room for the digest, the digest.
    buffer = bytearray(struct.pack("<HH", 0, 64) + bytes(64))
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        kernel.ioctl(descriptor, _FS_IOC_MEASURE_VERITY, buffer)
    except OSError as error:
        if error.errno in _NOT_THERE:
            return None
        raise Unavailable(f"fs-verity: errno {error.errno}") from error
    finally:
        os.close(descriptor)
    algorithm, size = struct.unpack_from("<HH", buffer)
    if algorithm != _FS_VERITY_SHA256 or size != 32:
        return None
    return bytes(buffer[4:36]).hex()


def _device_root(path: Path, kernel: Kernel) -> str | None:
    number = path.stat().st_dev
    major, minor = os.major(number), os.minor(number)
    try:
        uuid = (kernel.sysfs / f"dev/block/{major}:{minor}/dm/uuid").read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return None  # no device of the mapper
    if not uuid.startswith("CRYPT-VERITY-"):
        return None
    buffer = bytearray(_DM_BYTES)
    device = (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)
    _DM_HEADER.pack_into(
        *(buffer, 0, 4, 0, 0, _DM_BYTES, _DM_HEADER.size, 0, 0, _DM_STATUS_TABLE_FLAG, 0, 0, device)
    )
    try:
        descriptor = os.open(kernel.control, os.O_RDWR | os.O_CLOEXEC)
        try:
            kernel.ioctl(descriptor, _DM_TABLE_STATUS, buffer)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise Unavailable(f"dm-verity: errno {error.errno}") from error
    return _root_of(bytes(buffer))


def _root_of(answer: bytes) -> str:
    """Return the root hash in the table of a device that is one verity target over SHA-256."""
    fields = _DM_HEADER.unpack_from(answer)
    start, targets = fields[4], fields[5]
    if targets != 1 or not _DM_HEADER.size <= start <= len(answer) - _DM_TARGET.size:
        raise Unavailable("dm-verity: a device of several targets")
    kind = _DM_TARGET.unpack_from(answer, start)[4].rstrip(b"\0")
    table = answer[start + _DM_TARGET.size :].partition(b"\0")[0].decode("ascii", "replace")
    # version, data and hash device, two block sizes, blocks, start, algorithm, digest, salt, …
    words = table.split()
    if kind != b"verity" or len(words) < 10 or words[7] != "sha256" or not is_hex(words[8], 32):
        raise Unavailable("dm-verity: a table of another form")
    return words[8]
