"""A broker over HTTP: its keys verified, its refusals by reason, everything else an edge."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from owner_world import ALICE, KEYS, MALLORY, OLD_CODE, SOLE, release, signed

from confide.adapters.broker_http import (
    INFO_PATH,
    SIGNATURE_HEADER,
    STATEMENTS_PATH,
    Answer,
    HttpBroker,
)
from confide.broker.beside import Submission, parse_submission
from confide.broker.info import BrokerInfo, sign_broker_info, verify_broker_info
from confide.errors import (
    ConfigurationError,
    FormatError,
    Reason,
    ReleaseRefused,
    RemoteProtocolError,
    Unavailable,
)
from confide.wire.json import b64encode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

INFO = BrokerInfo(KEYS.key, KEYS.opener.public_key.raw, {"acme": SOLE.digest}, simulated=True)
SIGNATURE = sign_broker_info(INFO.encode(), KEYS.signer)
SENT = Submission(signed(SOLE, release(OLD_CODE), ALICE))
DIGEST = SENT.envelope.digest.hex()


class Body(httpx2.AsyncByteStream):
    """A body that comes over the wire, once."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._raw


def broker(respond: Callable[[httpx2.Request], httpx2.Response]) -> HttpBroker:
    def over_the_wire(request: httpx2.Request) -> httpx2.Response:
        told = respond(request)
        return httpx2.Response(told.status_code, headers=told.headers, stream=Body(told.content))

    client = httpx2.AsyncClient(transport=httpx2.MockTransport(over_the_wire))
    return HttpBroker(client, "https://broker.example/")


def answering(status: int, body: object, **headers: str) -> HttpBroker:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return broker(lambda _request: httpx2.Response(status, content=raw, headers=headers))


def info(body: bytes, signature: bytes, key: bytes = KEYS.key) -> BrokerInfo:
    found = answering(200, body, **{SIGNATURE_HEADER: b64encode(signature)})
    return asyncio.run(found.info(key))


def test_a_broker_is_the_one_whose_key_is_known() -> None:
    assert info(INFO.encode(), SIGNATURE) == INFO
    with pytest.raises(RemoteProtocolError):
        info(INFO.encode(), SIGNATURE, MALLORY.public_key)
    with pytest.raises(RemoteProtocolError):
        info(INFO.encode() + b" ", SIGNATURE)
    with pytest.raises(RemoteProtocolError):
        asyncio.run(answering(200, INFO.encode()).info(KEYS.key))
    with pytest.raises(RemoteProtocolError):
        asyncio.run(answering(404, b"").info(KEYS.key))


@pytest.mark.parametrize(
    "body",
    [
        replace(INFO, key=MALLORY.public_key).encode(),
        replace(INFO, repositories={"No Name": bytes(32)}).encode(),
        b"{}",
        INFO.encode().replace(b'"repositories":{', b'"repositories":[{'),
    ],
    ids=["another key", "no name of a repository", "nothing", "no JSON"],
)
def test_what_a_broker_signs_has_to_be_its_info(body: bytes) -> None:
    signature = sign_broker_info(body, KEYS.signer)
    with pytest.raises(FormatError) as refused:
        verify_broker_info(body, signature, key=KEYS.key)
    assert refused.value.reason is Reason.BROKER_FORMAT
    with pytest.raises(RemoteProtocolError):
        info(body, signature)


def test_a_statement_is_sent_whole_and_its_answer_read() -> None:
    seen: list[httpx2.Request] = []

    def respond(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return httpx2.Response(200, json={"statement": DIGEST, "state": "in-force", "log": "p"})

    answer = asyncio.run(broker(respond).send(SENT))
    assert answer == Answer(SENT.envelope.digest, "in-force", "p", None)
    (request,) = seen
    assert (request.method, request.url.path) == ("POST", STATEMENTS_PATH)
    assert parse_submission(request.content) == SENT
    assert INFO_PATH in STATEMENTS_PATH


@pytest.mark.parametrize(
    "body",
    [
        {"statement": "00" * 32, "state": "in-force"},
        {"statement": DIGEST},
        {"statement": DIGEST, "state": "in-force", "more": 1},
        b"fine",
    ],
    ids=["another statement", "no state", "something else", "no JSON"],
)
def test_an_answer_that_is_none_is_the_brokers_fault(body: object) -> None:
    with pytest.raises(RemoteProtocolError):
        asyncio.run(answering(200, body).send(SENT))


def refusal(reason: object) -> dict[str, Any]:
    return {"type": "https://x.example/errors/Refused", "detail": "their words", "reason": reason}


@pytest.mark.parametrize("status", [400, 403, 404, 409])
def test_a_refusal_is_read_by_its_reason_and_repeats_no_words(status: int) -> None:
    with pytest.raises(ReleaseRefused) as refused:
        asyncio.run(answering(status, refusal("owner-threshold")).send(SENT))
    assert refused.value.reason is Reason.OWNER_THRESHOLD
    assert "their words" not in str(refused.value)


@pytest.mark.parametrize(
    ("status", "body"),
    [(403, refusal("because")), (403, refusal(None)), (403, b"no"), (418, refusal("replayed"))],
)
def test_a_refusal_without_a_known_reason_is_none(status: int, body: object) -> None:
    with pytest.raises(RemoteProtocolError):
        asyncio.run(answering(status, body).send(SENT))


def test_what_does_not_answer_is_unavailable() -> None:
    def silent(_request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("no")

    for unreachable in (
        broker(silent),
        answering(503, b""),
        answering(200, bytes(9 << 20)),
        answering(302, b"", location="https://broker.example/elsewhere"),
    ):
        with pytest.raises(Unavailable):
            asyncio.run(unreachable.send(SENT))


@pytest.mark.parametrize("url", ["http://broker.example", "https://u:p@broker.example", "broker"])
def test_a_broker_elsewhere_is_asked_over_tls_alone(url: str) -> None:
    with pytest.raises(ConfigurationError):
        HttpBroker(httpx2.AsyncClient(), url)
