"""Capturing what a service presents: the requests of its format, and the key of the connection.

Clauses: docs/protocols/services.md §3, docs/protocols/fetching.md#1 to #5. Everything that comes is
hostile bytes, kept exactly as received. A capture over plain HTTP has no connection key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit, urlunsplit

from confide.errors import ConfigurationError, Unavailable
from confide.formats.format import Request
from confide.wire.service import Capture

if TYPE_CHECKING:
    from confide.adapters.bounded_http import Received
    from confide.adapters.service_http import ServiceHttp
    from confide.formats.format import Format
    from confide.ports import Clock, Entropy

__all__ = ["NONCE_BYTES", "capture"]

NONCE_BYTES: Final = 32
# From: docs/protocols/bundle.md 1: what is captured has to fit in a bundle, in base64.
_MAX_TOTAL: Final = 11 * 1024 * 1024
_FIRST: Final = "report"
_ABSENT: Final = frozenset({404, 405})


async def capture(
    url: str,
    *,
    format: Format | None,  # noqa: A002 - the word of the domain
    nonce: bytes | None,
    http: ServiceHttp,
    clock: Clock,
    entropy: Entropy,
    model: str = "",
) -> Capture:
    """
    Fetch what the service at `url` presents, and return it byte for byte.

    With a `format` its requests are made for `nonce` (32 bytes), or for a fresh one from `entropy`.
    Without, `url` is fetched as it is, as the document `report`, to be recognised later; `nonce`
    then has to stand in `url`, in hex. `model` is added to the query that the format passes on.

    Raises `Unavailable` when a document cannot be had or the key of the connection changes between
    two requests; `ConfigurationError` for a URL or a format that cannot be asked.
    """
    parts = _split(url)
    requests: tuple[Request, ...]
    if format is None:
        requests, sent = (_as_it_is(parts.path, parts.query),), _nonce_in(url, nonce)
        base, query = "", ""
        if model:
            raise ConfigurationError("a model can be named only together with a format")
    else:
        if format.plan is None:
            raise ConfigurationError(f"evidence of the format {format.name} is not served")
        sent = entropy.token(NONCE_BYTES) if nonce is None else _whole(nonce)
        requests = format.plan(sent)
        # Whoever pastes the URL of the report itself means the service that has it.
        base = parts.path.rstrip("/").removesuffix(requests[0].path.partition("?")[0])
        query = _with_model(parts.query, model)
    documents: dict[str, bytes] = {}
    keys: set[bytes | None] = set()
    for request in requests:
        target = urlunsplit((parts.scheme, parts.netloc, *_target(base, request, query), ""))
        received = await http.ask(target, request)
        if request.optional and received.status in _ABSENT:
            continue
        documents[request.document] = _body(received, request)
        keys.add(received.tls_spki)
        if sum(map(len, documents.values())) > _MAX_TOTAL:
            raise Unavailable(f"the service presents more than {_MAX_TOTAL} bytes")
    if len(keys) > 1:
        raise Unavailable(
            "the service answered under two TLS keys, so that no one connection can be named; ask "
            "one of its machines directly"
        )
    return Capture(
        documents=documents,
        format="" if format is None else format.name,
        nonce=sent,
        # What was asked for, so that whoever reads the capture can see whether it was answered.
        url=urlunsplit(parts._replace(query=query)) if model else url,
        tls_spki_sha256=keys.pop() if keys else None,
        at=clock.now().replace(microsecond=0),
    )


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ConfigurationError("the URL of a service is not a URL") from error
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.fragment:
        raise ConfigurationError("the URL of a service is https://host[:port][/path][?query]")
    if parts.username is not None or parts.password is not None:
        raise ConfigurationError("the URL of a service must not hold credentials")
    return parts


def _as_it_is(path: str, query: str) -> Request:
    return Request(document=_FIRST, path=(path or "/") + (f"?{query}" if query else ""))


def _nonce_in(url: str, nonce: bytes | None) -> bytes | None:
    if nonce is not None and nonce.hex() not in url.lower():
        raise ConfigurationError(
            "without a format the nonce is sent only if it stands in the URL; write it there, or "
            "name the format"
        )
    return nonce


def _whole(nonce: bytes) -> bytes:
    if len(nonce) != NONCE_BYTES:
        raise ConfigurationError(f"the nonce has {NONCE_BYTES} bytes")
    return nonce


def _with_model(query: str, model: str) -> str:
    if not model:
        return query
    pairs = [pair for pair in parse_qsl(query, keep_blank_values=True) if pair[0] != "model"]
    return urlencode([*pairs, ("model", model)])


def _target(base: str, request: Request, query: str) -> tuple[str, str]:
    """Return path and query of `request` below `base`, with the user's `query` where it goes."""
    path, _, own = request.path.partition("?")
    if not request.keeps_query:
        return base + path, own
    # From: formats/format.py: the request's own members win, defaults stand where there is none.
    pairs = parse_qsl(own, keep_blank_values=True)
    taken = {name for name, _ in pairs}
    theirs = [p for p in parse_qsl(query, keep_blank_values=True) if p[0] not in taken]
    taken |= {name for name, _ in theirs}
    rest = [pair for pair in request.defaults if pair[0] not in taken]
    return base + path, urlencode([*pairs, *theirs, *rest])


def _body(received: Received, request: Request) -> bytes:
    if received.status != 200:
        raise Unavailable(
            f"the service answered status {received.status} instead of the document "
            f"{request.document}; check URL, format and model"
        )
    return received.body
