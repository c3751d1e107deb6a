"""Requests to a model node: what is accepted, and what is sent to the engine for it. Pure.

`plan_request` turns the hostile body of one request into an `InferencePlan`: where to forward,
which bytes, and how the answer has to be treated. docs/protocols/inference.md §1, §2, §5, §7.

Not judged here: whether a temperature, a schema or a prompt makes sense; the engine does that.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from confide.errors import FormatError, Reason
from confide.inference import responses
from confide.inference.faults import ApiFault, RequestRefused
from confide.inference.plan import (
    UPLOADS,
    Endpoint,
    EngineRoutes,
    InferencePlan,
    Reply,
    RequestLimits,
    Transformation,
    refuse,
    require_served,
)
from confide.inference.salting import SALT_MEMBER, insert_salt, take_salt
from confide.inference.shapes import require_shape
from confide.inference.uploads import plan_upload
from confide.wire.json import JsonLimits, parse_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from confide.inference.models import ServedModel
    from confide.inference.salting import Salting
    from confide.wire.json import JsonValue

__all__ = [
    "Endpoint",
    "EngineRoutes",
    "InferencePlan",
    "Reply",
    "RequestLimits",
    "Transformation",
    "parse_object",
    "plan_request",
]

# From: docs/protocols/inference.md §3.6.
_ANSWERS: dict[Endpoint, tuple[str, ...]] = {Endpoint.SPEECH: ("audio/*",)}
# Members that bound what an engine writes, and how often it writes it: tenancy.md §3.4.
_CAPS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_CHOICES = ("n", "best_of")


def plan_request(
    endpoint: Endpoint,
    body: bytes,
    *,
    served: ServedModel,
    routes: EngineRoutes,
    limits: RequestLimits,
    content_type: str = "application/json",
    salting: Salting | None = None,
) -> InferencePlan:
    """
    Read one request and say what to do with it.

    (1) The endpoint exists here (§1.2). (2) The body is strict JSON within `limits` (§2.1). (3) It
    asks for the served model (§2.2). (4) It has only members we know (§2.3), in their outer shape
    (§2.4, §2.7), and makes the engine fetch nothing (§2.5). (5) It is forwarded as received, or
    renamed, or mapped (§2.6, §5). Multipart bodies, which `content_type` describes: §7. With
    `salting` the engine's prefix cache is kept apart (tenancy.md §5).

    **Does not check** that the caller may use the node. Raises `RequestRefused`.
    """
    mapping = endpoint is Endpoint.RESPONSES and not routes.responses and routes.chat
    if not mapping and not routes.has(endpoint):  # (1)
        refuse("unsupported_endpoint", "The model engine does not serve this endpoint.", status=404)
    if endpoint in UPLOADS:
        return plan_upload(endpoint, body, content_type, served=served, limits=limits)
    request = parse_object(body, limits)  # (2)
    require_served(request.get("model"), served)  # (3)
    own = SALT_MEMBER in request
    salt = take_salt(request, Endpoint.CHAT if mapping else endpoint, salting)
    streamed = require_shape(endpoint, request)  # (4)
    if mapping:  # (5)
        plan = _mapped_plan(request, served, streamed=streamed)
    else:
        plan = _plain_plan(endpoint, request, body, served, streamed=streamed)
    plan = replace(plan, output_cap=_output_cap(request))
    return plan if salt is None else _salted(plan, request, salt, rewritten=own)


def _salted(
    plan: InferencePlan, request: Mapping[str, JsonValue], salt: str, *, rewritten: bool
) -> InferencePlan:
    body = plan.body
    if rewritten and plan.identical:
        # The caller's own salt stands somewhere in these bytes.
        body = _write(request)
    return replace(
        plan,
        body=insert_salt(body, salt),
        identical=False,
        transformations=(*plan.transformations, Transformation.CACHE_SALT.value),
    )


def _output_cap(request: Mapping[str, JsonValue]) -> int | None:
    caps = [request.get(name) for name in _CAPS]
    choices = [request.get(name) for name in _CHOICES]
    most = max((cap for cap in caps if type(cap) is int and cap > 0), default=None)
    times = max((number for number in choices if type(number) is int and number > 0), default=1)
    return None if most is None else most * times


def _mapped_plan(
    request: Mapping[str, JsonValue], served: ServedModel, *, streamed: bool
) -> InferencePlan:
    chat, echo = responses.chat_request(request, model=served.upstream_name)
    renamed = (Transformation.MODEL_NAME.value,) if served.name != served.upstream_name else ()
    return InferencePlan(
        endpoint=Endpoint.RESPONSES,
        upstream_path=Endpoint.CHAT.value,
        body=_write(chat),
        identical=False,
        served=served,
        streamed=streamed,
        transformations=(*renamed, Transformation.RESPONSES_OVER_CHAT.value),
        reply=Reply.RESPONSES,
        mapped=echo,
    )


def _plain_plan(
    endpoint: Endpoint,
    request: Mapping[str, JsonValue],
    body: bytes,
    served: ServedModel,
    *,
    streamed: bool,
) -> InferencePlan:
    rename = served.name != served.upstream_name
    rename_answer = rename or served.adds_revision
    return InferencePlan(
        endpoint=endpoint,
        upstream_path=endpoint.value,
        body=_write({**request, "model": served.upstream_name}) if rename else body,
        identical=not rename,
        served=served,
        streamed=streamed,
        transformations=(Transformation.MODEL_NAME.value,) if rename_answer else (),
        reply=Reply.RENAME if rename_answer else Reply.PASS,
        answers=_ANSWERS.get(endpoint, ()),
    )


def _write(value: Mapping[str, JsonValue]) -> bytes:
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
    except ValueError:
        # A number like 1e999 parses to infinity, which JSON cannot say.
        refuse("invalid_json", "A number in the request is outside what JSON numbers can hold.")


def parse_object(body: bytes, limits: RequestLimits) -> dict[str, JsonValue]:
    """Read a request body as one JSON object (§2.1). Raises `RequestRefused`."""
    if len(body) > limits.max_body_bytes:
        refuse(
            "request_too_large",
            f"The request is above {limits.max_body_bytes} bytes.",
            status=413,
        )
    try:
        value = parse_json(
            body,
            what="request",
            reason=Reason.REQUEST_FORMAT,
            limits=JsonLimits(max_bytes=limits.max_body_bytes, max_depth=limits.max_depth),
        )
    except FormatError as error:
        # `what` is our own sentence: it holds sizes and rules, never the caller's text.
        fault = ApiFault(
            400, "invalid_request_error", "invalid_json", f"The body is refused: {error.what}."
        )
        raise RequestRefused(fault) from error
    if not isinstance(value, dict):
        refuse("invalid_json", "The body is not a JSON object.")
    return value
