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

    from confide.adapters.engine_base import Engine

__all__ = [
    "LABEL",
    "main",
    "reap",
    "start_reaper",
]

LABEL = "confide.owner"
_SECONDS = 60.0


def start_reaper(engine: Engine, mark: str, directory: Path) -> subprocess.Popen[bytes]:
    """Start the reaper of node `mark`; keep its `stdin` open and close it to send it to work."""
    removal = " ".join(engine.removal)
    return subprocess.Popen(  # noqa: S603 - our own interpreter and module
        (sys.executable, "-m", __name__, mark, str(directory), removal, *engine.command()),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def reap(mark: str, directory: Path, removal: Sequence[str], engine: Sequence[str]) -> None:
    """
    Remove the containers of `mark` and `directory`. Does what it can; never raises.

    `engine` is the engine's argument vector without a verb, `removal` the options of its `rm`.
    """
    try:
        found = _run(*engine, "ps", "--all", "--quiet", "--filter", f"label={LABEL}={mark}")
        if found:
            _run(*engine, "rm", *removal, *found)
    except (OSError, subprocess.SubprocessError):
        pass  # The next node sweeps what is left.
    finally:
        remove_tree(directory)


def _run(*command: str) -> list[str]:
    done = subprocess.run(  # noqa: S603 - the engine the node probed
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=_SECONDS,
        check=False,
    )
    return done.stdout.decode("ascii", "replace").split()


def main(arguments: Sequence[str]) -> None:
    """Wait for the end of stdin, then reap."""
    while sys.stdin.buffer.read(1):
        pass
    reap(arguments[0], Path(arguments[1]), arguments[2].split(), arguments[3:])


if __name__ == "__main__":
    main(sys.argv[1:])
