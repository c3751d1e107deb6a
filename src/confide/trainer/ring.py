"""The links of one rank: what it receives from the rank before it and sends to the next.

docs/protocols/training-ranks.md §2 and §3. `SocketRing` is two sockets that were handed down;
`DistributedRing` is `torch.distributed` inside one machine. Neither knows what it carries.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

import torch
from torch import distributed

from confide.errors import Unavailable
from confide.trainer.reports import LINK_ENDED

if TYPE_CHECKING:
    import socket
    from pathlib import Path

__all__ = ["DistributedRing", "Ring", "SocketRing"]

# Longer than the slowest step and the slowest start of another rank (2.6).
_PATIENCE_SECONDS = 1800
_LENGTH_BYTES = 8


class Ring(Protocol):
    """Both raise `Unavailable` where the other end is gone."""

    @property
    def rank(self) -> int:
        """This rank, from 0."""
        ...

    @property
    def world(self) -> int:
        """How many ranks stand in the ring, at least two."""
        ...

    def send(self, tensor: torch.Tensor) -> None:
        """Hand `tensor` to the next rank; it may be changed when this returns."""
        ...

    def receive(self, tensor: torch.Tensor) -> None:
        """Fill `tensor` with what the rank before sends: the same type and shape."""
        ...


class SocketRing:
    """Two stream sockets; what is on a device goes through the memory of the processor."""

    def __init__(
        self, rank: int, world: int, *, before: socket.socket, after: socket.socket
    ) -> None:
        self.rank = rank
        self.world = world
        self._before = before
        self._after = after
        for link in (before, after):
            link.settimeout(_PATIENCE_SECONDS)

    def send(self, tensor: torch.Tensor) -> None:
        """Send length and bytes."""
        data = _bytes(tensor.detach().cpu().contiguous())
        try:
            self._after.sendall(len(data).to_bytes(_LENGTH_BYTES, "big"))
            self._after.sendall(data)
        except OSError as error:
            raise Unavailable(LINK_ENDED) from error

    def receive(self, tensor: torch.Tensor) -> None:
        """Receive as many bytes as `tensor` has, and no other number."""
        head = bytearray(_LENGTH_BYTES)
        self._fill(memoryview(head))
        there = tensor if tensor.device.type == "cpu" and tensor.is_contiguous() else None
        landed = torch.empty(tensor.shape, dtype=tensor.dtype) if there is None else there
        data = _bytes(landed)
        if int.from_bytes(head, "big") != len(data):
            raise Unavailable("another rank sent a message of another length")
        self._fill(data)
        if there is None:
            tensor.copy_(landed)

    def _fill(self, view: memoryview) -> None:
        while view:
            try:
                count = self._before.recv_into(view)
            except OSError as error:
                raise Unavailable(LINK_ENDED) from error
            if not count:
                raise Unavailable(LINK_ENDED)
            view = view[count:]


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.view(torch.uint8).numpy().data


class DistributedRing:
    """
    The ring over `torch.distributed`: `gloo` for processors, `nccl` for GPUs.

    Ranks meet in a file of `folder`, which nobody else may enter. One ring a process. Which
    interface the back end uses is a matter of the environment (`worker_environment`).
    """

    def __init__(self, rank: int, world: int, *, folder: Path, backend: str) -> None:
        """Wait for the other ranks. Raises `Unavailable` where they do not come."""
        self.rank = rank
        self.world = world
        place = str(folder / "ranks")
        try:
            distributed.init_process_group(
                backend,
                store=distributed.FileStore(place, world),  # type: ignore[attr-defined]
                rank=rank,
                world_size=world,
                timeout=timedelta(seconds=_PATIENCE_SECONDS),
            )
        except RuntimeError as error:
            raise Unavailable("the ranks did not find each other") from error

    def send(self, tensor: torch.Tensor) -> None:
        """Send to the next rank."""
        try:
            distributed.send(tensor.detach().contiguous(), (self.rank + 1) % self.world)
        except RuntimeError as error:
            raise Unavailable(LINK_ENDED) from error

    def receive(self, tensor: torch.Tensor) -> None:
        """Receive from the rank before."""
        try:
            distributed.recv(tensor, (self.rank - 1) % self.world)
        except RuntimeError as error:
            raise Unavailable(LINK_ENDED) from error
