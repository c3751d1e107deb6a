"""What every verb of `confide secret` that says something to a broker shares: make, sign, send.

A statement is made for the broker whose key the owner knows: what the broker says about itself is
verified under it before anything is signed.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from confide.adapters.entropy import SystemEntropy
from confide.adapters.files import write_atomically
from confide.broker.beside import Submission
from confide.broker.names import Resource, parse_repository, parse_resource
from confide.broker.owner_key import load_owner_key
from confide.broker.statement import add_signature
from confide.broker.statement_kinds import Addressed, Body, make_payload, parse_statement
from confide.cli.broker_places import local_place
from confide.cli.places import read_bounded
from confide.cli.screen import fields, printable
from confide.errors import ConfigurationError, FormatError, Reason
from confide.wire.dsse import Envelope
from confide.wire.json import is_hex

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from confide.adapters.broker_http import Answer
    from confide.broker.info import BrokerInfo
    from confide.cli.screen import Screen
    from confide.crypto.ed25519 import Ed25519Signer

__all__ = [
    "BrokerKey",
    "BrokerUrl",
    "Json",
    "Keys",
    "Name",
    "Out",
    "Place",
    "Repository",
    "ask_broker",
    "digest_of",
    "one_repository",
    "read_keys",
    "resource_of",
    "say",
    "send_submission",
    "show_answer",
]

BrokerUrl = Annotated[str, typer.Option("--broker", metavar="URL", help="Where the broker is.")]
BrokerKey = Annotated[
    str, typer.Option("--broker-key", metavar="HEX", help="The broker's public key (Ed25519).")
]
Name = Annotated[str, typer.Argument(metavar="RESOURCE", help="REPOSITORY/TYPE/NAME.")]
Keys = Annotated[
    list[Path] | None,
    typer.Option("--key", metavar="FILE", help="An owner's private key; may be given again."),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE", help="Write the statement here instead of sending it."),
]
Repository = Annotated[
    str, typer.Option(metavar="NAME", help="The repository, where the broker has several.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]
_KEY_BYTES = 32
_ONE_LINE = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Place:
    """A broker as it was named: where, under which key, and who signs."""

    url: str
    key: bytes
    signers: tuple[Ed25519Signer, ...]

    @classmethod
    def of(cls, url: str, key: str, keys: Sequence[Path] | None, *, unsigned: bool) -> Place:
        """Return what the options name, or else the local broker. `ConfigurationError`."""
        if bool(url) != bool(key):
            raise ConfigurationError(
                "name the broker with both: --broker URL --broker-key HEX (its operator tells "
                "both; compare the key on another way than the URL), or use the local one"
            )
        if key and not is_hex(key, _KEY_BYTES):
            raise ConfigurationError("--broker-key is 64 characters of lower-case hex")
        files = list(keys or ())
        local = None if url else local_place()
        if local is not None and not files:
            files = [local.owner_key]
        if not files and not unsigned:
            raise ConfigurationError(
                "name an owner's key: --key FILE (confide secret keygen makes one), or --out FILE "
                "to have others sign"
            )
        if local is not None:
            return cls(local.url, local.key, read_keys(files))
        return cls(url, bytes.fromhex(key), read_keys(files))


def read_keys(files: Sequence[Path]) -> tuple[Ed25519Signer, ...]:
    """Read the owners' private keys."""
    return tuple(load_owner_key(read_bounded(file, "owner's key")) for file in files)


def resource_of(text: str) -> Resource:
    """Return the resource that an argument names; `ConfigurationError` where it is no name."""
    try:
        return parse_resource(text, reason=Reason.RELEASE_FORMAT)
    except FormatError as error:
        raise ConfigurationError(
            "a resource is REPOSITORY/TYPE/NAME, like acme/secret/dataset: lower-case letters, "
            "digits and . _ -"
        ) from error


def digest_of(text: str, what: str) -> bytes:
    """Return the SHA-256 that an argument gives in hex."""
    if not _ONE_LINE.fullmatch(text):
        raise ConfigurationError(f"{what} is 64 characters of lower-case hex")
    return bytes.fromhex(text)


def ask_broker(place: Place) -> BrokerInfo:
    """Return what the broker says about itself, verified under the key that was given."""
    # An HTTP client, which `keygen` and `sign` do without.
    from confide.adapters.broker_http import HttpBroker, broker_client  # noqa: PLC0415

    async def ask() -> BrokerInfo:
        async with broker_client() as client:
            return await HttpBroker(client, place.url).info(place.key)

    return asyncio.run(ask())


def send_submission(url: str, submission: Submission) -> Answer:
    """Send one statement."""
    from confide.adapters.broker_http import HttpBroker, broker_client  # noqa: PLC0415

    async def send() -> Answer:
        async with broker_client() as client:
            return await HttpBroker(client, url).send(submission)

    return asyncio.run(send())


def one_repository(info: BrokerInfo, name: str) -> str:
    """Return the repository that is meant: `name`, or the only one that there is."""
    if name:
        return parse_repository(name, reason=Reason.RELEASE_FORMAT)
    if len(info.repositories) != 1:
        raise ConfigurationError("the broker has several repositories: --repository NAME")
    return next(iter(info.repositories))


def say(
    place: Place,
    info: BrokerInfo,
    repository: str,
    body: Body,
    *,
    now: datetime,
    value: bytes | None = None,
    policy: bytes | None = None,
) -> Submission:
    """Return a statement of the owners who are here, made for this broker and this moment."""
    owners = info.repositories.get(repository)
    if owners is None:
        raise ConfigurationError("the broker has no such repository")
    to = Addressed(info.key, repository, owners, now, SystemEntropy().token(32))
    envelope = Envelope(make_payload(to, body), ())
    for signer in place.signers:
        envelope = add_signature(envelope, signer)
    return Submission(envelope, value, policy)


def show_answer(screen: Screen, place_url: str, submission: Submission, out: Path | None) -> None:
    """Send `submission` and show the answer; or write it to `out`."""
    digest = submission.envelope.digest.hex()
    if out is not None:
        if out.exists():
            raise ConfigurationError(f"{out} exists; a statement is never overwritten")
        write_atomically(out, submission.encode())
        signed = str(len(submission.envelope.signatures))
        screen.show(fields([("statement", digest), ("signatures", signed), ("file", str(out))]))
        screen.event("result", {"statement": digest, "state": "written", "file": str(out)})
        return
    answer = send_submission(place_url, submission)
    kind = parse_statement(submission.envelope.payload).body.KIND
    screen.show(
        Text.assemble((f"✓ taken: {printable(answer.state)}", "green")),
        fields([("statement", digest), ("kind", kind)]),
    )
    if answer.state == "pending":
        screen.say("It holds once it is in the log; the broker tries again until it is.")
    screen.event("result", {"statement": digest, "state": answer.state, "log": answer.log})
