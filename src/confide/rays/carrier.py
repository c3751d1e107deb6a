"""The actor of one seat: carries what its last rank sends to the actor of the next seat.

docs/protocols/training-ranks.md 6.5. Found by its name in this module, in the software of each
node. What other actors say is bytes for a rank, which takes a message of one length and no other.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from typing import Any, Final

import ray

from confide.rays.order import LINKS

__all__ = ["TAKES", "Carrier"]

# The one thread of an actor that takes pieces, beside the one that carries.
TAKES: Final = "takes"

_PIECE_BYTES: Final = 4 << 20
# Pieces that were not taken yet: with those on their way in, what the store has room for.
_UNDER_WAY: Final = 4


class Carrier:
    """Holds the links of its seat's ranks, which the node hands over when it is asked."""

    def __init__(self) -> None:
        """Ask the node for the links."""
        with socket.socket(socket.AF_UNIX) as node:
            node.connect(os.environ[LINKS])  # noqa: TID251 - how a worker of Ray's is told
            _, numbers, _, _ = socket.recv_fds(node, 1, 2)
        self._before, self._after = (socket.socket(fileno=number) for number in numbers)
        self._taken = 0

    def take(self, number: int, piece: bytes) -> None:
        """Hand piece `number` to the first rank of this seat; an empty one is the end."""
        if number != self._taken:
            raise ValueError("pieces out of order")
        self._taken += 1
        if piece:
            self._before.sendall(piece)
        else:
            self._before.shutdown(socket.SHUT_WR)

    def carry(self, after: Any) -> int:
        """Send what the last rank of this seat says to the actor `after`; return the pieces."""
        number, take = 0, after.take.options(concurrency_group=TAKES)
        waiting: deque[Any] = deque()
        while True:
            piece = self._piece()
            waiting.append(take.remote(number, piece))
            number += 1
            while len(waiting) > (_UNDER_WAY if piece else 0):
                ray.get(waiting.popleft())
            if not piece:
                return number

    def _piece(self) -> bytes:
        """Return what there is, and wait only for the first of it; empty at the end."""
        piece = bytearray(self._after.recv(_PIECE_BYTES))
        try:
            while piece and len(piece) < _PIECE_BYTES:
                more = self._after.recv(_PIECE_BYTES - len(piece), socket.MSG_DONTWAIT)
                if not more:
                    break
                piece += more
        except BlockingIOError:
            pass
        return bytes(piece)
