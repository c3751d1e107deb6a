"""`python -m confide.trainer PARENT [BEFORE AFTER]`: one training process. training.md §10.

BEFORE and AFTER are the links of one rank of several, descriptors that were handed down.

What libraries print may quote rows: only frames leave this process. It leaves no core behind and
does not outlive its parent.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import sys

# From: Linux include/uapi/linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4


def tie(parent: int) -> None:
    """End this process with its `parent`, and keep its memory out of core files."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        sys.exit(70)
    # The parent may have died before the line above: then nobody would ever send the signal.
    if os.getppid() != parent:
        sys.exit(71)
    # Both are needed (core(5)): the limit does not hold for a core that is piped to a program.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        sys.exit(72)


def main() -> None:
    """Tie this process to its parent, then serve one job."""
    tie(int(sys.argv[1]))
    given = os.fdopen(os.dup(0), "rb", buffering=0)
    told = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    # Seconds to import: after the parent knows that it would be tied.
    from confide.trainer.worker import serve  # noqa: PLC0415

    links = [socket.socket(fileno=int(number)) for number in sys.argv[2:]]
    sys.exit(0 if serve(given, told, links) else 1)


if __name__ == "__main__":
    main()
