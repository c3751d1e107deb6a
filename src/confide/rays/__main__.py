"""`python -m confide.rays PARENT CERTIFICATE KEY AUTHORITY TOKEN`: one seat of a Ray cluster.

docs/protocols/training-ranks.md 6.3, 6.4. The four are descriptors of memory files; what is to be
done is a line of its input. When its input ends, so does everything that it started. What Ray
prints goes nowhere: one line of ours leaves this process, why it ended.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO

# From: Linux include/uapi/linux/prctl.h
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_FILES = ("certificate", "key", "authority", "token")


def main() -> None:
    """Tie this process to its parent, then hold the seat until its end."""
    parent = int(sys.argv[1])
    prctl = ctypes.CDLL(None).prctl
    if prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        sys.exit(70)
    # The parent may have died before the line above: then nobody would ever send the signal.
    if os.getppid() != parent:
        sys.exit(71)
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    given, told = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    line = given.readline()
    threading.Thread(target=_end_with, args=(given,), daemon=True).start()
    from confide.rays.order import parse_cluster_order, ray_environment  # noqa: PLC0415

    order = parse_cluster_order(line)
    files = {
        name: f"/proc/{os.getpid()}/fd/{int(number)}"
        for name, number in zip(_FILES, sys.argv[2:], strict=True)
    }
    os.environ.clear()  # noqa: TID251 - Ray reads its settings from there
    os.environ.update(ray_environment(Path(order.folder), **files))  # noqa: TID251
    # Seconds to import, and it reads the environment meanwhile.
    from confide.rays.seat import hold_seat  # noqa: PLC0415

    told.write(hold_seat(order) + "\n")
    told.flush()
    _end()


def _end_with(given: IO[bytes]) -> None:
    given.read()
    _end()


def _end() -> None:
    """End all that was started here, wait for them, and go."""
    from confide.rays.session import end_session  # noqa: PLC0415

    end_session(os.getsid(0), but=os.getpid())
    with suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
    os._exit(0)


if __name__ == "__main__":
    main()
