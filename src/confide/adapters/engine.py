"""The container engine as a command: found, probed, called.

Which OCI runtime works and which resource limits a process here may set differ between machines
(a process without CAP_SYS_RESOURCE cannot raise a hard limit, which is what engines do unasked).
Both are found out by creating an empty container once per process; nothing is configured.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import resource
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from confide.errors import ConfigurationError, Unavailable

__all__ = ["Engine", "probe_engine"]

_RUNTIMES: tuple[str | None, ...] = (None, "crun", "runc")
_OPEN_FILES = 1024
# The engine may lower its own hard limit before it starts the runtime: two tries.
_PROCESSES = (16384, 1024)
_PROBE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Engine:
    """
    A working engine: `program` is its path, `runtime` what had to be named (None: its default).

    `ulimits` are `--ulimit` values that this process may set.
    """

    program: str
    version: str
    runtime: str | None
    ulimits: tuple[str, ...]

    def command(self, *arguments: str) -> tuple[str, ...]:
        """Return the argument vector of one call."""
        runtime = () if self.runtime is None else ("--runtime", self.runtime)
        return (self.program, *runtime, *arguments)

    def limits(self) -> tuple[str, ...]:
        """Return the words that set resource limits on a container."""
        return tuple(word for value in self.ulimits for word in ("--ulimit", value))

    async def output(self, *arguments: str, seconds: float = 60.0) -> bytes:
        """Run the engine and return its stdout; `Unavailable` when it fails or hangs."""
        status, out, _err = await _execute(self.command(*arguments), seconds)
        if status != 0:
            raise Unavailable(f"container engine: {arguments[0]} failed with status {status}")
        return out

    async def call(self, *arguments: str, seconds: float = 60.0) -> str:
        """Like `output`, as text."""
        return (await self.output(*arguments, seconds=seconds)).decode("utf-8", "replace")

    async def attempt(self, *arguments: str, seconds: float = 60.0) -> str | None:
        """Like `call`, but None where the engine fails: for questions about what may be absent."""
        status, out, _err = await _execute(self.command(*arguments), seconds)
        return out.decode("utf-8", "replace") if status == 0 else None

    async def quietly(self, *arguments: str, seconds: float = 60.0) -> int:
        """Run the engine and return its status, for calls that may find nothing to do."""
        status, _out, _err = await _execute(self.command(*arguments), seconds)
        return status


async def probe_engine() -> Engine:
    """
    Find an engine that can create a container here, and how it has to be called.

    Raises `ConfigurationError` that says what to install.
    """
    program = shutil.which("podman")
    if program is None:
        docker = " Docker alone is not enough: it cannot join a prepared network namespace."
        raise ConfigurationError(
            "no container engine: install Podman and runc (Debian: apt-get install podman runc)."
            + (docker if shutil.which("docker") else "")
        )
    status, out, _err = await _execute((program, "--version"), _PROBE_SECONDS)
    if status != 0:
        raise ConfigurationError("podman --version fails: the installation is broken")
    version = out.decode("ascii", "replace").strip().rpartition(" ")[2]
    failures: list[str] = []
    for runtime, processes in itertools.product(_RUNTIMES, _PROCESSES):
        if runtime is not None and shutil.which(runtime) is None:
            continue
        engine = Engine(program, version, runtime, _ulimits(processes))
        why = await _creates_container(engine)
        if why is None:
            return engine
        failures.append(f"{runtime or 'default runtime'}: {why}")
    raise ConfigurationError(
        "podman cannot create a container here; " + "; ".join(failures) + ". Install runc."
    )


def _ulimits(processes: int) -> tuple[str, ...]:
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


async def _creates_container(engine: Engine) -> str | None:
    # `init` runs the runtime's create: mounts, cgroups and limits are made, nothing is executed.
    with tempfile.TemporaryDirectory(prefix="confide-probe-") as empty:
        name = Path(empty).name
        program = Path(empty) / "nothing"
        program.touch()
        program.chmod(0o755)
        create = engine.command(
            "create", "--name", name, "--network", "none", "--log-driver", "none",
            "--memory", "64m", "--pids-limit", "8", *engine.limits(), "--rootfs", empty, "/nothing",
        )  # fmt: skip
        try:
            for command in (create, engine.command("init", name)):
                status, _out, err = await _execute(command, _PROBE_SECONDS)
                if status != 0:
                    lines = err.decode("utf-8", "replace").strip().splitlines()
                    return lines[-1][:200] if lines else f"status {status}"
        finally:
            await _execute(engine.command("rm", "-f", "-t", "0", name), _PROBE_SECONDS)
    return None


async def _execute(command: tuple[str, ...], seconds: float) -> tuple[int, bytes, bytes]:
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
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
