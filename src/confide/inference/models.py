"""The model a node serves, and the `/v1/models` answer made from it. Pure.

The node answers `/v1/models` itself: the answer names the measured model, never what an engine
says about itself. docs/protocols/inference.md §6.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

__all__ = ["ServedModel", "about_model", "model_answer", "models_answer"]

_MAX_NAME_CHARS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """
    One model as the node measured and configured it.

    `name` is public and what callers must ask for; `upstream_name` is what the engine calls it;
    the digests are lower-case hex SHA-256; `max_context` is in tokens; `created` in Unix seconds;
    `adds_revision` says that the engine answers as `upstream_name@revision` (`transformers serve`
    does), so that answers are renamed even where the names are equal; `record` is the file that
    says how the model was trained and `record_digest` its digest, where there is one.

    Raises `ValueError` for a name that is empty, too long or holds control characters.
    """

    name: str
    weights_digest: str
    manifest_digest: str
    upstream_name: str
    created: int
    max_context: int | None = None
    adds_revision: bool = False
    record_digest: str = ""
    record: bytes = field(default=b"", repr=False)

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
    if served.record:
        entry["training_record"] = served.record_digest
    return entry


def models_answer(served: ServedModel) -> bytes:
    """Return the body of `GET /v1/models`: a list of exactly the served model."""
    return json.dumps({"object": "list", "data": [_entry(served)]}, ensure_ascii=False).encode()


def model_answer(served: ServedModel) -> bytes:
    """Return the body of `GET /v1/models/{name}` for the served model."""
    return json.dumps(_entry(served), ensure_ascii=False).encode()


def about_model(served: ServedModel, path: str) -> bytes | None:
    """Return what `GET` of the decoded `path` says of the served model; None: nothing (§6.2)."""
    place = f"/v1/models/{served.name}"
    if path == f"{place}/training_record" and served.record:
        return served.record
    return model_answer(served) if path == place else None
