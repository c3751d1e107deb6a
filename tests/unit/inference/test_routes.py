"""What requests a model node takes, and what it forwards: docs/protocols/inference.md §1, §2."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from confide.errors import Reason
from confide.inference.faults import ApiFault, RequestRefused, engine_fault
from confide.inference.models import ServedModel, about_model, model_answer, models_answer
from confide.inference.plan import UPLOADS
from confide.inference.routes import (
    Endpoint,
    EngineRoutes,
    InferencePlan,
    Reply,
    RequestLimits,
    plan_request,
)

_ROUTES = EngineRoutes.of(frozenset(Endpoint), models=True)
_BODIES: dict[Endpoint, dict[str, Any]] = {
    Endpoint.CHAT: {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
    Endpoint.COMPLETIONS: {"model": "m", "prompt": "hi"},
    Endpoint.RESPONSES: {"model": "m", "input": "hi"},
    Endpoint.EMBEDDINGS: {"model": "m", "input": ["hi", "ho"]},
    Endpoint.RERANK: {"model": "m", "query": "hi", "documents": ["a", {"text": "b"}]},
    Endpoint.RERANK_SHORT: {"model": "m", "query": "hi", "documents": []},
    Endpoint.SCORE: {"model": "m", "text_1": "hi", "text_2": ["a", "b"]},
    Endpoint.TOKENIZE: {"model": "m", "prompt": "hi"},
    Endpoint.DETOKENIZE: {"model": "m", "tokens": [1, 2]},
    Endpoint.SPEECH: {"model": "m", "input": "hi", "voice": "alloy"},
    Endpoint.IMAGES: {"model": "m", "prompt": "a boat"},
}


def test_every_endpoint_with_a_json_body_is_tried_here() -> None:
    assert _BODIES.keys() == set(Endpoint) - UPLOADS


def _served(upstream_name: str = "m") -> ServedModel:
    return ServedModel(
        name="m", weights_digest="w", manifest_digest="f", upstream_name=upstream_name, created=5
    )


def _plan(
    endpoint: Endpoint,
    body: bytes | dict[str, Any],
    *,
    served: ServedModel | None = None,
    routes: EngineRoutes = _ROUTES,
) -> InferencePlan:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return plan_request(
        endpoint, raw, served=served or _served(), routes=routes, limits=RequestLimits()
    )


def _fault(
    endpoint: Endpoint, body: bytes | dict[str, Any], *, routes: EngineRoutes = _ROUTES
) -> ApiFault:
    with pytest.raises(RequestRefused) as caught:
        _plan(endpoint, body, routes=routes)
    assert caught.value.reason is Reason.REQUEST_FORMAT
    assert caught.value.status_hint == caught.value.fault.status
    return caught.value.fault


@pytest.mark.parametrize("endpoint", list(_BODIES))
def test_equal_names_forward_the_very_bytes(endpoint: Endpoint) -> None:
    body = b" " + json.dumps(_BODIES[endpoint]).encode() + b"\n"
    plan = _plan(endpoint, body)
    assert plan.body is body
    assert (plan.identical, plan.transformations, plan.reply) == (True, (), Reply.PASS)
    assert (plan.upstream_path, plan.streamed) == (endpoint.value, False)


@pytest.mark.parametrize("endpoint", list(_BODIES))
def test_different_names_change_the_model_alone(endpoint: Endpoint) -> None:
    body = _BODIES[endpoint]
    plan = _plan(endpoint, body, served=_served("/models/é"))
    assert json.loads(plan.body) == {**body, "model": "/models/é"}
    assert (plan.identical, plan.reply) == (False, Reply.RENAME)
    assert plan.transformations == ("model-name",)


def test_an_engine_that_adds_a_revision_has_its_answers_renamed_alone() -> None:
    served = ServedModel(
        name="m",
        weights_digest="w",
        manifest_digest="f",
        upstream_name="m",
        created=5,
        max_context=9,
        adds_revision=True,
    )
    body = json.dumps(_BODIES[Endpoint.CHAT]).encode()
    plan = _plan(Endpoint.CHAT, body, served=served)
    assert plan.body is body
    assert (plan.reply, plan.transformations) == (Reply.RENAME, ("model-name",))
    assert json.loads(model_answer(served))["max_model_len"] == 9


def test_responses_are_mapped_only_where_the_engine_lacks_them() -> None:
    body = _BODIES[Endpoint.RESPONSES]
    plan = _plan(Endpoint.RESPONSES, body, routes=_ROUTES.mapping_responses())
    assert (plan.upstream_path, plan.reply) == ("/v1/chat/completions", Reply.RESPONSES)
    assert plan.transformations == ("responses-over-chat",)
    assert _plan(Endpoint.RESPONSES, body).reply is Reply.PASS


@pytest.mark.parametrize("endpoint", list(_BODIES))
def test_an_endpoint_without_an_engine_behind_it(endpoint: Endpoint) -> None:
    nothing = EngineRoutes(chat=False, completions=False, responses=False, models=False)
    fault = _fault(endpoint, _BODIES[endpoint], routes=nothing)
    assert (fault.status, fault.code) == (404, "unsupported_endpoint")


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        pytest.param(b"", "invalid_json", id="empty"),
        pytest.param(b"[]", "invalid_json", id="not an object"),
        pytest.param(b'{"model":"m","model":"m"}', "invalid_json", id="member twice"),
        pytest.param(
            b'{"model":"m","messages":[{"role":"user","content":"a","content":"b"}]}',
            "invalid_json",
            id="inner member twice",
        ),
        pytest.param(b'{"model":"m","n":NaN}', "invalid_json", id="NaN"),
        pytest.param(b'{"model":"m","seed":9007199254740993}', "invalid_json", id="big integer"),
        pytest.param(b'{"model":"m\xff"}', "invalid_json", id="not UTF-8"),
        pytest.param(b'{"model":"m","tools":' + b"[" * 65, "invalid_json", id="too deep"),
        pytest.param(b"{}", "missing_model", id="no model"),
        pytest.param(b'{"model":["m"]}', "missing_model", id="model is no string"),
        pytest.param(b'{"model":"M"}', "model_not_found", id="another model"),
        pytest.param(b'{"model":"m"}', "invalid_type", id="no messages"),
        pytest.param(b'{"model":"m","messages":[]}', "invalid_type", id="messages empty"),
        pytest.param(b'{"model":"m","messages":["hi"]}', "invalid_type", id="message no object"),
        pytest.param(b'{"model":"m","messages":[{"content":""}]}', "invalid_type", id="no role"),
        pytest.param(
            b'{"model":"m","messages":[{"role":"user","content":7}]}', "invalid_type", id="content"
        ),
    ],
)
def test_bodies_refused(raw: bytes, code: str) -> None:
    fault = _fault(Endpoint.CHAT, raw)
    assert fault.code == code
    assert fault.kind == "invalid_request_error"
    assert fault.status == (404 if code == "model_not_found" else 400)


def test_too_large() -> None:
    with pytest.raises(RequestRefused) as caught:
        plan_request(
            Endpoint.CHAT,
            b'{"model":"m"}',
            served=_served(),
            routes=_ROUTES,
            limits=RequestLimits(max_body_bytes=12),
        )
    assert caught.value.fault.status == 413


@pytest.mark.parametrize(
    "member", ["generation_config", "chat_template", "chat_template_kwargs", "web_search_options"]
)
@pytest.mark.parametrize("endpoint", list(_BODIES))
def test_members_that_could_load_or_fetch_do_not_pass(endpoint: Endpoint, member: str) -> None:
    fault = _fault(endpoint, {**_BODIES[endpoint], member: {}})
    assert fault.code == "unknown_parameter"
    assert member not in fault.body().decode()


@pytest.mark.parametrize("value", [1, "true", []])
def test_stream_is_a_boolean(value: object) -> None:
    fault = _fault(Endpoint.COMPLETIONS, {**_BODIES[Endpoint.COMPLETIONS], "stream": value})
    assert (fault.code, fault.param) == ("invalid_type", "stream")


def test_stream_null_is_absent() -> None:
    body = {**_BODIES[Endpoint.CHAT], "stream": None}
    assert not _plan(Endpoint.CHAT, body).streamed
    assert _plan(Endpoint.CHAT, {**body, "stream": True}).streamed


def _with_part(endpoint: Endpoint, part: object) -> dict[str, Any]:
    if endpoint is Endpoint.CHAT:
        return {"model": "m", "messages": [{"role": "user", "content": [part]}]}
    return {"model": "m", "input": [{"role": "user", "content": [part]}]}


@pytest.mark.parametrize(
    ("endpoint", "part", "code"),
    [
        (Endpoint.CHAT, {"type": "image_url", "image_url": {"url": "http://x/a"}}, "external_url"),
        (Endpoint.CHAT, {"type": "image_url", "image_url": "https://x/a"}, "external_url"),
        (Endpoint.CHAT, {"type": "image_url"}, "external_url"),
        (Endpoint.CHAT, {"type": "text", "text": "", "path": "/etc/x"}, "unknown_parameter"),
        (Endpoint.CHAT, {"type": "text", "text": "", "image_url": "file:///etc"}, "external_url"),
        (Endpoint.CHAT, {"type": "video_url", "video_url": {"url": "x"}}, "unsupported_content"),
        (Endpoint.CHAT, {"type": ["text"]}, "unsupported_content"),
        (Endpoint.CHAT, "text", "unsupported_content"),
        (Endpoint.RESPONSES, {"type": "input_file", "file_url": "x"}, "unsupported_content"),
        (Endpoint.RESPONSES, {"type": "input_image", "image_url": "ftp://x"}, "external_url"),
        (Endpoint.RESPONSES, {"type": "input_image", "detail": "low"}, "external_url"),
    ],
)
def test_nothing_is_fetched_for_a_caller(endpoint: Endpoint, part: object, code: str) -> None:
    assert _fault(endpoint, _with_part(endpoint, part)).code == code


@pytest.mark.parametrize(
    ("endpoint", "part"),
    [
        (Endpoint.CHAT, {"type": "text", "text": "http://example.org"}),
        (Endpoint.CHAT, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}),
        (Endpoint.RESPONSES, {"type": "input_image", "image_url": "data:image/png;base64,AA"}),
        (Endpoint.RESPONSES, {"type": "input_text", "text": "hi"}),
    ],
)
def test_parts_that_pass(endpoint: Endpoint, part: object) -> None:
    assert _plan(endpoint, _with_part(endpoint, part)).identical


@pytest.mark.parametrize("prompt", [None, 7, {}])
def test_prompt_shapes_refused(prompt: object) -> None:
    fault = _fault(Endpoint.COMPLETIONS, {"model": "m", "prompt": prompt})
    assert (fault.code, fault.param) == ("invalid_type", "prompt")


@pytest.mark.parametrize(
    "items", [[], ["hi"], [{"output": 7}], [{"content": {"type": "input_text"}}], 7]
)
def test_input_shapes_refused(items: object) -> None:
    assert _fault(Endpoint.RESPONSES, {"model": "m", "input": items}).code == "invalid_type"


@pytest.mark.parametrize(
    ("tools", "code"),
    [
        ({}, "invalid_type"),
        (["function"], "unsupported_tool"),
        ([{"type": "mcp", "server_url": "http://x"}], "unsupported_tool"),
        ([{"type": "function"}, {"type": "web_search"}], "unsupported_tool"),
    ],
)
@pytest.mark.parametrize("endpoint", [Endpoint.CHAT, Endpoint.RESPONSES])
def test_tools_an_engine_would_run_are_refused(
    endpoint: Endpoint, tools: object, code: str
) -> None:
    assert _fault(endpoint, {**_BODIES[endpoint], "tools": tools}).code == code


def test_a_number_json_cannot_say_is_not_forwarded() -> None:
    body = b'{"model":"m","prompt":"a","temperature":1e999}'
    with pytest.raises(RequestRefused) as caught:
        _plan(Endpoint.COMPLETIONS, body, served=_served("other"))
    assert caught.value.fault.code == "invalid_json"


def test_no_text_of_the_caller_is_in_a_refusal() -> None:
    canary = "CANARY"
    bodies: list[dict[str, Any]] = [
        {"model": canary},
        {**_BODIES[Endpoint.CHAT], canary: 1},
        {"model": "m", "messages": [{"role": "user", "content": [{"type": canary}]}]},
    ]
    for body in bodies:
        assert canary.encode() not in _fault(Endpoint.CHAT, body).body()


def test_faults_have_openais_shape() -> None:
    fault = ApiFault(400, "invalid_request_error", "code", "Words.", "param")
    error = {"message": "Words.", "type": "invalid_request_error", "param": "param", "code": "code"}
    assert json.loads(fault.body()) == {"error": error}
    assert fault.stream_event() == b"data: " + fault.body() + b"\n\n"


@pytest.mark.parametrize(
    ("status", "answered"),
    [
        (400, 400),
        (422, 400),
        (413, 400),
        (429, 429),
        (503, 503),
        (500, 502),
        (404, 502),
        (302, 502),
    ],
)
def test_engine_statuses(status: int, answered: int) -> None:
    assert engine_fault(status).status == answered
    assert engine_fault(None).status == 503


def test_models_answers() -> None:
    served = _served("inner")
    entry = json.loads(model_answer(served))
    assert entry["id"] == "m"
    assert (entry["weights_digest"], entry["manifest_digest"]) == ("w", "f")
    assert "max_model_len" not in entry
    assert json.loads(models_answer(served)) == {"object": "list", "data": [entry]}
    assert b"inner" not in models_answer(served)


def test_a_tuned_model_gives_out_its_record() -> None:
    name = "ft:base:confide:x:0badcafe"
    served = replace(_served(), name=name)
    place = f"/v1/models/{name}"
    assert about_model(served, place) == model_answer(served)
    assert about_model(served, f"{place}/training_record") is None
    served = replace(served, record=b"{}", record_digest="aa")
    assert about_model(served, f"{place}/training_record") == b"{}"
    assert json.loads(model_answer(served))["training_record"] == "aa"
    assert about_model(served, "/v1/models/ft") is None


@pytest.mark.parametrize("name", ["", "a" * 257, "a\nb"])
def test_model_names_are_printable(name: str) -> None:
    with pytest.raises(ValueError, match="printable"):
        _served(name)


@pytest.mark.parametrize(
    ("endpoint", "changed", "code"),
    [
        (Endpoint.EMBEDDINGS, {"input": [{"image": "http://x/a"}]}, "invalid_type"),
        (Endpoint.EMBEDDINGS, {"input": [[1, "a"]]}, "invalid_type"),
        (Endpoint.EMBEDDINGS, {"input": [True]}, "invalid_type"),
        (Endpoint.EMBEDDINGS, {"messages": []}, "unknown_parameter"),
        (Endpoint.RERANK, {"query": {"content": []}}, "invalid_type"),
        (Endpoint.RERANK, {"documents": [{"image_url": {"url": "http://x"}}]}, "invalid_type"),
        (Endpoint.RERANK, {"documents": [{"text": "a", "url": "b"}]}, "invalid_type"),
        (Endpoint.RERANK_SHORT, {"documents": "a"}, "invalid_type"),
        (Endpoint.SCORE, {"text_2": {"content": []}}, "invalid_type"),
        (Endpoint.SCORE, {"queries": "a"}, "invalid_type"),
        (Endpoint.TOKENIZE, {"messages": [{"role": "user"}]}, "invalid_type"),
        (Endpoint.TOKENIZE, {"prompt": ["hi"]}, "invalid_type"),
        (Endpoint.TOKENIZE, {"prompt": None}, "invalid_type"),
        (Endpoint.DETOKENIZE, {"tokens": [1.5]}, "invalid_type"),
        (Endpoint.SPEECH, {"voice": {"id": "x"}}, "invalid_type"),
        (Endpoint.SPEECH, {"ref_audio": "http://x/a.wav"}, "unknown_parameter"),
        (Endpoint.IMAGES, {"response_format": "url"}, "external_url"),
        (Endpoint.IMAGES, {"prompt": 7}, "invalid_type"),
    ],
)
def test_shapes_beside_chat_refused(endpoint: Endpoint, changed: dict[str, Any], code: str) -> None:
    assert _fault(endpoint, {**_BODIES[endpoint], **changed}).code == code


def test_pictures_in_what_is_tokenized_are_not_fetched() -> None:
    part = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}
    body = {"model": "m", "messages": [{"role": "user", "content": [part]}]}
    assert _fault(Endpoint.TOKENIZE, body).code == "external_url"


def test_speech_is_events_where_it_is_asked_for_so() -> None:
    body = _BODIES[Endpoint.SPEECH]
    assert not _plan(Endpoint.SPEECH, body).streamed
    assert _plan(Endpoint.SPEECH, {**body, "stream_format": "sse"}).streamed


def test_a_pool_has_what_all_its_engines_have() -> None:
    one = EngineRoutes.of(frozenset((Endpoint.CHAT, Endpoint.EMBEDDINGS)), models=True)
    other = EngineRoutes.of(frozenset((Endpoint.CHAT, Endpoint.RERANK)), models=False)
    assert one.both(other) == EngineRoutes.of(frozenset((Endpoint.CHAT,)), models=False)
