"""`confide secret put` and `rm`: a value to the broker, sealed; a value destroyed."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from confide.adapters.clock import SystemClock
from confide.adapters.entropy import SystemEntropy
from confide.broker.beside import SALT_BYTES, seal_value, secret_version
from confide.broker.statement_kinds import MAX_VALUE_BYTES, Removal, Secret
from confide.cli.places import read_start
from confide.cli.screen import Screen
from confide.cli.secret_send import (
    BrokerKey,
    BrokerUrl,
    Json,
    Keys,
    Name,
    Out,
    Place,
    ask_broker,
    digest_of,
    resource_of,
    say,
    show_answer,
)
from confide.errors import ConfigurationError

__all__ = ["app"]

app = typer.Typer()


@app.command()
def put(
    ctx: typer.Context,
    resource: Name,
    extra: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="File with the value; - for standard input."),
    ] = None,
    broker: BrokerUrl = "",
    broker_key: BrokerKey = "",
    key: Keys = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Put a secret: sealed to the broker here, released to nobody by itself.

    Without --from it is asked for twice and not shown. It is never an argument: those stand in
    the shell's history and in the list of processes. Exit codes: 0 taken, 10 refused, 20 no
    answer, 2 usage.
    """
    screen = Screen.of(ctx, as_json=as_json)
    if extra:
        # Not repeated here: it may be the secret itself.
        raise ConfigurationError(
            "a value is never an argument: it would stand in the shell's history. Give it with "
            "--from FILE, --from - or at the prompt. If that was the secret, change it"
        )
    named = resource_of(resource)
    place = Place.of(broker, broker_key, key, unsigned=out is not None)
    info = ask_broker(place)
    value = _value(source)
    entropy = SystemEntropy()
    salt = entropy.token(SALT_BYTES)
    version = secret_version(salt, value)
    sealed = seal_value(
        info.seal, value, resource=str(named), version=version, ephemeral=entropy.token(32)
    )
    body = Secret(str(named), version, salt, hashlib.sha256(sealed).digest(), len(value))
    submission = say(place, info, named.repository, body, now=SystemClock().now(), value=sealed)
    show_answer(screen, place.url, submission, out)


def _value(source: Path | None) -> bytes:
    if source is None:
        if not sys.stdin.isatty():
            raise ConfigurationError("nobody to ask for the value: --from FILE, or --from -")
        text: str = typer.prompt("Value", hide_input=True, confirmation_prompt=True)
        value = text.encode()
    elif str(source) == "-":
        value = sys.stdin.buffer.read(MAX_VALUE_BYTES + 1)
    else:
        value = read_start(source, "value", MAX_VALUE_BYTES)
    if not 1 <= len(value) <= MAX_VALUE_BYTES:
        raise ConfigurationError(f"a value has 1 to {MAX_VALUE_BYTES} bytes")
    return value


@app.command()
def rm(
    ctx: typer.Context,
    resource: Name,
    version: Annotated[
        str, typer.Argument(metavar="VERSION", help="Its version (confide secret ls).")
    ],
    broker: BrokerUrl = "",
    broker_key: BrokerKey = "",
    key: Keys = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Destroy one version of a secret at the broker. Releases that name it stay."""
    screen = Screen.of(ctx, as_json=as_json)
    named = resource_of(resource)
    place = Place.of(broker, broker_key, key, unsigned=out is not None)
    body = Removal(str(named), digest_of(version, "VERSION"))
    info = ask_broker(place)
    submission = say(place, info, named.repository, body, now=SystemClock().now())
    show_answer(screen, place.url, submission, out)
