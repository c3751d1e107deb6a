"""What both ends of the carriage over HTTP name alike (channel.md §7)."""

from __future__ import annotations

from confide.errors import Reason

__all__ = [
    "CHANNEL_PATH",
    "PROBLEM_MEDIA_TYPE",
    "REQUEST_MEDIA_TYPE",
    "RESPONSE_MEDIA_TYPE",
    "problem_reason",
    "problem_type",
]

# From: channel.md 7.1.
CHANNEL_PATH = "/confide/v1/ohttp"
# From: draft-ietf-ohai-chunked-ohttp-08 §2.
REQUEST_MEDIA_TYPE = "message/ohttp-chunked-req"
RESPONSE_MEDIA_TYPE = "message/ohttp-chunked-res"
# From: RFC 9457 §3.
PROBLEM_MEDIA_TYPE = "application/problem+json"

_CHANNEL_PROBLEM = "urn:confide:problem:channel"
# From: channel.md 7.4; the first is RFC 9458 §5.3.
_TYPES = {
    Reason.KEYSET_MISMATCH: "https://iana.org/assignments/http-problem-types#ohttp-key",
    Reason.REPLAYED: "urn:confide:problem:replayed",
    Reason.REQUEST_TIME: "urn:confide:problem:request-time",
    Reason.NODE_BUSY: "urn:confide:problem:node-busy",
    Reason.LIMIT_EXCEEDED: "urn:confide:problem:limit-exceeded",
}
_REASONS = {kind: reason for reason, kind in _TYPES.items()} | {
    _CHANNEL_PROBLEM: Reason.CHANNEL_FORMAT
}


def problem_type(reason: Reason | None) -> str:
    """Return the problem type a node answers with; one type covers all that is merely broken."""
    return _CHANNEL_PROBLEM if reason is None else _TYPES.get(reason, _CHANNEL_PROBLEM)


def problem_reason(kind: str) -> Reason | None:
    """Return what a problem type says. The node's word, unauthenticated; None when unknown."""
    return _REASONS.get(kind)
