"""The salt of the prefix cache: whose it is, where it goes, who can choose it. tenancy.md §5."""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.errors import FormatError
from confide.inference.faults import RequestRefused
from confide.inference.models import ServedModel
from confide.inference.passing import COMPUTING, PassRoute, require_apart
from confide.inference.plan import Endpoint, EngineRoutes, InferencePlan, RequestLimits
from confide.inference.routes import plan_request
from confide.inference.salting import Salting, salted_endpoints

KEY = bytes(32)
SALTING = Salting(KEY, "acme", frozenset((Endpoint.CHAT, Endpoint.EMBEDDINGS)))
SERVED = ServedModel(name="m", weights_digest="", manifest_digest="", upstream_name="m", created=1)
ROUTES = EngineRoutes(
    chat=True,
    completions=True,
    responses=False,
    models=False,
    others=frozenset((Endpoint.EMBEDDINGS, Endpoint.TOKENIZE)),
)
ASKED: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def planned(
    body: object,
    *,
    endpoint: Endpoint = Endpoint.CHAT,
    salting: Salting | None = SALTING,
    served: ServedModel = SERVED,
) -> InferencePlan:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return plan_request(
        endpoint, raw, served=served, routes=ROUTES, limits=RequestLimits(), salting=salting
    )


def refused(body: object, **options: Any) -> str:
    with pytest.raises(RequestRefused) as told:
        planned(body, **options)
    return told.value.fault.code


def test_the_salt_is_what_the_protocol_says() -> None:
    framed = b"\0\0\0\x15confide cache salt v1\0\0\0\x04acme\0\0\0\x03own"
    expected = hmac.new(KEY, framed, hashlib.sha256).hexdigest()
    assert SALTING.salt("own") == expected


@given(st.text(max_size=5), st.text(max_size=5), st.text(max_size=5), st.text(max_size=5))
def test_two_tenants_never_have_one_salt(one: str, own: str, other: str, others: str) -> None:
    salts = [
        replace(SALTING, tenant=tenant).salt(mine) for tenant, mine in ((one, own), (other, others))
    ]
    assert (salts[0] == salts[1]) == ((one, own) == (other, others))


def test_another_boot_has_other_salts() -> None:
    assert replace(SALTING, key=b"\1" * 32).salt("") != SALTING.salt("")


def test_the_salt_is_the_first_member_and_no_other_byte_changes() -> None:
    raw = b' {  "model":"m",\n"messages":[{"role":"user","content":"\\u0068i"}] }'
    plan = planned(raw)
    salt = f'"cache_salt":"{SALTING.salt("")}",'.encode()
    assert plan.body == raw[:2] + salt + raw[2:]
    assert json.loads(plan.body)["cache_salt"] == SALTING.salt("")
    assert (plan.identical, plan.transformations) == (False, ("cache-salt",))


def test_what_the_caller_gives_is_mixed_in_and_never_sent() -> None:
    plan = planned({**ASKED, "cache_salt": "mine"})
    assert json.loads(plan.body) == {**ASKED, "cache_salt": SALTING.salt("mine")}
    assert plan.body.count(b"cache_salt") == 1
    assert b"mine" not in plan.body
    # Not even the salt of another, if it were known.
    stolen = replace(SALTING, tenant="other").salt("")
    assert json.loads(planned({**ASKED, "cache_salt": stolen}).body)["cache_salt"] != stolen


@pytest.mark.parametrize("own", [7, None, ["a"], "a\n", "x" * 257])
def test_a_salt_that_is_none_is_refused(own: object) -> None:
    assert refused({**ASKED, "cache_salt": own}) == "invalid_type"


def test_without_salting_nobody_knows_the_member() -> None:
    assert refused({**ASKED, "cache_salt": "mine"}, salting=None) == "unknown_parameter"
    plan = planned(ASKED, salting=None)
    assert (plan.identical, plan.transformations) == (True, ())


