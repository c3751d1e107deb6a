"""Oblivious HTTP of the NEAR face, plain and chunked, against the client side of our codec."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from near_face_place import EVENTS, MODEL, NearPlace, streamed, whole
from near_stranger import check_report, check_signature, session

from confide.channel.exchange import Exchange
from confide.channel.keys import recipient_key
from confide.channel.padding import PaddingPolicy
from confide.channel.pieces import MessageReader, MessageWriter
from confide.channel.single import open_response, seal_request
from confide.errors import RemoteProtocolError
from confide.wire.bhttp import (
    BhttpLimits,
    Content,
    End,
    MessageKind,
    RequestHead,
    ResponseHead,
    encode_known_request,
)
from confide.wire.bhttp_decoder import BhttpDecoder
from confide.wire.ohttp import parse_key_config

if TYPE_CHECKING:
    from collections.abc import Iterable

    import httpx2

    from confide.wire.bhttp import BhttpEvent, Fields

CHAT = "/v1/chat/completions"
NONCE = hashlib.sha256(b"a nonce").digest()
QUESTION: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "secret"}]}
FORMS = ["single", "chunked"]


@dataclass
class Got:
    """An answer that was opened."""

    status: int
    headers: dict[str, str]
    body: bytes


def _got(events: Iterable[BhttpEvent]) -> Got:
    found = Got(0, {}, b"")
    ended = False
    for event in events:
        if isinstance(event, ResponseHead):
            found.status = event.status
            found.headers = {name.decode(): value.decode() for name, value in event.fields}
        elif isinstance(event, Content):
            found.body += event.data
        ended = ended or isinstance(event, End)
    assert ended
    return found


@dataclass
class Gateway:
    """The client side, for the key configuration that the node serves."""

    place: NearPlace
    form: str
    config: bytes = b""
    outer: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if not self.config:
            self.config = self.place.call("GET", "/.well-known/ohttp-gateway").content

    def post(self, raw: bytes, media_type: str = "") -> httpx2.Response:
        kind = media_type or (
            "message/ohttp-req" if self.form == "single" else "message/ohttp-chunked-req"
        )
        headers = [("content-type", kind), *self.outer]
        return self.place.call("POST", "/ohttp", body=raw, headers=headers)

    def send(
        self, method: str, path: str, content: bytes = b"", fields: Fields = ()
    ) -> tuple[httpx2.Response, Got]:
        head = RequestHead(method, "https", "node.example", path, fields)
        plain = encode_known_request(head, content)
        recipient = recipient_key(parse_key_config(self.config))
        if self.form == "single":
            sealed, single = seal_request(recipient, plain, ephemeral=b"e" * 32)
            outer = self.post(sealed)
            assert outer.headers["content-type"] == "message/ohttp-res"
            decoder = BhttpDecoder(MessageKind.RESPONSE)
            opened = open_response(single, outer.content)
            return outer, _got((*decoder.feed(opened), *decoder.end()))
        exchange = Exchange.client(recipient, ephemeral=b"e" * 32)
        outer = self.post(MessageWriter(exchange, PaddingPolicy()).finish(plain))
        assert outer.headers["content-type"] == "message/ohttp-chunked-res"
        reader = MessageReader(exchange, MessageKind.RESPONSE, BhttpLimits())
        return outer, _got((*reader.receive(outer.content), *reader.receive_end()))

    def ask(self, **changed: Any) -> tuple[bytes, Got]:
        raw = json.dumps({**QUESTION, **changed}).encode()
        outer, got = self.send("POST", CHAT, raw, ((b"content-type", b"application/json"),))
        assert b"secret" not in outer.content
        assert b"answer" not in outer.content
        return raw, got


@pytest.fixture
def place() -> NearPlace:
    return NearPlace()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("stream", [False, True])
def test_a_call_is_hidden_answered_and_signed(place: NearPlace, form: str, *, stream: bool) -> None:
    place.upstream.answer = streamed() if stream else whole()
    gateway = Gateway(place, form)
    raw, got = gateway.ask(stream=stream)
    assert got.status == 200
    assert b"answer" in got.body
    _, report = gateway.send("GET", f"/v1/attestation/report?nonce={NONCE.hex()}")
    node = check_report(report.body, nonce=NONCE, fingerprint=None)
    _, signed = gateway.send("GET", "/v1/signature/chatcmpl-0123?signing_algo=ecdsa")
    check_signature(json.loads(signed.body), node=node, model=MODEL, request=raw, response=got.body)
    in_clear = place.call("GET", "/v1/signature/chatcmpl-0123?signing_algo=ecdsa")
    assert in_clear.status_code == 404


@pytest.mark.parametrize("form", FORMS)
def test_the_receipt_travels_inside_and_says_its_way(place: NearPlace, form: str) -> None:
    raw, got = Gateway(place, form).ask()
    assert "confide-receipt" in got.headers
    (predicate,) = place.receipts()
    assert predicate["record"]["way"] == "near/ohttp"
    assert predicate["sealed_request"] == hashlib.sha256(raw).hexdigest()


def test_a_stream_comes_in_chunks(place: NearPlace) -> None:
    place.upstream.answer = streamed()
    _, got = Gateway(place, "chunked").ask(stream=True)
    assert got.body.startswith(b"".join(EVENTS))


@pytest.mark.parametrize("form", FORMS)
def test_sealed_fields_work_inside(place: NearPlace, form: str) -> None:
    gateway = Gateway(place, form)
    _, report = gateway.send("GET", f"/v1/attestation/report?nonce={NONCE.hex()}")
    client = session(check_report(report.body, nonce=NONCE, fingerprint=None))
    messages = [{"role": "user", "content": client.seal("secret")}]
    fields = tuple((name.encode(), value.encode()) for name, value in client.headers.items())
    content = json.dumps({"model": MODEL, "messages": messages}).encode()
    _, got = gateway.send("POST", CHAT, content, fields)
    answer = json.loads(got.body)["choices"][0]["message"]["content"]
    assert client.open(answer) == "the answer"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("path", ["/ohttp", "/v1/receipts/x", "/confide/v1/health", "/sleep"])
def test_nothing_else_is_served_inside(place: NearPlace, form: str, path: str) -> None:
    for method in ("GET", "POST"):
        _, got = Gateway(place, form).send(method, path, b"")
        assert got.status == 404


@pytest.mark.parametrize("form", FORMS)
def test_an_outer_key_replaces_the_inner_one(place: NearPlace, form: str) -> None:
    seen: list[list[tuple[bytes, bytes]]] = []
    inner = place.face._calls._inner

    async def listening(scope: Any, receive: Any, send: Any) -> None:
        seen.append([item for item in scope["headers"] if item[0] == b"authorization"])
        await inner(scope, receive, send)

    place.face._calls._inner = listening
    fields = ((b"authorization", b"Bearer inner"), (b"x-other", b"1"))
    content = json.dumps(QUESTION).encode()
    Gateway(place, form).send("POST", CHAT, content, fields)
    outer = (("authorization", "Bearer outer"),)
    Gateway(place, form, outer=outer).send("POST", CHAT, content, fields)
    assert seen == [
        [(b"authorization", b"Bearer inner")],
        [(b"authorization", b"Bearer outer")],
    ]


@pytest.mark.parametrize("form", FORMS)
def test_both_keys_open_during_a_rotation(place: NearPlace, form: str) -> None:
    before = Gateway(place, form)
    place.identity.rotate()
    after = Gateway(place, form)
    assert before.config != after.config
    assert [gateway.ask()[1].status for gateway in (before, after)] == [200, 200]


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"", 400),
        (b"\x01", 400),
        (b"\x01\x00\x20\x00\x01\x00\x01" + b"x" * 60, 422),
        (b"\x09\x00\x20\x00\x01\x00\x01" + b"x" * 60, 422),
    ],
    ids=["empty", "cut", "not sealed", "another key"],
)
@pytest.mark.parametrize("form", FORMS)
def test_what_does_not_open_is_a_problem(
    place: NearPlace, form: str, raw: bytes, status: int
) -> None:
    answer = Gateway(place, form).post(raw)
    assert answer.status_code in {status, 400}
    assert answer.headers["content-type"] == "application/problem+json"
    assert place.upstream.seen == []


@pytest.mark.parametrize("form", FORMS)
def test_a_cut_or_changed_request_reaches_nothing(place: NearPlace, form: str) -> None:
    gateway = Gateway(place, form)
    head = RequestHead("POST", "https", "node.example", CHAT, ())
    plain = encode_known_request(head, json.dumps(QUESTION).encode())
    recipient = recipient_key(parse_key_config(gateway.config))
    if form == "single":
        sealed, _ = seal_request(recipient, plain, ephemeral=b"e" * 32)
    else:
        exchange = Exchange.client(recipient, ephemeral=b"e" * 32)
        sealed = MessageWriter(exchange, PaddingPolicy()).finish(plain)
    for raw in (sealed[:-1], sealed[:-1] + bytes([sealed[-1] ^ 1]), sealed + b"x"):
        assert gateway.post(raw).status_code in (400, 422)
    assert gateway.post(sealed, "application/json").status_code == 415
    assert place.upstream.seen == []


def test_an_answer_that_broke_off_has_no_end(place: NearPlace) -> None:
    async def breaking(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})

    place.face._calls._inner = breaking
    with pytest.raises((RemoteProtocolError, AssertionError)):
        Gateway(place, "chunked").ask()
