"""`confide secret`: what an owner says to a key broker. docs/protocols/release.md."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from confide.adapters.clock import SystemClock
from confide.adapters.entropy import SystemEntropy
from confide.adapters.files import write_atomically
from confide.broker.beside import Submission, parse_submission
from confide.broker.owner_key import encode_owner_key, load_owner_key
from confide.broker.owners import make_owners
from confide.broker.statement import add_signature
from confide.broker.statement_kinds import Listing, OwnersChange, parse_statement
from confide.cli.broker_places import local_place
from confide.cli.places import read_bounded
from confide.cli.screen import Screen, fields, heading, printable
from confide.cli.secret_put import app as putting
from confide.cli.secret_release import app as releasing
from confide.cli.secret_send import (
    BrokerKey,
    BrokerUrl,
    Json,
    Keys,
    Out,
    Place,
    Repository,
    ask_broker,
    digest_of,
    one_repository,
    read_keys,
    say,
    send_submission,
    show_answer,
)
from confide.cli.secret_words import statement_rows
from confide.errors import ConfigurationError, RemoteProtocolError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from confide.wire.json import JsonValue

__all__ = ["app"]

app = typer.Typer(
    help="Secrets at a key broker: put, release, revoke; for owners.", no_args_is_help=True
)
app.add_typer(putting)
app.add_typer(releasing)


@app.command()
def keygen(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where the private key goes.")],
    as_json: Json = False,
) -> None:
    """Make an owner's key; print the public half, which the broker's owners file names."""
    screen = Screen.of(ctx, as_json=as_json)
    if file.exists():
        raise ConfigurationError(f"{file} exists; a key is never overwritten")
    raw = encode_owner_key(SystemEntropy().token(32))
    write_atomically(file, raw, mode=0o600)
    public = load_owner_key(raw).public_key.hex()
    screen.show(fields([("owner", public), ("private key", str(file))]))
    screen.event("result", {"owner": public, "file": str(file)})


@app.command()
def ls(
    ctx: typer.Context,
    repository: Repository = "",
    broker: BrokerUrl = "",
    broker_key: BrokerKey = "",
    key: Keys = None,
    as_json: Json = False,
) -> None:
    """List names, versions and releases; never values. The broker's word, for its owners."""
    screen = Screen.of(ctx, as_json=as_json)
    place = Place.of(broker, broker_key, key, unsigned=False)
    info = ask_broker(place)
    name = one_repository(info, repository)
    # One owner suffices, and the others need not be troubled.
    one = Place(place.url, place.key, place.signers[:1])
    answer = send_submission(one.url, say(one, info, name, Listing(), now=SystemClock().now()))
    if not isinstance(answer.listing, dict):
        raise RemoteProtocolError("the broker answered without a listing")
    screen.show(*_listed(name, answer.listing))
    screen.event("result", {"repository": name, **answer.listing})


def _listed(name: str, listing: dict[str, Any]) -> list[RenderableType]:
    parts: list[RenderableType] = []
    for title in ("secrets", "releases"):
        parts.append(heading(title.capitalize(), name))
        rows = listing.get(title)
        for row in rows if isinstance(rows, list) else []:
            shown = row.items() if isinstance(row, dict) else ()
            parts.append(fields([(printable(at), printable(_cell(what))) for at, what in shown]))
    return parts


def _cell(what: JsonValue) -> str:
    if isinstance(what, list):
        return ", ".join(_cell(each) for each in what)
    if isinstance(what, dict):
        return ", ".join(f"{at} {_cell(each)}" for at, each in what.items())
    return str(what)


@app.command()
def owners(
    ctx: typer.Context,
    repository: Annotated[str, typer.Argument(metavar="REPOSITORY", help="Whose owners change.")],
    owner: Annotated[
        list[str], typer.Option(metavar="HEX", help="Public key of an owner; may be given again.")
    ],
    threshold: Annotated[int, typer.Option(min=1, max=16, help="How many have to sign.")],
    broker: BrokerUrl = "",
    broker_key: BrokerKey = "",
    key: Keys = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Replace the owners: signed by enough of the old ones and by everyone who is new."""
    screen = Screen.of(ctx, as_json=as_json)
    keys = [digest_of(each, "--owner") for each in owner]
    change = OwnersChange(make_owners(repository, threshold=threshold, keys=keys))
    place = Place.of(broker, broker_key, key, unsigned=out is not None)
    info = ask_broker(place)
    submission = say(place, info, repository, change, now=SystemClock().now())
    show_answer(screen, place.url, submission, out)


@app.command()
def sign(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A statement (--out).")],
    key: Annotated[list[Path], typer.Option(metavar="FILE", help="An owner's private key.")],
    as_json: Json = False,
) -> None:
    """Show what a statement says, and add a signature to it, in its file."""
    screen = Screen.of(ctx, as_json=as_json)
    submission = parse_submission(read_bounded(file, "statement"))
    envelope = submission.envelope
    statement = parse_statement(envelope.payload)
    screen.show(fields(statement_rows(statement)))
    for signer in read_keys(key):
        envelope = add_signature(envelope, signer)
    signed = Submission(envelope, submission.value, submission.policy)
    write_atomically(file, signed.encode())
    count = len(envelope.signatures)
    screen.show(fields([("signatures", str(count)), ("file", str(file))]))
    screen.event(
        "result",
        {
            "statement": envelope.digest.hex(),
            "kind": statement.body.KIND,
            "signatures": count,
            "says": dict(statement_rows(statement)),
        },
    )


@app.command()
def send(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A statement that all signed.")],
    broker: BrokerUrl = "",
    as_json: Json = False,
) -> None:
    """Send a statement that was written with --out; no key is needed."""
    screen = Screen.of(ctx, as_json=as_json)
    submission = parse_submission(read_bounded(file, "statement"))
    parse_statement(submission.envelope.payload)
    show_answer(screen, broker or local_place().url, submission, None)
