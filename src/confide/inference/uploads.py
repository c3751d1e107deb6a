"""Requests with files: transcription, translation, editing of images. Pure.

docs/protocols/inference.md §7. The form is read to find the model and to keep unknown fields out;
files are not looked into. Bytes are forwarded as they came, or with the value of `model` replaced.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from confide.inference.multipart import parse_multipart
from confide.inference.plan import (
    Endpoint,
    InferencePlan,
    Reply,
    RequestLimits,
    Transformation,
    refuse,
    require_served,
)

if TYPE_CHECKING:
    from confide.inference.models import ServedModel
    from confide.inference.multipart import Part

__all__ = ["FORMS", "Form", "model_field", "plan_upload"]

# From: docs/protocols/inference.md §7.1.
_MAX_FIELD_BYTES = 64 * 1024


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


@dataclass(frozen=True, slots=True)
class Form:
    """
    What a form may hold: plain fields, files, and which files count as the input.

    `answers` are the media types that may come back beside JSON.
    """

    fields: frozenset[str]
    files: frozenset[str]
    inputs: frozenset[str]
    answers: tuple[str, ...] = ()


# From: the OpenAI API reference, generation 2026: docs/protocols/inference.md §7.4 and §3.6.
_TEXTS = ("text/plain", "text/vtt", "application/x-subrip")
FORMS = {
    Endpoint.TRANSCRIPTIONS: Form(
        _names(
            "model language prompt response_format temperature timestamp_granularities[] "
            "include[] stream chunking_strategy"
        ),
        frozenset(("file",)),
        frozenset(("file",)),
        _TEXTS,
    ),
    Endpoint.TRANSLATIONS: Form(
        _names("model prompt response_format temperature language"),
        frozenset(("file",)),
        frozenset(("file",)),
        _TEXTS,
    ),
    Endpoint.IMAGE_EDITS: Form(
        _names(
            "model prompt n size quality response_format background output_format "
            "output_compression input_fidelity partial_images stream user"
        ),
        frozenset(("image", "image[]", "mask")),
        frozenset(("image", "image[]")),
    ),
}


def plan_upload(
    endpoint: Endpoint,
    body: bytes,
    content_type: str,
    *,
    served: ServedModel,
    limits: RequestLimits,
) -> InferencePlan:
    """
    Read one upload and say what to do with it.

    (1) It is within `limits` and has one reading (§7.1, §7.2). (2) It asks for the served model
    (§7.3). (3) It has only fields we know, files where files belong (§7.4). (4) It is forwarded
    as received, or with the engine's name in the place of `model` (§7.5).

    Raises `RequestRefused`.
    """
    if len(body) > limits.max_upload_bytes:
        refuse(
            "request_too_large",
            f"The request is above {limits.max_upload_bytes} bytes.",
            status=413,
        )
    parts = parse_multipart(body, content_type)  # (1)
    model = model_field(parts, body, served)  # (2)
    streamed = _require_form(endpoint, parts, body)  # (3)
    rename = served.name != served.upstream_name  # (4)
    rename_answer = rename or served.adds_revision
    forwarded = body
    if rename:
        name = served.upstream_name.encode()
        forwarded = b"".join((body[: model.start], name, body[model.end :]))
    return InferencePlan(
        endpoint=endpoint,
        upstream_path=endpoint.value,
        body=forwarded,
        identical=not rename,
        served=served,
        streamed=streamed,
        transformations=(Transformation.MODEL_NAME.value,) if rename_answer else (),
        reply=Reply.RENAME if rename_answer else Reply.PASS,
        content_type=content_type,
        answers=FORMS[endpoint].answers,
    )


def model_field(parts: tuple[Part, ...], body: bytes, served: ServedModel) -> Part:
    """Return the one part that names the model; refuse another model than `served` (§7.3)."""
    named = [part for part in parts if part.name == "model"]
    if not named:
        refuse("missing_model", "You must provide a model parameter.", param="model")
    if len(named) > 1 or named[0].is_file:
        refuse("invalid_multipart", "The model is named once, in a field.", param="model")
    require_served(_text(named[0], body), served)
    return named[0]


def _require_form(endpoint: Endpoint, parts: tuple[Part, ...], body: bytes) -> bool:
    form = FORMS[endpoint]
    seen: set[str] = set()
    streamed = False
    for part in parts:
        if part.name not in (form.files if part.is_file else form.fields):
            refuse("unknown_parameter", "The form has a field this endpoint does not take.")
        if part.name in seen and not part.name.endswith("[]") and part.name != "image":
            refuse("invalid_multipart", "A field stands twice.")
        seen.add(part.name)
        if part.is_file:
            continue
        text = _text(part, body)
        if part.name == "stream":
            if text not in ("true", "false"):
                refuse("invalid_type", "stream is true or false.", param="stream")
            streamed = text == "true"
        if endpoint is Endpoint.IMAGE_EDITS and part.name == "response_format":
            _require_in_line(text)
    if not seen & form.inputs:
        refuse("missing_file", "The form has no file.")
    return streamed


def _require_in_line(text: str) -> None:
    if text != "b64_json":
        refuse("external_url", "An image is answered as b64_json.", param="response_format")


def _text(part: Part, body: bytes) -> str:
    if part.end - part.start > _MAX_FIELD_BYTES:
        refuse("invalid_multipart", f"A field is above {_MAX_FIELD_BYTES} bytes.")
    try:
        return body[part.start : part.end].decode("utf-8")
    except UnicodeDecodeError:
        refuse("invalid_multipart", "A field is not UTF-8.")