def test_a_renamed_and_a_mapped_request_are_salted_too() -> None:
    renamed = replace(SERVED, upstream_name="engine")
    plan = planned({**ASKED, "cache_salt": "mine"}, served=renamed)
    sent = json.loads(plan.body)
    assert (sent["model"], sent["cache_salt"]) == ("engine", SALTING.salt("mine"))
    assert plan.transformations == ("model-name", "cache-salt")
    mapped = planned({"model": "m", "input": "hi"}, endpoint=Endpoint.RESPONSES)
    assert json.loads(mapped.body)["cache_salt"] == SALTING.salt("")
    assert mapped.transformations == ("responses-over-chat", "cache-salt")


def test_where_the_engine_takes_no_salt_text_is_refused_and_the_rest_goes_as_it_came() -> None:
    assert refused({"model": "m", "prompt": "hi"}, endpoint=Endpoint.COMPLETIONS) == (
        "unsupported_endpoint"
    )
    plan = planned({"model": "m", "prompt": "hi"}, endpoint=Endpoint.TOKENIZE)
    assert plan.identical
    only_embeddings = replace(SALTING, endpoints=frozenset((Endpoint.EMBEDDINGS,)))
    body = {"model": "m", "input": "hi"}
    # Mapped to chat, which takes none here.
    code = refused(body, endpoint=Endpoint.RESPONSES, salting=only_embeddings)
    assert code == "unsupported_endpoint"


def test_routes_that_are_not_rewritten_pass_only_on_the_operators_word() -> None:
    counting = PassRoute("POST", "/v1/messages/count_tokens")
    own = PassRoute("POST", "/v1/own")
    for route in COMPUTING - {counting}:
        with pytest.raises(RequestRefused):
            require_apart(route, frozenset(), SALTING)
        require_apart(route, frozenset((route,)), SALTING)
        require_apart(route, frozenset(), None)
    require_apart(counting, frozenset(), SALTING)
    require_apart(own, frozenset((own,)), SALTING)


def described(schemas: dict[str, Any], **paths: str) -> bytes:
    def body(name: str) -> dict[str, Any]:
        schema = {"$ref": f"#/components/schemas/{name}"}
        return {"post": {"requestBody": {"content": {"application/json": {"schema": schema}}}}}

    names = {f"/v1/{path.replace('__', '/')}": body(name) for path, name in paths.items()}
    seed = {"type": "integer", "maximum": 2**63 - 1}
    return json.dumps({"paths": names, "components": {"schemas": schemas}, "seed": seed}).encode()


def test_an_engine_says_where_it_takes_a_salt() -> None:
    salted = {"properties": {"model": {}, "cache_salt": {"type": "string"}}}
    schemas = {
        "Chat": salted,
        "Either": {"anyOf": [{"$ref": "#/components/schemas/Plain"}, {"allOf": [salted]}]},
        "Plain": {"properties": {"model": {}}},
        "Loop": {"anyOf": [{"$ref": "#/components/schemas/Loop"}, 7]},
    }
    text = described(
        schemas, chat__completions="Chat", embeddings="Either", completions="Plain", score="Loop"
    )
    assert salted_endpoints(text) == {Endpoint.CHAT, Endpoint.EMBEDDINGS}
    assert salted_endpoints(b"[]") == frozenset()
    assert salted_endpoints(described({}, chat__completions="Absent")) == frozenset()


@pytest.mark.parametrize("text", [b"", b"\xff", b"<html>", b"[" * 100_000])
def test_what_is_no_description_is_refused(text: bytes) -> None:
    with pytest.raises(FormatError):
        salted_endpoints(text)


@pytest.mark.parametrize(
    ("more", "cap"),
    [
        ({}, None),
        ({"max_tokens": 5}, 5),
        ({"max_tokens": 5, "max_completion_tokens": 9}, 9),
        ({"max_tokens": 5, "n": 3}, 15),
        ({"max_tokens": "5", "n": 3}, None),
        ({"max_tokens": True}, None),
        ({"max_tokens": -5}, None),
    ],
)
def test_a_plan_says_how_much_may_be_written(more: dict[str, object], cap: int | None) -> None:
    assert planned({**ASKED, **more}, salting=None).output_cap == cap
