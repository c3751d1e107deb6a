"""Compiled Python for image layers, reproducibly.

docs/protocols/agent-image.md §4. The root of an agent is read-only, so Python would compile every
module on every start. It is compiled once, by the interpreter of the base image itself, in a
container without a network. Three things keep the result a function of source and interpreter:
unchecked hash-based files (PEP 552: no times inside), a fixed hash seed, and the marshal format
of version 2, which has no back references (those depend on reference counts in the compiler).
"""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING, Final

from confide.agents.layer import LayerEntry
from confide.errors import Unavailable

if TYPE_CHECKING:
    from pathlib import Path

    from confide.adapters.engine import Engine
    from confide.agents.sandbox import AgentImage

__all__ = ["compile_tree"]

_COMPILE_SECONDS = 600.0
# Runs inside the base image. Writes a tar archive of the compiled files to stdout.
_PROGRAM: Final = r"""
import importlib.util, io, marshal, os, sys, tarfile
out = tarfile.open(fileobj=sys.stdout.buffer, mode="w|", format=tarfile.PAX_FORMAT)
for folder, folders, files in os.walk(sys.argv[1]):
    folders[:] = sorted(set(folders) - {"__pycache__"})
    for name in sorted(files):
        path = os.path.join(folder, name)
        if not name.endswith(".py") or os.path.islink(path):
            continue
        with open(path, "rb") as file:
            source = file.read()
        try:
            code = compile(source, path, "exec", dont_inherit=True, optimize=0)
        except (SyntaxError, ValueError):
            continue
        raw = importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little")
        raw += importlib.util.source_hash(source) + marshal.dumps(code, 2)
        info = tarfile.TarInfo(importlib.util.cache_from_source(path).lstrip("/"))
        info.size = len(raw)
        out.addfile(info, io.BytesIO(raw))
out.close()
"""


async def compile_tree(
    engine: Engine, image: AgentImage, root: str, *, overlay: Path | None = None
) -> tuple[LayerEntry, ...]:
    """
    Compile every module below `root` (absolute, inside `image`), with `overlay` mounted there.

    The engine must hold `image`. Modules that do not compile are left as source. Raises
    `Unavailable` where the engine fails.
    """
    raw = await engine.run_tool(
        image, "-I", "-W", "ignore", "-c", _PROGRAM, root,
        mounts=() if overlay is None else (f"{overlay}:{root}:ro",), seconds=_COMPILE_SECONDS,
    )  # fmt: skip
    entries = []
    try:
        with tarfile.open(fileobj=io.BytesIO(raw), mode="r:") as archive:
            for info in archive:
                file = archive.extractfile(info)
                if file is not None:
                    entries.append(LayerEntry(info.name, file.read()))
    except tarfile.TarError as error:
        raise Unavailable("bytecode: the compiler wrote no archive") from error
    return tuple(entries)
