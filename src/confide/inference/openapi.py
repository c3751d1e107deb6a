"""The inner routes of a model node as an OpenAPI 3.1 document. Pure.

Made from the same tables that requests are checked with, so that it cannot say something else;
docs/model-node.openapi.json is what it gives. Shapes of values are the outer ones of
docs/protocols/inference.md §2.4 and §2.7; what an engine thinks of a value is not described.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from confide.inference.passing import COMPUTING
from confide.inference.plan import UPLOADS, Endpoint
from confide.inference.shapes import MEMBERS
from confide.inference.uploads import FORMS
from confide.version import __version__

if TYPE_CHECKING:
    from confide.wire.json import JsonValue

    Schema = dict[str, JsonValue]

__all__ = ["describe_routes"]

_EVENTS = "text/event-stream"
_REFUSALS = {
    "400": "The request is not one this node serves, or the engine refuses it.",
    "401": "The node asks for a key, and this is none, or worth nothing (tenancy.md §2.3).",
    "403": "The scope of the key does not cover this call.",
    "404": "No such route or model here.",
    "413": "The request is too large.",
    "429": "Too many calls are in progress, or the limits of the key are reached.",
    "502": "The engine failed to answer.",
    "503": "The engine or the store of keys cannot be reached, or the node is about to stop.",
}


def _array(items: Schema, **more: JsonValue) -> Schema:
    return {"type": "array", "items": items, **more}


def _any_of(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


def _text() -> Schema:
    return {"type": "string"}


def _integer() -> Schema:
    return {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}


def _properties() -> dict[str, Schema]:
    """Return the members whose outer shape the node itself requires; others are any value."""
    message: Schema = {
        "type": "object",
        "required": ["role", "content"],
        "properties": {"role": _text(), "content": _text()},
    }
    return {
        "model": _text(),
        "messages": _array(message, minItems=1),
        "stream": {"type": "boolean"},
        "query": _text(),
        "voice": _text(),
        "content": _text(),
        "text_1": _any_of(_text(), _array(_text())),
        "text_2": _any_of(_text(), _array(_text())),
        "tokens": _array(_integer()),
        "documents": _array(_text()),
        "tools": _array(
            {"type": "object", "required": ["type"], "properties": {"type": {"const": "function"}}}
        ),
    }


def _special(endpoint: Endpoint) -> dict[str, Schema]:
    if endpoint is Endpoint.EMBEDDINGS:
        return {"input": _any_of(_text(), _array(_text()), _array(_integer()))}
    if endpoint is Endpoint.COMPLETIONS:
        return {"prompt": _any_of(_text(), _array(_text()))}
    if endpoint is Endpoint.IMAGES:
        return {"prompt": _text(), "response_format": {"enum": ["b64_json"]}}
    return {"input": _text(), "prompt": _text()}


# What beside `model` has to be there; a tokenizer takes one of several.
_REQUIRED: dict[Endpoint, tuple[str, ...]] = {
    Endpoint.CHAT: ("messages",),
    Endpoint.COMPLETIONS: ("prompt",),
    Endpoint.RESPONSES: ("input",),
    Endpoint.EMBEDDINGS: ("input",),
    Endpoint.RERANK: ("query", "documents"),
    Endpoint.RERANK_SHORT: ("query", "documents"),
    Endpoint.SCORE: ("text_1", "text_2"),
    Endpoint.TOKENIZE: ("prompt",),
    Endpoint.DETOKENIZE: ("tokens",),
    Endpoint.SPEECH: ("input", "voice"),
    Endpoint.IMAGES: ("prompt",),
}


def _json_body(endpoint: Endpoint) -> Schema:
    known = {**_properties(), **_special(endpoint)}
    members = sorted(MEMBERS[endpoint])
    return {
        "type": "object",
        "required": ["model", *_REQUIRED[endpoint]],
        "properties": {name: known.get(name, {}) for name in members},
        "additionalProperties": False,
    }


def _form_body(endpoint: Endpoint) -> Schema:
    form = FORMS[endpoint]
    file: Schema = {"type": "string", "format": "binary"}
    properties: Schema = {name: _text() for name in sorted(form.fields)}
    properties |= {name: _array(file) if "[]" in name else file for name in sorted(form.files)}
    properties["stream"] = {"enum": ["true", "false"]}
    if endpoint is Endpoint.IMAGE_EDITS:
        properties["response_format"] = {"enum": ["b64_json"]}
    if endpoint is Endpoint.TRANSLATIONS:
        del properties["stream"]
    return {
        "type": "object",
        "required": ["model", min(form.inputs)],
        "properties": properties,
        "additionalProperties": False,
    }


def _answers(*kinds: str) -> Schema:
    content: Schema = {kind: {} for kind in kinds}
    receipt: Schema = {
        "description": "Receipt of this answer (receipt.md §3); a stream ends with it instead.",
        "schema": _text(),
    }
    answers: Schema = {
        "200": {
            "description": "The answer of the engine.",
            "content": content,
            "headers": {"confide-receipt": receipt},
        }
    }
    for status, words in _REFUSALS.items():
        answers[status] = {
            "description": words,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
        }
    return answers


def _operation(endpoint: Endpoint) -> Schema:
    kinds = ["application/json"]
    if endpoint in UPLOADS:
        body, kind = _form_body(endpoint), "multipart/form-data"
        kinds += FORMS[endpoint].answers
    else:
        body, kind = _json_body(endpoint), "application/json"
    if endpoint is Endpoint.SPEECH:
        kinds.append("audio/*")
    members = body["properties"]
    if isinstance(members, dict) and {"stream", "stream_format"} & members.keys():
        kinds.append(_EVENTS)
    return {
        "requestBody": {"required": True, "content": {kind: {"schema": body}}},
        "responses": _answers(*kinds),
    }


def _reading(summary: str, parameter: str = "") -> Schema:
    operation: Schema = {
        "summary": summary,
        "responses": {
            "200": {"description": summary, "content": {"application/json": {}}},
            "404": {"description": _REFUSALS["404"]},
        },
    }
    if parameter:
        operation["parameters"] = [
            {"name": parameter, "in": "path", "required": True, "schema": _text()}
        ]
    return operation


def describe_routes() -> dict[str, JsonValue]:
    """Return the description of every inner route, the operator's own routes of §8 left out."""
    paths: Schema = {endpoint.value: {"post": _operation(endpoint)} for endpoint in Endpoint}
    named: Schema = {"type": "object", "required": ["model"], "properties": {"model": _text()}}
    for route in sorted(COMPUTING, key=lambda route: route.path):
        paths[route.path] = {
            route.method.lower(): {
                "summary": "Passes through as it is (inference.md §8).",
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": named}},
                },
                "responses": _answers("application/json", _EVENTS),
            }
        }
    paths["/v1/models"] = {"get": _reading("The model that is served.")}
    paths["/v1/models/{name}"] = {"get": _reading("One model.", "name")}
    paths["/v1/receipts/{id}"] = {"get": _reading("A receipt of this boot.", "id")}
    digest: Schema = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
    closing: Schema = {
        "type": "object",
        "required": ["nonce", "expectation", "context", "receipts"],
        "properties": {
            **dict.fromkeys(("nonce", "expectation", "context"), digest),
            "receipts": _array(digest),
        },
        "additionalProperties": False,
    }
    paths["/confide/v1/closing"] = {
        "post": {
            "summary": "Evidence about receipts (receipt.md §5).",
            "requestBody": {"required": True, "content": {"application/json": {"schema": closing}}},
            "responses": {
                "200": {"description": "Evidence.", "content": {"application/json": {}}},
                "400": {"description": "Not a closing of this boot."},
                "503": {"description": "No evidence can be made now."},
            },
        }
    }
    error: Schema = {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {
                    "message": _text(),
                    "type": _text(),
                    "param": {"type": ["string", "null"]},
                    "code": _text(),
                },
            }
        },
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Confide model node: inner routes, reached through the sealed channel",
            "version": __version__,
        },
        "paths": paths,
        "components": {"schemas": {"Error": error}},
    }
