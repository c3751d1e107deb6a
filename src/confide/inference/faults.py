"""Refusals of model calls, in OpenAI's error shape. Pure.

Every body is fixed words of ours; text of the caller or of the engine never gets into one.
docs/protocols/inference.md §2 and §3.3.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from confide.errors import Overloaded, Reason, RemoteProtocolError

__all__ = ["ApiFault", "RequestRefused", "engine_fault", "node_fault"]


@dataclass(frozen=True, slots=True)
class ApiFault:
    """
    One error answer: HTTP `status`, OpenAI `kind` and `code`, our `message`.

    `param` names the offending member in our spelling, or is None; `retry_after` is in seconds;
    `headers` go with the answer.
    """

    status: int
    kind: str
    code: str
    message: str
    param: str | None = None
    retry_after: int | None = None
    headers: tuple[tuple[str, str], ...] = ()

    def body(self) -> bytes:
        """Return the JSON body the OpenAI SDKs understand."""
        return json.dumps({"error": self._members()}).encode()

    def stream_event(self) -> bytes:
        """Return the same as one server-sent event, for a stream that has already begun."""
        return b"data: " + self.body() + b"\n\n"

    def _members(self) -> dict[str, str | None]:
        return {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }


class RequestRefused(RemoteProtocolError):
    """The caller's request is not one this node serves; `fault` is the answer to give."""

    def __init__(self, fault: ApiFault, *, reason: Reason = Reason.REQUEST_FORMAT) -> None:
        self.fault = fault
        super().__init__(fault.message, reason=reason, status_hint=fault.status)


_REFUSED = ApiFault(
    400,
    "invalid_request_error",
    "engine_refused",
    "The model engine refused this request: a value or a length is outside what it supports.",
)
_BUSY = ApiFault(
    429,
    "rate_limit_error",
    "engine_busy",
    "The model engine is busy; try again.",
    retry_after=1,
)
_UNAVAILABLE = ApiFault(
    503,
    "server_error",
    "engine_unavailable",
    "The model engine cannot be reached; try again.",
    retry_after=1,
)
_ABSENT = ApiFault(
    404,
    "invalid_request_error",
    "unsupported_endpoint",
    "The model engine does not serve this endpoint.",
)
_FAILED = ApiFault(502, "server_error", "engine_failed", "The model engine failed to answer.")

_BY_STATUS = {400: _REFUSED, 413: _REFUSED, 422: _REFUSED, 429: _BUSY, 503: _UNAVAILABLE}


def engine_fault(status: int | None, *, listed: bool = True) -> ApiFault:
    """
    Return the fixed answer for an engine's `status`; None where no answer came (§3.3, §3.4).

    A route of §8, which is not `listed` among the endpoints, may be absent: 8.7.
    """
    if not listed and status in (404, 405):
        return _ABSENT
    return _UNAVAILABLE if status is None else _BY_STATUS.get(status, _FAILED)


def node_fault(error: Overloaded) -> ApiFault:
    """Return the fixed answer of a node that takes no more for now (§9.4, §9.6)."""
    if error.draining:
        words = ("node_draining", "This node is about to stop; ask another.")
    else:
        words = ("node_busy", "Too many calls are in progress; try again.")
    kind = "rate_limit_error" if error.status_hint == 429 else "server_error"
    return ApiFault(error.status_hint, kind, *words, retry_after=error.retry_after)
