"""Docker: the engine where there is no Podman.

docs/protocols/sandbox.md §8. Three things differ from Podman. A container can only join the
network namespace of another one (`docker_holder`). A daemon does the work: it must be of this
machine, and must be able to enforce every limit. And there are two ways to store images: the
classic one names an image by the digest of its config, that of containerd by its manifest.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from confide.adapters.docker_holder import HolderNetworks, holder_image
from confide.adapters.engine_base import (
    PROCESS_LIMITS,
    ContainerPlan,
    Ending,
    Engine,
    HeldImage,
    execute,
    ulimits,
)
from confide.agents.oci import MEDIA_MANIFEST
from confide.errors import ConfigurationError, Unavailable
from confide.wire.json import jcs

if TYPE_CHECKING:
    from confide.adapters.oci_store import StoredImage
    from confide.adapters.run_dir import NodeDirectory
    from confide.adapters.run_network import Networks
    from confide.agents.sandbox import AgentImage
    from confide.wire.json import JsonValue

__all__ = ["Docker", "probe_docker"]

_PROBE_SECONDS: Final = 30.0
_LOAD_SECONDS: Final = 600.0
# The client's own configuration can put proxy variables with credentials into every container.
_NO_CONFIG: Final = "/nonexistent/docker-config"
# From: Docker Engine API 1.41, "SystemInfo" of GET /info.
_LIMITS: Final = ("MemoryLimit", "SwapLimit", "PidsLimit", "CpuCfsQuota")
_CONTAINERD_STORE: Final = "io.containerd.snapshotter"
_NEVER_STARTED: Final = "0001-01-01T00:00:00Z"
_MIN_VERSION: Final = 20


@dataclass(frozen=True, slots=True)
class Docker(Engine):
    """Docker. `by_manifest`: images are named by their manifest; `holder`: the holders' image."""

    name: ClassVar[str] = "Docker"
    removal: ClassVar[tuple[str, ...]] = ("--force", "--volumes")

    by_manifest: bool
    holder: str

    def image_id(self, image: AgentImage) -> str:
        """See `Engine`: the digest of the manifest or of the config, whatever this store names."""
        return f"sha256:{image.digest if self.by_manifest else image.config}"

    def require_known_config(self, image: AgentImage) -> None:
        """See `Engine`: a store that names manifests does not tell their configs."""
        if self.by_manifest and not image.layout:
            raise ConfigurationError(
                "docker: with its containerd image store an image must come from an OCI layout "
                "(oci:<path>@sha256:<digest>); the digest of its config is not told otherwise"
            )

    async def find_image(self, name: str) -> HeldImage | None:
        """See `Engine`."""
        template = "{{.Id}} {{json .Config.Volumes}} {{json .RepoDigests}}"
        answer = await self.attempt("image", "inspect", "--format", template, name)
        if answer is None:
            return None
        # The names of volumes may hold anything; JSON after JSON is read by its own grammar.
        ident, rest = answer.split(" ", 1)
        volumes, end = json.JSONDecoder().raw_decode(rest)
        found = [str(item).rpartition("@sha256:")[2] for item in json.loads(rest[end:]) or []]
        ident = ident.removeprefix("sha256:")
        own = (ident,) if self.by_manifest else ()
        return HeldImage(ident, tuple(dict.fromkeys((*own, *found))), volumes=bool(volumes))

    async def find_config(self, digest: str) -> str | None:
        """See `Engine`; always None where images are named by their manifest."""
        if self.by_manifest:
            return None
        listing = await self.call(
            "image", "ls", "--no-trunc", "--digests", "--format", "{{.ID}} {{.Digest}}"
        )
        for line in listing.splitlines():
            config, _, found = line.partition(" ")
            if found == f"sha256:{digest}":
                return config.removeprefix("sha256:")
        return None

    async def load(self, stored: StoredImage) -> None:
        """See `Engine`. The archive goes through a pipe, never to a disk of ours."""
        reading, writing = os.pipe()
        with os.fdopen(reading, "rb") as source:
            feeding = asyncio.ensure_future(asyncio.to_thread(_feed, stored, writing))
            try:
                status, _out, _err = await execute(
                    self.command("load", "--quiet"), _LOAD_SECONDS, stdin=source
                )
            finally:
                source.close()
                await asyncio.gather(feeding, return_exceptions=True)
        if status != 0:
            raise Unavailable(f"container engine: load failed with status {status}")

    async def pull(self, name: str, *, seconds: float) -> int:
        """See `Engine`. The one call that may use the credentials in the client's configuration."""
        command = (self.program, *self.prefix[2:], "pull", "--quiet", name)
        return (await execute(command, seconds))[0]

    async def owned(self, label: str) -> tuple[tuple[str, str, str], ...]:
        """See `Engine`."""
        listing = await self.call(
            "ps", "--all", "--no-trunc", "--filter", f"label={label}", "--format",
            f'{{{{.ID}}}} {{{{.Names}}}} {{{{.Label "{label}"}}}}',
        )  # fmt: skip
        found = [line.split(" ") for line in listing.splitlines()]
        return tuple((words[0], words[1], words[2]) for words in found if len(words) == 3)

    def networks(self, directory: NodeDirectory, label: str) -> Networks:
        """See `Engine`."""
        return HolderNetworks(self, self.holder, directory, label)

    async def launcher(self, plan: ContainerPlan) -> tuple[str, ...]:
        """See `Engine`. Two steps, so that warnings do not land in the agent's stderr."""
        creating = asyncio.ensure_future(self.call(
            "create", "--name", plan.name, "--network", plan.network, "--ipc", "private",
            "--init=false", *(("--interactive",) if plan.interactive else ()),
            *plan.words, plan.image, *plan.command,
        ))  # fmt: skip
        try:
            await asyncio.shield(creating)
        except asyncio.CancelledError:
            # The daemon goes on without its client; the container must exist to be removed.
            await asyncio.gather(creating, return_exceptions=True)
            raise
        interactive = ("--interactive",) if plan.interactive else ()
        return self.command("start", "--attach", *interactive, plan.name)

    async def find_process(self, plan: ContainerPlan) -> int | None:
        """See `Engine`."""
        answer = await self.attempt(
            "container", "inspect", "--format", "{{.State.Pid}}", plan.name, seconds=10.0
        )
        word = (answer or "").strip()
        return int(word) if word.isdecimal() and int(word) > 0 else None

    async def find_ending(self, name: str, status: int) -> Ending | None:
        """See `Engine`. The daemon's word counts: its client may have lost the connection."""
        del status
        template = "{{.State.Status}} {{.State.OOMKilled}} {{.State.ExitCode}} {{.State.StartedAt}}"
        answer = await self.attempt("container", "inspect", "--format", template, name)
        words = (answer or "").split()
        if len(words) != 4:
            return None
        state, killed, code, started = words
        if started == _NEVER_STARTED:
            # From: docker-run(1), "Exit Status": 126 and 127 are about the command.
            return Ending(out_of_memory=False, status=None) if code in {"126", "127"} else None
        if state != "exited":
            return None
        return Ending(killed == "true", int(code))


