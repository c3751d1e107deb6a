"""`confide secret release`, `policy` and `revoke`: who may open what, and from when to when."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from confide.adapters.clock import SystemClock
from confide.broker.statement_kinds import MAX_RELEASE, Accept, Release, Revocation
from confide.cli.places import read_bounded
from confide.cli.screen import Screen
from confide.cli.secret_send import (
    BrokerKey,
    BrokerUrl,
    Json,
    Keys,
    Name,
    Out,
    Place,
    Repository,
    ask_broker,
    digest_of,
    one_repository,
    resource_of,
    say,
    show_answer,
)
from confide.errors import ConfigurationError, FormatError, Reason
from confide.wire.json import is_hex
from confide.wire.keyset import parse_time

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

__all__ = ["app"]

app = typer.Typer()
_DAYS = 30

Days = Annotated[
    int | None, typer.Option(min=1, max=MAX_RELEASE.days, help=f"How long. Default: {_DAYS}.")
]
From = Annotated[
    str, typer.Option("--from", metavar="TIME", help="Begins then, UTC. Default: now.")
]
Until = Annotated[str, typer.Option(metavar="TIME", help="Ends then, UTC, instead of --days.")]


@app.command()
def release(
    ctx: typer.Context,
    resources: Annotated[
        list[str], typer.Argument(metavar="RESOURCE...", help="REPOSITORY/TYPE/NAME.")
    ],
    expectation: Annotated[
        list[str],
        typer.Option(metavar="FILE|DIGEST", help="What may open; may be given again."),
    ],
    days: Days = None,
    start: From = "",
    until: Until = "",
    broker: BrokerUrl = "",
    broker_key: BrokerKey = "",
    key: Keys = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Release secrets, or the state of an agent, to runs that an Expectation describes.

    New code has another Expectation and opens nothing until it is released to that one too. It
    holds once it is in the log. Exit codes: 0 taken, 10 refused, 20 no answer, 2 usage.
    """
    accepts = tuple(Accept("expectation", _expectation(text)) for text in expectation)
    _release(
        Screen.of(ctx, as_json=as_json),
        resources,
        accepts,
        _span(start, until, days),
        Place.of(broker, broker_key, key, unsigned=out is not None),
        out,
    )


@app.command()
def policy(
    ctx: typer.Context,
    resource: Name,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A policy (confide policy show).")],
    days: Days = None,
    start: From = "",
    until: Until = "",
    broker: BrokerUrl = "",
    broker_key: BrokerKey = "",
    key: Keys = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Release a secret to whatever a policy accepts: services of others that attest themselves."""
    from confide.appraisal.policy_file import parse_policy  # noqa: PLC0415 - the rules of it

    raw = read_bounded(file, "policy")
    try:
        parse_policy(raw.decode())
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"policy {file} is not UTF-8") from error
    accepts = (Accept("policy", hashlib.sha256(raw).digest()),)
    _release(
        Screen.of(ctx, as_json=as_json),
        [resource],
        accepts,
        _span(start, until, days),
        Place.of(broker, broker_key, key, unsigned=out is not None),
        out,
        policy=raw,
    )


def _expectation(text: str) -> bytes:
    if is_hex(text, 32):
        return bytes.fromhex(text)
    from confide.cli.expectation_files import read_expectation  # noqa: PLC0415

    return read_expectation(Path(text)).digest


def _span(start: str, until: str, days: int | None) -> tuple[datetime, datetime]:
    begins = _moment(start, "--from") if start else SystemClock().now().replace(microsecond=0)
    if until and days is not None:
        raise ConfigurationError("--until and --days both say when it ends: give one")
    if not until:
        return begins, begins + timedelta(days=_DAYS if days is None else days)
    ends = _moment(until, "--until")
    if not timedelta() < ends - begins <= MAX_RELEASE:
        raise ConfigurationError(f"--until is after the beginning, at most {MAX_RELEASE.days} days")
    return begins, ends


def _moment(text: str, option: str) -> datetime:
    try:
        return parse_time(text, what=option, reason=Reason.RELEASE_FORMAT)
    except FormatError as error:
        raise ConfigurationError(f"{option} is a UTC time like 2026-11-22T12:00:00Z") from error


def _release(
    screen: Screen,
    resources: Sequence[str],
    accepts: tuple[Accept, ...],
    span: tuple[datetime, datetime],
    place: Place,
    out: Path | None,
    *,
    policy: bytes | None = None,
) -> None:
    named = [resource_of(each) for each in resources]
    if len({each.repository for each in named}) != 1:
        raise ConfigurationError("a release names resources of one repository")
    body = Release(accepts, tuple(str(each) for each in named), *span)
    info = ask_broker(place)
    now = SystemClock().now()
    submission = say(place, info, named[0].repository, body, now=now, policy=policy)
    show_answer(screen, place.url, submission, out)


@app.command()
def revoke(
    ctx: typer.Context,
    digest: Annotated[
        str, typer.Argument(metavar="DIGEST", help="The release's (confide secret ls).")
    ],
    repository: Repository = "",
    broker: BrokerUrl = "",
    broker_key: BrokerKey = "",
    key: Keys = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """End a release now: one owner suffices, and it cannot be taken back."""
    screen = Screen.of(ctx, as_json=as_json)
    place = Place.of(broker, broker_key, key, unsigned=out is not None)
    body = Revocation(digest_of(digest, "DIGEST"))
    info = ask_broker(place)
    name = one_repository(info, repository)
    submission = say(place, info, name, body, now=SystemClock().now())
    show_answer(screen, place.url, submission, out)
