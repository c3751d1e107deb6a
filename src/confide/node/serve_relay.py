"""A relay as a process: the composition root. Clauses: docs/protocols/relay.md §3 and §4.7."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from confide.adapters.clock import SystemClock
from confide.adapters.relay_http import RelayLink
from confide.node.relay import RelayApp
from confide.node.relay_directory import DirectorySource, OwnDirectory, SignedFile
from confide.node.relay_table import RelayLimits, RelayTable
from confide.node.serve import Service, first_of, serve

if TYPE_CHECKING:
    from collections.abc import Callable

    from confide.crypto.cosign import NoteSigner
    from confide.node.relay_table import NodeEntry

__all__ = ["RelaySettings", "serve_relay"]

# From: relay.md 3.6 and 3.9.
_CONNECTIONS: Final = 1024
_DRAIN_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class RelaySettings:
    """
    How a relay is started: its nodes, and who signs their directory.

    `directory` is a signer, or the file of a directory that was signed elsewhere. `report` gets a
    line where that file cannot be read again; never one about a request.
    """

    host: str
    port: int
    nodes: tuple[NodeEntry, ...]
    directory: NoteSigner | Path
    report: Callable[[str], None]
    idle_seconds: int | None = None
    limits: RelayLimits = field(default_factory=RelayLimits)


async def serve_relay(settings: RelaySettings) -> None:
    """Forward until told to stop. Raises `FormatError` for a file that is no directory."""
    limits = settings.limits
    async with RelayLink(connections=limits.requests + len(settings.nodes)) as link:
        table = RelayTable(settings.nodes, ask=link.keyset, limits=limits)
        source: DirectorySource
        if isinstance(settings.directory, Path):
            source = SignedFile(settings.directory, report=settings.report)
        else:
            source = OwnDirectory(table, settings.directory, clock=SystemClock())
        await table.look()
        serving = serve(
            RelayApp(table, link, directory=source.current),
            host=settings.host,
            port=settings.port,
            idle_seconds=settings.idle_seconds,
            connections=_CONNECTIONS,
            service=Service(drain=table.drain, drain_seconds=_DRAIN_SECONDS),
        )
        await first_of(
            asyncio.ensure_future(serving),
            asyncio.ensure_future(table.watch()),
            asyncio.ensure_future(source.watch()),
        )
