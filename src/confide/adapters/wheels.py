"""Locked requirements become the entries of an image layer.

docs/protocols/agent-image.md §2. pip resolves and fetches wheels for the container's platform
(its own index configuration applies); what it fetched is hashed here again and unpacked here:
installing through pip writes the builder's paths into scripts and records. Console scripts and
the `data` and `headers` schemes are not installed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import shutil
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from confide.agents.layer import LayerEntry
from confide.agents.lockfile import LockedRequirement, canonical_lock
from confide.errors import FormatError, Reason, Unavailable

__all__ = [
    "SITE",
    "Target",
    "fetch_wheels",
    "unpack_wheels",
]

_CLAUSE = "agent-image.md §2"
SITE = "opt/site-packages"
_FETCH_SECONDS = 600.0
# Zip bombs: an unpacked package set above this is refused. The largest agent framework set
# measured is 90 MiB.
_MAX_UNPACKED = 2 * 1024**3
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}


@dataclass(frozen=True, slots=True)
class Target:
    """What the wheels must run on: OCI architecture, Python `3.11`, minor version of glibc 2."""

    architecture: str
    python: str
    glibc_minor: int

    def arguments(self) -> list[str]:
        """Return pip's words for this target."""
        machine = _MACHINES.get(self.architecture)
        if machine is None:
            raise Unavailable("wheels: the base image is for an architecture without wheels")
        oldest = 5 if machine == "x86_64" else 17  # From: PEP 600 and PEP 599
        tags = [f"manylinux_2_{n}_{machine}" for n in range(self.glibc_minor, oldest - 1, -1)]
        tags += [f"manylinux2014_{machine}", f"linux_{machine}"]
        words = [word for tag in tags for word in ("--platform", tag)]
        abi = "cp" + self.python.replace(".", "")
        abis = ("--abi", abi, "--abi", "abi3", "--abi", "none")
        return [*words, "--implementation", "cp", "--python-version", self.python, *abis]

    def key(self) -> bytes:
        """Return what tells two targets apart, for cache names."""
        return f"{self.architecture}/{self.python}/{self.glibc_minor}\n".encode()


async def fetch_wheels(
    requirements: tuple[LockedRequirement, ...], target: Target, *, cache: Path
) -> tuple[Path, ...]:
    """
    Return one verified wheel for each requirement, in order of their names.

    Cached below `cache` by the digest of lock and target, and hashed again on every use.
    `Unavailable` where the index does not answer; `FormatError` where a file is not the one locked.
    """
    lock = canonical_lock(requirements)
    name = hashlib.sha256(target.key() + lock).hexdigest()
    folder = cache / "wheels" / name
    if not await asyncio.to_thread(folder.is_dir):
        await _download(lock, target, folder)
    return await asyncio.to_thread(_select, folder, requirements)


async def _download(lock: bytes, target: Target, folder: Path) -> None:
    temporary = await asyncio.to_thread(_new_folder, folder.parent)
    try:
        listing = temporary / "requirements.lock"
        await asyncio.to_thread(listing.write_bytes, lock)
        await _call_pip(
            "download", "--quiet", "--no-input", "--no-deps", "--disable-pip-version-check",
            "--only-binary=:all:", "--require-hashes", *target.arguments(),
            "--dest", str(temporary), "--requirement", str(listing),
        )  # fmt: skip
        # Losing a race to an equal download is success.
        with contextlib.suppress(FileExistsError):
            await asyncio.to_thread(temporary.rename, folder)
    finally:
        await asyncio.to_thread(shutil.rmtree, temporary, ignore_errors=True)


def _new_folder(parent: Path) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=".new-", dir=parent))


async def _call_pip(*arguments: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "pip",
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(_FETCH_SECONDS):
            _out, err = await process.communicate()
    except TimeoutError as error:
        raise Unavailable(f"wheels: no answer within {_FETCH_SECONDS:.0f} s") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        lines = err.decode("utf-8", "replace").strip().splitlines()
        raise Unavailable(f"wheels: pip download failed: {_last_error(lines)}")


def _last_error(lines: list[str]) -> str:
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["no message"])[-1][:200]


def _select(folder: Path, requirements: tuple[LockedRequirement, ...]) -> tuple[Path, ...]:
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.whl")):
        # From: binary distribution format, "File name convention".
        name = re.sub(r"[-_.]+", "-", path.name.split("-")[0]).lower()
        if name in found:
            raise _refusal("two wheels for one package")
        found[name] = path
    if set(found) != {item.name for item in requirements}:
        raise _refusal("the wheels at hand are not the packages of the lock")
    for item in requirements:
        digest = hashlib.sha256(found[item.name].read_bytes()).hexdigest()
        if digest not in item.sha256:
            raise _refusal("a wheel does not match its lock")
    return tuple(found[item.name] for item in requirements)


def unpack_wheels(wheels: tuple[Path, ...]) -> tuple[LayerEntry, ...]:
    """
    Return the files of `wheels` below `SITE`; where two wheels hold one file, the later name wins.

    Raises `FormatError` for an archive that leaves its root or unpacks without end.
    """
    entries: dict[str, LayerEntry] = {}
    total = 0
    for wheel in wheels:
        try:
            with zipfile.ZipFile(wheel) as archive:
                for info in archive.infolist():
                    total += info.file_size
                    if total > _MAX_UNPACKED:
                        raise _refusal(f"more than {_MAX_UNPACKED} bytes unpacked")
                    path = _installed_path(info.filename)
                    if path is None or info.is_dir():
                        continue
                    executable = bool((info.external_attr >> 16) & 0o100)
                    data = archive.read(info)
                    entries[path] = LayerEntry(path, data, executable=executable)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
            raise _refusal("not a readable zip archive") from error
    return tuple(entries.values())


def _installed_path(name: str) -> str | None:
    parts = name.rstrip("/").split("/")
    if name.startswith("/") or "\\" in name or any(part in {"", ".", ".."} for part in parts):
        raise _refusal("a member outside the root of the archive")
    # From: binary distribution format, "The .data directory".
    if parts[0].endswith(".data"):
        if len(parts) < 3 or parts[1] not in {"purelib", "platlib"}:
            return None
        parts = parts[2:]
    if parts[-1].endswith(".pyc") or "__pycache__" in parts:
        return None
    return "/".join((SITE, *parts))


def _refusal(why: str) -> FormatError:
    return FormatError(f"wheels: {why}", reason=Reason.LOCK_FORMAT, clause=_CLAUSE)
