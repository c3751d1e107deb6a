"""A sealed request as the application inside sees it, and what of its answer is sealed.

Rules: docs/protocols/channel.md §3. Everything here is inside the seal; of the outer connection
the application learns nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.types import Scope

    from confide.wire.bhttp import Fields, RequestHead

__all__ = ["inner_scope", "sealed_fields"]

# Fields that belong to the outer connection and may not enter a sealed response (RFC 9292 §3.6).
_CONNECTION_FIELDS = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade", b"te"}
)


def inner_scope(outer: Scope, head: RequestHead) -> Scope:
    """Return the ASGI scope of the request that `head` begins, which `outer` carried."""
    raw_path, _, query = head.path.partition("?")
    inner: Scope = {
        "type": "http",
        "asgi": outer["asgi"],
        "http_version": "1.1",
        "method": head.method,
        "scheme": head.scheme,
        "path": unquote(raw_path),
        "raw_path": raw_path.encode("ascii"),
        "query_string": query.encode("ascii"),
        "root_path": "",
        "headers": [*head.fields, (b"host", head.authority.encode("ascii"))],
        # The address of the outer hop is not the client's to be believed or logged.
        "client": None,
        "server": None,
        "extensions": {"http.response.trailers": {}},
    }
    if "state" in outer:
        inner["state"] = outer["state"]
    return inner


def sealed_fields(headers: Iterable[tuple[bytes, bytes]]) -> Fields:
    """Return the fields of an ASGI response that go into the seal."""
    return tuple(
        (bytes(name).lower(), bytes(value).strip())
        for name, value in headers
        if bytes(name).lower() not in _CONNECTION_FIELDS
    )
