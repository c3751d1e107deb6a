"""What every container engine must do for us, and how one is called as a command.

docs/protocols/sandbox.md. `Podman` and `Docker` speak almost the same language; what differs is a
method here, and nothing outside these modules asks which engine it has.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import resource
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from confide.errors import Unavailable

if TYPE_CHECKING:
    from pathlib import Path
    from typing import IO

    from confide.adapters.oci_store import StoredImage
    from confide.adapters.run_dir import NodeDirectory
    from confide.adapters.run_network import Networks
    from confide.agents.sandbox import AgentImage

__all__ = ["PROCESS_LIMITS", "ContainerPlan", "Ending", "Engine", "HeldImage", "execute", "ulimits"]

_OPEN_FILES = 1024
# The engine may lower its own hard limit before it starts the runtime: two tries.
PROCESS_LIMITS = (16384, 1024)


@dataclass(frozen=True, slots=True)
class HeldImage:
    """
    What the engine says of an image it holds.

    `ident` is the engine's id and `digests` those of manifests it knows for it, all as hex.
    `volumes`: whether the image asks for storage of its own.
    """

    ident: str
    digests: tuple[str, ...]
    volumes: bool


@dataclass(frozen=True, slots=True)
class Ending:
    """How the engine remembers a container; `status` is None where it never started."""

    out_of_memory: bool
    status: int | None


@dataclass(frozen=True, slots=True)
class ContainerPlan:
    """
    A container about to be started.

    `words` are options that every engine understands; `image` is `Engine.image_id`.
    """

    name: str
    directory: Path
    network: str
    words: tuple[str, ...]
    interactive: bool
    image: str
    command: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Engine(abc.ABC):
    """
    A working engine: `program` is its path, `prefix` the options that every call needs.

    `ulimits` are `--ulimit` values that may be set here.
    """

    name: ClassVar[str]
    # Options of `rm` that kill at once and take volumes along.
    removal: ClassVar[tuple[str, ...]]

    program: str
    version: str
    prefix: tuple[str, ...]
    ulimits: tuple[str, ...]

    def command(self, *arguments: str) -> tuple[str, ...]:
        """Return the argument vector of one call."""
        return (self.program, *self.prefix, *arguments)

    def limits(self) -> tuple[str, ...]:
        """Return the words that set resource limits on a container."""
        return tuple(word for value in self.ulimits for word in ("--ulimit", value))

    async def output(self, *arguments: str, seconds: float = 60.0) -> bytes:
        """Run the engine and return its stdout; `Unavailable` when it fails or hangs."""
        status, out, _err = await execute(self.command(*arguments), seconds)
        if status != 0:
            raise Unavailable(f"container engine: {arguments[0]} failed with status {status}")
        return out

    async def call(self, *arguments: str, seconds: float = 60.0) -> str:
        """Like `output`, as text."""
        return (await self.output(*arguments, seconds=seconds)).decode("utf-8", "replace")

    async def attempt(self, *arguments: str, seconds: float = 60.0) -> str | None:
        """Like `call`, but None where the engine fails: for questions about what may be absent."""
        status, out, _err = await execute(self.command(*arguments), seconds)
        return out.decode("utf-8", "replace") if status == 0 else None

    async def quietly(self, *arguments: str, seconds: float = 60.0) -> int:
        """Run the engine and return its status, for calls that may find nothing to do."""
        status, _out, _err = await execute(self.command(*arguments), seconds)
        return status

    async def remove(self, *containers: str) -> int:
        """Kill and remove containers by name or id; those that are gone do not matter."""
        return await self.quietly("rm", *self.removal, *containers)

    async def run_tool(
        self,
        image: AgentImage,
        *arguments: str,
        mounts: tuple[str, ...] = (),
        seconds: float = 60.0,
    ) -> bytes:
        """Run python3 of `image` as root of an isolated container and return its stdout."""
        return await self.output(
            "run", "--rm", "--pull", "never", "--network", "none", "--read-only",
            "--cap-drop", "all", "--security-opt", "no-new-privileges", "--log-driver", "none",
            "--env", "PYTHONHASHSEED=0", "--user", "0:0", "--entrypoint", "python3",
            *self.limits(), *self._tool_words(), *(w for m in mounts for w in ("--volume", m)),
            self.image_id(image), *arguments, seconds=seconds,
        )  # fmt: skip

    def _tool_words(self) -> tuple[str, ...]:
        return ()

    @abc.abstractmethod
    def image_id(self, image: AgentImage) -> str:
        """Return the id under which the engine holds exactly `image` and nothing else."""

    @abc.abstractmethod
    def require_known_config(self, image: AgentImage) -> None:
        """Raise `ConfigurationError` where nothing here fixes the config of `image`."""

    @abc.abstractmethod
    async def find_image(self, name: str) -> HeldImage | None:
        """Return the image called `name`, None where there is none; never pulls."""

    @abc.abstractmethod
    async def find_config(self, digest: str) -> str | None:
        """Return the config digest of the held image whose manifest has `digest` (hex)."""

    @abc.abstractmethod
    async def load(self, stored: StoredImage) -> None:
        """Give the engine every blob of `stored`."""

    @abc.abstractmethod
    async def pull(self, name: str, *, seconds: float) -> int:
        """Fetch `name` from its registry; return the status."""

    @abc.abstractmethod
    async def owned(self, label: str) -> tuple[tuple[str, str, str], ...]:
        """Return id, name and label value of every container that has `label`."""

    @abc.abstractmethod
    def networks(self, directory: NodeDirectory, label: str) -> Networks:
        """Return what makes the network namespaces of the runs of one node."""

    @abc.abstractmethod
    async def launcher(self, plan: ContainerPlan) -> tuple[str, ...]:
        """
        Do what must come before, and return the command that starts the container of `plan`.

        The pipes of that command are the container's.
        """

    @abc.abstractmethod
    async def find_process(self, plan: ContainerPlan) -> int | None:
        """Return the process id of the container's first process, None before it has one."""

    @abc.abstractmethod
    async def find_ending(self, name: str, status: int) -> Ending | None:
        """
        Return how the container `name` ended, whose command ended with `status`.

        None where the engine cannot tell, or failed to start it for reasons of its own.
        """


def ulimits(processes: int) -> tuple[str, ...]:
    """Return `--ulimit` values that a process with our hard limits may set."""
    # An engine's own defaults may lie above what this process may set. Naming values at or below
    # the hard limits always works. `nproc` counts all processes of a user id on the machine: the
    # bound on a run is its pids cgroup.
    found = []
    for name, kind, wish in (
        ("nofile", resource.RLIMIT_NOFILE, _OPEN_FILES),
        ("nproc", resource.RLIMIT_NPROC, processes),
    ):
        hard = resource.getrlimit(kind)[1]
        value = wish if hard == resource.RLIM_INFINITY else min(wish, hard)
        found.append(f"{name}={value}:{value}")
    return (*found, "core=0:0")


async def execute(
    command: tuple[str, ...], seconds: float, *, stdin: IO[bytes] | int = asyncio.subprocess.DEVNULL
) -> tuple[int, bytes, bytes]:
    """Run `command`; return status, stdout, stderr. `Unavailable` when it hangs or cannot start."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=stdin,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise Unavailable(f"container engine: cannot start it ({error.strerror})") from error
    try:
        async with asyncio.timeout(seconds):
            out, err = await process.communicate()
    except TimeoutError as error:
        raise Unavailable(f"container engine: no answer within {seconds:.0f} s") from error
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    return process.returncode or 0, out, err
