"""`confide build DIR`: the image of an agent folder, and how it came to be."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from confide.adapters.oci_store import read_image
from confide.cli.agents import build as build_image
from confide.cli.agents import find_agent
from confide.cli.places import Places
from confide.cli.screen import Screen, fields, human_bytes

if TYPE_CHECKING:
    from confide.adapters.image_build import BuiltAgent
    from confide.adapters.paths import Paths

__all__ = ["app"]

app = typer.Typer()
_ORIGINS = {
    "debian-packages": "made here from Debian packages",
    "registry": "fetched from its registry by digest",
    "layout": "a local OCI layout",
    "": "an existing image, taken as it is",
}


@app.command()
def build(
    ctx: typer.Context,
    agent: Annotated[
        str, typer.Argument(metavar="DIR", help="Agent folder, or image pinned by digest.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Build the reproducible image of an agent folder.

    The same folder over the same base gives the same digest, wherever and whenever it is built.
    """
    screen = Screen.of(ctx, as_json=as_json)
    places = Places.here()
    found = find_agent(agent, mode="batch")
    known = _known_blobs(places.paths)

    def progress(text: str) -> None:
        screen.say(text)
        screen.event("progress", {"detail": text})

    built = asyncio.run(build_image(found, agent, places.paths, progress))
    _show(screen, built, _reused(built, known))


def _known_blobs(paths: Paths) -> frozenset[str]:
    folders = (*paths.images.glob("*/blobs/sha256"), *paths.cache.glob("base/**/blobs/sha256"))
    return frozenset(blob.name for folder in folders for blob in folder.iterdir())


def _reused(built: BuiltAgent, known: frozenset[str]) -> tuple[int, int] | None:
    if not built.image.layout:
        return None
    layers = read_image(Path(built.image.layout), built.image.digest).manifest.layers
    return sum(layer.digest in known for layer in layers), len(layers)


def _show(screen: Screen, built: BuiltAgent, reused: tuple[int, int] | None) -> None:
    rows = [("image", f"sha256:{built.image.digest}")]
    if built.base:
        rows.append(("base", f"sha256:{built.base}"))
    rows.append(("origin", _ORIGINS.get(built.base_origin, built.base_origin)))
    if reused is not None:
        rows.append(("size", f"{human_bytes(built.size_bytes)} in {reused[1]} layers"))
        rows.append(("reused", f"{reused[0]} of {reused[1]} layers were there already"))
    screen.show(Text(built.manifest.name, "bold"), fields(rows))
    screen.event(
        "result",
        {
            "name": built.manifest.name,
            "image": built.image.digest,
            "base": built.base or None,
            "base_origin": built.base_origin or None,
            "bytes": built.size_bytes,
            "layers": None if reused is None else reused[1],
            "layers_reused": None if reused is None else reused[0],
        },
    )
