"""The life of one container process: pipes, watch, kill.

docs/protocols/sandbox.md §3. Whoever kills first names the reason; everything that can end a run
goes through `kill`. The engine's client is only a pipe to the container: it is never the thing
that is killed, because a container outlives it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Final

from confide.adapters.cgroup import ContainerGroup
from confide.agents.sandbox import STDIO_BYTES, TURN_BYTES, ExitKind
from confide.errors import LocalProtocolError, RemoteProtocolError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from confide.adapters.run_dir import RunDirectory
    from confide.expectation import Limits

__all__ = ["ContainerProcess", "Kept"]

_PIECE: Final = 64 * 1024
_START_POLL_SECONDS: Final = 0.02
_WATCH_SECONDS: Final = 0.1
_MAX_UNASKED_LINES: Final = 16
# A container that was killed and whose client still hangs: the client goes, removal cleans up.
_LAST_WAIT_SECONDS: Final = 10.0


class Kept:
    """The first bytes of a stream, and how many there were."""

    def __init__(self) -> None:
        self._kept = bytearray()
        self.total = 0

    @property
    def kept(self) -> bytes:
        """The first `STDIO_BYTES`."""
        return bytes(self._kept)

    def add(self, piece: bytes) -> None:
        """Keep what fits, count all."""
        self.total += len(piece)
        self._kept += piece[: max(0, STDIO_BYTES - len(self._kept))]


class ContainerProcess:
    """Starts the engine's client once; `verdict` says why we killed, if we did."""

    def __init__(
        self,
        *,
        limits: Limits,
        directory: RunDirectory,
        chat: bool,
        namespace: int,
        find_process: Callable[[], Awaitable[int | None]],
    ) -> None:
        """`find_process` may answer too late; who is not in network `namespace` is a stranger."""
        self._limits = limits
        self._directory = directory
        self._chat = chat
        self._namespace = namespace
        self._find_process = find_process
        self.verdict: ExitKind | None = None
        # Whether only the client was killed: the container may still run.
        self.outlived = False
        self.stdout = Kept()
        self.stderr = Kept()
        self._client: asyncio.subprocess.Process | None = None
        self._done: asyncio.Task[int] | None = None
        self._kill_asked = asyncio.Event()
        self._lines: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._unread = 0

    async def start(self, command: tuple[str, ...]) -> None:
        """Start the client; the container follows within a moment."""
        pipe, null = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
        try:
            self._client = await asyncio.create_subprocess_exec(
                *command,
                stdin=pipe if self._chat else null,
                stdout=pipe,
                stderr=pipe,
                start_new_session=True,
                # The engine's monitor leaves a note about memory kills where it was started.
                cwd=self._directory.path,
                limit=TURN_BYTES,
            )
        except OSError as error:
            raise Unavailable(f"container engine: cannot start it ({error.strerror})") from error
        self._done = asyncio.ensure_future(self._supervise(self._client))

    def kill(self, kind: ExitKind) -> None:
        """Kill the container for `kind`; the first reason stands. Nothing happens after the end."""
        if self._done is not None and self._done.done():
            return
        if self.verdict is None:
            self.verdict = kind
        self._kill_asked.set()

    async def wait(self) -> int:
        """Wait for the end; return the client's exit status."""
        if self._done is None:
            return 0
        return await asyncio.shield(self._done)

    def end_input(self) -> None:
        """Close the agent's stdin."""
        if self._client is not None and self._client.stdin is not None:
            self._client.stdin.close()

    async def turn(self, line: bytes) -> bytes:
        """Write one line and read one line."""
        client = self._client
        if client is None or client.stdin is None:
            raise LocalProtocolError("a turn needs a running chat agent")
        if b"\n" in line or len(line) >= TURN_BYTES:
            raise LocalProtocolError("a turn is one line of bounded length")
        if self._unread:
            raise RemoteProtocolError("the agent answered without being asked")
        with contextlib.suppress(ConnectionError):
            client.stdin.write(line + b"\n")
            await client.stdin.drain()
        answer = await self._lines.get()
        if answer is not None:
            self._unread -= 1
            return answer
        self._lines.put_nowait(None)
        raise Unavailable("the agent ended instead of answering")

    async def _supervise(self, client: asyncio.subprocess.Process) -> int:
        out, err = client.stdout, client.stderr
        if out is None or err is None:  # pragma: no cover - both are pipes, see start
            raise LocalProtocolError("no pipes")
        readers = asyncio.gather(
            self._read_lines(out) if self._chat else _drain(out, self.stdout),
            _drain(err, self.stderr),
        )
        helpers = [
            asyncio.ensure_future(self._wall()),
            asyncio.ensure_future(self._watch_and_kill(client)),
        ]
        try:
            code = await client.wait()
            # A grandchild cannot hold the pipes open: they are the client's, and it is gone.
            await readers
            return code
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)

    async def _wall(self) -> None:
        await asyncio.sleep(self._limits.wall_seconds)
        self.kill(ExitKind.KILLED_WALL)

    async def _watch_and_kill(self, client: asyncio.subprocess.Process) -> None:
        pid = await self._container_pid()
        if pid is None:
            self._abandon(client)
            return
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            return  # It ended already; the client is about to say so.
        with _closing(handle), ContainerGroup(pid) as watched:
            if not self._is_ours(pid):
                # It ended, and another process may have its number: only the client may be hit.
                await self._kill_asked.wait()
                self._abandon(client)
                return
            watched.when_out_of_memory(lambda: self.kill(ExitKind.KILLED_MEMORY))
            watched.when_fork_refused(lambda: self.kill(ExitKind.KILLED_PIDS))
            while not self._kill_asked.is_set():
                if watched.out_of_memory():
                    self.kill(ExitKind.KILLED_MEMORY)
                elif self._directory.output_full():
                    self.kill(ExitKind.KILLED_OUTPUT)
                elif watched.refused_forks():
                    self.kill(ExitKind.KILLED_PIDS)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_WATCH_SECONDS):
                        await self._kill_asked.wait()
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        await asyncio.sleep(_LAST_WAIT_SECONDS)
        self._abandon(client)

    def _abandon(self, client: asyncio.subprocess.Process) -> None:
        self.outlived = True
        with contextlib.suppress(ProcessLookupError):
            client.kill()

    async def _container_pid(self) -> int | None:
        # None: killed, and still no container after the last wait; the client is stuck.
        waits = round(_LAST_WAIT_SECONDS / _START_POLL_SECONDS)
        while waits:
            try:
                if (pid := await self._find_process()) is not None:
                    return pid
            except Unavailable:
                if self._kill_asked.is_set():
                    return None
            waits -= self._kill_asked.is_set()
            await asyncio.sleep(_START_POLL_SECONDS)
        return None

    def _is_ours(self, pid: int) -> bool:
        # Asked after the process was opened: who passes is the one that will be killed.
        with contextlib.suppress(OSError):
            found = Path(f"/proc/{pid}/ns/net").stat()
            return os.path.samestat(found, os.fstat(self._namespace))
        return False

    async def _read_lines(self, stream: asyncio.StreamReader) -> None:
        try:
            while line := await stream.readline():
                self.stdout.add(line)
                if self._unread >= _MAX_UNASKED_LINES:
                    break
                self._unread += 1
                self._lines.put_nowait(line.rstrip(b"\r\n"))
        except ValueError:
            pass  # readline's way to say that a line is longer than the limit.
        if not stream.at_eof():
            self.kill(ExitKind.KILLED_OUTPUT)
            await _drain(stream, self.stdout)
        self._lines.put_nowait(None)


async def _drain(stream: asyncio.StreamReader, kept: Kept) -> None:
    while piece := await stream.read(_PIECE):
        kept.add(piece)


@contextlib.contextmanager
def _closing(handle: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(handle)
