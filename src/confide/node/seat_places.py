"""Where the links between seats are, and how long seats wait: training-ranks.md 3.3, 4.8."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from confide.errors import Unavailable

if TYPE_CHECKING:
    from confide.training.shares import Engine

__all__ = ["LinkPlace", "SeatTimes"]


@dataclass(frozen=True, slots=True)
class LinkPlace:
    """
    Where a node listens for the seat before it, and where that one finds it. Port 0: any.

    `engines` are those that it offers.
    """

    bind: str
    host: str
    port: int = 0
    engines: tuple[Engine, ...] = ("ring",)

    def listen(self) -> socket.socket:
        """Open the port. Raises `Unavailable`."""
        family = socket.AF_INET6 if ":" in self.bind else socket.AF_INET
        try:
            return socket.create_server((self.bind, self.port), family=family)
        except OSError as error:
            raise Unavailable("the port for the other seats cannot be opened") from error

    def address(self, listener: socket.socket) -> tuple[str, int]:
        """Return where others find `listener`."""
        return self.host, int(listener.getsockname()[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class SeatTimes:
    """
    How long nodes wait for each other (4.8), in seconds.

    `talk`: one exchange; `rows`: handing rows over, from the admission on; `offered`: from an offer
    to its admission; `meet`: until neighbours are linked; `leave`: until ranks left by themselves.
    """

    talk: float = 120.0
    rows: float = 1800.0
    offered: float = 300.0
    meet: float = 1800.0
    leave: float = 10.0
