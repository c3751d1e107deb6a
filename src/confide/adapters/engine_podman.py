"""Podman: the engine of choice. It joins a network namespace that we prepared.

Which OCI runtime works and which resource limits a process here may set differ between machines
(a process without CAP_SYS_RESOURCE cannot raise a hard limit, which is what engines do unasked).
Both are found out by creating an empty container once per process; nothing is configured.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from confide.adapters.engine_base import (
    PROCESS_LIMITS,
    ContainerPlan,
    Ending,
    Engine,
    HeldImage,
    execute,
    ulimits,
)
from confide.adapters.run_network import PreparedNetworks
from confide.agents.oci import MEDIA_MANIFEST, Descriptor, image_index
from confide.errors import ConfigurationError

if TYPE_CHECKING:
    from confide.adapters.oci_store import StoredImage
    from confide.adapters.run_dir import NodeDirectory
    from confide.adapters.run_network import Networks
    from confide.agents.sandbox import AgentImage

__all__ = ["Podman", "probe_podman"]

_RUNTIMES: tuple[str | None, ...] = (None, "crun", "runc")
_PROBE_SECONDS = 30.0
_LOAD_SECONDS = 600.0
_WORK = Path("/dev/shm")  # noqa: S108 - holds two small documents and a link for a moment


@dataclass(frozen=True, slots=True)
class Podman(Engine):
    """Podman. An image id is the digest of its config."""

    name: ClassVar[str] = "Podman"
    removal: ClassVar[tuple[str, ...]] = ("--force", "--volumes", "--time", "0")

    def _tool_words(self) -> tuple[str, ...]:
        return ("--http-proxy=false", "--image-volume=ignore")

    def image_id(self, image: AgentImage) -> str:
        """See `Engine`: the config digest."""
        return image.config

    def require_known_config(self, image: AgentImage) -> None:
        """See `Engine`: the id is the config digest."""

    async def find_image(self, name: str) -> HeldImage | None:
        """See `Engine`."""
        # A volume of the image is not an obstacle: `--image-volume=ignore` makes none.
        template = "{{.Id}} {{.Digest}} {{json .RepoDigests}}"
        answer = await self.attempt("image", "inspect", "--format", template, name)
        if answer is None:
            return None
        config, digest, rest = answer.split(" ", 2)
        others = [str(item).rpartition("@sha256:")[2] for item in json.loads(rest) or []]
        digests = dict.fromkeys((digest.removeprefix("sha256:"), *others))
        return HeldImage(config.removeprefix("sha256:"), tuple(digests), volumes=False)

    async def find_config(self, digest: str) -> str | None:
        """See `Engine`."""
        listing = await self.call("image", "ls", "--no-trunc", "--format", "{{.ID}} {{.Digest}}")
        for line in listing.splitlines():
            config, _, found = line.partition(" ")
            if found == f"sha256:{digest}":
                return config.removeprefix("sha256:")
        return None

    async def load(self, stored: StoredImage) -> None:
        """See `Engine`."""
        manifest = stored.manifest
        work = _WORK / f"confide-load-{os.getpid()}-{manifest.digest}"
        config = manifest.config.digest
        try:
            await asyncio.to_thread(_present, stored, work)
            await self.call("pull", "--quiet", f"oci:{work}", seconds=_LOAD_SECONDS)
            await self.call("tag", config, f"localhost/confide/image:{manifest.digest}")
            await self.quietly("untag", config, f"localhost{work}")
        finally:
            await asyncio.to_thread(shutil.rmtree, work, ignore_errors=True)

    async def pull(self, name: str, *, seconds: float) -> int:
        """See `Engine`."""
        return await self.quietly("pull", "--quiet", name, seconds=seconds)

    async def owned(self, label: str) -> tuple[tuple[str, str, str], ...]:
        """See `Engine`."""
        listing = await self.call(
            "ps", "--all", "--no-trunc", "--filter", f"label={label}", "--format",
            f'{{{{.ID}}}} {{{{.Names}}}} {{{{index .Labels "{label}"}}}}',
        )  # fmt: skip
        found = [line.split(" ") for line in listing.splitlines()]
        return tuple((words[0], words[1], words[2]) for words in found if len(words) == 3)

    def networks(self, directory: NodeDirectory, label: str) -> Networks:
        """See `Engine`."""
        del directory, label  # A namespace of ours needs no container, so nothing to label.
        return PreparedNetworks()

    async def launcher(self, plan: ContainerPlan) -> tuple[str, ...]:
        """See `Engine`: one command does it all."""
        return self.command(
            "run", "--name", plan.name, "--network", plan.network,
            "--pidfile", str(plan.directory / "pid"), "--read-only-tmpfs=false",
            "--http-proxy=false", "--systemd=false", "--hostname", "agent", "--no-hosts",
            "--image-volume=ignore", *(("--interactive",) if plan.interactive else ()),
            *plan.words, plan.image, *plan.command,
        )  # fmt: skip

    async def find_process(self, plan: ContainerPlan) -> int | None:
        """See `Engine`."""
        with contextlib.suppress(OSError, ValueError):
            return int((plan.directory / "pid").read_text(encoding="ascii"))
        return None

    async def find_ending(self, name: str, status: int) -> Ending | None:
        """See `Engine`."""
        answer = await self.attempt(
            "container", "inspect", "--format",
            "{{.State.OOMKilled}} {{.State.StartedAt.Unix}}", name,
        )  # fmt: skip
        words = (answer or "").split()
        if len(words) == 2 and (words[0] == "true" or int(words[1]) > 0):
            return Ending(words[0] == "true", status)
        # From: podman-run(1), "Exit Status": 126 and 127 are about the command, 125 is Podman's.
        return Ending(out_of_memory=False, status=None) if status in {126, 127} else None


async def probe_podman(program: str) -> Podman:
    """
    Find out how the Podman at `program` has to be called.

    Raises `ConfigurationError` that says what is wrong with it.
    """
    status, out, _err = await execute((program, "--version"), _PROBE_SECONDS)
    if status != 0:
        raise ConfigurationError("podman --version fails: the installation is broken")
    version = out.decode("ascii", "replace").strip().rpartition(" ")[2]
    failures: list[str] = []
    for runtime, processes in itertools.product(_RUNTIMES, PROCESS_LIMITS):
        if runtime is not None and shutil.which(runtime) is None:
            continue
        prefix = () if runtime is None else ("--runtime", runtime)
        engine = Podman(program, version, prefix, ulimits(processes))
        why = await _creates_container(engine)
        if why is None:
            return engine
        failures.append(f"{runtime or 'default runtime'}: {why}")
    raise ConfigurationError(
        "podman cannot create a container here; " + "; ".join(failures) + ". Install runc."
    )


async def _creates_container(engine: Podman) -> str | None:
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
                status, _out, err = await execute(command, _PROBE_SECONDS)
                if status != 0:
                    lines = err.decode("utf-8", "replace").strip().splitlines()
                    return lines[-1][:200] if lines else f"status {status}"
        finally:
            await engine.remove(name)
    return None


def _present(stored: StoredImage, work: Path) -> None:
    # A layout of exactly this image (one by others may hold more), at a path of ours: the engine
    # makes a name out of the path, and most paths do not survive that.
    digest = stored.manifest.digest
    size = stored.blob(digest).stat().st_size
    work.mkdir(mode=0o700, exist_ok=True)
    (work / "oci-layout").write_bytes(b'{"imageLayoutVersion":"1.0.0"}')
    (work / "index.json").write_bytes(image_index(Descriptor(MEDIA_MANIFEST, digest, size)))
    with contextlib.suppress(FileExistsError):
        (work / "blobs").symlink_to(stored.path.resolve() / "blobs")
