"""What passed the byte boundary of one model call, and the record of it. Pure.

Digests are taken here and nowhere else, over bytes, incrementally, each once:
docs/protocols/inference.md §4. What is recorded is what passed; whether the answer is good, or
the reported usage true, is not.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from confide.errors import LocalProtocolError, Reason
from confide.wire.faces import Way
from confide.wire.json import Members

if TYPE_CHECKING:
    from confide.wire.json import JsonValue

__all__ = [
    "PLAIN",
    "Carriage",
    "ExchangeDigests",
    "Finish",
    "InferenceRecord",
    "Usage",
    "parse_record",
    "read_usage",
]

# From: docs/protocols/inference.md §4.8.
_MAX_TYPE_CHARS = 512
_MAX_MEMBERS = 1024


class Finish(StrEnum):
    """How an exchange ended (§4.4)."""

    COMPLETE = "complete"
    CLIENT_CANCELLED = "client-cancelled"
    UPSTREAM_FAILED = "upstream-failed"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the engine reported them; nobody checked them (§4.5)."""

    input_tokens: int
    output_tokens: int


def read_usage(value: JsonValue) -> Usage | None:
    """Return the `usage` member of an answer, chat or responses; None where absent or odd."""
    if not isinstance(value, dict):
        return None
    given = value.get("prompt_tokens", value.get("input_tokens"))
    made = value.get("completion_tokens", value.get("output_tokens", 0))
    if type(given) is not int or type(made) is not int or min(given, made) < 0:
        return None
    return Usage(given, made)


@dataclass(frozen=True, slots=True, kw_only=True)
class Carriage:
    """
    What a record says of a call that is not JSON both ways at one engine (§4.8).

    Members that say nothing beyond that are left out: `method` "POST", no `query` (SHA-256 in
    hex), types None, `member` None, `way` None: through the sealed channel.
    """

    method: str = "POST"
    query: str | None = None
    request_type: str | None = None
    response_type: str | None = None
    member: int | None = None
    way: Way | None = None

    def as_json(self) -> dict[str, JsonValue]:
        """Return the members that say something."""
        members: dict[str, JsonValue] = {} if self.method == "POST" else {"method": self.method}
        for name in ("query", "request_type", "response_type", "member", "way"):
            if (value := getattr(self, name)) is not None:
                members[name] = str(value) if name == "way" else value
        return members


PLAIN = Carriage()


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceRecord:
    """
    One model call as a receipt embeds it; digests are lower-case hex SHA-256 (§4.1).

    `forwarded_digest` is None when the forwarded bytes are the received ones or nothing was
    forwarded; `upstream_digest` is None when the engine gave nothing.
    """

    endpoint: str
    model: str
    request_digest: str
    forwarded_digest: str | None
    upstream_digest: str | None
    response_digest: str
    status: int
    streamed: bool
    usage: Usage | None
    transformations: tuple[str, ...]
    finish: Finish
    carriage: Carriage = PLAIN

    def carried_by(self, way: Way) -> InferenceRecord:
        """Return the record that says by which way of a face the call came (§4.9)."""
        return replace(self, carriage=replace(self.carriage, way=way))

    def as_json(self) -> dict[str, JsonValue]:
        """Return the members for canonical JSON; `parse_record` is the inverse."""
        usage: JsonValue = None
        if self.usage is not None:
            usage = {
                "input_tokens": self.usage.input_tokens,
                "output_tokens": self.usage.output_tokens,
            }
        return {
            "endpoint": self.endpoint,
            "model": self.model,
            "request": self.request_digest,
            "forwarded": self.forwarded_digest,
            "upstream": self.upstream_digest,
            "response": self.response_digest,
            "status": self.status,
            "streamed": self.streamed,
            "usage": usage,
            "transformations": list(self.transformations),
            "finish": self.finish.value,
            **self.carriage.as_json(),
        }


