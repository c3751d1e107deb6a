"""The words of a planned model call: endpoints, limits, what the engine has, the plan itself. Pure.

`routes`, `uploads` and `passing` make plans out of hostile requests; `exchange` carries one out.
docs/protocols/inference.md §1, §4.3.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, NoReturn

from confide.inference.faults import ApiFault, RequestRefused

if TYPE_CHECKING:
    from collections.abc import Mapping

    from confide.inference.models import ServedModel
    from confide.wire.json import JsonValue

__all__ = [
    "UPLOADS",
    "Endpoint",
    "EngineRoutes",
    "InferencePlan",
    "Reply",
    "RequestLimits",
    "Transformation",
    "refuse",
    "require_served",
]


class Endpoint(StrEnum):
    """The paths of §1.1 that take a body."""

    CHAT = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"
    RESPONSES = "/v1/responses"
    EMBEDDINGS = "/v1/embeddings"
    RERANK = "/v1/rerank"
    RERANK_SHORT = "/rerank"
    SCORE = "/v1/score"
    TOKENIZE = "/tokenize"
    DETOKENIZE = "/detokenize"
    SPEECH = "/v1/audio/speech"
    TRANSCRIPTIONS = "/v1/audio/transcriptions"
    TRANSLATIONS = "/v1/audio/translations"
    IMAGES = "/v1/images/generations"
    IMAGE_EDITS = "/v1/images/edits"


UPLOADS = frozenset((Endpoint.TRANSCRIPTIONS, Endpoint.TRANSLATIONS, Endpoint.IMAGE_EDITS))


class Transformation(StrEnum):
    """What a record can say was done to the bytes (§4.3). Closed."""

    MODEL_NAME = "model-name"
    CACHE_SALT = "cache-salt"
    RESPONSES_OVER_CHAT = "responses-over-chat"
    MEDIA_TYPE = "media-type"
    ERROR_BODY = "error-body"
    ERROR_EVENT = "error-event"


class Reply(StrEnum):
    """How a 2xx answer of the engine becomes the caller's answer."""

    PASS = "pass"  # noqa: S105 - a treatment, not a password
    RENAME = "rename"
    RESPONSES = "responses"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRoutes:
    """Which endpoints the engine behind the node has (§1.3); `others` beside the first three."""

    chat: bool
    completions: bool
    responses: bool
    models: bool
    others: frozenset[Endpoint] = field(default_factory=frozenset)

    @classmethod
    def of(cls, endpoints: frozenset[Endpoint], *, models: bool) -> EngineRoutes:
        """Return the routes of an engine that has exactly `endpoints`."""
        first = frozenset((Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.RESPONSES))
        return cls(
            chat=Endpoint.CHAT in endpoints,
            completions=Endpoint.COMPLETIONS in endpoints,
            responses=Endpoint.RESPONSES in endpoints,
            models=models,
            others=endpoints - first,
        )

    def has(self, endpoint: Endpoint) -> bool:
        """Whether the engine itself serves `endpoint`."""
        if endpoint is Endpoint.CHAT:
            return self.chat
        if endpoint is Endpoint.COMPLETIONS:
            return self.completions
        return self.responses if endpoint is Endpoint.RESPONSES else endpoint in self.others

    def mapping_responses(self) -> EngineRoutes:
        """Return the same without `/v1/responses`: the operator prefers the mapping (§5.1)."""
        return replace(self, responses=False)

    def both(self, other: EngineRoutes) -> EngineRoutes:
        """Return what this engine and the `other` have: the endpoints of a pool (§9.1)."""
        return EngineRoutes(
            chat=self.chat and other.chat,
            completions=self.completions and other.completions,
            responses=self.responses and other.responses,
            models=self.models and other.models,
            others=self.others & other.others,
        )


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """
    Caps of §2.1 and §7.1.

    Tool schemas nest; OpenAI allows ten levels in one schema, and 25 MB of audio.
    """

    max_body_bytes: int = 8 * 1024 * 1024
    max_depth: int = 64
    max_upload_bytes: int = 32 * 1024 * 1024

    def body_bytes(self, endpoint: Endpoint) -> int:
        """Return how large a body of `endpoint` may be."""
        return self.max_upload_bytes if endpoint in UPLOADS else self.max_body_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class InferencePlan:
    """
    One accepted request.

    `body` is the very object that was received when nothing had to change. `mapped` holds what
    the answer of a mapped `/v1/responses` repeats of its request. `query` is forwarded as it is;
    `answers` are the media types that may be returned beside JSON, `*/*` any (§3.6);
    `listed` is false for a route of §8; `repeatable` says that doing it twice is safe (§9.5).
    `output_cap` is the most tokens that the request lets the engine write, None where it says
    nothing that can be read.
    """

    endpoint: str
    upstream_path: str
    body: bytes
    identical: bool
    served: ServedModel
    streamed: bool
    transformations: tuple[str, ...]
    reply: Reply
    mapped: Mapping[str, JsonValue] | None = None
    method: str = "POST"
    query: str = ""
    content_type: str = "application/json"
    answers: tuple[str, ...] = ()
    listed: bool = True
    repeatable: bool = True
    output_cap: int | None = None


def refuse(code: str, message: str, *, param: str | None = None, status: int = 400) -> NoReturn:
    """Raise `RequestRefused` with our words in OpenAI's shape."""
    raise RequestRefused(ApiFault(status, "invalid_request_error", code, message, param))


def require_served(model: JsonValue, served: ServedModel) -> None:
    """Refuse a `model` that is none, or another than the one that is served (§2.2)."""
    if model == served.name:
        return
    if not isinstance(model, str):
        refuse("missing_model", "You must provide a model parameter.", param="model")
    refuse(
        "model_not_found",
        "The model does not exist here; GET /v1/models names the one that is served.",
        param="model",
        status=404,
    )
