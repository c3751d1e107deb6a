"""A small process that outlives its node by a moment and cleans up after it.

docs/protocols/sandbox.md §7. Started once for each node, in a session of its own, it waits for
the end of a pipe that only the node holds. When the node dies, whatever way, the pipe ends: the
reaper removes the node's containers by label, then its directories in memory, and ends.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from confide.adapters.run_dir import remove_tree

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main", "start_reaper"]

LABEL = "confide.owner"
_SECONDS = 60.0


def start_reaper(engine: tuple[str, ...], mark: str, directory: Path) -> subprocess.Popen[bytes]:
    """
    Start the reaper of the node `mark`; keep its `stdin` open and close it to send it to work.

    `engine` is the engine's argument vector without a verb.
    """
    return subprocess.Popen(  # noqa: S603 - our own interpreter and module
        (sys.executable, "-m", __name__, mark, str(directory), *engine),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def reap(mark: str, directory: Path, engine: Sequence[str]) -> None:
    """Remove the containers of `mark` and `directory`. Does what it can; never raises."""
    try:
        subprocess.run(  # noqa: S603 - the engine the node probed
            (*engine, "rm", "--force", "--time", "0", "--filter", f"label={LABEL}={mark}"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        pass  # The next node sweeps what is left.
    finally:
        remove_tree(directory)


def main(arguments: Sequence[str]) -> None:
    """Wait for the end of stdin, then reap."""
    while sys.stdin.buffer.read(1):
        pass
    reap(arguments[0], Path(arguments[1]), arguments[2:])


if __name__ == "__main__":
    main(sys.argv[1:])
