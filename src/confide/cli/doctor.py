"""`confide doctor`: what this machine has and lacks for running agents, found out by trying.

What it has for real evidence is in `doctor_hardware`. It proves nothing, and says so.
"""

from __future__ import annotations

import asyncio
import importlib.util
import platform
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from confide.adapters.engine import probe_engine
from confide.adapters.entropy import SystemEntropy
from confide.adapters.netns import open_namespace
from confide.adapters.run_dir import NodeDirectory
from confide.adapters.software import running_kernel
from confide.cli import exits
from confide.cli.doctor_hardware import HardwareFindings, examine_hardware
from confide.cli.findings import Finding
from confide.cli.places import Places
from confide.cli.screen import Screen, printable
from confide.client.local import bundled_weights
from confide.errors import ConfideError
from confide.expectation import Limits
from confide.node.hardware import Hardware

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["app"]

app = typer.Typer(add_completion=False)
_OLDEST = (3, 11)
_NO_PROOF = (
    "This is the machine's word on itself, for its operator. It proves nothing: evidence that "
    "somebody else appraises does."
)
_MARKS: dict[str, tuple[str, str]] = {
    "ok": ("✓", "green"),
    "missing": ("✗", "bold red"),
    "simulated": ("S", "bold yellow"),
    "optional": ("-", "yellow"),
}


@app.command()
def doctor(
    ctx: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    quote: Annotated[
        bool, typer.Option("--quote", help="Also make a TDX quote: seconds, and the host sees it.")
    ] = False,
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
    ]
    hardware = examine_hardware(
        Hardware(),
        release=running_kernel(),
        name=f"confide-{SystemEntropy().token(8).hex()}",
        quote=quote,
    )
    able = all(item.state != "missing" for item in found)
    _show(screen, [*found, *hardware.lines], hardware, able=able)
    if not able:
        raise typer.Exit(exits.UNAVAILABLE)


def _python() -> Finding:
    version = platform.python_version()
    if sys.version_info >= _OLDEST:
        return Finding("Python", "ok", version)
    return Finding("Python", "missing", version, "install Python 3.11 or later")


def _engine() -> Finding:
    try:
        engine = asyncio.run(probe_engine())
    except ConfideError as error:
        return Finding(
            "container engine", "missing", str(error), "apt-get install podman runc, as root"
        )
    how = " ".join((*engine.prefix, *engine.ulimits))
    return Finding("container engine", "ok", f"{engine.name} {engine.version}, called with {how}")


def _base_image(cache: Path) -> Finding:
    if any(cache.glob("base/*/base.json")):
        return Finding("base image", "ok", "made before, in the cache")
    if shutil.which("mmdebstrap") is not None:
        return Finding("base image", "ok", "mmdebstrap makes it from Debian packages, once")
    return Finding(
        "base image",
        "missing",
        "no mmdebstrap",
        "apt-get install mmdebstrap, or pin a base by digest in agent.toml",
    )


def _model() -> Finding:
    lacking = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    name = "embedded model"
    if bundled_weights() is None:
        mend = "name an OpenAI-compatible engine with --upstream URL --model NAME"
        return Finding(name, "optional", "no bundled weights in this installation", mend)
    if lacking:
        mend = "pip install 'confide[model]', or name an engine with --upstream URL --model NAME"
        return Finding(name, "optional", f"no {' and no '.join(lacking)}", mend)
    return Finding(name, "ok", "bundled weights, torch, transformers")


def _services() -> Finding:
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
        return Finding(name, "optional", detail, "pip install 'confide[services]'")
    return Finding(name, "ok", "every format of confide verify and confide capture")


def _tried(name: str, attempt: Callable[[], None], good: str, mend: str) -> Finding:
    try:
        attempt()
    except ConfideError as error:
        return Finding(name, "missing", str(error), mend)
    return Finding(name, "ok", good)


def _memory() -> Finding:
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


def _namespaces() -> Finding:
    return _tried(
        "network namespace",
        lambda: open_namespace().close(),
        "an agent can be cut off from the network",
        "run as root, or where network namespaces are allowed",
    )


def _writable(places: Places) -> Finding:
    def attempt() -> None:
        from confide.adapters.files import write_atomically  # noqa: PLC0415 - the smallest try

        mark = places.paths.state / "doctor"
        write_atomically(mark, b"")
        mark.unlink()

    return _tried(
        "state directory", attempt, str(places.paths.state), "free space, or fix its permissions"
    )


def _show(screen: Screen, found: list[Finding], hardware: HardwareFindings, *, able: bool) -> None:
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
    screen.show(verdict, Text(), table, Text(), Text(_NO_PROOF, "dim"))
    screen.event(
        "result",
        {
            "able": able,
            "simulated": True,
            "proves": "nothing",
            "machines": {
                "simulated": able,
                "tdx": hardware.tdx,
                "dstack": hardware.dstack,
                "gpus": hardware.gpus,
            },
            "findings": [
                {"name": f.name, "state": f.state, "detail": f.detail, "mend": f.mend or None}
                for f in found
            ],
        },
    )
