"""The base of agent images: Python and the C library, nothing else.

docs/protocols/agent-image.md §6. Two ways, and the result says which one it took: the pinned image
of a registry, or Debian packages fetched by mmdebstrap and unpacked without running anything.
There is no shell and no package manager in the second. A base is made once per machine and cached
with a record of how; two machines that took the packages at different times may differ, which is
why the base digest stands in what `confide build` prints and an agent.toml can pin it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from confide.adapters.bytecode import compile_tree
from confide.adapters.engine_images import load_image
from confide.adapters.oci_store import BlobSink, StoredImage, read_image, write_image
from confide.agents.layer import LayerEntry, write_layer
from confide.agents.oci import (
    MEDIA_CONFIG,
    Descriptor,
    ImageConfig,
    build_config,
    build_manifest,
)
from confide.errors import ConfigurationError, FormatError, Unavailable
from confide.wire.json import jcs

if TYPE_CHECKING:
    from collections.abc import Callable

    from confide.adapters.engine import Engine
    from confide.agents.reference import PinnedReference

__all__ = ["BaseImage", "default_base", "pinned_base"]


_SUITE: Final = "bookworm"
_PYTHON: Final = "3.11"
_GLIBC_MINOR: Final = 36
_PACKAGES: Final = (
    "base-files", "libc6", "libpython3.11-minimal", "libpython3.11-stdlib", "libstdc++6",
    "netbase", "python3.11-minimal",
)  # fmt: skip
# What the packages bring that no agent runs: device nodes, package managers, manuals.
_DROPPED: Final = (
    "dev", "boot", "home", "media", "mnt", "opt", "root", "srv", "bin/tar", "sbin", "etc/apt",
    "etc/cron.daily", "etc/dpkg", "etc/fstab", "etc/hostname", "etc/resolv.conf", "etc/logrotate.d",
    "etc/profile.d", "etc/rmt", "etc/skel", "etc/update-motd.d", "lib/systemd", "usr/bin/dpkg",
    "usr/bin/dpkg-deb", "usr/bin/dpkg-divert", "usr/bin/dpkg-maintscript-helper",
    "usr/bin/dpkg-query", "usr/bin/dpkg-realpath", "usr/bin/dpkg-split",
    "usr/bin/dpkg-statoverride", "usr/bin/dpkg-trigger", "usr/bin/mawk",
    "usr/bin/update-alternatives", "usr/games", "usr/include", "usr/lib/binfmt.d", "usr/lib/mime",
    "usr/lib/python3.11/lib2to3", "usr/lib/python3.11/pydoc_data", "usr/libexec", "usr/sbin",
    "usr/share/base-files", "usr/share/binfmts", "usr/share/bug", "usr/share/dict", "usr/share/doc",
    "usr/share/dpkg", "usr/share/gcc", "usr/share/gdb", "usr/share/info", "usr/share/lintian",
    "usr/share/locale", "usr/share/man", "usr/share/polkit-1", "usr/share/readline", "usr/src",
    "var/backups", "var/cache", "var/lib/apt", "var/lib/dpkg/info", "var/lib/dpkg/alternatives",
    "var/log",
)  # fmt: skip
_ADDED: Final = (
    LayerEntry("usr/bin/python3", b"python3.11", kind="link"),
    LayerEntry("usr/bin/python", b"python3.11", kind="link"),
    LayerEntry("etc/passwd", b"root:x:0:0::/:/\nagent:x:65532:65532::/tmp:/\n"),
    LayerEntry("etc/group", b"root:x:0:\nagent:x:65532:\n"),
    LayerEntry("etc/nsswitch.conf", b"passwd: files\ngroup: files\nhosts: files dns\n"),
    *(LayerEntry(path, kind="directory") for path in ("agent", "dev", "input", "output", "root")),
)
_MAKE_SECONDS = 900.0
# Unpacked packages leave no database: the names of the archives are the record of the versions.
_LISTING: Final = "var/cache/packages"
_LIST_HOOK: Final = f'ls "$1/var/cache/apt/archives" > "$1/{_LISTING}"'
# From: reproducible-builds.org SOURCE_DATE_EPOCH; the value is arbitrary, its constancy is not.
_EPOCH: Final = "0"


@dataclass(frozen=True, slots=True)
class BaseImage:
    """
    A base and how it was made.

    `origin` is the way; `python` and `glibc_minor` say what wheels must fit; `packages` lists
    `name=version` for the Debian way and is empty otherwise.
    """

    stored: StoredImage
    origin: Literal["debian-packages", "registry", "layout"]
    python: str
    glibc_minor: int
    packages: tuple[str, ...]


async def default_base(
    engine: Engine, *, cache: Path, progress: Callable[[str], None]
) -> BaseImage:
    """
    Return the base made from Debian packages, from the cache where there is one.

    `ConfigurationError` when mmdebstrap is missing; `Unavailable` when packages cannot be fetched.
    """
    recipe = jcs(
        {"suite": _SUITE, "packages": list(_PACKAGES), "dropped": list(_DROPPED), "version": 1}
    )
    folder = cache / "base" / hashlib.sha256(recipe).hexdigest()
    record = folder / "base.json"
    if await asyncio.to_thread(record.is_file):
        return await asyncio.to_thread(_read_record, folder)
    if shutil.which("mmdebstrap") is None:
        raise ConfigurationError(
            "no base image: install mmdebstrap (Debian: apt-get install mmdebstrap), "
            "or name a base by digest in agent.toml"
        )
    progress("base image: no pinned registry image, taking Debian packages")
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as work:
        archive = Path(work) / "packages.tar"
        await _unpack_packages(archive)
        stored, packages = await asyncio.to_thread(_first_layer, archive, folder, Path(work))
        progress("base image: compiling the standard library")
        await load_image(engine, stored.image)
        compiled = await compile_tree(engine, stored.image, f"/usr/lib/python{_PYTHON}")
        final = await asyncio.to_thread(_second_layer, stored, compiled, folder, Path(work))
    await asyncio.to_thread(_write_record, record, final, packages)
    return await asyncio.to_thread(_read_record, folder)


async def pinned_base(engine: Engine, reference: PinnedReference, *, cache: Path) -> BaseImage:
    """
    Return the base that `reference` pins: a local layout, or what its registry answers.

    `Unavailable` where the registry does not answer within seconds.
    """
    if reference.layout:
        stored = await asyncio.to_thread(read_image, Path(reference.name), reference.digest)
        origin: Literal["registry", "layout"] = "layout"
    else:
        stored = await _pull_layout(reference, cache / "base" / "registry")
        origin = "registry"
    await load_image(engine, stored.image)
    program = "import os, sys; print(*sys.version_info[:2], os.confstr('CS_GNU_LIBC_VERSION'))"
    answer = (await engine.run_tool(stored.image, "-I", "-c", program)).decode("utf-8", "replace")
    words = answer.split()
    if len(words) != 4 or words[2] != "glibc":
        raise ConfigurationError("the base image has no python3 on glibc")
    minor = int(words[3].partition(".")[2])
    return BaseImage(stored, origin, f"{words[0]}.{words[1]}", minor, ())


async def _pull_layout(reference: PinnedReference, store: Path) -> StoredImage:
    target = store / reference.digest
    if await asyncio.to_thread(target.is_dir):
        return await asyncio.to_thread(read_image, target, reference.digest)
    if shutil.which("skopeo") is None:
        raise ConfigurationError(
            "a base from a registry needs skopeo (Debian: apt-get install skopeo); "
            "or name a local layout as oci:<path>@sha256:<digest>"
        )
    await asyncio.to_thread(store.mkdir, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=store) as work:
        fetched = Path(work) / "image"
        status = await _run_program(
            ("skopeo", "--command-timeout", "20s", "copy", "--preserve-digests", "--quiet",
             f"docker://{reference}", f"oci:{fetched}"), 60.0,
        )  # fmt: skip
        if status != 0:
            raise Unavailable("base image: no registry answers with the pinned image")
        await asyncio.to_thread(fetched.rename, target)
    return await asyncio.to_thread(read_image, target, reference.digest)


async def _unpack_packages(archive: Path) -> None:
    status = await _run_program(
        (
            "env", f"SOURCE_DATE_EPOCH={_EPOCH}", "mmdebstrap", "--quiet", "--variant=extract",
            f"--extract-hook={_LIST_HOOK}",
            f"--include={','.join(_PACKAGES)}", _SUITE, str(archive),
        ),
        _MAKE_SECONDS,
    )  # fmt: skip
    if status != 0:
        raise Unavailable("base image: mmdebstrap failed; are Debian packages reachable?")


async def _run_program(command: tuple[str, ...], seconds: float) -> int:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(seconds):
            return await process.wait()
    except TimeoutError as error:
        raise Unavailable(f"{command[0]}: not done within {seconds:.0f} s") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def _first_layer(archive: Path, store: Path, work: Path) -> tuple[StoredImage, tuple[str, ...]]:
    entries: dict[str, LayerEntry] = {entry.path: entry for entry in _ADDED}
    listing, architecture = "", ""
    with tarfile.open(archive) as packages:
        for info in packages:
            path = info.name.removeprefix("./").rstrip("/")
            if path in {"", "."}:
                continue
            if path == "var/lib/dpkg/arch":
                architecture = _read(packages, info).decode().strip()
            if path == _LISTING:
                listing = _read(packages, info).decode("utf-8", "replace")
            if _is_dropped(path):
                continue
            entries[path] = _entry(packages, info, path)
    empty = ImageConfig(architecture or "amd64", "linux", "", (), ())
    stored = _add_layer(None, empty, tuple(entries.values()), store, work / "first")
    return stored, _package_list(listing)


def _second_layer(
    base: StoredImage, compiled: tuple[LayerEntry, ...], store: Path, work: Path
) -> StoredImage:
    return _add_layer(base, base.config, compiled, store, work / "second")


def _add_layer(
    base: StoredImage | None,
    config: ImageConfig,
    entries: tuple[LayerEntry, ...],
    store: Path,
    blob: Path,
) -> StoredImage:
    with BlobSink(blob) as sink:
        write_layer(entries, sink)
        layer = sink.finish()
    lower = base.manifest.layers if base is not None else ()
    document = build_config(
        config,
        diff_ids=(layer.digest,),
        entry=("python3",),
        environment=("PATH=/usr/local/bin:/usr/bin:/bin",),
        labels=(),
    )
    manifest = build_manifest(Descriptor.of(MEDIA_CONFIG, document), (*lower, layer))
    layers = {layer.digest: blob}
    if base is not None:
        layers |= {item.digest: base.blob(item.digest) for item in lower}
    return write_image(store, manifest=manifest, config=document, layers=layers)


def _entry(archive: tarfile.TarFile, info: tarfile.TarInfo, path: str) -> LayerEntry:
    if info.isdir():
        return LayerEntry(path, kind="directory")
    if info.issym():
        return LayerEntry(path, info.linkname.encode(), kind="link")
    return LayerEntry(path, _read(archive, info), executable=bool(info.mode & 0o100))


def _read(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(info)
    if file is None:
        raise Unavailable("base image: the packages hold something that is not a plain file")
    return file.read()


def _is_dropped(path: str) -> bool:
    return any(path == name or path.startswith(f"{name}/") for name in _DROPPED)


def _package_list(listing: str) -> tuple[str, ...]:
    # From: deb(5) file names: name_version_architecture.deb, with %3a for the colon of an epoch.
    names = [line.split("_") for line in listing.splitlines() if line.endswith(".deb")]
    return tuple(sorted(f"{n[0]}={n[1].replace('%3a', ':')}" for n in names if len(n) == 3))


def _write_record(record: Path, image: StoredImage, packages: tuple[str, ...]) -> None:
    document = {
        "origin": "debian-packages",
        "suite": _SUITE,
        "digest": image.manifest.digest,
        "packages": list(packages),
    }
    temporary = record.with_suffix(".new")
    temporary.write_bytes(jcs(document))
    temporary.rename(record)


def _read_record(folder: Path) -> BaseImage:
    try:
        document = json.loads((folder / "base.json").read_bytes())
        digest, packages = str(document["digest"]), tuple(document["packages"])
        stored = read_image(folder / digest, digest)
    except (OSError, ValueError, KeyError, TypeError, FormatError, Unavailable) as error:
        raise ConfigurationError(
            "the cached base image is damaged; remove the directory base/ of the cache"
        ) from error
    return BaseImage(stored, "debian-packages", _PYTHON, _GLIBC_MINOR, packages)
