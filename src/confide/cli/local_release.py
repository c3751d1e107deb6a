"""The local owner's release: what an agent asks for, opened to one Expectation.

docs/protocols/release.md §3. On a machine of one's own the person who runs an agent is the owner;
the release is signed, logged and checked as anywhere, and never made without being asked for.
"""

from __future__ import annotations

import hashlib
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from confide.broker.beside import SALT_BYTES, seal_value, secret_version
from confide.broker.statement_kinds import Accept, Body, Listing, Release, Secret
from confide.cli.secret_send import Place, ask_broker, read_keys, say, send_submission
from confide.engines.local_broker import LOCAL_REPOSITORY
from confide.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from confide.adapters.broker_http import Answer
    from confide.broker.info import BrokerInfo
    from confide.engines.local_broker import LocalBroker
    from confide.expectation import Expectation
    from confide.ports import Clock, Entropy

__all__ = ["LocalOwner", "ReleaseOption"]

ReleaseOption = Annotated[
    bool,
    typer.Option(
        "--release", help="As the local owner, open what the agent asks for to this Expectation."
    ),
]

_DAYS = timedelta(days=30)
_IN_FORCE = "in-force"


class LocalOwner:
    """The owner of the local broker at `url`. Blocking."""

    def __init__(self, broker: LocalBroker, url: str, *, clock: Clock, entropy: Entropy) -> None:
        self._place = Place(url, broker.key, read_keys([broker.owner_key]))
        self._clock = clock
        self._entropy = entropy
        self._info: BrokerInfo = ask_broker(self._place)

    def release(self, expectation: Expectation) -> str:
        """
        Open what `expectation` asks for to it, for 30 days; return what happened, in words.

        Nothing is signed where a release for all of it is in force. Raises `ConfigurationError`
        for an Expectation that names another broker, `ReleaseRefused`, `Unavailable`.
        """
        asked = expectation.broker
        if asked.key != self._place.key.hex() or asked.repository != LOCAL_REPOSITORY:
            raise ConfigurationError(
                "the Expectation does not name the local broker and its repository: its owners "
                "release with confide secret release"
            )
        wanted = [asked.resource(use.name) for use in asked.uses]
        if asked.state:
            wanted.append(asked.state_resource(expectation.name))
        accept = Accept("expectation", expectation.digest)
        if set(wanted) <= self._open_to(accept):
            return f"{len(wanted)} resource(s) open to it already"
        now = self._clock.now().replace(microsecond=0)
        answer = self._say(Release((accept,), tuple(sorted(wanted)), now, now + _DAYS))
        if answer.state != _IN_FORCE:
            raise ConfigurationError(
                "the release waits for the log, and holds once it is there: try again"
            )
        return f"{len(wanted)} resource(s) released to it for {_DAYS.days} days"

    def hold(self, resource: str, draw: Callable[[], bytes]) -> bool:
        """Put what `draw` returns under `resource` where nothing is; return whether it was put."""
        if resource in {row.get("resource") for row in self._rows("secrets")}:
            return False
        value, salt = draw(), self._entropy.token(SALT_BYTES)
        version = secret_version(salt, value)
        sealed = seal_value(
            self._info.seal,
            value,
            resource=resource,
            version=version,
            ephemeral=self._entropy.token(32),
        )
        digest = hashlib.sha256(sealed).digest()
        self._say(Secret(resource, version, salt, digest, len(value)), value=sealed)
        return True

    def _open_to(self, accept: Accept) -> set[str]:
        found: set[str] = set()
        for row in self._rows("releases"):
            same = {accept.name: accept.digest.hex()} in row.get("accepts", [])
            if same and row.get("state") == _IN_FORCE:
                found |= set(row.get("resources", []))
        return found

    def _rows(self, name: str) -> list[dict[str, Any]]:
        listing = self._say(Listing()).listing
        rows = listing.get(name) if isinstance(listing, dict) else None
        return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []

    def _say(self, body: Body, *, value: bytes | None = None) -> Answer:
        now = self._clock.now()
        said = say(self._place, self._info, LOCAL_REPOSITORY, body, now=now, value=value)
        return send_submission(self._place.url, said)
