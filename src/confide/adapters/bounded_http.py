"""HTTP exchanges with services that nobody here controls: bounded in time, size and direction.

Clauses: docs/protocols/fetching.md#1 to #4. One exchange, no attempts, no cache; whoever answers
is hostile. Bodies come back decoded; headers and bodies are believed by nobody.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
import zlib
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Final

import httpx2

from confide.errors import ConfigurationError, FormatError, Reason, Unavailable
from confide.version import __version__
from confide.wire.certificate_key import subject_public_key_info

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

__all__ = ["Exchange", "FetchLimits", "Received", "TryAgain", "exchange", "open_http", "plain_url"]

_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
# From: RFC 9110 §15: conditions that pass.
_PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_MAX_URL_CHARS: Final = 4096
_TRUST = "the certificate of the server is not trusted"


class TryAgain(Exception):
    """
    This attempt failed in a way that may pass; no error of the package, and never let out of it.

    `retry_after` is the header of that name, as it came. `limited` says that the service was asked
    too often.
    """

    def __init__(self, why: str, *, retry_after: str | None = None, limited: bool = False) -> None:
        self.why = why
        self.retry_after = retry_after
        self.limited = limited
        super().__init__(why)


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchLimits:
    """How long, how often, how many; docs/protocols/fetching.md#2, #4, #5 and #8."""

    connect_seconds: float = 5.0
    read_seconds: float = 15.0
    attempt_seconds: float = 30.0
    attempts: int = 4
    first_wait_seconds: float = 0.5
    max_retry_after_seconds: float = 20.0
    redirects: int = 2
    concurrent: int = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One request: where, what, and the largest body that is accepted as an answer."""

    url: str
    max_bytes: int
    method: str = "GET"
    body: bytes = field(default=b"", repr=False)
    content_type: str = ""


@dataclass(frozen=True, slots=True)
class Received:
    """An answer: headers by lower-case name; `tls_spki` is SHA-256 of the server's key, if any."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    tls_spki: bytes | None


