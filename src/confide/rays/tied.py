"""`tied.py PARENT PROGRAM ARGUMENTS`: become a program that ends with its parent. Run by path.

docs/protocols/training-ranks.md 6.4. What Ray starts would outlive who started it.
"""

import ctypes
import os
import signal
import sys

# From: Linux include/uapi/linux/prctl.h
_PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    if ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        sys.exit(70)
    # The parent may have died before the line above: then nobody would ever send the signal.
    if os.getppid() != int(sys.argv[1]):
        sys.exit(71)
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606 - a program of Ray's, by its path