async def probe_docker(program: str) -> Docker:
    """
    Find out whether the Docker daemon can keep agents in, and how it has to be called.

    Raises `ConfigurationError` that says what is missing.
    """
    host = await _local_host(program)
    prefix = ("--config", _NO_CONFIG, "--host", host)
    status, out, _err = await execute(
        (program, *prefix, "info", "--format", "{{json .}}"), _PROBE_SECONDS
    )
    try:
        facts = json.loads(out) if status == 0 else {}
    except ValueError as error:
        raise ConfigurationError("docker info answers nonsense: another program?") from error
    version = str(facts.get("ServerVersion") or "")
    if not version:
        raise ConfigurationError("docker is installed but its daemon does not answer; start it")
    _require_able(facts, version)
    failures = []
    with holder_image() as stored:
        for processes in PROCESS_LIMITS:
            engine = Docker(
                program, version, prefix, ulimits(processes), _by_manifest(facts), holder=""
            )
            holder = engine.image_id(stored.image)
            if await engine.find_image(holder) is None:
                await engine.load(stored)
            why = await _runs_container(engine, holder)
            if why is None:
                return Docker(program, version, prefix, engine.ulimits, engine.by_manifest, holder)
            failures.append(why)
    raise ConfigurationError(f"docker cannot start a container here: {'; '.join(failures)}")


async def _local_host(program: str) -> str:
    # The client knows where its daemon is from the environment and its own configuration.
    status, out, _err = await execute(
        (program, "context", "inspect", "--format", "{{.Endpoints.docker.Host}}"), _PROBE_SECONDS
    )
    host = out.decode("utf-8", "replace").strip()
    if status != 0:
        raise ConfigurationError("docker context inspect fails: the installation is broken")
    if not host.startswith("unix://"):
        raise ConfigurationError(
            "docker's daemon is not on this machine (its address is no unix socket): agents need "
            "the node's own machine; set DOCKER_HOST to a local socket or install Podman"
        )
    return host


