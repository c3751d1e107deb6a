"""`confide doctor`: what this machine has and lacks for running agents, found out by trying."""

from __future__ import annotations

import asyncio
import importlib.util
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table
from rich.text import Text

from confide.adapters.engine import probe_engine
from confide.adapters.netns import open_namespace
from confide.adapters.run_dir import NodeDirectory
from confide.cli import exits
from confide.cli.places import Places
from confide.cli.screen import Screen, printable
from confide.client.local import bundled_weights
from confide.errors import ConfideError
from confide.expectation import Limits

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["app"]

app = typer.Typer(add_completion=False)
_OLDEST = (3, 11)
_TDX = (Path("/dev/tdx_guest"), Path("/sys/kernel/config/tsm/report"))
_NVIDIA = (Path("/dev/nvidia0"), Path("/dev/nvidiactl"))
_State = Literal["ok", "missing", "simulated", "optional"]
_MARKS: dict[str, tuple[str, str]] = {
    "ok": ("✓", "green"),
    "missing": ("✗", "bold red"),
    "simulated": ("S", "bold yellow"),
    "optional": ("-", "yellow"),
}


@dataclass(frozen=True, slots=True)
class _Finding:
    name: str
    state: _State
    detail: str
    mend: str = ""


@app.command()
def doctor(
    ctx: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Say what this machine has and lacks, and how to mend it.

    Exit codes: 0 when agents can run here, 20 otherwise.
    """
    screen = Screen.of(ctx, as_json=as_json)
    places = Places.here()
    found = [
        _python(),
        _engine(),
        _base_image(places.paths.cache),
        _model(),
        _services(),
        _memory(),
        _namespaces(),
        _writable(places),
        _device("Intel TDX guest", _TDX),
        _device("NVIDIA GPU", _NVIDIA),
    ]
    able = all(item.state != "missing" for item in found)
    _show(screen, found, able=able)
    if not able:
        raise typer.Exit(exits.UNAVAILABLE)


def _python() -> _Finding:
    version = platform.python_version()
    if sys.version_info >= _OLDEST:
        return _Finding("Python", "ok", version)
    return _Finding("Python", "missing", version, "install Python 3.11 or later")


def _engine() -> _Finding:
    try:
        engine = asyncio.run(probe_engine())
    except ConfideError as error:
        return _Finding(
            "container engine", "missing", str(error), "apt-get install podman runc, as root"
        )
    how = " ".join((*engine.prefix, *engine.ulimits))
    return _Finding("container engine", "ok", f"{engine.name} {engine.version}, called with {how}")


def _base_image(cache: Path) -> _Finding:
    if any(cache.glob("base/*/base.json")):
        return _Finding("base image", "ok", "made before, in the cache")
    if shutil.which("mmdebstrap") is not None:
        return _Finding("base image", "ok", "mmdebstrap makes it from Debian packages, once")
    return _Finding(
        "base image",
        "missing",
        "no mmdebstrap",
        "apt-get install mmdebstrap, or pin a base by digest in agent.toml",
    )


def _model() -> _Finding:
    lacking = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    name = "embedded model"
    if bundled_weights() is None:
        mend = "name an OpenAI-compatible engine with --upstream URL --model NAME"
        return _Finding(name, "optional", "no bundled weights in this installation", mend)
    if lacking:
        mend = "pip install 'confide[model]', or name an engine with --upstream URL --model NAME"
        return _Finding(name, "optional", f"no {' and no '.join(lacking)}", mend)
    return _Finding(name, "ok", "bundled weights, torch, transformers")


def _services() -> _Finding:
    modules = {
        "PyYAML": "yaml",
        "coincurve": "coincurve",
        "pycryptodome": "Crypto",
        "sigstore": "sigstore",
    }
    lacking = [name for name, module in modules.items() if importlib.util.find_spec(module) is None]
    name = "services of others"
    if lacking:
        detail = (
            f"no {' and no '.join(lacking)}: quotes, reports and GPUs can be verified; some launch "
            "documents, signed answers and who built an image cannot"
        )
        return _Finding(name, "optional", detail, "pip install 'confide[services]'")
    return _Finding(name, "ok", "every format of confide verify and confide capture")


def _tried(name: str, attempt: Callable[[], None], good: str, mend: str) -> _Finding:
    try:
        attempt()
    except ConfideError as error:
        return _Finding(name, "missing", str(error), mend)
    return _Finding(name, "ok", good)


def _memory() -> _Finding:
    def attempt() -> None:
        node = NodeDirectory()
        try:
            node.open("doctor", Limits()).wipe()
        finally:
            node.close()

    return _tried(
        "run directory",
        attempt,
        "inputs and outputs stay in memory (/dev/shm)",
        "mount a tmpfs on /dev/shm, and run as root or where mounting is allowed",
    )


def _namespaces() -> _Finding:
    return _tried(
        "network namespace",
        lambda: open_namespace().close(),
        "an agent can be cut off from the network",
        "run as root, or where network namespaces are allowed",
    )


def _writable(places: Places) -> _Finding:
    def attempt() -> None:
        from confide.adapters.files import write_atomically  # noqa: PLC0415 - the smallest try

        mark = places.paths.state / "doctor"
        write_atomically(mark, b"")
        mark.unlink()

    return _tried(
        "state directory", attempt, str(places.paths.state), "free space, or fix its permissions"
    )


def _device(name: str, paths: tuple[Path, ...]) -> _Finding:
    present = [str(path) for path in paths if path.exists()]
    if present:
        return _Finding(
            name, "simulated", f"{present[0]} is there, but this version only drives simulations"
        )
    return _Finding(name, "simulated", "absent: simulated only")


def _show(screen: Screen, found: list[_Finding], *, able: bool) -> None:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for item in found:
        text = Text(printable(item.detail))
        if item.mend:
            text.append(f"\nto do: {item.mend}", "bold" if item.state == "missing" else "dim")
        table.add_row(Text(f"  {_MARKS[item.state][0]}", _MARKS[item.state][1]), item.name, text)
    verdict = (
        Text.assemble(("Agents can run here.", "bold green"), ("  SIMULATED", "bold yellow"))
        if able
        else Text("Agents cannot run here yet.", "bold red")
    )
    screen.show(verdict, Text(), table)
    screen.event(
        "result",
        {
            "able": able,
            "simulated": True,
            "findings": [
                {"name": f.name, "state": f.state, "detail": f.detail, "mend": f.mend or None}
                for f in found
            ],
        },
    )
