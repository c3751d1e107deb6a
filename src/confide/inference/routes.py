"""Requests to a model node: what is accepted, and what is sent to the engine for it. Pure.

`plan_request` turns the hostile body of one request into an `InferencePlan`: where to forward,
which bytes, and how the answer has to be treated. docs/protocols/inference.md §1, §2, §5.

Not judged here: whether a temperature, a schema or a prompt makes sense; the engine does that.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, NoReturn

from confide.errors import FormatError, Reason
from confide.inference import responses
from confide.inference.faults import ApiFault, RequestRefused
from confide.wire.json import JsonLimits, parse_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from confide.inference.models import ServedModel
    from confide.wire.json import JsonValue

__all__ = [
    "Endpoint",
    "EngineRoutes",
    "InferencePlan",
    "Reply",
    "RequestLimits",
    "Transformation",
    "plan_request",
]


class Endpoint(StrEnum):
    """The paths of §1.1 that take a body."""

    CHAT = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"
    RESPONSES = "/v1/responses"


class Transformation(StrEnum):
    """What a record can say was done to the bytes (§4.3). Closed."""

    MODEL_NAME = "model-name"
    RESPONSES_OVER_CHAT = "responses-over-chat"
    ERROR_BODY = "error-body"
    ERROR_EVENT = "error-event"


class Reply(StrEnum):
    """How a 2xx answer of the engine becomes the caller's answer."""

    PASS = "pass"  # noqa: S105 - a treatment, not a password
    RENAME = "rename"
    RESPONSES = "responses"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRoutes:
    """Which endpoints the engine behind the node has (§1.3)."""

    chat: bool
    completions: bool
    responses: bool
    models: bool

    def has(self, endpoint: Endpoint) -> bool:
        """Whether the engine itself serves `endpoint`."""
        if endpoint is Endpoint.CHAT:
            return self.chat
        return self.completions if endpoint is Endpoint.COMPLETIONS else self.responses

    def mapping_responses(self) -> EngineRoutes:
        """Return the same without `/v1/responses`: the operator prefers the mapping (§5.1)."""
        return replace(self, responses=False)


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Caps of §2.1. Tool schemas nest; OpenAI allows ten levels in one schema."""

    max_body_bytes: int = 8 * 1024 * 1024
    max_depth: int = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class InferencePlan:
    """
    One accepted request.

    `body` is the very object that was received when nothing had to change. `mapped` holds what
    the answer of a mapped `/v1/responses` repeats of its request.
    """

    endpoint: Endpoint
    upstream_path: str
    body: bytes
    identical: bool
    served: ServedModel
    streamed: bool
    transformations: tuple[str, ...]
    reply: Reply
    mapped: Mapping[str, JsonValue] | None = None


# From: OpenAI API reference, request bodies of the three endpoints, without the members that make
# an engine fetch (`web_search_options`) or act for an account (`moderation`).
_SAMPLING = frozenset(
    (
        "frequency_penalty",
        "logit_bias",
        "logprobs",
        "max_tokens",
        "model",
        "n",
        "presence_penalty",
        "seed",
        "stop",
        "stream",
        "stream_options",
        "temperature",
        "top_p",
        "user",
    )
)
# Extensions of other engines that only steer sampling: §2.3.
_EXTENSIONS = frozenset(
    (
        "top_k",
        "min_p",
        "repetition_penalty",
        "length_penalty",
        "min_tokens",
        "ignore_eos",
        "stop_token_ids",
        "skip_special_tokens",
    )
)
_CHAT = frozenset(
    (
        "audio",
        "function_call",
        "functions",
        "max_completion_tokens",
        "messages",
        "metadata",
        "modalities",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "reasoning_effort",
        "response_format",
        "safety_identifier",
        "service_tier",
        "store",
        "tool_choice",
        "tools",
        "top_logprobs",
        "verbosity",
    )
)
_MEMBERS = {
    Endpoint.CHAT: _SAMPLING | _EXTENSIONS | _CHAT,
    Endpoint.COMPLETIONS: _SAMPLING
    | _EXTENSIONS
    | frozenset(("best_of", "echo", "prompt", "suffix")),
    Endpoint.RESPONSES: responses.MEMBERS,
}
_CONTENT = {
    Endpoint.CHAT: frozenset(("text", "refusal", "input_audio", "image_url")),
    Endpoint.RESPONSES: frozenset(
        (
            "input_text",
            "output_text",
            "refusal",
            "input_image",
            "summary_text",
            "reasoning_text",
        )
    ),
}
_PART = frozenset(
    ("type", "text", "refusal", "image_url", "detail", "input_audio", "annotations", "logprobs")
)
_INVALID = "invalid_request_error"


def _refuse(code: str, message: str, *, param: str | None = None, status: int = 400) -> NoReturn:
    raise RequestRefused(ApiFault(status, _INVALID, code, message, param))


def plan_request(
    endpoint: Endpoint,
    body: bytes,
    *,
    served: ServedModel,
    routes: EngineRoutes,
    limits: RequestLimits,
) -> InferencePlan:
    """
    Read one request and say what to do with it.

    (1) The endpoint exists here (§1.2). (2) The body is strict JSON within `limits` (§2.1). (3) It
    asks for the served model (§2.2). (4) It has only members we know (§2.3), in their outer shape
    (§2.4), and makes the engine fetch nothing (§2.5). (5) It is forwarded as received, or
    renamed, or mapped (§2.6, §5).

    **Does not check** that the caller may use the node. Raises `RequestRefused`.
    """
    mapping = endpoint is Endpoint.RESPONSES and not routes.responses and routes.chat
    if not mapping and not routes.has(endpoint):  # (1)
        _refuse(
            "unsupported_endpoint", "The model engine does not serve this endpoint.", status=404
        )
    request = _parse(body, limits)  # (2)
    _require_model(request, served)  # (3)
    streamed = _require_shape(endpoint, request)  # (4)
    if mapping:  # (5)
        return _mapped_plan(request, served, streamed=streamed)
    return _plain_plan(endpoint, request, body, served, streamed=streamed)


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
    )


def _write(value: Mapping[str, JsonValue]) -> bytes:
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
    except ValueError:
        # A number like 1e999 parses to infinity, which JSON cannot say.
        _refuse("invalid_json", "A number in the request is outside what JSON numbers can hold.")


def _parse(body: bytes, limits: RequestLimits) -> dict[str, JsonValue]:
    if len(body) > limits.max_body_bytes:
        _refuse(
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
        fault = ApiFault(400, _INVALID, "invalid_json", f"The body is refused: {error.what}.")
        raise RequestRefused(fault) from error
    if not isinstance(value, dict):
        _refuse("invalid_json", "The body is not a JSON object.")
    return value


def _require_model(request: Mapping[str, JsonValue], served: ServedModel) -> None:
    model = request.get("model")
    if model == served.name:
        return
    if not isinstance(model, str):
        _refuse("missing_model", "You must provide a model parameter.", param="model")
    _refuse(
        "model_not_found",
        "The model does not exist here; GET /v1/models names the one that is served.",
        param="model",
        status=404,
    )


def _require_shape(endpoint: Endpoint, request: Mapping[str, JsonValue]) -> bool:
    if not _MEMBERS[endpoint].issuperset(request):
        _refuse("unknown_parameter", "The request has a member this endpoint does not take.")
    if endpoint is Endpoint.CHAT:
        _require_messages(request.get("messages"))
    elif endpoint is Endpoint.COMPLETIONS:
        if not isinstance(request.get("prompt"), str | list):
            _refuse("invalid_type", "prompt is a string or an array.", param="prompt")
    else:
        _require_input(request.get("input"))
    if request.get("tools") is not None:
        _require_tools(request["tools"])
    stream = request.get("stream")
    if stream is not None and not isinstance(stream, bool):
        _refuse("invalid_type", "stream is true or false.", param="stream")
    return stream is True


def _require_messages(messages: JsonValue) -> None:
    if not isinstance(messages, list) or not messages:
        _refuse("invalid_type", "messages is an array of at least one.", param="messages")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            _refuse("invalid_type", "a message is an object with a role.", param="messages")
        content = message.get("content")
        if content is not None and not isinstance(content, str):
            _require_parts(Endpoint.CHAT, content)


def _require_input(value: JsonValue) -> None:
    if isinstance(value, str):
        return
    if not isinstance(value, list) or not value:
        _refuse("invalid_type", "input is a string or an array of at least one.", param="input")
    for item in value:
        if not isinstance(item, dict):
            _refuse("invalid_type", "an input item is an object.", param="input")
        for member in ("content", "output"):
            parts = item.get(member)
            if parts is not None and not isinstance(parts, str):
                _require_parts(Endpoint.RESPONSES, parts)


def _require_parts(endpoint: Endpoint, parts: JsonValue) -> None:
    if not isinstance(parts, list):
        _refuse("invalid_type", "content is a string or an array of parts.")
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if (
            not isinstance(part, dict)
            or not isinstance(kind, str)
            or kind not in _CONTENT[endpoint]
        ):
            _refuse("unsupported_content", "A content part is of a type this node does not take.")
        if not _PART.issuperset(part):
            _refuse("unknown_parameter", "A content part has an unknown member.")
        # Whatever the type says: an engine may go by the member alone.
        if "image_url" in part or kind in ("image_url", "input_image"):
            image = part.get("image_url")
            url = image.get("url") if isinstance(image, dict) else image
            if not isinstance(url, str) or not url.startswith("data:"):
                _refuse("external_url", "An image is given as a data: URL; nothing is fetched.")


def _require_tools(tools: JsonValue) -> None:
    if not isinstance(tools, list):
        _refuse("invalid_type", "tools is an array.", param="tools")
    for tool in tools:
        if not isinstance(tool, dict) or tool.get("type") not in ("function", "custom"):
            _refuse("unsupported_tool", "Only function tools are served here.", param="tools")