def parse_record(value: JsonValue, *, what: str, reason: Reason) -> InferenceRecord:
    """
    Read what `InferenceRecord.as_json` wrote.

    Every member is required but those of `Carriage`, none is unknown.

    Raises `FormatError` with `reason`.
    """
    members = Members(value, what=what, reason=reason)
    record = InferenceRecord(
        endpoint=members.text("endpoint", max_chars=64),
        model=members.text("model", max_chars=256),
        request_digest=members.hexes("request", 32).hex(),
        forwarded_digest=_optional_digest(members.value("forwarded"), what=what, reason=reason),
        upstream_digest=_optional_digest(members.value("upstream"), what=what, reason=reason),
        response_digest=members.hexes("response", 32).hex(),
        status=members.integer("status", low=100, high=599),
        streamed=members.boolean("streamed"),
        usage=_optional_usage(members.value("usage"), what=what, reason=reason),
        transformations=members.texts("transformations", max_items=16),
        finish=members.choice("finish", tuple(Finish)),
        carriage=_carriage(members),
    )
    members.end()
    return record


def _carriage(members: Members) -> Carriage:
    def text(name: str) -> str | None:
        return members.text(name, max_chars=_MAX_TYPE_CHARS) if members.has(name) else None

    query = members.hexes("query", 32).hex() if members.has("query") else None
    return Carriage(
        method=text("method") or "POST",
        query=query,
        request_type=text("request_type"),
        response_type=text("response_type"),
        member=members.integer("member", high=_MAX_MEMBERS) if members.has("member") else None,
        way=members.choice("way", tuple(Way)) if members.has("way") else None,
    )


def _optional_digest(value: JsonValue, *, what: str, reason: Reason) -> str | None:
    if value is None:
        return None
    return Members({"digest": value}, what=what, reason=reason).hexes("digest", 32).hex()


def _optional_usage(value: JsonValue, *, what: str, reason: Reason) -> Usage | None:
    if value is None:
        return None
    members = Members(value, what=f"{what}: usage", reason=reason)
    usage = Usage(members.integer("input_tokens"), members.integer("output_tokens"))
    members.end()
    return usage


class ExchangeDigests:
    """
    The running SHA-256 digests of one exchange.

    Order: `received`, `forwarded`, then the answer. While the engine's bytes are returned as
    they come (`passed`) one digest serves both sides; from the first difference on (`upstream`,
    `returned`) there are two.
    """

    __slots__ = ("_forwarded", "_got_upstream", "_received", "_response", "_upstream")

    def __init__(self) -> None:
        self._received: str | None = None
        self._forwarded: str | None = None
        self._response = hashlib.sha256()
        self._upstream: hashlib._Hash | None = None
        self._got_upstream = False

    def received(self, body: bytes) -> None:
        """Record the request body as the caller sent it."""
        self._received = hashlib.sha256(body).hexdigest()

    def forwarded(self, body: bytes, *, identical: bool) -> None:
        """Record what goes to the engine; `identical` when these are the received bytes."""
        self._forwarded = None if identical else hashlib.sha256(body).hexdigest()

    def passed(self, chunk: bytes) -> None:
        """Record bytes of the engine that are returned exactly as they came."""
        if self._upstream is not None:
            raise LocalProtocolError("an answer cannot be passed through after it was rewritten")
        self._got_upstream = True
        self._response.update(chunk)

    def upstream(self, chunk: bytes) -> None:
        """Record bytes of the engine that are not returned as they came."""
        if self._upstream is None:
            # What was passed through so far is common to both sides.
            self._upstream = self._response.copy()
        self._got_upstream = True
        self._upstream.update(chunk)

    def returned(self, chunk: bytes) -> None:
        """Record bytes for the caller that are not the engine's."""
        if self._upstream is None:
            self._upstream = self._response.copy()
        self._response.update(chunk)

    def record(
        self,
        *,
        endpoint: str,
        model: str,
        status: int,
        streamed: bool,
        usage: Usage | None,
        transformations: tuple[str, ...],
        finish: Finish,
        carriage: Carriage = PLAIN,
    ) -> InferenceRecord:
        """Return the record; `LocalProtocolError` where no request was received."""
        if self._received is None:
            raise LocalProtocolError("an exchange is recorded before its request was")
        response = self._response.hexdigest()
        upstream = response if self._upstream is None else self._upstream.hexdigest()
        return InferenceRecord(
            endpoint=endpoint,
            model=model,
            request_digest=self._received,
            forwarded_digest=self._forwarded,
            upstream_digest=upstream if self._got_upstream else None,
            response_digest=response,
            status=status,
            streamed=streamed,
            usage=usage,
            transformations=transformations,
            finish=finish,
            carriage=carriage,
        )
