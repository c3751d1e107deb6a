"""What a caller is told who may not call, or not now: OpenAI's shape, words of ours. Pure.

docs/protocols/tenancy.md §2.3, §2.4 and §3.7. Nothing of the key gets into an answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from confide.inference.faults import ApiFault, RequestRefused
from confide.tenancy.keys import Standing
from confide.tenancy.limits import Held

if TYPE_CHECKING:
    from confide.tenancy.limits import Pace, Taken

__all__ = [
    "Headers",
    "held",
    "no_key",
    "no_quota",
    "out_of_scope",
    "pace_headers",
    "quota_headers",
    "unknown_key",
    "unmetered",
    "worthless_key",
]

Headers = tuple[tuple[str, str], ...]

_BEARER: Headers = (("www-authenticate", "Bearer"),)
# The SDKs ask again by themselves unless they are told not to.
_NO_RETRY: Headers = (("x-should-retry", "false"),)
_STANDING = {
    Standing.EXPIRED: ("expired_api_key", "This API key has expired."),
    Standing.REVOKED: ("revoked_api_key", "This API key was revoked."),
}


def no_key() -> RequestRefused:
    """Return the refusal of a call without a key, or with more than one."""
    return _unauthorised("missing_api_key", "One API key is needed: Authorization: Bearer KEY.")


def unknown_key() -> RequestRefused:
    """Return the refusal of a key that nobody has, whatever is wrong with it."""
    return _unauthorised("invalid_api_key", "Incorrect API key provided.")


def worthless_key(standing: Standing) -> RequestRefused:
    """Return the refusal of a key that was good once: only who holds it is told so."""
    return _unauthorised(*_STANDING[standing])


def out_of_scope() -> RequestRefused:
    """Return the refusal of a call that the key's scope does not cover."""
    words = "This API key may not use this model at this endpoint."
    fault = ApiFault(403, "invalid_request_error", "insufficient_permissions", words)
    return RequestRefused(fault)


def held(taken: Taken) -> RequestRefused:
    """Return the refusal of a call that came too early."""
    if taken.held is Held.RATE:
        words = ("rate_limit_exceeded", "Too many calls a minute for this API key.")
    else:
        words = ("concurrency_limit_exceeded", "Too many calls at once for this API key.")
    return RequestRefused(
        ApiFault(
            429,
            "rate_limit_error",
            *words,
            retry_after=taken.retry_seconds,
            headers=pace_headers(taken.pace),
        )
    )


def no_quota(*, budget: int, spent: int, reset_seconds: float, pace: Pace | None) -> RequestRefused:
    """Return the refusal of a call that would spend more tokens than are left."""
    words = (
        "The tokens left to this API key do not cover this call; fewer are reserved with "
        "max_tokens."
    )
    headers = (*pace_headers(pace), *quota_headers(budget, spent, reset_seconds), *_NO_RETRY)
    return RequestRefused(
        ApiFault(
            429,
            "insufficient_quota",
            "insufficient_quota",
            words,
            retry_after=max(1, int(reset_seconds)),
            headers=headers,
        )
    )


def unmetered() -> RequestRefused:
    """Return the refusal of a call that could not be accounted for (§4.3)."""
    words = "The node cannot account for this call now; try again."
    return RequestRefused(
        ApiFault(503, "server_error", "metering_unavailable", words, retry_after=1)
    )


def pace_headers(pace: Pace | None) -> Headers:
    """Return how a key stands with its rate, under OpenAI's names (§3.7)."""
    if pace is None:
        return ()
    return (
        ("x-ratelimit-limit-requests", str(pace.limit)),
        ("x-ratelimit-remaining-requests", str(pace.left)),
        ("x-ratelimit-reset-requests", _duration(pace.reset_seconds)),
    )


def quota_headers(budget: int, spent: int, reset_seconds: float) -> Headers:
    """Return how a key stands with its budget, under OpenAI's names (§3.7)."""
    return (
        ("x-ratelimit-limit-tokens", str(budget)),
        ("x-ratelimit-remaining-tokens", str(max(0, budget - spent))),
        ("x-ratelimit-reset-tokens", _duration(reset_seconds)),
    )


def _unauthorised(code: str, words: str) -> RequestRefused:
    return RequestRefused(ApiFault(401, "invalid_request_error", code, words, headers=_BEARER))


def _duration(seconds: float) -> str:
    """Return `1h2m3s` as OpenAI spells it."""
    whole = max(0, int(seconds + 0.999))
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "m"))
    return "".join(f"{count}{unit}" for count, unit in parts if count) + f"{rest}s"
