"""Why a training process could not go on, in words that a program can tell apart.

docs/protocols/training.md §10: the `code` of a FAILED frame. Imports no torch.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from confide.errors import ConfigurationError, FormatError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from confide.errors import ConfideError

__all__ = ["DiskFull", "NotFinite", "OutOfMemory", "failure_code", "is_resumable"]

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class OutOfMemory(Unavailable):
    """Memory ran out, of the machine or of the GPU."""


class NotFinite(Unavailable):
    """The loss or the gradient of a step is no number: the same job ends there again."""


class DiskFull(Unavailable):
    """Something could not be written, for want of room."""

    @staticmethod
    def means(error: OSError) -> bool:
        """Whether `error` says that there is no room."""
        return error.errno in _FULL


# The first that fits; Unavailable, of which the others are, stands last.
_CODES: Final[Mapping[type[ConfideError], str]] = {
    OutOfMemory: "out_of_memory",
    DiskFull: "disk_full",
    NotFinite: "not_finite",
    FormatError: "invalid_training_file",
    ConfigurationError: "invalid_job",
    Unavailable: "trainer_failed",
}


def failure_code(error: ConfideError) -> str:
    """Return the code of `error`."""
    return next((code for kind, code in _CODES.items() if isinstance(error, kind)), "refused")


def is_resumable(error: ConfideError) -> bool:
    """Whether the machine failed: otherwise the same job fails again in the same way."""
    return isinstance(error, Unavailable) and not isinstance(error, NotFinite)
