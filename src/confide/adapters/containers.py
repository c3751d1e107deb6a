"""Agents in containers: the `Sandbox` port over Podman or Docker.

docs/protocols/sandbox.md. Each run gets a container that is not root, cannot write its image, has
no capabilities, no way to gain any, no network but a namespace that leads nowhere, and bounded
memory, processors, processes, time and output. Files live in memory only; stdout and stderr come
through pipes and are never logged. Killing means killing the first process of the container's
process namespace: the kernel takes all others with it.

Trusted here: the kernel, the engine and its runtime. Hostile: the agent, its output, its image.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING

from confide.adapters.container_process import ContainerProcess
from confide.adapters.docker_holder import HOLDER_PREFIX
from confide.adapters.engine import Engine, EngineName, probe_engine
from confide.adapters.engine_base import ContainerPlan
from confide.adapters.engine_images import load_image, require_image
from confide.adapters.reaper import LABEL, start_reaper
from confide.adapters.run_dir import NodeDirectory, RunDirectory, is_alive, sweep_directories
from confide.adapters.run_private import PrivateFiles
from confide.agents.environment import require_variable
from confide.agents.sandbox import (
    RUN_UID,
    ExitKind,
    SandboxExit,
    SandboxSpec,
)
from confide.errors import (
    ConfigurationError,
    LocalProtocolError,
    Unavailable,
)

if TYPE_CHECKING:
    import subprocess
    from collections.abc import AsyncIterator, Callable, Sequence

    from confide.adapters.run_network import Networks, RunNetwork
    from confide.agents.sandbox import AgentImage
    from confide.agents.state_files import StateEntry, StateTree
    from confide.ports import NetworkEndpoints

__all__ = ["ContainerSandbox", "ContainerSession", "open_sandbox"]

_SHM_BYTES = 16 * 1024 * 1024
_REAPER_SECONDS = 10


async def open_sandbox(engine_name: EngineName | None = None) -> ContainerSandbox:
    """
    Probe the engine, sweep what dead nodes left, start the reaper.

    Raises `ConfigurationError` where agents cannot run on this machine, and says why.
    """
    engine = await probe_engine(engine_name)
    directory = await asyncio.to_thread(NodeDirectory)
    reaper = await asyncio.to_thread(start_reaper, engine, directory.mark, directory.path)
    sandbox = ContainerSandbox(engine, directory, reaper)
    try:
        await sandbox.sweep()
        await sandbox.networks.start()
    except BaseException:
        await sandbox.close()
        raise
    return sandbox


class ContainerSandbox:
    """The sandboxes of one node. Made by `open_sandbox`, ended by `close`."""

    def __init__(
        self, engine: Engine, directory: NodeDirectory, reaper: subprocess.Popen[bytes]
    ) -> None:
        self.engine = engine
        self.networks: Networks = engine.networks(directory, LABEL)
        self._directory = directory
        self._reaper = reaper
        self._loaded: set[AgentImage] = set()
        self._sessions: set[ContainerSession] = set()

    async def prepare(self, spec: SandboxSpec) -> ContainerSession:
        """Measure and load the image, make namespace and directories. See `ports.Sandbox`."""
        _require_sensible(spec)
        image = asyncio.ensure_future(self._require_image(spec))
        network = directory = None
        try:
            network = await self.networks.open()
            directory = await asyncio.to_thread(
                self._directory.open,
                spec.run_id,
                spec.limits,
                scratch_bytes=spec.places.scratch_bytes,
            )
            private = await asyncio.to_thread(PrivateFiles, directory.path, spec)
            await image
        except BaseException:
            image.cancel()
            await asyncio.gather(image, return_exceptions=True)
            if network is not None:
                await network.close()
            if directory is not None:
                await asyncio.to_thread(directory.wipe)
            raise
        session = ContainerSession(
            self.engine,
            spec,
            self._directory.mark,
            network=network,
            directory=directory,
            private=private,
        )
        self._sessions.add(session)
        session.when_closed = self._sessions.discard
        return session

    async def sweep(self) -> int:
        """Remove containers and directories of nodes that are gone; return how many runs."""
        owned = await self.engine.owned(LABEL)
        dead = [(ident, name) for ident, name, mark in owned if not is_alive(mark)]
        if dead:
            await self.engine.remove(*(ident for ident, _name in dead))
        directories = await asyncio.to_thread(sweep_directories)
        runs = sum(not name.startswith(HOLDER_PREFIX) for _ident, name in dead)
        return max(runs, directories)

    async def close(self) -> None:
        """End every session, then the reaper."""
        for session in tuple(self._sessions):
            await session.close()
        await self.networks.close()
        await asyncio.to_thread(self._directory.close)
        await asyncio.to_thread(self._reaper.communicate, timeout=_REAPER_SECONDS)

    async def _require_image(self, spec: SandboxSpec) -> None:
        if spec.image in self._loaded:
            await require_image(self.engine, spec.image)
            return
        await load_image(self.engine, spec.image)
        self._loaded.add(spec.image)


class ContainerSession:
    """One run: prepared, started once, ended, closed. See `ports.SandboxSession`."""

    def __init__(
        self,
        engine: Engine,
        spec: SandboxSpec,
        mark: str,
        *,
        network: RunNetwork,
        directory: RunDirectory,
        private: PrivateFiles,
    ) -> None:
        self._engine = engine
        self._spec = spec
        self._mark = mark
        self._network = network
        self._directory = directory
        self._private = private
        self._variables: dict[str, str] = {}
        self._name = f"confide-{spec.run_id}"
        self._process: ContainerProcess | None = None
        self._started_at = 0.0
        self._closed = False
        # Whether the agent is gone, so that nothing below /state changes any more.
        self._ended = False
        self._cancelled = False
        self._removal: asyncio.Task[int] | None = None
        self.when_closed: Callable[[ContainerSession], object] = _forget

    @property
    def endpoints(self) -> NetworkEndpoints:
        """The node's sockets inside the agent's network namespace."""
        return self._network.namespace.endpoints

    async def write_input(self, name: str, data: bytes) -> None:
        """Append `data` to input `name`; only before the start."""
        self._require_not_started()
        await asyncio.to_thread(self._directory.write_input, name, data)

    async def write_secret(self, name: str, data: bytes) -> None:
        """Make one file below /run/secrets; only before the start."""
        self._require_not_started()
        await asyncio.to_thread(self._private.write_secret, name, data)

    async def set_variable(self, name: str, value: str) -> None:
        """Add one variable to the environment; only before the start."""
        self._require_not_started()
        require_variable(name, value)
        self._variables[name] = value

    async def restore_state(self, entries: Sequence[StateEntry]) -> None:
        """Fill /state; only before the start."""
        self._require_not_started()
        await asyncio.to_thread(self._private.restore, entries)

    async def read_state(self) -> StateTree:
        """Return what the agent left in /state; only after the end."""
        if not self._ended:
            raise LocalProtocolError("a state is read after the end")
        return await asyncio.to_thread(self._private.read)

    async def run(self) -> SandboxExit:
        """Start a batch agent, wait for its end and say how it ended."""
        await self._launch("batch")
        return await self._end()

    async def start(self) -> None:
        """Start a chat agent."""
        await self._launch("chat")

    async def turn(self, line: bytes) -> bytes:
        """One line in, one line out. `Unavailable` when the agent ended instead."""
        return await self._running().turn(line)

    async def finish(self) -> SandboxExit:
        """Close the input of a chat agent and return how it ended."""
        self._running().end_input()
        return await self._end()

    async def cancel(self) -> None:
        """Kill the agent; whoever waits gets CANCELLED."""
        self._cancelled = True
        if self._process is not None:
            self._process.kill(ExitKind.CANCELLED)

    async def read_output(self, path: str) -> AsyncIterator[bytes]:
        """Iterate over one collected file, in pieces."""
        pieces = self._directory.read_output(path)
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            yield piece

    async def close(self) -> None:
        """Kill, remove, wipe. May be called at any time, and twice."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._process is not None:
                self._process.kill(ExitKind.CANCELLED)
                await self._process.wait()
                await self._remove()
        finally:
            await asyncio.to_thread(self._directory.wipe)
            await self._network.close()
            self.when_closed(self)

    def _require_not_started(self) -> None:
        if self._process is not None or self._closed:
            raise LocalProtocolError("inputs, secrets and state are there before the start")

    async def _launch(self, mode: str) -> None:
        if self._process is not None or self._closed:
            raise LocalProtocolError("a session is started once")
        if self._spec.mode != mode:
            raise LocalProtocolError(f"this session is of the other mode than {mode}")
        self._write_environment()
        self._started_at = time.monotonic()
        plan = self._plan()
        self._process = ContainerProcess(
            limits=self._spec.limits,
            directory=self._directory,
            chat=mode == "chat",
            namespace=self._network.namespace.fd,
            find_process=partial(self._engine.find_process, plan),
        )
        command = await self._engine.launcher(plan)
        if self._cancelled:
            self._process.kill(ExitKind.CANCELLED)
        await self._process.start(command)

    async def _end(self) -> SandboxExit:
        process = self._running()
        try:
            code = await process.wait()
        except asyncio.CancelledError:
            process.kill(ExitKind.CANCELLED)
            await asyncio.shield(process.wait())
            raise
        wall_ms = round((time.monotonic() - self._started_at) * 1000)
        kind, status = process.verdict, None
        if kind is None:
            kind, status = await self._classify(code)
        self._removal = asyncio.ensure_future(self._remove_now())
        if process.outlived:
            # Nothing is read out of /output while the agent may still write there.
            await self._removal
        self._ended = True
        found = await asyncio.to_thread(self._directory.collect)
        if found.over and kind is ExitKind.EXITED:
            kind, status = ExitKind.KILLED_OUTPUT, None
        started = kind is not ExitKind.NOT_STARTED
        return SandboxExit(
            kind=kind,
            status=status,
            wall_ms=wall_ms,
            stdout=process.stdout.kept,
            # Before the start, what stands there is the engine's text with paths of this machine.
            stderr=process.stderr.kept if started else b"",
            stdout_bytes=process.stdout.total,
            stderr_bytes=process.stderr.total if started else 0,
            outputs=found.outputs,
            left_out=found.left_out,
        )

    async def _classify(self, code: int) -> tuple[ExitKind, int | None]:
        if code == 0:
            return ExitKind.EXITED, 0
        ending = await self._engine.find_ending(self._name, code)
        if ending is None:
            raise Unavailable("container engine: it could not start the container")
        if ending.out_of_memory:
            return ExitKind.KILLED_MEMORY, None
        if ending.status is None:
            return ExitKind.NOT_STARTED, None
        return ExitKind.EXITED, ending.status

    def _running(self) -> ContainerProcess:
        if self._process is None or self._closed:
            raise LocalProtocolError("the session is not running")
        return self._process

    async def _remove(self) -> None:
        if self._removal is None:
            self._removal = asyncio.ensure_future(self._remove_now())
        await self._removal

    async def _remove_now(self) -> int:
        return await self._engine.remove(self._name)

    def _write_environment(self) -> None:
        variables = {**dict(self._spec.environment), **self._variables}
        for name, value in variables.items():
            require_variable(name, value)
        lines = [f"{name}={value}\n" for name, value in sorted(variables.items())]
        path = self._directory.path / "environment"
        try:
            path.touch(mode=0o600)
            path.write_text("".join(lines), encoding="utf-8")
        except OSError as error:
            raise Unavailable(f"run directory: cannot write ({error.strerror})") from error

    def _plan(self) -> ContainerPlan:
        limits, place, inside = self._spec.limits, self._directory, self._spec.places
        mounts = (
            f"type=bind,source={place.input},destination={inside.inputs},ro=true",
            f"type=bind,source={place.output},destination={inside.outputs}",
            f"type=bind,source={place.scratch},destination=/tmp",
            f"type=bind,source={place.resolver},destination=/etc/resolv.conf,ro=true",
            f"type=bind,source={place.hosts},destination=/etc/hosts,ro=true",
            *self._private.mounts,
            *(f"type=bind,source={host},destination={at},ro=true" for host, at in inside.read_only),
        )
        first, rest = self._spec.command[:1], self._spec.command[1:]
        words = (
            "--label", f"{LABEL}={self._mark}", "--pull", "never",
            "--env-file", str(place.path / "environment"), "--user", f"{RUN_UID}:{RUN_UID}",
            "--read-only", "--cap-drop", "all", "--security-opt", "no-new-privileges",
            "--no-healthcheck", "--log-driver", "none", "--shm-size", str(_SHM_BYTES),
            "--memory", str(limits.memory_bytes), "--memory-swap", str(limits.memory_bytes),
            "--cpus", f"{limits.cpus_milli / 1000:.3f}", "--pids-limit", str(limits.pids),
            *self._engine.limits(),
            *(word for device in inside.devices for word in ("--device", device)),
            *(word for mount in mounts for word in ("--mount", mount)),
            *(("--entrypoint", first[0]) if first else ()),
        )  # fmt: skip
        return ContainerPlan(
            name=self._name,
            directory=place.path,
            network=self._network.option,
            words=words,
            interactive=self._spec.mode == "chat",
            image=self._engine.image_id(self._spec.image),
            command=rest,
        )


def _forget(_session: ContainerSession) -> None:
    pass


def _require_sensible(spec: SandboxSpec) -> None:
    if not spec.run_id or spec.run_id.strip("0123456789abcdef") or len(spec.run_id) > 64:
        raise LocalProtocolError("a run id is lower-case hex")
    if spec.limits.pids < 2 or spec.limits.memory_bytes < 16 * 1024 * 1024:
        raise ConfigurationError("an agent needs at least 2 processes and 16 MiB of memory")
    if any("," in path or not path.startswith("/") for path, _ in spec.places.read_only):
        # A comma would begin another option of the mount.
        raise ConfigurationError("a directory to mount is absolute and has no comma in its name")
