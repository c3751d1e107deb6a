"""A model node of several workers, put together. docs/protocols/workers.md.

The node has booted: measured, gated, its keys made, its engine probed. From here on this process
only minds its workers, which serve side by side at one address (SO_REUSEPORT).
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack, ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from confide.adapters.shared_memory import SharedMemory
from confide.channel.replay import ReplayPolicy, ReplayWindow
from confide.errors import ConfigurationError
from confide.node.app import NodeApp
from confide.node.model import ModelNode, Worker
from confide.node.receipt_store import DIGEST_TABLE_BYTES, IssuedDigests
from confide.node.tenancy import open_observed
from confide.node.worker_child import WorkerChild
from confide.node.worker_parent import WorkerParent

if TYPE_CHECKING:
    from confide.adapters.upstream_pool import EnginePool
    from confide.node.model import ModelNodePorts
    from confide.node.serve import Service
    from confide.node.tenancy import Tenancy
    from confide.node.worker_parent import Seat

__all__ = ["MAX_WORKERS", "WorkerSite"]

# More processes than cores serve nobody faster.
MAX_WORKERS = 64
_ONE_WORKER = ReplayPolicy()
# A worker that has drained ends within this.
_ENDING_SECONDS = 10.0


class WorkerSite:
    """
    `count` workers at `host` and `port`, in front of the engines of `pool`.

    `pool` was probed, and is closed: nothing of it but what it found is used. A context manager:
    it holds the address. Raises `ConfigurationError` where it cannot.
    """

    def __init__(
        self,
        ports: ModelNodePorts,
        pool: EnginePool,
        tenancy: Tenancy,
        *,
        count: int,
        host: str,
        port: int,
        connections: int,
        service: Service,
    ) -> None:
        self._ports = ports
        self._pool = pool
        self._tenancy = tenancy
        self._count = count
        self._host = host
        self._port = port
        self._connections = connections
        self._service = service
        self._policy = replace(_ONE_WORKER, max_entries=count * _ONE_WORKER.max_entries)
        self._secret = ports.entropy.token(32)
        self._shared = SharedMemory(self._policy.table_bytes, DIGEST_TABLE_BYTES)
        self._stack = ExitStack()

    def __enter__(self) -> WorkerParent:
        self._stack.callback(self._shared.close)
        # Never listened to: it says at once that the address is taken, and keeps it.
        held = self._stack.enter_context(socket.socket(_family(self._host)))
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            held.bind((self._host, self._port))
        except OSError as error:
            self._stack.close()
            raise ConfigurationError(f"the port cannot be served: {error.strerror}") from error
        return WorkerParent(
            self._ports.identity,
            self._work,
            count=self._count,
            store=self._tenancy.store,
            keep=(self._shared.lock_handle,),
            drain_seconds=self._service.drain_seconds + _ENDING_SECONDS,
        )

    def __exit__(self, *_exception: object) -> None:
        self._stack.close()

    def _work(self, seat: Seat) -> None:
        asyncio.run(self._serve(seat))

    async def _serve(self, seat: Seat) -> None:
        window_table, digest_table = self._shared.areas
        metrics = self._tenancy.settings.metering()
        child = WorkerChild(seat, self._ports.identity, metrics=metrics)
        issued = IssuedDigests(table=digest_table, guard=self._shared.guard())
        clock, entropy = self._ports.clock, self._ports.entropy
        async with AsyncExitStack() as stack:
            # The last to end: what calls used is told over it.
            await stack.enter_async_context(child.linked())
            node = ModelNode(
                replace(
                    self._ports,
                    identity=child.identity,
                    upstream=await stack.enter_async_context(self._pool.again()),
                    tenants=self._tenancy.admit(
                        stack, clock=clock, entropy=entropy, work=child.ledger, pace=child.pace
                    ),
                    worker=Worker(seat.number, issued, child.elsewhere),
                )
            )
            app = await open_observed(
                self._tenancy.settings, stack, node, clock=clock, entropy=entropy, metrics=metrics
            )
            window = ReplayWindow(
                self._policy,
                secret=self._secret,
                table=window_table,
                guard=self._shared.guard(),
            )
            await child.serve(
                node,
                NodeApp(child.identity, app, window=window),
                host=self._host,
                port=self._port,
                connections=self._connections,
                service=replace(self._service, drain=node.drain),
            )


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
