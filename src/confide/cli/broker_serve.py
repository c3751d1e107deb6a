"""`confide broker serve`: the key broker in the foreground. docs/protocols/broker.md."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from confide.cli.broker_unlock import (
    Master,
    PassphraseFile,
    Share,
    Store,
    StoreOptions,
    open_sealed_store,
)
from confide.cli.foreground import end_process, say
from confide.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from confide.node.serve_broker import BrokerSettings
    from confide.wire.endorsements import Endorsements
    from confide.wire.service import Evidence

__all__ = ["app"]

app = typer.Typer()

_SIMULATED = "Release to the SIMULATED platform of this roots file, and to nothing else."
_ENDORSEMENTS = "What simulated vendors say, as a file; may be given again."


@app.command()
def serve(
    owners: Annotated[Path, typer.Option(metavar="FILE", help="Who decides: the owners file.")],
    log: Annotated[str, typer.Option(metavar="URL", help="The log that releases go to.")],
    log_policy: Annotated[
        Path, typer.Option(metavar="FILE", help="Policy file: logs, witnesses, quorum.")
    ],
    port: Annotated[int, typer.Option(help="TCP port to listen on.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    store: Store = "",
    master: Master = None,
    passphrase_file: PassphraseFile = None,
    share: Share = None,
    pccs: Annotated[
        str | None, typer.Option(metavar="URL", help="Ask this PCCS instead of Intel.")
    ] = None,
    simulated_roots: Annotated[Path | None, typer.Option(metavar="FILE", help=_SIMULATED)] = None,
    endorsements: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help=_ENDORSEMENTS)
    ] = None,
    idle_seconds: Annotated[
        int | None, typer.Option(help="Stop after so many idle seconds.")
    ] = None,
) -> None:
    """Run the key broker in the foreground: appraise, release what the owners signed, log it."""
    from confide.adapters.linux import forbid_core_dumps  # noqa: PLC0415 - a web server
    from confide.broker.owners import parse_owners_file  # noqa: PLC0415
    from confide.cli.endorsement_files import read_endorsements  # noqa: PLC0415
    from confide.cli.places import read_bounded, read_roots  # noqa: PLC0415
    from confide.node.serve_broker import BrokerSettings, serve_broker  # noqa: PLC0415
    from confide.trust.roots import VENDOR_ROOTS  # noqa: PLC0415
    from confide.wire.tlog_policy import parse_log_policy  # noqa: PLC0415

    simulated = simulated_roots is not None
    if simulated and pccs is not None:
        raise ConfigurationError("--pccs is for genuine hardware; a simulated vendor has none")
    if endorsements and not simulated:
        raise ConfigurationError("--endorsements are of simulated vendors; genuine ones are asked")
    configured = parse_owners_file(read_bounded(owners, "owners file").decode("utf-8", "replace"))
    # Keys and values are in memory, and nowhere else but sealed in the store.
    forbid_core_dumps()
    sealed, keys, opened = open_sealed_store(StoreOptions.of(store, master, passphrase_file, share))
    settings = partial(
        BrokerSettings,
        host=host,
        port=port,
        store=sealed,
        keys=keys,
        owners=configured,
        roots=VENDOR_ROOTS if simulated_roots is None else read_roots(str(simulated_roots)),
        allow_simulated=simulated,
        log_url=log,
        log_policy=parse_log_policy(read_bounded(log_policy, "log policy")),
        report=say,
        idle_seconds=idle_seconds,
    )
    try:
        if simulated:
            given = read_endorsements(tuple(endorsements or ()))
            asyncio.run(serve_broker(settings(endorse=partial(_told, given))))
        else:
            asyncio.run(_serve_genuine(settings, pccs))
    finally:
        opened.close()
    end_process()


async def _told(given: Endorsements, _evidence: Evidence) -> Endorsements:
    return given


async def _serve_genuine(settings: Callable[..., BrokerSettings], pccs: str | None) -> None:
    from confide.adapters.endorse import collect_endorsements  # noqa: PLC0415 - an HTTP client
    from confide.cli.places import Places  # noqa: PLC0415
    from confide.client.online import VendorServices, open_online  # noqa: PLC0415
    from confide.node.serve_broker import serve_broker  # noqa: PLC0415

    places = Places.here()
    async with open_online(
        clock=places.clock,
        entropy=places.entropy,
        cache=places.paths.endorsements,
        services=VendorServices(pccs=pccs),
    ) as online:
        endorse = partial(collect_endorsements, sources=online.sources)
        await serve_broker(settings(endorse=endorse))
