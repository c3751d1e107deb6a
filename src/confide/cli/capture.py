"""`confide capture URL -o BUNDLE`: save evidence and endorsements, to be verified anywhere."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from confide.adapters.endorse import Gathered, gather_endorsements
from confide.adapters.files import write_atomically
from confide.cli.places import Places
from confide.cli.screen import Screen, fields, human_bytes, printable
from confide.cli.service_targets import read_nonce
from confide.client.capture import capture as fetch
from confide.client.online import VendorServices, open_online
from confide.errors import ConfigurationError, Unavailable
from confide.formats.registry import every_format, find_format
from confide.formats.verify import read_evidence
from confide.wire.bundle import encode_bundle
from confide.wire.endorsements import Endorsements

if TYPE_CHECKING:
    from confide.wire.service import Capture

__all__ = ["app"]

app = typer.Typer()
_SERVED = ", ".join(known.name for known in every_format() if known.plan is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """What one command asks for."""

    url: str
    format: str
    model: str
    nonce: bytes | None
    pccs: str | None
    endorsements: bool
    fresh: bool


@app.command()
def capture(
    ctx: typer.Context,
    url: Annotated[str, typer.Argument(metavar="URL", help="The service, or one document of it.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="BUNDLE", help="Where the bundle goes.")
    ],
    format_name: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="NAME",
            help=f"Ask as this kind of service is asked ({_SERVED}). Without it URL is fetched "
            "as it is.",
        ),
    ] = "",
    model: Annotated[
        str, typer.Option(help="The model to ask about, where a service has many.")
    ] = "",
    nonce: Annotated[
        str | None,
        typer.Option(metavar="HEX", help="Your own 32 random bytes. Default: fresh ones."),
    ] = None,
    pccs: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Ask this PCCS instead of Intel: https://host:8081."),
    ] = None,
    no_endorsements: Annotated[
        bool, typer.Option("--no-endorsements", help="Save what the service presents, alone.")
    ] = False,
    partial: Annotated[
        bool, typer.Option("--partial", help="Save although some endorsements cannot be had.")
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Ask vendors anew; use nothing from the cache.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Save what a service presents, and what vendors say about it, in one file.

    Nothing is judged: `confide verify BUNDLE` does that, offline. Exit codes: 0 saved,
    20 unavailable, 30 not evidence, 2 usage.
    """
    screen = Screen.of(ctx, as_json=as_json)
    if output.exists():
        raise ConfigurationError(f"{output} exists; evidence is never overwritten")
    wanted = _Wanted(
        url=url,
        format=format_name,
        model=model,
        nonce=read_nonce(nonce),
        pccs=pccs,
        endorsements=not no_endorsements,
        fresh=fresh,
    )
    found, gathered = asyncio.run(_fetch(wanted, Places.here()))
    if gathered.failures and not partial:
        raise _with_hint(gathered.failures)
    try:
        raw = encode_bundle(found, gathered.endorsements)
    except ValueError as error:
        raise Unavailable("what was fetched does not fit in a bundle") from error
    write_atomically(output, raw)
    _show(screen, output, raw, found, gathered)


async def _fetch(wanted: _Wanted, places: Places) -> tuple[Capture, Gathered]:
    async with open_online(
        clock=places.clock,
        entropy=places.entropy,
        cache=places.paths.endorsements,
        services=VendorServices(pccs=wanted.pccs),
        fresh=wanted.fresh,
    ) as online:
        found = await fetch(
            wanted.url,
            format=find_format(wanted.format) if wanted.format else None,
            nonce=wanted.nonce,
            http=online.service,
            clock=places.clock,
            entropy=places.entropy,
            model=wanted.model,
        )
        if not wanted.endorsements:
            return found, Gathered(Endorsements(), ())
        evidence, _ = read_evidence(found)
        return found, await gather_endorsements(evidence, sources=online.sources)


def _with_hint(failures: tuple[str, ...]) -> Unavailable:
    error = Unavailable(failures[0])
    for failure in failures[1:]:
        error.add_note(failure)
    error.add_note(
        "Nothing was saved. --partial saves what could be had, --no-endorsements the evidence alone"
    )
    return error


def _show(screen: Screen, output: Path, raw: bytes, found: Capture, gathered: Gathered) -> None:
    held = gathered.endorsements
    counts = {
        "tdx": len(held.tdx),
        "snp": len(held.snp),
        "rims": len(held.nvidia.rims),
        "ocsp": len(held.nvidia.ocsp),
        "nras_keys": len(held.nras_keys),
    }
    nonce = None if found.nonce is None else found.nonce.hex()
    spki = None if found.tls_spki_sha256 is None else found.tls_spki_sha256.hex()
    documents = {name: len(body) for name, body in found.documents.items()}
    rows = [
        ("bundle", f"{output} ({human_bytes(len(raw))}), nothing in it is verified yet"),
        (
            "presented",
            ", ".join(f"{name} {human_bytes(size)}" for name, size in documents.items()),
        ),
        ("vendors", ", ".join(f"{name} {count}" for name, count in counts.items() if count) or "-"),
        ("nonce", f"{nonce}; give it to --nonce to count as fresh" if nonce else "none was sent"),
        ("TLS key", spki or "none: plain HTTP"),
    ]
    screen.show(
        fields(rows),
        *(Text(f"  absent: {printable(failure)}", style="yellow") for failure in gathered.failures),
    )
    screen.event(
        "result",
        {
            "bundle": str(output),
            "sha256": hashlib.sha256(raw).hexdigest(),
            "format": found.format,
            "nonce": nonce,
            "tls_spki_sha256": spki,
            "documents": dict(documents),
            "endorsements": dict(counts),
            "absent": list(gathered.failures),
        },
    )
