"""From the engine's answer to the caller's, and the record: docs/protocols/inference.md §3, §4."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from confide.errors import FormatError, LocalProtocolError, Reason
from confide.inference.digest import (
    ExchangeDigests,
    Finish,
    InferenceRecord,
    Usage,
    parse_record,
)
from confide.inference.exchange import Exchange, refusal_record
from confide.inference.faults import ApiFault, engine_fault
from confide.inference.models import ServedModel
from confide.inference.routes import Endpoint, EngineRoutes, RequestLimits, plan_request
from confide.wire.json import jcs
from confide.wire.sse import SseEvent, SseParser

if TYPE_CHECKING:
    from collections.abc import Callable

_SERVED = ServedModel(
    name="m", weights_digest="", manifest_digest="", upstream_name="up", created=0
)
_JSON = "application/json; charset=utf-8"
_SSE = "text/event-stream; charset=utf-8"
_ANSWER = b'{"model": "up@main", "choices": [], "usage": {"prompt_tokens":3,"completion_tokens":4}}'
_CHUNK = b'data: {"model":"up","choices":[{"delta":{"content":"hi"}}]}\n\n'
_END = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'


def _sha(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def _exchange(
    endpoint: Endpoint = Endpoint.CHAT, *, upstream_name: str = "m", stream: bool = False
) -> tuple[Exchange, bytes, bytes]:
    """Return an exchange, the received bytes and the forwarded bytes."""
    chat = {"messages": [{"role": "user", "content": "hi"}]}
    content: dict[str, Any] = {"input": "hi"} if endpoint is Endpoint.RESPONSES else chat
    received = json.dumps({"model": "m", "stream": stream, **content}).encode()
    served = ServedModel(
        name="m", weights_digest="", manifest_digest="", upstream_name=upstream_name, created=0
    )
    routes = EngineRoutes(chat=True, completions=True, responses=False, models=False)
    plan = plan_request(endpoint, received, served=served, routes=routes, limits=RequestLimits())
    return Exchange(plan, received, token="ab", created_at=1), received, plan.body


def _play(exchange: Exchange, status: int, kind: str, *chunks: bytes) -> bytes:
    exchange.answer(status, kind)
    return b"".join(exchange.feed(chunk) for chunk in chunks) + exchange.finish()


def test_equal_names_pass_bytes_through_with_one_digest() -> None:
    exchange, received, _forwarded = _exchange()
    out = _play(exchange, 200, _JSON, _ANSWER[:9], _ANSWER[9:])
    assert out == _ANSWER
    assert exchange.record() == InferenceRecord(
        endpoint="/v1/chat/completions",
        model="m",
        request_digest=_sha(received),
        forwarded_digest=None,
        upstream_digest=_sha(_ANSWER),
        response_digest=_sha(_ANSWER),
        status=200,
        streamed=False,
        usage=Usage(3, 4),
        transformations=(),
        finish=Finish.COMPLETE,
    )
    assert exchange.headers == (("content-type", "application/json"),)


def test_different_names_have_four_digests() -> None:
    exchange, received, forwarded = _exchange(upstream_name="up")
    out = _play(exchange, 200, _JSON, _ANSWER)
    assert out == _ANSWER.replace(b"up@main", b"m")
    record = exchange.record()
    assert (record.request_digest, record.forwarded_digest) == (_sha(received), _sha(forwarded))
    assert (record.upstream_digest, record.response_digest) == (_sha(_ANSWER), _sha(out))
    assert record.transformations == ("model-name",)


def test_a_stream_passes_chunk_by_chunk() -> None:
    exchange, _received, _forwarded = _exchange(stream=True)
    exchange.answer(200, _SSE)
    assert exchange.streams
    assert exchange.headers == (("content-type", "text/event-stream"),)
    assert exchange.feed(_CHUNK[:11]) == _CHUNK[:11]
    assert exchange.feed(_CHUNK[11:]) == _CHUNK[11:]
    assert exchange.finish() == b""
    record = exchange.record()
    assert record.response_digest == record.upstream_digest == _sha(_CHUNK)
    assert record.streamed


def test_a_stream_is_renamed() -> None:
    exchange, _received, _forwarded = _exchange(upstream_name="up", stream=True)
    out = _play(exchange, 200, _SSE, _CHUNK[:15], _CHUNK[15:], b"data: [DONE]")
    assert out == _CHUNK.replace(b"up", b"m") + b"data: [DONE]"
    assert exchange.record().response_digest == _sha(out)


@pytest.mark.parametrize("kind", [_JSON, "text/html", ""])
def test_an_engine_that_does_not_stream_although_asked(kind: str) -> None:
    exchange, _received, _forwarded = _exchange(stream=True)
    assert _play(exchange, 200, kind, _ANSWER) == _ANSWER
    expected = "application/json" if kind == _JSON else "application/octet-stream"
    assert dict(exchange.headers)["content-type"] == expected
    assert not exchange.record().streamed


@pytest.mark.parametrize(
    ("status", "answered", "finish"),
    [
        (400, 400, Finish.COMPLETE),
        (500, 502, Finish.UPSTREAM_FAILED),
        (302, 502, Finish.UPSTREAM_FAILED),
    ],
)
def test_engine_errors_get_fixed_bodies(status: int, answered: int, finish: Finish) -> None:
    exchange, _received, _forwarded = _exchange(stream=True)
    out = _play(exchange, status, "text/plain", b"trace with CANARY")
    assert out == engine_fault(status).body()
    record = exchange.record()
    assert (record.status, record.finish) == (answered, finish)
    assert record.upstream_digest == _sha(b"trace with CANARY")
    assert record.response_digest == _sha(out)
    assert record.transformations == ("error-body",)
    assert dict(exchange.headers)["content-type"] == "application/json"


def test_no_answer_at_all() -> None:
    exchange, _received, _forwarded = _exchange()
    assert exchange.fail() == engine_fault(None).body()
    record = exchange.record()
    assert (record.status, record.upstream_digest) == (503, None)
    assert record.finish is Finish.UPSTREAM_FAILED


def test_a_whole_answer_is_returned_whole_or_not_at_all() -> None:
    exchange, _received, _forwarded = _exchange()
    exchange.answer(200, _JSON)
    assert exchange.feed(_ANSWER[:10]) == b""
    out = exchange.fail()
    assert out == engine_fault(502).body()
    record = exchange.record()
    assert (record.status, record.upstream_digest) == (502, _sha(_ANSWER[:10]))
    assert record.response_digest == _sha(out)


@pytest.mark.parametrize("upstream_name", ["m", "up"])
def test_a_stream_that_breaks_off_says_so(upstream_name: str) -> None:
    exchange, _received, _forwarded = _exchange(upstream_name=upstream_name, stream=True)
    exchange.answer(200, _SSE)
    begun = exchange.feed(_CHUNK) + exchange.feed(b'data: {"half')
    out = begun + exchange.fail()
    last = [item for item in SseParser().feed(out) if isinstance(item, SseEvent)][-1]
    assert json.loads(last.data)["error"]["code"] == "engine_failed"
    assert b"[DONE]" not in out
    record = exchange.record()
    assert record.transformations[-1] == "error-event"
    assert record.upstream_digest == _sha(_CHUNK + b'data: {"half')
    assert record.response_digest == _sha(out)


def test_a_stream_that_cannot_be_renamed_within_bounds_fails_with_a_record() -> None:
    exchange, _received, _forwarded = _exchange(upstream_name="up", stream=True)
    exchange.answer(200, _SSE)
    endless = b"x" * (4 * 1024 * 1024 + 1)
    with pytest.raises(FormatError):
        exchange.feed(endless)
    out = exchange.fail()
    record = exchange.record()
    assert record.finish is Finish.UPSTREAM_FAILED
    assert (record.upstream_digest, record.response_digest) == (_sha(endless), _sha(out))


@pytest.mark.parametrize("streams", [False, True])
def test_a_caller_that_goes_away(*, streams: bool) -> None:
    exchange, _received, _forwarded = _exchange(stream=streams)
    exchange.answer(200, _SSE if streams else _JSON)
    out = exchange.feed(_CHUNK)
    exchange.cancel()
    exchange.cancel()
    record = exchange.record()
    assert record.finish is Finish.CLIENT_CANCELLED
    assert record.status == (200 if streams else 499)
    assert record.upstream_digest == _sha(_CHUNK)
    assert record.response_digest == _sha(out)


def test_cancel_before_an_answer_and_after_the_end() -> None:
    exchange, _received, _forwarded = _exchange()
    exchange.cancel()
    assert exchange.record().upstream_digest is None
    exchange, _received, _forwarded = _exchange()
    _play(exchange, 200, _JSON, _ANSWER)
    exchange.cancel()
    assert exchange.record().finish is Finish.COMPLETE


def test_misuse_is_our_bug() -> None:
    exchange, _received, _forwarded = _exchange()
    early: list[Callable[[], object]] = [
        exchange.record,
        exchange.finish,
        lambda: exchange.feed(b""),
    ]
    for misuse in early:
        with pytest.raises(LocalProtocolError):
            misuse()
    _play(exchange, 200, _JSON, _ANSWER)
    late: list[Callable[[], object]] = [
        exchange.finish,
        exchange.fail,
        lambda: exchange.answer(200, _JSON),
    ]
    for misuse in late:
        with pytest.raises(LocalProtocolError):
            misuse()
    digests = ExchangeDigests()
    with pytest.raises(LocalProtocolError):
        digests.record(
            endpoint="",
            model="",
            status=200,
            streamed=False,
            usage=None,
            transformations=(),
            finish=Finish.COMPLETE,
        )
    digests.upstream(b"a")
    with pytest.raises(LocalProtocolError):
        digests.passed(b"a")


# --- mapped responses


def _mapped(*, stream: bool) -> Exchange:
    return _exchange(Endpoint.RESPONSES, upstream_name="up", stream=stream)[0]


def _names(out: bytes) -> list[str]:
    parser = SseParser()
    return [item.name for item in parser.feed(out) if isinstance(item, SseEvent)]


def test_the_mapping_is_said() -> None:
    exchange = _mapped(stream=False)
    chat = b'{"choices":[{"message":{"content":"hi"},"finish_reason":"stop"}]}'
    out = _play(exchange, 200, _JSON, chat)
    assert json.loads(out)["output"][0]["content"][0]["text"] == "hi"
    assert dict(exchange.headers)["confide-mapping"] == "responses-over-chat"
    record = exchange.record()
    assert record.transformations == ("model-name", "responses-over-chat")
    assert (record.upstream_digest, record.response_digest) == (_sha(chat), _sha(out))


@pytest.mark.parametrize(("kind", "stream"), [(_JSON, False), (_JSON, True), (_SSE, False)])
def test_a_mapped_answer_that_cannot_be_understood(kind: str, *, stream: bool) -> None:
    exchange = _mapped(stream=stream)
    assert _play(exchange, 200, kind, b"[]") == engine_fault(502).body()
    record = exchange.record()
    assert record.transformations[-1] == "error-body"
    assert record.finish is Finish.UPSTREAM_FAILED


def test_a_mapped_stream() -> None:
    exchange = _mapped(stream=True)
    out = _play(exchange, 200, _SSE, _CHUNK, _END, b"data: [DONE]\n\n")
    assert _names(out)[-1] == "response.completed"
    record = exchange.record()
    assert record.response_digest == _sha(out)
    assert record.upstream_digest == _sha(_CHUNK + _END + b"data: [DONE]\n\n")
    assert record.finish is Finish.COMPLETE


def test_a_mapped_stream_without_a_byte() -> None:
    exchange = _mapped(stream=True)
    out = _play(exchange, 200, _SSE)
    assert _names(out) == ["response.created", "response.in_progress", "response.failed"]
    assert exchange.record().finish is Finish.UPSTREAM_FAILED
    exchange = _mapped(stream=True)
    exchange.answer(200, _SSE)
    assert _names(exchange.fail())[-1] == "response.failed"


def test_a_mapped_stream_cut_short() -> None:
    exchange = _mapped(stream=True)
    exchange.answer(200, _SSE)
    out = exchange.feed(_CHUNK) + exchange.fail()
    assert _names(out)[-1] == "response.failed"
    assert exchange.record().transformations[-1] == "error-event"


# --- the record


def test_a_refused_request_has_a_record() -> None:
    fault = ApiFault(404, "invalid_request_error", "model_not_found", "No.")
    record = refusal_record(Endpoint.CHAT, b"{}", fault, served=_SERVED)
    assert (record.status, record.upstream_digest, record.forwarded_digest) == (404, None, None)
    assert record.response_digest == _sha(fault.body())
    assert record.request_digest == _sha(b"{}")


def _record() -> dict[str, Any]:
    exchange, _received, _forwarded = _exchange(upstream_name="up")
    _play(exchange, 200, _JSON, _ANSWER)
    return {**exchange.record().as_json()}


def test_records_survive_canonical_json() -> None:
    value = json.loads(jcs(_record()))
    record = parse_record(value, what="record", reason=Reason.RECEIPT_FORMAT)
    assert record.as_json() == _record()
    nothing = {**_record(), "forwarded": None, "upstream": None, "usage": None}
    assert parse_record(nothing, what="r", reason=Reason.RECEIPT_FORMAT).as_json() == nothing


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("request", "AB" * 32),
        ("request", None),
        ("forwarded", "ab"),
        ("status", 99),
        ("status", True),
        ("streamed", 1),
        ("usage", {"input_tokens": 1}),
        ("usage", {"input_tokens": 1, "output_tokens": 1, "more": 1}),
        ("finish", "maybe"),
        ("transformations", [1]),
        ("other", 1),
    ],
)
def test_records_are_read_strictly(member: str, value: object) -> None:
    altered: Any = {**_record(), member: value}
    with pytest.raises(FormatError) as caught:
        parse_record(altered, what="record", reason=Reason.RECEIPT_FORMAT)
    assert caught.value.reason is Reason.RECEIPT_FORMAT


@pytest.mark.parametrize("member", sorted(_record()))
def test_no_member_of_a_record_may_be_absent(member: str) -> None:
    altered = _record()
    del altered[member]
    with pytest.raises(FormatError):
        parse_record(altered, what="record", reason=Reason.RECEIPT_FORMAT)
