"""An agent folder becomes an image with one digest, wherever and whenever it is built.

docs/protocols/agent-image.md. The base layers stay as they are; on top come one layer of locked
packages with their bytecode, and one layer of the folder's own files. Everything that varies
between builders (times, owners, masks, paths, host Python) stays outside.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from confide.adapters.base_image import BaseImage, default_base, pinned_base
from confide.adapters.bytecode import compile_tree
from confide.adapters.engine_images import find_existing, load_image
from confide.adapters.oci_store import BlobSink, write_image
from confide.adapters.wheels import SITE, Target, fetch_wheels, unpack_wheels
from confide.agents.layer import LayerEntry, write_layer
from confide.agents.lockfile import canonical_lock, parse_lock
from confide.agents.manifest import AgentManifest, parse_agent_manifest
from confide.agents.names import parse_member_name
from confide.agents.oci import MEDIA_CONFIG, MEDIA_LAYER, Descriptor, build_config, build_manifest
from confide.errors import ConfigurationError, FormatError, Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from confide.adapters.engine import Engine
    from confide.agents.lockfile import LockedRequirement
    from confide.agents.sandbox import AgentImage

__all__ = ["BuiltAgent", "build_agent", "read_agent_manifest"]

_CLAUSE = "agent-image.md §3"
_MAX_CODE_BYTES: Final = 256 * 1024 * 1024
_MAX_CODE_FILES: Final = 10_000
_PACKAGES_VERSION: Final = b"confide/packages-layer/v1\0"


@dataclass(frozen=True, slots=True)
class BuiltAgent:
    """
    What a build gives.

    `base` is the SHA-256 of the base manifest, `base_origin` the way it was made (`registry`,
    `debian-packages`, `layout`), both empty for an existing image. `size_bytes` counts all layers.
    """

    manifest: AgentManifest
    image: AgentImage
    base: str
    base_origin: str
    size_bytes: int


def read_agent_manifest(folder: Path) -> AgentManifest:
    """Read `agent.toml` of `folder`. `ConfigurationError` where there is none; `FormatError`."""
    try:
        with (folder / "agent.toml").open("rb") as file:
            raw = file.read(1024 * 1024)
    except OSError as error:
        raise ConfigurationError(
            f"no agent.toml can be read in the folder ({error.strerror})"
        ) from (error)
    return parse_agent_manifest(raw)


async def build_agent(
    engine: Engine,
    folder: Path,
    *,
    store: Path,
    cache: Path,
    progress: Callable[[str], None],
) -> BuiltAgent:
    """
    Build the image of `folder` into `store`, an OCI layout a directory named by the digest.

    Equal folder content over an equal base gives an equal digest. Reads the network only for
    packages and bases that `cache` does not hold.
    """
    manifest = await asyncio.to_thread(read_agent_manifest, folder)
    if manifest.existing is not None:
        image = await find_existing(engine, manifest.existing)
        return BuiltAgent(manifest, image, "", "", 0)
    if manifest.base is None:
        base = await default_base(engine, cache=cache, progress=progress)
    else:
        base = await pinned_base(engine, manifest.base, cache=cache)
    progress(f"base image: {base.origin}, sha256:{base.stored.manifest.digest}")
    await load_image(engine, base.stored.image)
    packages = None
    if manifest.requirements is not None:
        lock = parse_lock(await asyncio.to_thread(_read_lock, folder, manifest.requirements))
        packages = await _packages_layer(engine, base, lock, cache=cache, progress=progress)
    return await asyncio.to_thread(_assemble, manifest, base, folder, packages, store)


async def _packages_layer(
    engine: Engine,
    base: BaseImage,
    lock: tuple[LockedRequirement, ...],
    *,
    cache: Path,
    progress: Callable[[str], None],
) -> Path:
    target = Target(base.stored.config.architecture, base.python, base.glibc_minor)
    name = hashlib.sha256(
        _PACKAGES_VERSION + bytes.fromhex(base.stored.manifest.digest) + canonical_lock(lock)
    ).hexdigest()
    layer = cache / "layers" / f"{name}.tar"
    if await asyncio.to_thread(layer.is_file):
        return layer
    progress(f"packages: fetching {len(lock)} locked wheels")
    wheels = await fetch_wheels(lock, target, cache=cache)
    entries = await asyncio.to_thread(unpack_wheels, wheels)
    progress("packages: compiling")
    with tempfile.TemporaryDirectory(prefix="confide-build-") as work:
        await asyncio.to_thread(_write_tree, Path(work), entries)
        compiled = await compile_tree(
            engine, base.stored.image, f"/{SITE}", overlay=Path(work) / SITE
        )
    await asyncio.to_thread(_write_cached, layer, (*entries, *compiled))
    return layer


def _read_lock(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"the requirements named in agent.toml cannot be read ({error.strerror})"
        ) from error


def _write_tree(root: Path, entries: tuple[LayerEntry, ...]) -> None:
    for entry in entries:
        path = root / entry.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(entry.data)
    # The compiler's container sees this tree whatever mask this process has.
    for path in (root, *root.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _write_cached(layer: Path, entries: tuple[LayerEntry, ...]) -> None:
    layer.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=layer.parent) as work:
        path = Path(work) / "layer"
        with BlobSink(path) as sink:
            write_layer(entries, sink)
            sink.finish()
        path.rename(layer)


def _assemble(
    manifest: AgentManifest, base: BaseImage, folder: Path, packages: Path | None, store: Path
) -> BuiltAgent:
    store.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=store) as work:
        code = Path(work) / "code"
        with BlobSink(code) as sink:
            write_layer(_code_entries(folder, manifest.leave_out), sink)
            added = [(sink.finish(), code)]
        if packages is not None:
            added.insert(0, (_describe(packages), packages))
        config = build_config(
            base.stored.config,
            diff_ids=tuple(layer.digest for layer, _path in added),
            entry=manifest.entry,
            environment=(f"PYTHONPATH=/{SITE}",),
            labels=(("org.opencontainers.image.title", manifest.name),),
        )
        lower = base.stored.manifest.layers
        document = build_manifest(
            Descriptor.of(MEDIA_CONFIG, config), (*lower, *(layer for layer, _path in added))
        )
        paths = {layer.digest: base.stored.blob(layer.digest) for layer in lower}
        paths |= {layer.digest: path for layer, path in added}
        stored = write_image(store, manifest=document, config=config, layers=paths)
    size = sum(layer.size for layer in stored.manifest.layers)
    return BuiltAgent(manifest, stored.image, base.stored.manifest.digest, base.origin, size)


def _describe(path: Path) -> Descriptor:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(1024 * 1024):
            digest.update(piece)
            size += len(piece)
    return Descriptor(MEDIA_LAYER, digest.hexdigest(), size)


def _code_entries(folder: Path, leave_out: tuple[str, ...]) -> tuple[LayerEntry, ...]:
    entries: list[LayerEntry] = []
    total = 0
    for path, name in _walk(folder, "", frozenset(leave_out)):
        info = path.lstat()
        if not stat.S_ISREG(info.st_mode):
            raise _refusal("the folder holds a link or a special file")
        total += info.st_size
        if total > _MAX_CODE_BYTES or len(entries) >= _MAX_CODE_FILES:
            raise _refusal(f"more than {_MAX_CODE_FILES} files or {_MAX_CODE_BYTES} bytes")
        executable = bool(info.st_mode & stat.S_IXUSR)
        entries.append(LayerEntry(f"agent/{name}", path.read_bytes(), executable=executable))
    return (*entries, LayerEntry("agent", kind="directory"))


def _walk(folder: Path, prefix: str, leave_out: frozenset[str]) -> Iterator[tuple[Path, str]]:
    for entry in sorted(os.scandir(folder), key=lambda item: item.name):
        name = f"{prefix}{entry.name}"
        hidden = entry.name.startswith(".") or entry.name == "__pycache__"
        if hidden or entry.name.endswith(".pyc") or name in leave_out:
            continue
        parse_member_name(name)
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), f"{name}/", leave_out)
        else:
            yield Path(entry.path), name


def _refusal(why: str) -> FormatError:
    return FormatError(f"agent folder: {why}", reason=Reason.AGENT_FORMAT, clause=_CLAUSE)
