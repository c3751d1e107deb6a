"""Seats of one job, linked by Ray on this machine, and looking at what it opened."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from seat_links import identities, loopback

from confide.rays.links import RayLinks, RaySeat
from confide.rays.session import session_members

if TYPE_CHECKING:
    from collections.abc import Iterator

TOKEN = bytes(range(32))
MEMORY = Path("/dev/shm")  # noqa: S108
_LISTEN = "0A"  # From: Linux include/net/tcp_states.h


@dataclass(frozen=True)
class Listening:
    """A port that a process of Ray's listens at; `bound` is the address in /proc/net."""

    program: str
    bound: str
    port: int


def ray_seat(number: int, head: int, *, count: int = 2, token: bytes = TOKEN) -> RaySeat:
    return RaySeat(number, count, loopback(number), 0, (loopback(0), head), token)


@contextmanager
def two_by_ray(*, patience_seconds: float = 120) -> Iterator[tuple[RayLinks, RayLinks]]:
    """Two seats of one job."""
    with socket.create_server((loopback(0), 0)) as probe:
        head = int(probe.getsockname()[1])
    with ExitStack() as stack:
        links = [
            stack.enter_context(
                RayLinks(identity, ray_seat(number, head), patience_seconds=patience_seconds)
            )
            for number, identity in enumerate(identities(engine="ray"))
        ]
        yield links[0], links[1]


def programs(links: RayLinks) -> dict[int, str]:
    """What runs for a seat: process ids, and the title or program of each."""
    found = {}
    for pid in session_members(links.pid):
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            # Python is told by its program, where that has a path.
            title = words[3] if words[1:3] == [b"-I", b"-S"] else words[0]
            found[pid] = title.decode().rpartition("/")[2]
    return found


def listening(links: RayLinks) -> list[Listening]:
    """Every TCP port that anything of a seat listens at."""
    opened: dict[str, str] = {}
    for pid, program in programs(links).items():
        with suppress(OSError):
            for number in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):
                    opened[str(number.readlink())] = program
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            owner = opened.get(f"socket:[{words[9]}]")
            if words[3] == _LISTEN and owner is not None:
                address, _, port = words[1].partition(":")
                found.append(Listening(owner, address, int(port, 16)))
    return found


def of_ray(links: RayLinks, name: str) -> int:
    """The process id of one program of a seat."""
    [pid] = [pid for pid, program in programs(links).items() if program.startswith(name)]
    return pid


def gone(pids: set[int], *, seconds: float = 60) -> set[int]:
    """Wait until none of `pids` runs; return who still does."""
    deadline = time.monotonic() + seconds
    while (left := {pid for pid in pids if _runs(pid)}) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def _runs(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"
