"""Which members a JSON request may have at each endpoint, and their outer shape. Pure.

docs/protocols/inference.md §2.3 to §2.5 and §2.7. Members are closed lists: an engine may have
others that load files, models or code, or fetch; they do not pass. Values inside the outer shape
are the engine's to judge.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from confide.inference import responses
from confide.inference.plan import Endpoint, refuse

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from confide.wire.json import JsonValue

    Request = Mapping[str, JsonValue]

__all__ = ["MEMBERS", "require_shape"]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# From: the OpenAI API reference, generation 2026; members of both chat and legacy completions.
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
# From: docs/protocols/inference.md §2.7, as the engines that have these endpoints name them.
_RERANK = _names(
    "model query documents top_n return_documents max_tokens_per_doc truncate_prompt_tokens user"
)
MEMBERS = {
    Endpoint.CHAT: _SAMPLING | _EXTENSIONS | _CHAT,
    Endpoint.COMPLETIONS: _SAMPLING
    | _EXTENSIONS
    | frozenset(("best_of", "echo", "prompt", "suffix")),
    Endpoint.RESPONSES: responses.MEMBERS,
    Endpoint.EMBEDDINGS: _names(
        "model input encoding_format dimensions user truncate_prompt_tokens add_special_tokens"
    ),
    Endpoint.RERANK: _RERANK,
    Endpoint.RERANK_SHORT: _RERANK,
    Endpoint.SCORE: _names("model text_1 text_2 queries documents truncate_prompt_tokens user"),
    Endpoint.TOKENIZE: _names(
        "model prompt messages content add_special_tokens add_special "
        "parse_special with_pieces add_generation_prompt "
        "continue_final_message return_token_strs tools"
    ),
    Endpoint.DETOKENIZE: frozenset(("model", "tokens", "skip_special_tokens")),
    Endpoint.SPEECH: _names("model input voice response_format speed instructions stream_format"),
    Endpoint.IMAGES: _names(
        "model prompt n size quality style response_format background moderation "
        "output_compression output_format partial_images stream user seed negative_prompt "
        "guidance_scale num_inference_steps"
    ),
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


def require_shape(endpoint: Endpoint, request: Request) -> bool:
    """
    Refuse a `request` that is not of the shape of `endpoint`; return whether events are asked for.

    Raises `RequestRefused`.
    """
    if not MEMBERS[endpoint].issuperset(request):
        refuse("unknown_parameter", "The request has a member this endpoint does not take.")
    _SHAPES[endpoint](request)
    if request.get("tools") is not None:
        _require_tools(request["tools"])
    if endpoint is Endpoint.SPEECH:
        return request.get("stream_format") == "sse"
    stream = request.get("stream")
    if stream is not None and not isinstance(stream, bool):
        refuse("invalid_type", "stream is true or false.", param="stream")
    return stream is True


def _require_chat(request: Request) -> None:
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages:
        refuse("invalid_type", "messages is an array of at least one.", param="messages")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            refuse("invalid_type", "a message is an object with a role.", param="messages")
        content = message.get("content")
        if content is not None and not isinstance(content, str):
            _require_parts(Endpoint.CHAT, content)


def _require_prompt(request: Request) -> None:
    if not isinstance(request.get("prompt"), str | list):
        refuse("invalid_type", "prompt is a string or an array.", param="prompt")


def _require_input(request: Request) -> None:
    value = request.get("input")
    if isinstance(value, str):
        return
    if not isinstance(value, list) or not value:
        refuse("invalid_type", "input is a string or an array of at least one.", param="input")
    for item in value:
        if not isinstance(item, dict):
            refuse("invalid_type", "an input item is an object.", param="input")
        for member in ("content", "output"):
            parts = item.get(member)
            if parts is not None and not isinstance(parts, str):
                _require_parts(Endpoint.RESPONSES, parts)


def _require_parts(endpoint: Endpoint, parts: JsonValue) -> None:
    if not isinstance(parts, list):
        refuse("invalid_type", "content is a string or an array of parts.")
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if (
            not isinstance(part, dict)
            or not isinstance(kind, str)
            or kind not in _CONTENT[endpoint]
        ):
            refuse("unsupported_content", "A content part is of a type this node does not take.")
        if not _PART.issuperset(part):
            refuse("unknown_parameter", "A content part has an unknown member.")
        # Whatever the type says: an engine may go by the member alone.
        if "image_url" in part or kind in ("image_url", "input_image"):
            image = part.get("image_url")
            url = image.get("url") if isinstance(image, dict) else image
            if not isinstance(url, str) or not url.startswith("data:"):
                refuse("external_url", "An image is given as a data: URL; nothing is fetched.")


def _require_tools(tools: JsonValue) -> None:
    if not isinstance(tools, list):
        refuse("invalid_type", "tools is an array.", param="tools")
    for tool in tools:
        if not isinstance(tool, dict) or tool.get("type") not in ("function", "custom"):
            refuse("unsupported_tool", "Only function tools are served here.", param="tools")


def _is_texts(value: JsonValue) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_tokens(value: JsonValue) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)


def _require_embedded(request: Request) -> None:
    value = request.get("input")
    if isinstance(value, str) or _is_texts(value) or _is_tokens(value):
        return
    # An object here would be a picture or a message, and could name something to fetch.
    if not isinstance(value, list) or not all(_is_tokens(item) for item in value):
        refuse("invalid_type", "input is text or tokens, or an array of them.", param="input")


def _require_ranked(request: Request) -> None:
    documents = request.get("documents")
    if not isinstance(request.get("query"), str):
        refuse("invalid_type", "query is a string.", param="query")
    if not isinstance(documents, list) or not all(
        isinstance(item, str)
        or (isinstance(item, dict) and item.keys() == {"text"} and isinstance(item["text"], str))
        for item in documents
    ):
        refuse("invalid_type", "documents is an array of strings.", param="documents")


def _require_scored(request: Request) -> None:
    pairs = [("text_1", "text_2"), ("queries", "documents")]
    given = [pair for pair in pairs if request.keys() & set(pair)]
    sides = [request.get(name) for pair in given for name in pair]
    if len(given) != 1 or not all(isinstance(side, str) or _is_texts(side) for side in sides):
        refuse("invalid_type", "text_1 and text_2 are strings or arrays of strings.")


def _require_tokenized(request: Request) -> None:
    given = [name for name in ("prompt", "content", "messages") if request.get(name) is not None]
    if len(given) != 1:
        refuse("invalid_type", "exactly one of prompt, content and messages is given.")
    if given == ["messages"]:
        _require_chat(request)
    elif not isinstance(request[given[0]], str):
        refuse("invalid_type", "what is tokenized is a string.", param=given[0])


def _require_detokenized(request: Request) -> None:
    if not _is_tokens(request.get("tokens")):
        refuse("invalid_type", "tokens is an array of integers.", param="tokens")


def _require_spoken(request: Request) -> None:
    for name in ("input", "voice"):
        if not isinstance(request.get(name), str):
            refuse("invalid_type", "input and voice are strings.", param=name)


def _require_drawn(request: Request) -> None:
    if not isinstance(request.get("prompt"), str):
        refuse("invalid_type", "prompt is a string.", param="prompt")
    if request.get("response_format") not in (None, "b64_json"):
        refuse("external_url", "An image is answered as b64_json.", param="response_format")


_SHAPES: dict[Endpoint, Callable[[Request], None]] = {
    Endpoint.CHAT: _require_chat,
    Endpoint.COMPLETIONS: _require_prompt,
    Endpoint.RESPONSES: _require_input,
    Endpoint.EMBEDDINGS: _require_embedded,
    Endpoint.RERANK: _require_ranked,
    Endpoint.RERANK_SHORT: _require_ranked,
    Endpoint.SCORE: _require_scored,
    Endpoint.TOKENIZE: _require_tokenized,
    Endpoint.DETOKENIZE: _require_detokenized,
    Endpoint.SPEECH: _require_spoken,
    Endpoint.IMAGES: _require_drawn,
}
