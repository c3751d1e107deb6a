"""A key broker over HTTP, from the side of the owners. broker.md §1.3, §4.4; release.md §2.8.

What it says about itself is verified under the key that the caller knows it by. What it answers to
a statement is its word: a proof that came with it can be verified, and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import httpx2

from confide.adapters.bounded_http import (
    Exchange,
    FetchLimits,
    Received,
    TryAgain,
    exchange,
    plain_url,
)
from confide.adapters.http_client import ask_member, system_trust
from confide.broker.info import MAX_INFO_BYTES, BrokerInfo, verify_broker_info
from confide.errors import FormatError, Reason, ReleaseRefused, RemoteProtocolError, Unavailable
from confide.rats import Finding, Status
from confide.wire.json import JsonValue, Members, b64decode, parse_json

if TYPE_CHECKING:
    from confide.broker.beside import Submission

__all__ = [
    "INFO_PATH",
    "SIGNATURE_HEADER",
    "STATEMENTS_PATH",
    "Answer",
    "HttpBroker",
    "ask_broker",
    "broker_client",
]

INFO_PATH: Final = "/confide/v1/broker"
STATEMENTS_PATH: Final = "/confide/v1/broker/statements"
SIGNATURE_HEADER: Final = "confide-signature"
_MAX_ANSWER_BYTES: Final = 8 << 20
# Taking a statement may take as long as the log and its witnesses do.
_ATTEMPT_SECONDS: Final = 90.0
_TIMEOUT: Final = httpx2.Timeout(60.0, connect=5.0)
# With one of these, and a reason that we know, the broker decided; else something broke.
_DECIDED: Final = frozenset({400, 401, 403, 404, 409, 413})
_CLAUSE: Final = "docs/protocols/broker.md#4.4"
_REASON: Final = Reason.BROKER_FORMAT


def broker_client() -> httpx2.AsyncClient:
    """Return a client for brokers: no environment, no redirects."""
    return httpx2.AsyncClient(
        timeout=_TIMEOUT, trust_env=False, verify=system_trust(), follow_redirects=False
    )


def ask_broker(url: str) -> str | None:
    """
    Return the key that the broker at `url` says it has, None where it does not answer.

    A hint for people and for waiting, like `http_client.ask_health`; it proves nothing.
    """
    return ask_member(url + INFO_PATH, "key")


@dataclass(frozen=True, slots=True)
class Answer:
    """
    What the broker says it did with a statement.

    `log` is a proof file (log.md §6), not verified; `listing` what a listing asked for.
    """

    statement: bytes
    state: str
    log: str | None
    listing: JsonValue


class HttpBroker:
    """One broker at one URL; https, or http to this machine."""

    def __init__(self, client: httpx2.AsyncClient, url: str) -> None:
        self._client = client
        self._url = plain_url(url, what="the broker's URL")

    async def info(self, key: bytes) -> BrokerInfo:
        """
        Return what the broker says about itself, verified under `key`.

        Raises `Unavailable` without an answer, `RemoteProtocolError` for one that is none or of
        another broker.
        """
        found = await self._ask(Exchange(url=self._url + INFO_PATH, max_bytes=MAX_INFO_BYTES))
        if found.status != 200:
            raise RemoteProtocolError(f"the broker answered {found.status} instead of its keys")
        try:
            text = found.headers.get(SIGNATURE_HEADER, "")
            signature = b64decode(text, what=SIGNATURE_HEADER, reason=_REASON)
            return verify_broker_info(found.body, signature, key=key)
        except FormatError as error:
            raise RemoteProtocolError(error.what, reason=error.reason) from error

    async def send(self, submission: Submission) -> Answer:
        """
        Send one statement and return the answer.

        Raises `ReleaseRefused` with the broker's reason, `Unavailable` without an answer: then it
        may have been taken all the same. `RemoteProtocolError` for an answer that is none.
        """
        found = await self._ask(
            Exchange(
                url=self._url + STATEMENTS_PATH,
                max_bytes=_MAX_ANSWER_BYTES,
                method="POST",
                body=submission.encode(),
                content_type="application/json",
            )
        )
        if found.status != 200:
            raise _refusal(found)
        try:
            answer = _parse_answer(found.body)
        except FormatError as error:
            raise RemoteProtocolError(error.what, reason=error.reason) from error
        if answer.statement != submission.envelope.digest:
            raise RemoteProtocolError("the broker answered about another statement")
        return answer

    async def _ask(self, wanted: Exchange) -> Received:
        try:
            limits = FetchLimits(attempt_seconds=_ATTEMPT_SECONDS, redirects=0)
            return await exchange(self._client, wanted, limits=limits)
        except (TryAgain, Unavailable) as error:
            raise Unavailable(f"the broker does not answer: {error}") from error


def _parse_answer(raw: bytes) -> Answer:
    value = parse_json(raw, what="broker answer", reason=_REASON)
    members = Members(value, what="broker answer", reason=_REASON)
    statement = members.hexes("statement", 32)
    state = members.text("state", max_chars=64)
    log = members.text("log", max_chars=1 << 21) if members.has("log") else None
    listing = members.value("listing") if members.has("listing") else None
    members.end()
    return Answer(statement, state, log, listing)


def _refusal(found: Received) -> ReleaseRefused | RemoteProtocolError:
    """Return the error that an answer other than 200 is; its words stay behind, its reason not."""
    broken = RemoteProtocolError(
        f"the broker answered {found.status} without a reason that we know"
    )
    if found.status not in _DECIDED:
        return broken
    try:
        value = parse_json(found.body, what="broker error", reason=_REASON)
        members = Members(value, what="broker error", reason=_REASON)
        reason = members.choice("reason", tuple(Reason))
    except FormatError:
        return broken
    detail = f"the broker answered {found.status}"
    if reason is Reason.REPLAYED:
        detail += ": it has this statement already"
    return ReleaseRefused((Finding(Status.FAIL, "broker/1", _CLAUSE, "statement", detail, reason),))
