"""Containers that hold a network namespace for Docker, and do nothing else.

docs/protocols/sandbox.md §5.5. Docker joins no prepared namespace, only that of a running
container. So each run gets a *holder*: a container with no network, no rights and one process that
sleeps. The node, root of the machine, enters its namespace and listens there before the agent
starts. The holder's image is made here: one program of nine bytes of code. It is part of the
measured software of the node, and no base image has to be present.

A spare holder is kept ready, because making one takes half a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from confide.adapters.netns import Namespace, join_namespace
from confide.adapters.oci_store import BlobSink, StoredImage, write_image
from confide.adapters.run_network import RunNetwork, finished
from confide.agents.layer import LayerEntry, write_layer
from confide.agents.oci import MEDIA_CONFIG, Descriptor, ImageConfig, build_config, build_manifest
from confide.agents.sandbox import RUN_UID
from confide.errors import ConfigurationError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from confide.adapters.engine_base import Engine
    from confide.adapters.run_dir import NodeDirectory

__all__ = ["HOLDER_PREFIX", "HolderNetworks", "enter_holder", "holder_image"]

HOLDER_PREFIX: Final = "confide-holder-"
# From: the System V ABI, ELF-64 object file format; its AMD64 supplement; linux/unistd_64.h.
_BASE: Final = 0x400000
_HEADER_BYTES: Final = 64 + 56
_CODE: Final = bytes.fromhex(
    "b822000000"  # mov eax, 34 (pause)
    "0f05"  # syscall
    "ebf7"  # jmp back to the start
)
_MARK: Final = "mark"


@contextlib.contextmanager
def holder_image() -> Iterator[StoredImage]:
    """Write the image of holders as a layout that exists inside this context. Always the same."""
    with tempfile.TemporaryDirectory(prefix="confide-holder-") as work:
        layer = Path(work) / "layer"
        with BlobSink(layer) as sink:
            write_layer((LayerEntry("pause", _program(), executable=True),), sink)
            described = sink.finish()
        empty = ImageConfig("amd64", "linux", "", (), ())
        config = build_config(
            empty, diff_ids=(described.digest,), entry=("/pause",), environment=(), labels=()
        )
        yield write_image(
            Path(work) / "store",
            manifest=build_manifest(Descriptor.of(MEDIA_CONFIG, config), (described,)),
            config=config,
            layers={described.digest: layer},
        )


def _program() -> bytes:
    size = _HEADER_BYTES + len(_CODE)
    # 64 bit, little endian, an executable for AMD64 with one program header and no sections.
    ident = b"\x7fELF" + bytes((2, 1, 1)) + bytes(9)
    entry = _BASE + _HEADER_BYTES
    head = struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, entry, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    # The whole file is one segment that can be read and executed.
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)
    return ident + head + segment + _CODE


class HolderNetworks:
    """Namespaces held by containers of one node, one of them ready in advance."""

    def __init__(self, engine: Engine, image: str, directory: NodeDirectory, label: str) -> None:
        self._engine = engine
        self._image = image
        self._directory = directory
        self._label = f"{label}={directory.mark}"
        self._lock = asyncio.Lock()
        self._spares: list[RunNetwork] = []
        self._refill: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Make the first spare. Raises what `open` raises."""
        async with self._lock:
            self._spares.append(await self._make())

    async def open(self) -> RunNetwork:
        """
        Return the spare, or a new one, and make the next spare behind the caller's back.

        `ConfigurationError` where containers are not processes of this machine.
        """
        async with self._lock:
            network = self._spares.pop() if self._spares else await finished(self._make())
        if self._refill is None or self._refill.done():
            self._refill = asyncio.ensure_future(self._fill())
        return network

    async def close(self) -> None:
        """Remove the spare."""
        # Not cancelled: the daemon goes on making what its client asked for.
        if self._refill is not None:
            await asyncio.gather(self._refill, return_exceptions=True)
        while self._spares:
            await self._spares.pop().close()

    async def _fill(self) -> None:
        # A failure shows when the next run makes its own.
        with contextlib.suppress(Unavailable, ConfigurationError):
            async with self._lock:
                if not self._spares:
                    self._spares.append(await self._make())

    async def _make(self) -> RunNetwork:
        # A new file gives a name that is new as well, and is what the holder shows us.
        prefix = f"{HOLDER_PREFIX}{self._directory.mark}-"
        handle, path = await asyncio.to_thread(tempfile.mkstemp, "", prefix, self._directory.path)
        os.close(handle)
        mark = Path(path)
        name = mark.name

        async def release() -> None:
            await self._engine.remove(name)
            await asyncio.to_thread(mark.unlink, missing_ok=True)

        try:
            await self._engine.call(*self._words(name, mark))
            pid = int(await self._engine.call("inspect", "--format", "{{.State.Pid}}", name))
            namespace = await asyncio.to_thread(enter_holder, pid, mark)
        except BaseException:
            await release()
            raise
        return RunNetwork(namespace, f"container:{name}", release)

    def _words(self, name: str, mark: Path) -> tuple[str, ...]:
        # The limits are room for the runtime's own first process; the program needs a page.
        return (
            "run", "--detach", "--name", name, "--label", self._label, "--pull", "never",
            "--network", "none", "--hostname", "agent", "--user", f"{RUN_UID}:{RUN_UID}",
            "--read-only", "--cap-drop", "all", "--security-opt", "no-new-privileges",
            "--log-driver", "none", "--init=false", "--memory", "64m", "--memory-swap", "64m",
            "--pids-limit", "32", "--shm-size", "65536", *self._engine.limits(), "--workdir", "/",
            "--mount", f"type=bind,source={mark},destination=/{_MARK},ro=true", self._image,
        )  # fmt: skip


def enter_holder(pid: int, mark: Path) -> Namespace:
    """
    Make the node's sockets in the namespace of process `pid`, which must show us our file `mark`.

    `ConfigurationError` where it does not; raises like `netns.join_namespace`.
    """
    # The directory pins the process: after its end nothing can be read through it, whoever gets
    # the number. Seeing our own file at its root proves that the daemon means this machine's
    # processes and files; a daemon elsewhere would send us into a stranger's namespace.
    try:
        handle = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _foreign() from error
    try:
        if not os.path.samestat(os.stat(f"root/{_MARK}", dir_fd=handle), mark.stat()):
            raise _foreign()
        namespace = os.open("ns/net", os.O_RDONLY | os.O_CLOEXEC, dir_fd=handle)
    except OSError as error:
        raise _foreign() from error
    finally:
        os.close(handle)
    try:
        return join_namespace(namespace)
    finally:
        os.close(namespace)


def _foreign() -> ConfigurationError:
    return ConfigurationError(
        "docker: its containers are not processes of this machine that we may look at (a daemon "
        "on another machine or in another container, or a node that is not root); install Podman"
    )
