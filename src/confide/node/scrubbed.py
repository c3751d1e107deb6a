"""A sandbox session whose answers hold no secret of the run: a net for accidents.

Clause: docs/protocols/state.md 2.4. Wraps another session once the secrets are known. What goes to
the model node or through an allowed connection does not pass here and is never changed.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

from confide.agents.sandbox import STDIO_BYTES, ExitKind, LeftOut, OutputFile

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from confide.agents.sandbox import SandboxExit
    from confide.agents.scrub import Scrubber
    from confide.agents.state_files import StateEntry, StateTree
    from confide.ports import NetworkEndpoints, SandboxSession

__all__ = ["ScrubbedSession"]


class ScrubbedSession:
    """
    `inner`, with console, turns and outputs scrubbed. See `ports.SandboxSession`.

    Digests and sizes are those of what is given out. `changed` lists each place and how often it
    was changed: `stdout`, `stderr`, `turns`, `output/<index>`.
    """

    def __init__(self, inner: SandboxSession, scrubber: Scrubber, *, output_bytes: int) -> None:
        self._inner = inner
        self._scrubber = scrubber
        self._output_bytes = output_bytes
        self._turns = 0
        self.changed: list[tuple[str, int]] = []

    @property
    def endpoints(self) -> NetworkEndpoints:
        """See `ports.SandboxSession`."""
        return self._inner.endpoints

    async def write_input(self, name: str, data: bytes) -> None:
        """See `ports.SandboxSession`."""
        await self._inner.write_input(name, data)

    async def write_secret(self, name: str, data: bytes) -> None:
        """See `ports.SandboxSession`."""
        await self._inner.write_secret(name, data)

    async def set_variable(self, name: str, value: str) -> None:
        """See `ports.SandboxSession`."""
        await self._inner.set_variable(name, value)

    async def restore_state(self, entries: Sequence[StateEntry]) -> None:
        """See `ports.SandboxSession`."""
        await self._inner.restore_state(entries)

    async def read_state(self) -> StateTree:
        """Return /state as it is: it leaves the run sealed."""
        return await self._inner.read_state()

    async def run(self) -> SandboxExit:
        """See `ports.SandboxSession`."""
        return await self._ended(await self._inner.run())

    async def start(self) -> None:
        """See `ports.SandboxSession`."""
        await self._inner.start()

    async def turn(self, line: bytes) -> bytes:
        """Return the agent's line, scrubbed."""
        found = self._scrubber.scrub(await self._inner.turn(line))
        self._turns += found.count
        return found.data

    async def finish(self) -> SandboxExit:
        """See `ports.SandboxSession`."""
        return await self._ended(await self._inner.finish())

    async def cancel(self) -> None:
        """See `ports.SandboxSession`."""
        await self._inner.cancel()

    async def read_output(self, path: str) -> AsyncIterator[bytes]:
        """Iterate over one file of the exit, scrubbed."""
        stream = self._scrubber.stream()
        async for piece in self._inner.read_output(path):
            if done := await asyncio.to_thread(stream.feed, piece):
                yield done
        if done := await asyncio.to_thread(stream.finish):
            yield done

    async def close(self) -> None:
        """See `ports.SandboxSession`."""
        await self._inner.close()

    async def _ended(self, end: SandboxExit) -> SandboxExit:
        self._note("turns", self._turns)
        stdout, stdout_bytes = self._console("stdout", end.stdout, end.stdout_bytes)
        stderr, stderr_bytes = self._console("stderr", end.stderr, end.stderr_bytes)
        end = replace(
            end, stdout=stdout, stdout_bytes=stdout_bytes, stderr=stderr, stderr_bytes=stderr_bytes
        )
        outputs: list[OutputFile] = []
        left_out = list(end.left_out)
        for output in end.outputs:
            if self._scrubber.scrub(output.path.encode()).count:
                # A name cannot be changed without making another file of it.
                left_out.append(LeftOut("a file", "secret in the name"))
                continue
            outputs.append(await self._output(output, f"output/{len(outputs)}"))
        if sum(output.size for output in outputs) > self._output_bytes:
            kind = ExitKind.KILLED_OUTPUT if end.kind is ExitKind.EXITED else end.kind
            return replace(end, kind=kind, status=None, outputs=(), left_out=())
        return replace(end, outputs=tuple(outputs), left_out=tuple(left_out))

    def _console(self, where: str, kept: bytes, total: int) -> tuple[bytes, int]:
        found = self._scrubber.scrub(kept, cut=total > len(kept))
        self._note(where, found.count)
        # What is counted is what would have been given out.
        return found.data[:STDIO_BYTES], total - len(kept) + len(found.data)

    async def _output(self, output: OutputFile, where: str) -> OutputFile:
        stream, digest, size = self._scrubber.stream(), hashlib.sha256(), 0
        async for piece in self._inner.read_output(output.path):
            done = await asyncio.to_thread(stream.feed, piece)
            digest.update(done)
            size += len(done)
        done = await asyncio.to_thread(stream.finish)
        digest.update(done)
        self._note(where, stream.count)
        return OutputFile(output.path, size + len(done), digest.hexdigest())

    def _note(self, where: str, count: int) -> None:
        if count:
            self.changed.append((where, count))
