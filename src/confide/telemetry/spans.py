"""One call as an OpenTelemetry span, and a batch of them as OTLP over HTTP in JSON. Pure.

docs/protocols/tenancy.md §7; the form is OTLP 1.x (`ExportTraceServiceRequest` in JSON: ids in hex,
64-bit numbers as strings). A span is a root: a trace context that a caller sends is not taken over,
for a caller chooses its bytes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from confide.telemetry.facts import BYTES, TOKENS, step_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from confide.telemetry.facts import CallFacts
    from confide.wire.json import JsonValue

__all__ = ["Span", "encode_spans", "span_of"]

_SERVER = 2
_OK, _ERROR = 1, 2
_SCOPE = "confide"


@dataclass(frozen=True, slots=True)
class Span:
    """One call that ended: when, and `words` and `counts` of it."""

    trace_id: bytes
    span_id: bytes
    name: str
    begun: datetime
    ended: datetime
    failed: bool
    words: tuple[tuple[str, str], ...]
    counts: tuple[tuple[str, int], ...]


def span_of(
    facts: CallFacts, *, ids: bytes, begun: datetime, ended: datetime, by_key: bool
) -> Span:
    """Return the span of a call; `ids` are 24 random bytes."""
    words = [
        ("http.route", facts.endpoint),
        ("confide.finish", facts.finish),
        ("confide.status_class", facts.status_class),
    ]
    if facts.code:
        words.append(("error.type", facts.code))
    if by_key and facts.key_id:
        words.append(("confide.key", facts.key_id))
    counts = [
        (name, int(step_of(value, steps)))
        for name, value, steps in (
            ("http.request.body.size", facts.request_bytes, BYTES),
            ("http.response.body.size", facts.response_bytes, BYTES),
            ("gen_ai.usage.input_tokens", facts.input_tokens, TOKENS),
            ("gen_ai.usage.output_tokens", facts.output_tokens, TOKENS),
        )
        if value is not None
    ]
    failed = facts.status >= 500 or facts.finish == "upstream-failed"
    name = f"call {facts.endpoint}"
    return Span(ids[:16], ids[16:24], name, begun, ended, failed, tuple(words), tuple(counts))


def encode_spans(spans: Sequence[Span], *, version: str) -> bytes:
    """Return the body of one export."""
    service: JsonValue = [
        _text("service.name", "confide-model-node"),
        _text("service.version", version),
    ]
    request: JsonValue = {
        "resourceSpans": [
            {
                "resource": {"attributes": service},
                "scopeSpans": [
                    {
                        "scope": {"name": _SCOPE, "version": version},
                        "spans": [_span(span) for span in spans],
                    }
                ],
            }
        ]
    }
    return json.dumps(request, separators=(",", ":")).encode()


def _span(span: Span) -> JsonValue:
    attributes: list[JsonValue] = [_text(name, word) for name, word in span.words]
    attributes += [_count(name, count) for name, count in span.counts]
    return {
        "traceId": span.trace_id.hex(),
        "spanId": span.span_id.hex(),
        "name": span.name,
        "kind": _SERVER,
        "startTimeUnixNano": _nanoseconds(span.begun),
        "endTimeUnixNano": _nanoseconds(span.ended),
        "attributes": attributes,
        "status": {"code": _ERROR if span.failed else _OK},
    }


def _text(name: str, word: str) -> JsonValue:
    return {"key": name, "value": {"stringValue": word}}


def _count(name: str, count: int) -> JsonValue:
    return {"key": name, "value": {"intValue": str(count)}}


def _nanoseconds(moment: datetime) -> str:
    return str(int(moment.timestamp()) * 10**9 + moment.microsecond * 1000)
