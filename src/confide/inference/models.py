"""The model a node serves, and the `/v1/models` answer made from it. Pure.

The node answers `/v1/models` itself: the answer names the measured model, never what an engine
says about itself. docs/protocols/inference.md §6.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

__all__ = ["ServedModel", "model_answer", "models_answer"]

_MAX_NAME_CHARS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """
    One model as the node measured and configured it.

    `name` is public and what callers must ask for; `upstream_name` is what the engine calls it;
    the digests are lower-case hex SHA-256; `max_context` is in tokens; `created` in Unix seconds;
    `adds_revision` says that the engine answers as `upstream_name@revision` (`transformers serve`
    does), so that answers are renamed even where the names are equal.

    Raises `ValueError` for a name that is empty, too long or holds control characters.
    """

    name: str
    weights_digest: str
    manifest_digest: str
    upstream_name: str
    created: int
    max_context: int | None = None
    adds_revision: bool = False

    def __post_init__(self) -> None:
        for name in (self.name, self.upstream_name):
            if not 0 < len(name) <= _MAX_NAME_CHARS or not name.isprintable():
                raise ValueError("a model name is 1 to 256 printable characters")


def _entry(served: ServedModel) -> dict[str, object]:
    entry: dict[str, object] = {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "confide",
        "weights_digest": served.weights_digest,
        "manifest_digest": served.manifest_digest,
    }
    if served.max_context is not None:
        # The member other OpenAI-compatible engines use for the same fact.
        entry["max_model_len"] = served.max_context
    return entry


def models_answer(served: ServedModel) -> bytes:
    """Return the body of `GET /v1/models`: a list of exactly the served model."""
    return json.dumps({"object": "list", "data": [_entry(served)]}, ensure_ascii=False).encode()


def model_answer(served: ServedModel) -> bytes:
    """Return the body of `GET /v1/models/{name}` for the served model."""
    return json.dumps(_entry(served), ensure_ascii=False).encode()
