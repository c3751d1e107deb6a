"""The head of a request to the egress proxy. Pure, sans-IO.

RFC 9112 §3.2.2 (absolute-form) and §3.2.3 (authority-form), RFC 9110 §9.3.6 (CONNECT). `raw` is
the agent's text and hostile: lines end with CRLF, no folding, no spaces in the target, one
destination per connection. Anything else is refused instead of guessed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from confide.agents.egress import parse_destination
from confide.errors import FormatError, Reason

if TYPE_CHECKING:
    from confide.agents.egress import Destination

__all__ = ["MAX_HEAD_BYTES", "ProxyRequest", "parse_proxy_head"]

_CLAUSE = "RFC 9112 §3.2"
# Precedent: nginx large_client_header_buffers (8 KiB a line); one head of 16 KiB here.
MAX_HEAD_BYTES = 16 * 1024
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_HOP_BY_HOP = {b"connection", b"proxy-connection", b"keep-alive", b"proxy-authorization", b"host"}


@dataclass(frozen=True, slots=True)
class ProxyRequest:
    """
    What the agent asks for.

    With `tunnel`, bytes flow both ways after our 200. Without, `forward` is the head in
    origin-form that goes to the destination, with `Connection: close`: one request each.
    """

    destination: Destination
    tunnel: bool
    forward: bytes = b""


def parse_proxy_head(raw: bytes) -> ProxyRequest:
    """Parse `raw`, a head up to and including its empty line. Raises `FormatError`."""
    if len(raw) > MAX_HEAD_BYTES or not raw.endswith(b"\r\n\r\n"):
        raise _refusal("the head is too long or not ended")
    first, *lines = raw[:-4].split(b"\r\n")
    words = first.split(b" ")
    if len(words) != 3 or words[2] not in {b"HTTP/1.1", b"HTTP/1.0"}:
        raise _refusal("not an HTTP/1 request line")
    method, target, _version = words
    if not _TOKEN.match(method) or not target.isascii() or not target.decode().isprintable():
        raise _refusal("not an HTTP/1 request line")
    headers = [_header(line) for line in lines]
    if method == b"CONNECT":
        return ProxyRequest(parse_destination(target.decode()), tunnel=True)
    if not target.lower().startswith(b"http://"):
        raise _refusal("neither CONNECT nor an http:// address")
    authority, slash, path = target[len("http://") :].partition(b"/")
    if b"@" in authority or b"?" in authority or b"#" in authority:
        raise _refusal("the authority is not host:port")
    named = authority if re.search(rb":[0-9]+\Z", authority) else authority + b":80"
    head = [b"%s %s HTTP/1.1" % (method, slash + path or b"/"), b"Host: " + authority]
    head += [name + b": " + value for name, value in headers if name.lower() not in _HOP_BY_HOP]
    head += [b"Connection: close", b"", b""]
    return ProxyRequest(parse_destination(named.decode()), tunnel=False, forward=b"\r\n".join(head))


def _header(line: bytes) -> tuple[bytes, bytes]:
    name, colon, value = line.partition(b":")
    if not colon or not _TOKEN.match(name) or b"\n" in value or b"\r" in value or b"\0" in value:
        raise _refusal("a header line")
    return name, value.strip(b" \t")


def _refusal(why: str) -> FormatError:
    return FormatError(f"proxy request: {why}", reason=Reason.PROXY_FORMAT, clause=_CLAUSE)
