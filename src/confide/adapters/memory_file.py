"""Files for libraries that insist on a path, in memory that has no name. Linux.

What is in them never reaches a disk, and only this process can open them.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["memory_descriptor", "memory_file"]


@contextmanager
def memory_descriptor(name: str, data: bytes) -> Iterator[int]:
    """Yield the descriptor of a memory file with `data`; a child has it where it is handed down."""
    number = os.memfd_create(f"confide-{name}", os.MFD_CLOEXEC)
    try:
        os.write(number, data)
        yield number
    finally:
        os.close(number)


@contextmanager
def memory_file(name: str, data: bytes) -> Iterator[Path]:
    """Yield a path of this process to a memory file with `data`."""
    with memory_descriptor(name, data) as number:
        yield Path(f"/proc/self/fd/{number}")
