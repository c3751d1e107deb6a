"""Refusals of model calls, in OpenAI's error shape. Pure.

Every body is fixed words of ours; text of the caller or of the engine never gets into one.
docs/protocols/inference.md §2 and §3.3.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from confide.errors import Reason, RemoteProtocolError

__all__ = ["ApiFault", "RequestRefused", "engine_fault"]


@dataclass(frozen=True, slots=True)
class ApiFault:
    """
    One error answer: HTTP `status`, OpenAI `kind` and `code`, our `message`.

    `param` names the offending member in our spelling, or is None.
    """

    status: int
    kind: str
    code: str
    message: str
    param: str | None = None

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
_BUSY = ApiFault(429, "rate_limit_error", "engine_busy", "The model engine is busy; try again.")
_UNAVAILABLE = ApiFault(
    503, "server_error", "engine_unavailable", "The model engine cannot be reached; try again."
)
_FAILED = ApiFault(502, "server_error", "engine_failed", "The model engine failed to answer.")

_BY_STATUS = {400: _REFUSED, 413: _REFUSED, 422: _REFUSED, 429: _BUSY, 503: _UNAVAILABLE}


def engine_fault(status: int | None) -> ApiFault:
    """Return the fixed answer for an engine's `status`; None where no answer came (§3.3, §3.4)."""
    return _UNAVAILABLE if status is None else _BY_STATUS.get(status, _FAILED)
