"""The network namespace of a run, as an engine can join it.

docs/protocols/sandbox.md §5. Podman joins a namespace that we made; Docker can only join that of
another container (`docker_holder`).
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from confide.adapters.netns import Namespace, open_namespace
from confide.errors import ConfideError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

__all__ = ["Networks", "PreparedNetworks", "RunNetwork", "finished"]


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
        return await finished(self._make())

    async def close(self) -> None:
        """Nothing is kept ready."""

    async def _make(self) -> RunNetwork:
        namespace = await asyncio.to_thread(open_namespace)
        return RunNetwork(namespace, f"ns:{namespace.path}")


async def finished(making: Coroutine[object, object, RunNetwork]) -> RunNetwork:
    """Await `making` to its end even when cancelled: what it makes cannot be left half made."""
    task = asyncio.ensure_future(making)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        with contextlib.suppress(ConfideError):
            await (await task).close()
        raise
