"""`confide relay`: forward sealed requests without reading them (docs/protocols/relay.md)."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from confide.adapters.clock import SystemClock
from confide.adapters.entropy import SystemEntropy
from confide.adapters.files import write_atomically
from confide.adapters.linux import allow_open_files
from confide.adapters.note_keys import draw_note_key
from confide.channel.directory import sign_directory
from confide.cli.foreground import run_service, say
from confide.cli.places import read_bounded, read_signer
from confide.cli.screen import Screen, fields
from confide.crypto.cosign import NoteSigner
from confide.errors import ConfigurationError, Unavailable
from confide.wire.directory import Listed
from confide.wire.note import SignatureType

if TYPE_CHECKING:
    from confide.node.relay_table import NodeEntry

__all__ = ["app"]

app = typer.Typer(
    help="The blind relay: serve, sign-directory, keygen.",
    no_args_is_help=True,
)

Json = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]
Nodes = Annotated[Path, typer.Argument(metavar="NODES", help="The nodes, with their addresses.")]
_MAX_HOURS = 7 * 24


@app.command()
def keygen(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the operator, like relay.example.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where the private key goes.")],
    as_json: Json = False,
) -> None:
    """Make the operator's key; print the public half, which clients pin."""
    screen = Screen.of(ctx, as_json=as_json)
    if file.exists():
        raise ConfigurationError(f"{file} exists; a key is never overwritten")
    try:
        key = draw_note_key(file, name, SignatureType.ED25519, SystemEntropy())
    except ValueError as error:
        raise ConfigurationError(f"no such name is possible: {error}") from error
    screen.show(fields([("directory key", key.encode()), ("private key", str(file))]))
    screen.event("result", {"key": key.encode(), "file": str(file)})


@app.command("sign-directory")
def sign(
    ctx: typer.Context,
    nodes: Nodes,
    key: Annotated[Path, typer.Option(help="The operator's private key.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Where the directory goes.")
    ],
    hours: Annotated[
        int, typer.Option(min=1, max=_MAX_HOURS, help="How long it is in force.")
    ] = 24,
    as_json: Json = False,
) -> None:
    """Sign the directory of NODES for a relay that has no key.

    A node without a keyset in NODES is asked for it. Addresses do not get into the directory.
    """
    from confide.node.relay_directory import next_directory  # noqa: PLC0415 - of the node

    screen = Screen.of(ctx, as_json=as_json)
    signer = _signer(key)
    listed = asyncio.run(_listed(_read_nodes(nodes)))
    if len({node.keyset for node in listed}) != len(listed):
        raise ConfigurationError("two nodes have one keyset")
    made = next_directory(listed, now=SystemClock().now(), lifetime=timedelta(hours=hours))
    try:
        raw = sign_directory(made, signer)
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    write_atomically(output, raw, mode=0o644)
    rows = [
        ("directory", str(output)),
        ("sequence", str(made.sequence)),
        ("nodes", str(len(listed))),
    ]
    screen.show(fields(rows))
    screen.event("result", {"file": str(output), "sequence": made.sequence, "nodes": len(listed)})


@app.command()
def serve(
    nodes: Nodes,
    port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port to listen on.")],
    key: Annotated[
        Path | None, typer.Option(help="Sign the directory here, with this private key.")
    ] = None,
    directory: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Serve a directory signed elsewhere.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    idle_seconds: Annotated[
        int | None, typer.Option(help="Stop after so many idle seconds.")
    ] = None,
) -> None:
    """Run a relay in the foreground. It logs nothing about requests."""
    from confide.node.serve_relay import RelaySettings, serve_relay  # noqa: PLC0415 - a web server

    if (key is None) is (directory is None):
        raise ConfigurationError("a relay needs --key or --directory, and not both")
    source: NoteSigner | Path
    if directory is not None:
        read_bounded(directory, "directory")
        source = directory
    elif key is not None:
        source = _signer(key)
    settings = RelaySettings(host, port, _read_nodes(nodes), source, say, idle_seconds)
    # Each client is a connection, and each of its requests another one.
    allow_open_files()
    # What passes is sealed, and who asks is in memory: neither gets into a file.
    run_service(serve_relay(settings))


def _signer(path: Path) -> NoteSigner:
    signer = read_signer(path)
    if signer.key.kind is not SignatureType.ED25519:
        raise ConfigurationError("a directory is signed with a plain Ed25519 key: relay keygen")
    return signer


def _read_nodes(path: Path) -> tuple[NodeEntry, ...]:
    from confide.node.relay_nodes import parse_relay_nodes  # noqa: PLC0415 - of the node

    return parse_relay_nodes(read_bounded(path, "file of nodes"))


async def _listed(entries: tuple[NodeEntry, ...]) -> tuple[Listed, ...]:
    from confide.adapters.relay_http import ask_keyset  # noqa: PLC0415 - an HTTP client

    found: list[Listed] = []
    for entry in entries:
        keyset = entry.pinned or await ask_keyset(entry.url)
        if keyset is None:
            raise Unavailable(f"{entry.url} does not say which keyset it has")
        found.append(Listed(keyset, entry.role, entry.model, entry.roots))
    return tuple(found)
