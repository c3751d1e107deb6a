"""Routes of the engine that pass through as they are, each listed by name. Pure.

docs/protocols/inference.md §8, which says why not every route passes: an engine serves its
administration beside inference, on the same port, and one call of it makes the measured model
another. What is not listed never reaches the engine.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from confide.errors import ConfigurationError
from confide.inference.multipart import parse_multipart
from confide.inference.plan import Endpoint, InferencePlan, Reply, refuse, require_served
from confide.inference.routes import parse_object
from confide.inference.uploads import model_field

if TYPE_CHECKING:
    from confide.inference.models import ServedModel
    from confide.inference.plan import RequestLimits
    from confide.inference.salting import Salting
    from confide.wire.json import JsonValue

__all__ = [
    "COMPUTING",
    "PassRoute",
    "PassRoutes",
    "parse_pass_route",
    "plan_pass",
    "require_apart",
]

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_PATH = re.compile(r"(?:/[A-Za-z0-9._~-]+)+\Z")
# From: RFC 3986 §3.4, without the quote, which nobody needs.
_QUERY = re.compile(r"(?:[A-Za-z0-9._~!$&()*+,;=:@/?-]|%[0-9A-Fa-f]{2}){0,2048}\Z")
_TYPE = re.compile(r"[!-~][ -~]{0,255}\Z")
_MAX_PATH_CHARS = 64
_OWN = frozenset(Endpoint)
# A guard against a mistake of the operator, no boundary: the boundary is that nothing passes
# unless it is listed. Words in paths that administer vLLM, SGLang, llama.cpp, transformers serve.
_ADMINISTRATION = re.compile(
    r"adapter|lora|load|update|weights|sleep|wake|cache|reset|flush|shutdown|metrics|slots|props"
    r"|rpc|profile|abort|pause|resume|scale_elastic|memory|server_info|config|session"
    r"|health|docs|openapi|redoc|invocations|files|batches|debug|trace|dump|distribution",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class PassRoute:
    """One route that passes: a method and the bytes of a path."""

    method: str
    path: str


# From: docs/protocols/inference.md §8.1. They compute, and change nothing.
COMPUTING = frozenset(
    (
        PassRoute("POST", "/v1/messages"),
        PassRoute("POST", "/v1/messages/count_tokens"),
        PassRoute("POST", "/v1/moderations"),
        PassRoute("POST", "/v2/rerank"),
        PassRoute("POST", "/classify"),
        PassRoute("POST", "/pooling"),
    )
)


# It answers with a number, and that is computed anew each time.
_COUNTING = PassRoute("POST", "/v1/messages/count_tokens")


@dataclass(frozen=True, slots=True)
class PassRoutes:
    """All routes that pass: those that only compute, and what the operator `added`."""

    added: frozenset[PassRoute] = field(default_factory=frozenset)

    def find(self, method: str, path: str) -> PassRoute | None:
        """Return the route of exactly this method and path."""
        route = PassRoute(method, path)
        return route if route in COMPUTING or route in self.added else None


def parse_pass_route(text: str) -> PassRoute:
    """
    Read what an operator lists: `"POST /v1/example"`.

    Raises `ConfigurationError` for a path that has another spelling, that the node serves itself,
    or that administers engines as far as is known (§8.3, §8.4).
    """
    method, _, path = text.partition(" ")
    if method not in _METHODS or not _PATH.match(path) or len(path) > _MAX_PATH_CHARS:
        raise ConfigurationError(
            "a route that passes is a method and a plain path, such as 'POST /v1/example'"
        )
    if any(part in (".", "..") for part in path.split("/")):
        raise ConfigurationError("a route that passes does not climb")
    if path in _OWN or path.startswith(("/v1/models", "/v1/receipts", "/confide/")):
        raise ConfigurationError(f"the node serves {path} itself")
    if _ADMINISTRATION.search(path):
        raise ConfigurationError(
            f"{path} administers engines, or shows what others sent: it would make the measured "
            "model another; it cannot be listed"
        )
    return PassRoute(method, path)


def require_apart(route: PassRoute, added: frozenset[PassRoute], salting: Salting | None) -> None:
    """
    Refuse a route that is not rewritten where callers are kept apart; the operator's pass (§5.5).

    Raises `RequestRefused`.
    """
    if salting is not None and route in COMPUTING - {_COUNTING} - added:
        refuse("unsupported_endpoint", "Callers cannot be kept apart at this route.", status=404)


def plan_pass(
    route: PassRoute,
    body: bytes,
    *,
    query: str,
    content_type: str,
    served: ServedModel,
    limits: RequestLimits,
) -> InferencePlan:
    """
    Read one request of a listed `route` and say what to do with it.

    (1) The query is one, and names no other model. (2) A body names the served model in the way
    of its type (§8.5), and (3) nothing outside to fetch (§8.6). (4) Nothing is rewritten (§8.7).

    **Does not check** members of the body. Raises `RequestRefused`.
    """
    named = _require_query(query, served)  # (1)
    if body:  # (2)
        if not _TYPE.match(content_type):
            refuse("invalid_type", "The type of the body is none, or long.")
        kind, _, parameters = content_type.lower().partition(";")
        kind = kind.strip()
        _require_unnamed_elsewhere(served)
        if kind == "application/json":
            # Another charset would be another text to the engine than to us.
            if parameters.replace(" ", "") not in ("", "charset=utf-8", 'charset="utf-8"'):
                refuse("invalid_type", "JSON is UTF-8.")
            request = parse_object(body, limits)
            require_served(request.get("model"), served)
            _require_nothing_fetched(request)  # (3)
        elif kind == "multipart/form-data":
            _require_size(body, limits.max_upload_bytes)
            model_field(parse_multipart(body, content_type), body, served)
        elif not named:
            refuse("missing_model", "You must provide a model parameter.", param="model")
        else:
            _require_size(body, limits.max_body_bytes)
    return InferencePlan(  # (4)
        endpoint=route.path,
        upstream_path=route.path,
        body=body,
        identical=True,
        served=served,
        streamed=True,
        transformations=(),
        reply=Reply.PASS,
        method=route.method,
        query=query,
        content_type=content_type if body else "",
        answers=("*/*",),
        listed=False,
        repeatable=route in COMPUTING,
    )


def _require_query(query: str, served: ServedModel) -> bool:
    if not _QUERY.match(query):
        refuse("invalid_query", "The query is not one of RFC 3986, or long.")
    # A semicolon separates to some readers.
    values = parse_qsl(query.replace(";", "&"), keep_blank_values=True, errors="replace")
    named = [value for name, value in values if name.lower() == "model"]
    if len(named) > 1:
        refuse("invalid_query", "The model is named once.", param="model")
    for value in named:
        require_served(value, served)
    return bool(named)


def _require_unnamed_elsewhere(served: ServedModel) -> None:
    if served.name != served.upstream_name or served.adds_revision:
        refuse(
            "unsupported_endpoint",
            "The engine knows the model by another name, and nothing is rewritten here.",
            status=404,
        )


def _require_size(body: bytes, limit: int) -> None:
    if len(body) > limit:
        refuse("request_too_large", f"The request is above {limit} bytes.", status=413)


def _require_nothing_fetched(value: JsonValue) -> None:
    waiting = [value]
    while waiting:
        here = waiting.pop()
        if isinstance(here, list):
            waiting.extend(here)
        elif isinstance(here, dict):
            for name, item in here.items():
                if _is_address(name) and not _stays_inside(item):
                    refuse("external_url", "What is named by address is a data: URL.")
                waiting.append(item)


def _is_address(name: str) -> bool:
    lowered = name.lower()
    return lowered in ("url", "uri") or lowered.endswith(("_url", "_uri"))


def _stays_inside(item: JsonValue) -> bool:
    if isinstance(item, str):
        return item.startswith("data:")
    return item is None or isinstance(item, dict)