@asynccontextmanager
async def open_http(
    *, limits: FetchLimits | None = None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[httpx2.AsyncClient]:
    """
    Yield a client under clause 1: proxies and certificates of the environment, no cookies.

    `tls` replaces the system's certificates. Raises `ConfigurationError` where the environment
    names a proxy that is none.
    """
    bounds = limits or FetchLimits()
    try:
        client = httpx2.AsyncClient(
            timeout=_timeout(bounds),
            limits=httpx2.Limits(max_connections=bounds.concurrent),
            verify=True if tls is None else tls,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
            headers={"user-agent": f"confide/{__version__}", "accept": "*/*"},
            follow_redirects=False,
            trust_env=True,
        )
    except (ValueError, httpx2.InvalidURL, OSError) as error:
        raise ConfigurationError(
            "the proxies or certificates that the environment names cannot be used; look at "
            "HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, SSL_CERT_FILE and SSL_CERT_DIR"
        ) from error
    async with client:
        yield client


def _timeout(limits: FetchLimits) -> httpx2.Timeout:
    return httpx2.Timeout(
        connect=limits.connect_seconds,
        read=limits.read_seconds,
        write=limits.read_seconds,
        pool=None,
    )


def plain_url(url: str, *, what: str) -> str:
    """
    Return `url` without a slash at its end.

    Raises `ConfigurationError` unless it is https, or http to a loopback address, without
    credentials, query and fragment.
    """
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise ConfigurationError(f"{what} is not a URL") from error
    if not _is_safe(parsed) or parsed.query or parsed.fragment:
        raise ConfigurationError(
            f"{what} has to be https://host[:port][/path] (http only to a loopback address), "
            "without credentials, query and fragment"
        )
    return url.rstrip("/")


def _is_safe(url: httpx2.URL) -> bool:
    if url.userinfo or not url.host:
        return False
    return url.scheme == "https" or (url.scheme == "http" and url.host in _LOOPBACK)


async def exchange(
    http: httpx2.AsyncClient, wanted: Exchange, *, limits: FetchLimits, any_http: bool = False
) -> Received:
    """
    Make one request and return its answer, whatever the status short of a passing condition.

    `any_http` allows plain HTTP beyond loopback. Raises `TryAgain` for what may pass, `Unavailable`
    for what will not; the messages are a clause to be completed by the caller.
    """
    url = wanted.url
    for _ in range(limits.redirects + 1):
        try:
            async with asyncio.timeout(limits.attempt_seconds):
                received = await _once(http, wanted, url, limits=limits, any_http=any_http)
        except TimeoutError as error:
            raise TryAgain("no answer in time") from error
        except httpx2.TimeoutException as error:
            raise TryAgain("the connection stalls") from error
        except httpx2.ProxyError as error:
            raise TryAgain("the proxy of the environment does not let us through") from error
        except httpx2.TransportError as error:
            if _is_untrusted(error):
                raise Unavailable(_TRUST) from error
            raise TryAgain("no connection, or a broken answer") from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise Unavailable("the request cannot be made") from error
        if received.status not in _REDIRECTS:
            return received
        url = _followed(wanted, url, received.headers.get("location", ""))
    raise Unavailable("redirected too often")


def _is_untrusted(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


async def _once(
    http: httpx2.AsyncClient, wanted: Exchange, url: str, *, limits: FetchLimits, any_http: bool
) -> Received:
    target = httpx2.URL(url)
    allowed = _is_safe(target) or (any_http and target.scheme == "http" and not target.userinfo)
    if not allowed or len(url) > _MAX_URL_CHARS:
        raise Unavailable("the URL is not https")
    # Only what we can bound ourselves is decoded; see `_decoded`.
    headers = {"accept-encoding": "identity"}
    if wanted.content_type:
        headers["content-type"] = wanted.content_type
    content = wanted.body or None
    async with http.stream(
        wanted.method, target, content=content, headers=headers, timeout=_timeout(limits)
    ) as answer:
        found = {name.lower(): value for name, value in answer.headers.items()}
        if answer.status_code in _PASSING:
            raise TryAgain(
                f"status {answer.status_code}",
                retry_after=found.get("retry-after"),
                limited=answer.status_code == 429,
            )
        body = b""
        if answer.status_code not in _REDIRECTS:
            body = await _body(answer, found, wanted.max_bytes)
        return Received(answer.status_code, found, body, _server_key(answer))


async def _body(answer: httpx2.Response, headers: Mapping[str, str], max_bytes: int) -> bytes:
    stated = headers.get("content-length", "")
    too_large = f"an answer of more than {max_bytes} bytes"
    if stated.isdecimal() and (len(stated) > 12 or int(stated) > max_bytes):
        raise Unavailable(too_large)
    raw = bytearray()
    async for chunk in answer.aiter_raw():
        raw += chunk
        if len(raw) > max_bytes:
            raise Unavailable(too_large)
    return _decoded(bytes(raw), headers.get("content-encoding", "").lower(), max_bytes)


def _decoded(raw: bytes, coding: str, max_bytes: int) -> bytes:
    if coding in {"", "identity"}:
        return raw
    if coding not in {"gzip", "x-gzip"}:
        raise Unavailable("an answer in a coding that was not asked for")
    # From: zlib manual, inflateInit2: 16 + 15 reads gzip alone.
    inflater = zlib.decompressobj(wbits=31)
    try:
        body = inflater.decompress(raw, max_bytes + 1)
    except zlib.error as error:
        raise TryAgain("a broken answer") from error
    if len(body) > max_bytes:
        raise Unavailable(f"an answer of more than {max_bytes} bytes")
    if not inflater.eof or inflater.unused_data:
        raise TryAgain("a broken answer")
    return body


def _server_key(answer: httpx2.Response) -> bytes | None:
    stream = answer.extensions.get("network_stream")
    tls = None if stream is None else stream.get_extra_info("ssl_object")
    der = None if tls is None else tls.getpeercert(binary_form=True)
    if not der:
        return None
    try:
        spki = subject_public_key_info(der, what="TLS certificate", reason=Reason.SERVICE_FORMAT)
    except FormatError as error:
        raise Unavailable("the certificate of the server cannot be read") from error
    return hashlib.sha256(spki).digest()


def _followed(wanted: Exchange, url: str, location: str) -> str:
    refused = Unavailable("redirected to another place")
    current = httpx2.URL(url)
    try:
        target = current.join(location)
    except httpx2.InvalidURL as error:
        raise refused from error
    same = (target.scheme, target.host, target.port) == ("https", current.host, current.port)
    if wanted.method != "GET" or not location or not same or target.userinfo:
        raise refused
    return str(target)
