"""Where agents run: the ports that `adapters/` makes real and tests make without a container.

docs/protocols/sandbox.md. Part of `confide.ports`, which offers these names. Everything here is
asynchronous; an edge that fails raises `Unavailable`, it never answers with a default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Sequence

    from confide.agents.sandbox import SandboxExit, SandboxSpec
    from confide.agents.state_files import StateEntry, StateTree

__all__ = ["NetworkEndpoints", "Sandbox", "SandboxSession"]


@dataclass(frozen=True, slots=True)
class NetworkEndpoints:
    """
    Listening sockets inside the agent's network namespace, owned by the node.

    `model` and `proxy` are TCP on 127.0.0.1, `dns` is UDP on 127.0.0.1:53, `direct` sees every
    packet that the agent sends to any other address; none of those packets leaves the namespace.
    """

    model: socket.socket
    proxy: socket.socket
    dns: socket.socket
    direct: socket.socket | None

    def close(self) -> None:
        """Close every socket; the namespace goes when nothing uses it."""
        for end in (self.model, self.proxy, self.dns, self.direct):
            if end is not None:
                end.close()


class Sandbox(Protocol):
    """Where agents run: isolated, without a network of their own, in bounded memory."""

    async def prepare(self, spec: SandboxSpec) -> SandboxSession:
        """
        Make everything one run needs, short of starting it.

        The image is loaded and measured again here: `RunRefused` (AGENT_IMAGE_MISMATCH) where the
        engine would run anything but `spec.image`. Raises `Unavailable` where the engine fails.
        """
        ...

    async def sweep(self) -> int:
        """Remove what nodes that are gone left behind; return how many runs that were."""
        ...

    async def close(self) -> None:
        """End every session and the reaper."""
        ...


class SandboxSession(Protocol):
    """One run. `close` must be called; it kills, wipes and leaves nothing."""

    @property
    def endpoints(self) -> NetworkEndpoints:
        """The node's listeners inside the agent's network namespace."""
        ...

    async def write_input(self, name: str, data: bytes) -> None:
        """
        Append `data` to the input `name`; only before the start.

        `FormatError` for a bad name, `RunRefused` (LIMIT_EXCEEDED) above the input limit.
        """
        ...

    async def write_secret(self, name: str, data: bytes) -> None:
        """
        Make the file /run/secrets/`name`, in memory; only before the start.

        The spec says that there are secret files. `FormatError` for a bad name.
        """
        ...

    async def set_variable(self, name: str, value: str) -> None:
        """
        Add a variable to the agent's environment; only before the start.

        `ConfigurationError` for what no environment can hold.
        """
        ...

    async def restore_state(self, entries: Sequence[StateEntry]) -> None:
        """
        Fill /state, each directory before what is in it; only before the start.

        `RunRefused` (LIMIT_EXCEEDED) where it does not fit.
        """
        ...

    async def read_state(self) -> StateTree:
        """Return what is in /state; only after the end."""
        ...

    async def run(self) -> SandboxExit:
        """Start a batch agent and return how it ended. Cancelling the task kills the agent."""
        ...

    async def start(self) -> None:
        """Start a chat agent."""
        ...

    async def turn(self, line: bytes) -> bytes:
        """
        Give a chat agent one line (without its newline) and return its one line of answer.

        `Unavailable` when the agent ended instead of answering; `finish` then says how.
        """
        ...

    async def finish(self) -> SandboxExit:
        """End a chat agent by closing its input, and return how it ended."""
        ...

    async def cancel(self) -> None:
        """Kill the agent; `run` or `finish` then return CANCELLED."""
        ...

    def read_output(self, path: str) -> AsyncIterator[bytes]:
        """Iterate over one file of `SandboxExit.outputs`, in pieces; only after the end."""
        ...

    async def close(self) -> None:
        """Kill what runs, wipe every file of the run, remove the container and the namespace."""
        ...
