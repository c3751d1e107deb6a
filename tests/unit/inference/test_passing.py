"""Routes that pass through: listed, exact, of the served model. docs/protocols/inference.md §8."""

from __future__ import annotations

import json
from typing import Any

import pytest

from confide.errors import ConfigurationError
from confide.inference.faults import ApiFault, RequestRefused
from confide.inference.models import ServedModel
from confide.inference.passing import (
    COMPUTING,
    PassRoute,
    PassRoutes,
    parse_pass_route,
    plan_pass,
)
from confide.inference.plan import InferencePlan, RequestLimits

_MESSAGES = PassRoute("POST", "/v1/messages")
_JSON = "application/json"


def plan(
    body: bytes | dict[str, Any] = b"",
    *,
    route: PassRoute = _MESSAGES,
    query: str = "",
    content_type: str = _JSON,
    upstream_name: str = "m",
) -> InferencePlan:
    served = ServedModel(
        name="m", weights_digest="", manifest_digest="", upstream_name=upstream_name, created=0
    )
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return plan_pass(
        route,
        raw,
        query=query,
        content_type=content_type,
        served=served,
        limits=RequestLimits(),
    )


def refused(body: bytes | dict[str, Any] = b"", **more: Any) -> ApiFault:
    with pytest.raises(RequestRefused) as caught:
        plan(body, **more)
    return caught.value.fault


def test_nothing_is_rewritten() -> None:
    body = b' {"model": "m", "anything": [1, 2.50]}\n'
    made = plan(body, query="beta=true&x=%2F")
    assert made.body is body
    assert (made.upstream_path, made.query, made.method) == (
        "/v1/messages",
        "beta=true&x=%2F",
        "POST",
    )
    assert (made.identical, made.transformations, made.content_type) == (True, (), _JSON)
    assert not made.listed


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "missing_model"),
        ({"model": "other"}, "model_not_found"),
        ({"model": ["m"]}, "missing_model"),
        ([{"model": "m"}], "invalid_json"),
        (b'{"model":"m","model":"other"}', "invalid_json"),
        (b'{"model":"m","x":NaN}', "invalid_json"),
        ({"model": "m", "a": [{"source": {"type": "url", "url": "http://x"}}]}, "external_url"),
        ({"model": "m", "image_url": ["http://x"]}, "external_url"),
        ({"model": "m", "FILE_URI": "file:///etc/shadow"}, "external_url"),
    ],
)
def test_bodies_refused(body: Any, code: str) -> None:
    assert refused(body).code == code


def test_a_picture_in_the_body_passes() -> None:
    assert plan({"model": "m", "image_url": {"url": "data:image/png;base64,AA"}}).identical


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("model=other", "model_not_found"),
        ("model=m&model=other", "invalid_query"),
        ("a=1;model=other", "model_not_found"),
        ("%6dodel=other", "model_not_found"),
        ("MODEL=other", "model_not_found"),
        ("a=b c", "invalid_query"),
        ("a=%zz", "invalid_query"),
        ("a=" + "b" * 2050, "invalid_query"),
    ],
)
def test_queries_refused(query: str, code: str) -> None:
    assert refused({"model": "m"}, query=query).code == code


def test_a_body_of_another_type_is_named_by_the_query() -> None:
    more: dict[str, Any] = {
        "content_type": "application/octet-stream",
        "route": PassRoute("POST", "/v1/x"),
    }
    assert plan(b"\x00\xff", query="model=m", **more).content_type == "application/octet-stream"
    assert refused(b"\x00\xff", **more).code == "missing_model"
    assert refused(b"a" * (8 * 1024 * 1024 + 1), query="model=m", **more).status == 413


def test_a_form_is_named_by_its_field() -> None:
    kind = "multipart/form-data; boundary=b"
    part = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n%b\r\n--b--\r\n'
    assert plan(part % b"m", content_type=kind).identical
    assert refused(part % b"other", content_type=kind).code == "model_not_found"


def test_where_the_engine_has_another_name_a_body_cannot_pass() -> None:
    assert refused({"model": "m"}, upstream_name="up").code == "unsupported_endpoint"


def test_only_what_computes_is_done_twice() -> None:
    assert plan({"model": "m"}).repeatable
    assert not plan(route=PassRoute("POST", "/v1/x")).repeatable


@pytest.mark.parametrize(
    "text",
    [
        "/v1/x",
        "FETCH /v1/x",
        "POST v1/x",
        "POST /v1/x/",
        "POST //v1/x",
        "POST /v1/%78",
        "POST /v1/x?y",
        "POST /v1/../x",
        "POST /v1/x\n",
        "POST /v1/" + "x" * 64,
        "POST /v1/chat/completions",
        "GET /v1/models/x",
        "GET /v1/receipts/x",
        "POST /confide/v1/closing",
        "POST /v1/load_lora_adapter",
        "POST /v1/unload_lora_adapter",
        "POST /load_model",
        "POST /models/load",
        "POST /update_weights_from_disk",
        "POST /sleep",
        "POST /wake_up",
        "POST /reset_prefix_cache",
        "POST /flush_cache",
        "POST /collective_rpc",
        "POST /shutdown",
        "GET /metrics",
        "GET /slots",
        "POST /lora-adapters",
        "POST /abort_request",
        "POST /release_memory_occupation",
        "POST /start_profile",
        "GET /get_server_info",
        "POST /reset",
        "GET /v1/files",
    ],
)
def test_routes_that_cannot_be_listed(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_pass_route(text)


def test_a_listed_route_is_found_by_its_exact_spelling_alone() -> None:
    routes = PassRoutes(frozenset([parse_pass_route("GET /v1/audio/voices")]))
    assert routes.find("GET", "/v1/audio/voices") == PassRoute("GET", "/v1/audio/voices")
    others = ["/v1/audio/voices/", "/v1//audio/voices", "/v1/audio%2Fvoices", "/V1/audio/voices"]
    assert all(routes.find("GET", path) is None for path in others)
    assert routes.find("POST", "/v1/audio/voices") is None
    assert all(routes.find(route.method, route.path) == route for route in COMPUTING)
