"""`confide key FILE`: a key pair that outputs can be sealed to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from confide.adapters.entropy import SystemEntropy
from confide.adapters.files import write_atomically
from confide.cli.screen import Screen, fields
from confide.crypto.kem import load_private_key
from confide.errors import ConfigurationError
from confide.wire.ohttp import Kem

__all__ = ["app"]

app = typer.Typer()


@app.command()
def key(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where the private key goes.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Make a key for `recipients` of an Expectation.

    The private half is written to FILE, readable by you alone; the public half is printed.
    """
    screen = Screen.of(ctx, as_json=as_json)
    if file.exists():
        raise ConfigurationError(f"{file} exists; a key is never overwritten")
    secret = SystemEntropy().token(32)
    write_atomically(file, secret.hex().encode() + b"\n", mode=0o600)
    recipient = "x25519:" + load_private_key(Kem.X25519, secret).public_key.raw.hex()
    screen.show(fields([("recipient", recipient), ("private key", str(file))]))
    screen.event("result", {"recipient": recipient, "file": str(file)})
