"""What `upstream_serve` starts: tie this process to its parent, then be `transformers serve`.

Run by path in a process of its own, never imported: `serve_child.py PARENT serve MODEL …`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

# From: Linux include/uapi/linux/prctl.h
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Die with the parent; then hand over to the command line of transformers."""
    parent = int(sys.argv[1])
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        sys.exit(70)
    # The parent may have died before the line above: then nobody would ever send the signal.
    if os.getppid() != parent:
        sys.exit(71)
    # Not `main()` of that module, which asks the package index for a newer version first.
    from transformers.cli.transformers import app  # noqa: PLC0415 - seconds to import

    app(sys.argv[2:])


if __name__ == "__main__":
    main()
