"""The network namespace of a run, as an engine can join it.

docs/protocols/sandbox.md §5. Podman joins a namespace that we made; Docker can only join that of
another container (`docker_holder`).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from confide.adapters.netns import Namespace, open_namespace

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["Networks", "PreparedNetworks", "RunNetwork"]


@dataclass(frozen=True, slots=True)
class RunNetwork:
    """One namespace with the node's sockets; `option` is the value of the engine's `--network`."""

    namespace: Namespace
    option: str
    release: Callable[[], Awaitable[object]] | None = None

    async def close(self) -> None:
        """Close the sockets and let go of what kept the namespace."""
        self.namespace.close()
        if self.release is not None:
            await self.release()


class Networks(Protocol):
    """Where the networks of the runs of one node come from."""

    async def start(self) -> None:
        """Get ready. `ConfigurationError` where runs can never have a network here."""
        ...

    async def open(self) -> RunNetwork:
        """Return a network that nobody used before."""
        ...

    async def close(self) -> None:
        """Let go of what was kept ready. Networks that were opened are closed by their runs."""
        ...


class PreparedNetworks:
    """Namespaces of our own, a millisecond each."""

    async def start(self) -> None:
        """Nothing is kept ready."""

    async def open(self) -> RunNetwork:
        """See `Networks`."""
        # A cancelled caller must not leave a namespace behind: the thread cannot be stopped.
        making = asyncio.ensure_future(asyncio.to_thread(open_namespace))
        try:
            namespace = await asyncio.shield(making)
        except asyncio.CancelledError:
            (await making).close()
            raise
        return RunNetwork(namespace, f"ns:{namespace.path}")

    async def close(self) -> None:
        """Nothing is kept ready."""
