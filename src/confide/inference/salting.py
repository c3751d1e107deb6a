"""Keeping the engine's prefix cache apart for those who must not see each other in it. Pure.

docs/protocols/tenancy.md §5. An engine answers sooner where it has seen the beginning of a prompt
before; who else's prompt that was, it does not ask. A salt in the request makes equal beginnings
different ones for different tenants. What the caller says is mixed in and never used as it is.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from confide.errors import FormatError, Reason
from confide.inference.plan import Endpoint, refuse

if TYPE_CHECKING:
    from confide.wire.json import JsonValue

__all__ = [
    "SALT_MEMBER",
    "TEXT_ENDPOINTS",
    "Salting",
    "insert_salt",
    "salted_endpoints",
    "take_salt",
]

SALT_MEMBER = "cache_salt"
_DOMAIN = b"confide cache salt v1"
_MAX_OWN_CHARS = 256
# Endpoints behind which a language model reads text: what a prefix cache holds.
TEXT_ENDPOINTS = frozenset(
    (
        Endpoint.CHAT,
        Endpoint.COMPLETIONS,
        Endpoint.RESPONSES,
        Endpoint.EMBEDDINGS,
        Endpoint.RERANK,
        Endpoint.RERANK_SHORT,
        Endpoint.SCORE,
    )
)
# From: OpenAPI 3.1 §4.8: where the form of a request's JSON body stands.
_BODY = ("post", "requestBody", "content", "application/json", "schema")


@dataclass(frozen=True, slots=True)
class Salting:
    """How one tenant's requests are salted; `key` is of this boot and known to nobody else."""

    key: bytes = field(repr=False)
    tenant: str
    endpoints: frozenset[Endpoint]

    def salt(self, own: str) -> str:
        """Return the salt for this tenant and what the caller added, "" for nothing (§5.2)."""
        parts = (_DOMAIN, self.tenant.encode(), own.encode())
        framed = b"".join(len(part).to_bytes(4) + part for part in parts)
        return hmac.new(self.key, framed, hashlib.sha256).hexdigest()


def take_salt(
    request: dict[str, JsonValue], upstream: Endpoint, salting: Salting | None
) -> str | None:
    """
    Take the caller's own salt out of `request`; return the one to send, None for none.

    Without `salting` the member is one that nobody knows, as before. Raises `RequestRefused` for
    text that is none or long, and for an endpoint of the engine that cannot be kept apart.
    """
    if salting is None:
        return None
    if upstream in TEXT_ENDPOINTS and upstream not in salting.endpoints:
        refuse("unsupported_endpoint", "Callers cannot be kept apart at this endpoint.", status=404)
    if upstream not in salting.endpoints:
        return None
    own = request.pop(SALT_MEMBER, "")
    if not isinstance(own, str) or len(own) > _MAX_OWN_CHARS or not own.isprintable():
        refuse("invalid_type", "cache_salt is a short printable string.", param=SALT_MEMBER)
    return salting.salt(own)


def insert_salt(body: bytes, salt: str) -> bytes:
    """
    Return a JSON object with the salt as its first member, every other byte as it came (§5.3).

    `body` was read as an object with members, none of which is the salt.
    """
    at = body.index(b"{") + 1
    return b"".join((body[:at], f'"{SALT_MEMBER}":"{salt}",'.encode(), body[at:]))


def salted_endpoints(description: bytes) -> frozenset[Endpoint]:
    """
    Return which endpoints take a salt, by the engine's own OpenAPI description (§5.4).

    `description` is what the engine says of itself. Raises `FormatError`.
    """
    try:
        # The usual reader: descriptions hold bounds of 64 bits, which strict JSON has no room for.
        document: JsonValue = json.loads(description)
    except (ValueError, RecursionError) as error:
        raise FormatError(
            "the OpenAPI description of the engine is no JSON",
            reason=Reason.UPSTREAM_FORMAT,
            clause="docs/protocols/tenancy.md#5.4",
        ) from error
    return frozenset(
        endpoint for endpoint in TEXT_ENDPOINTS if _takes_salt(document, endpoint.value)
    )


def _takes_salt(document: JsonValue, path: str) -> bool:
    waiting, seen = [_at(document, "paths", path, *_BODY)], set[str]()
    while waiting:
        here = waiting.pop()
        if not isinstance(here, dict):
            continue
        if isinstance(_at(here, "properties", SALT_MEMBER), dict):
            return True
        for word in ("anyOf", "oneOf", "allOf"):
            options = here.get(word)
            waiting.extend(options if isinstance(options, list) else ())
        reference = here.get("$ref")
        if isinstance(reference, str) and reference not in seen:
            seen.add(reference)
            waiting.append(_at(document, *reference.removeprefix("#/").split("/")))
    return False


def _at(value: JsonValue, *names: str) -> JsonValue:
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value