def _require_able(facts: dict[str, JsonValue], version: str) -> None:
    major = version.partition(".")[0]
    if not major.isdecimal() or int(major) < _MIN_VERSION:
        raise ConfigurationError(f"docker {version} is too old: at least {_MIN_VERSION}.10")
    if (facts.get("OSType"), facts.get("Architecture")) != ("linux", "x86_64"):
        raise ConfigurationError("docker is used on Linux on x86-64 only; install Podman")
    missing = [name for name in _LIMITS if facts.get(name) is not True]
    if missing:
        raise ConfigurationError(
            f"docker cannot enforce every limit here ({', '.join(missing)} missing): enable the "
            "kernel's control groups (with version 1 also swapaccount=1), or install Podman"
        )
    options = facts.get("SecurityOptions")
    words = [str(item) for item in options] if isinstance(options, list) else []
    kinds = {word.partition(",")[0] for word in words}
    if "name=seccomp" not in kinds or any("profile=unconfined" in word for word in words):
        raise ConfigurationError("docker runs without a seccomp filter here; agents need one")
    for kind in ("name=rootless", "name=userns"):
        if kind in kinds:
            raise ConfigurationError(
                f"docker maps user ids here ({kind.removeprefix('name=')}), which the directories "
                "of a run do not follow; use a daemon without, or install Podman"
            )


def _by_manifest(facts: dict[str, JsonValue]) -> bool:
    status = facts.get("DriverStatus")
    pairs = status if isinstance(status, list) else []
    found = [pair[1] for pair in pairs if isinstance(pair, list) and pair[:1] == ["driver-type"]]
    return any(str(value).startswith(_CONTAINERD_STORE) for value in found)


async def _runs_container(engine: Docker, image: str) -> str | None:
    # The program does not exist: the runtime has made mounts, groups and limits when it says so.
    name = f"confide-probe-{os.getpid()}"
    try:
        status, _out, err = await execute(
            engine.command(
                "run", "--name", name, "--pull", "never", "--network", "none",
                "--log-driver", "none", "--init=false", "--memory", "64m", "--pids-limit", "8",
                *engine.limits(), "--workdir", "/", "--entrypoint", "/nothing", image,
            ), _PROBE_SECONDS,
        )  # fmt: skip
    finally:
        await engine.remove(name)
    # From: docker-run(1), "Exit Status": the command was not found.
    if status == 127:
        return None
    lines = [line for line in err.decode("utf-8", "replace").splitlines() if "rror" in line]
    return lines[0][:300] if lines else f"status {status}"


def _feed(stored: StoredImage, writing: int) -> None:
    # A layout and the older format in one archive over the same files: `manifest.json` is what the
    # classic store reads (From: moby image/spec/v1.2), `index.json` what containerd prefers.
    manifest = stored.manifest
    name = f"localhost/confide/image:{manifest.digest}"
    blobs = (manifest.digest, manifest.config.digest, *(item.digest for item in manifest.layers))
    size = stored.blob(manifest.digest).stat().st_size
    entry: dict[str, JsonValue] = {
        "mediaType": MEDIA_MANIFEST,
        "digest": f"sha256:{manifest.digest}",
        "size": size,
        "annotations": {"io.containerd.image.name": name},
    }
    layers: list[JsonValue] = [f"blobs/sha256/{item.digest}" for item in manifest.layers]
    older: JsonValue = [
        {
            "Config": f"blobs/sha256/{manifest.config.digest}",
            "RepoTags": [name],
            "Layers": layers,
        }
    ]
    # The engine may close its end early; its status says what that meant.
    with (
        contextlib.suppress(BrokenPipeError),
        os.fdopen(writing, "wb") as pipe,
        tarfile.open(fileobj=pipe, mode="w|", format=tarfile.PAX_FORMAT) as archive,
    ):
        for path, raw in (
            ("oci-layout", b'{"imageLayoutVersion":"1.0.0"}'),
            ("index.json", jcs({"schemaVersion": 2, "manifests": [entry]})),
            ("manifest.json", jcs(older)),
        ):
            info = tarfile.TarInfo(path)
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))
        for digest in dict.fromkeys(blobs):
            archive.add(stored.blob(digest), f"blobs/sha256/{digest}")
