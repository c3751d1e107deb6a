"""What may be told of one call, in closed vocabularies and in steps. Pure.

docs/protocols/tenancy.md §6.2 and §6.3. Every word that leaves is out of a list in this source, and
every size and time is a step of a scale: what a caller writes cannot get into either.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from confide.inference.passing import COMPUTING
from confide.inference.plan import Endpoint

__all__ = [
    "BYTES",
    "ENDPOINT_WORDS",
    "OTHER",
    "SECONDS",
    "STATUS_CLASSES",
    "TOKENS",
    "CallFacts",
    "endpoint_word",
    "step_of",
]

OTHER = "other"
_OWN = ("/v1/models", "/v1/receipts", "/confide/v1/closing")
ENDPOINT_WORDS = frozenset(
    (*(endpoint.value for endpoint in Endpoint), *(route.path for route in COMPUTING), *_OWN)
)
STATUS_CLASSES = ("1xx", "2xx", "3xx", "4xx", "5xx", "none")
# Steps: what lies between two of them is told as the upper one.
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0)
BYTES = tuple(4.0**power for power in range(4, 15))
TOKENS = tuple(4.0**power for power in range(1, 12))


@dataclass(slots=True)
class CallFacts:
    """
    One call. `endpoint` is one of `ENDPOINT_WORDS` or `OTHER`, `code` a word of our refusals.

    Times are seconds since the call came; None where it did not get so far.
    """

    endpoint: str
    key_id: str = ""
    code: str = ""
    finish: str = ""
    status: int = 0
    request_bytes: int = 0
    response_bytes: int = 0
    input_tokens: int | None = None
    output_tokens: int | None = None
    first_byte: float | None = None
    seconds: float = 0.0

    @property
    def status_class(self) -> str:
        """`2xx`, `4xx` and so on; `none` where no answer began."""
        return STATUS_CLASSES[self.status // 100 - 1] if 100 <= self.status < 600 else "none"


def endpoint_word(path: str) -> str:
    """Return what is told of a path: a route of the node, or `other`."""
    if path in ENDPOINT_WORDS:
        return path
    return next((word for word in _OWN if path.startswith(f"{word}/")), OTHER)


def step_of(value: float, steps: tuple[float, ...]) -> float:
    """Return the step at or above `value`, the last one for everything beyond."""
    return steps[min(bisect_left(steps, value), len(steps) - 1)]
