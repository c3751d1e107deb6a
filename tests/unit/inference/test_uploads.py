"""Uploads: one reading, the served model, the very bytes. docs/protocols/inference.md §7."""

from __future__ import annotations

import email.parser
import email.policy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.inference.faults import ApiFault, RequestRefused
from confide.inference.models import ServedModel
from confide.inference.multipart import parse_multipart
from confide.inference.plan import Endpoint, EngineRoutes, InferencePlan, Reply, RequestLimits
from confide.inference.routes import plan_request

_TYPE = "multipart/form-data; boundary=mark"
_ROUTES = EngineRoutes.of(frozenset(Endpoint), models=True)
_WAV = b"RIFF\x00\xff\r\n--not the mark\r\n"


def field(name: str, value: bytes, more: str = "") -> bytes:
    return f'Content-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + value


def file(name: str, value: bytes = _WAV) -> bytes:
    head = f'Content-Disposition: form-data; name="{name}"; filename="a.wav"\r\n'
    return head.encode() + b"Content-Type: audio/wav\r\n\r\n" + value


def form(*parts: bytes) -> bytes:
    return b"".join(b"--mark\r\n" + part + b"\r\n" for part in parts) + b"--mark--\r\n"


_GOOD = (field("model", b"m"), file("file"))


def plan(
    body: bytes,
    endpoint: Endpoint = Endpoint.TRANSCRIPTIONS,
    *,
    upstream_name: str = "m",
    content_type: str = _TYPE,
    **limits: Any,
) -> InferencePlan:
    served = ServedModel(
        name="m", weights_digest="", manifest_digest="", upstream_name=upstream_name, created=0
    )
    return plan_request(
        endpoint,
        body,
        served=served,
        routes=_ROUTES,
        limits=RequestLimits(**limits),
        content_type=content_type,
    )


def refused(body: bytes, endpoint: Endpoint = Endpoint.TRANSCRIPTIONS, **more: Any) -> ApiFault:
    with pytest.raises(RequestRefused) as caught:
        plan(body, endpoint, **more)
    return caught.value.fault


def test_an_upload_is_forwarded_as_the_very_bytes() -> None:
    body = form(*_GOOD, field("language", b"en"))
    made = plan(body)
    assert made.body is body
    assert (made.identical, made.transformations, made.content_type) == (True, (), _TYPE)
    assert not made.streamed


def test_another_name_replaces_the_value_of_model_and_no_other_byte() -> None:
    body = form(*_GOOD, field("prompt", b"m"))
    made = plan(body, upstream_name="/models/whisper")
    assert made.body == body.replace(b'"model"\r\n\r\nm\r\n', b'"model"\r\n\r\n/models/whisper\r\n')
    assert (made.reply, made.transformations) == (Reply.RENAME, ("model-name",))


def test_a_stream_is_asked_for_in_a_field() -> None:
    assert plan(form(*_GOOD, field("stream", b"true"))).streamed
    assert refused(form(*_GOOD, field("stream", b"True"))).code == "invalid_type"


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        ((file("file"),), "missing_model"),
        ((field("model", b"other"), file("file")), "model_not_found"),
        ((field("model", b"m "), file("file")), "model_not_found"),
        ((field("model", b"m"), field("model", b"other"), file("file")), "invalid_multipart"),
        ((file("model", b"m"), file("file")), "invalid_multipart"),
        ((field("model", b"m"),), "missing_file"),
        ((field("model", b"m"), field("file", b"http://x/a.wav")), "unknown_parameter"),
        ((*_GOOD, field("url", b"http://x/a.wav")), "unknown_parameter"),
        ((*_GOOD, file("file")), "invalid_multipart"),
        ((*_GOOD, field("language", b"en"), field("language", b"de")), "invalid_multipart"),
        ((*_GOOD, field("prompt", b"\xff")), "invalid_multipart"),
    ],
)
def test_forms_refused(parts: tuple[bytes, ...], code: str) -> None:
    assert refused(form(*parts)).code == code


def test_a_list_may_stand_more_than_once() -> None:
    names = (field("timestamp_granularities[]", b"word"),) * 2
    assert plan(form(*_GOOD, *names)).identical


def test_pictures_are_edited_as_files_alone() -> None:
    good = (field("model", b"m"), field("prompt", b"x"), file("image[]"), file("image[]"))
    assert plan(form(*good), Endpoint.IMAGE_EDITS).identical
    asked = field("response_format", b"url")
    assert refused(form(*good, asked), Endpoint.IMAGE_EDITS).code == "external_url"


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"preamble\r\n" + form(*_GOOD), id="something before"),
        pytest.param(form(*_GOOD) + b"x", id="something after"),
        pytest.param(form(*_GOOD)[:-4], id="no end"),
        pytest.param(form(*_GOOD).replace(b"\r\n", b"\n"), id="bare line ends"),
        pytest.param(form(field("model", b"m"), file("file", b"a\n--mark\r\n")), id="bare LF mark"),
        pytest.param(form(field("model", b"m"), file("file", b"a--mark--")), id="mark in a value"),
        pytest.param(form(*_GOOD).replace(b"--mark\r\n", b"--mark \r\n", 1), id="space after mark"),
        pytest.param(form(b"", *_GOOD), id="part without a header"),
        pytest.param(form(*_GOOD, field("prompt", b"x", '; name="model"')), id="two names"),
        pytest.param(form(*_GOOD, field("prompt", b"x", "; name*=UTF-8''model")), id="name*"),
        pytest.param(form(*_GOOD, field('a\\"b', b"x")), id="escaped quote"),
        pytest.param(form(*_GOOD, b"Content-Disposition: form-data; name=x\r\n\r\ny"), id="bare"),
        pytest.param(
            form(*_GOOD, b"Content-Transfer-Encoding: base64\r\n" + field("prompt", b"x")),
            id="transfer encoding",
        ),
        pytest.param(
            form(*_GOOD, b'Content-Disposition: form-data; name="a"\r\n' + field("model", b"x")),
            id="two dispositions",
        ),
        pytest.param(
            form(*_GOOD, b"Content-Type: multipart/mixed; boundary=x\r\n" + field("prompt", b"x")),
            id="nested",
        ),
        pytest.param(form(*_GOOD, *(field("include[]", b"x"),) * 63), id="too many parts"),
        pytest.param(form(*_GOOD, field("prompt", b"x", "; filename=" + "a" * 5000)), id="long"),
    ],
)
def test_what_two_parsers_could_read_differently_is_refused(body: bytes) -> None:
    assert refused(body).code == "invalid_multipart"


@pytest.mark.parametrize(
    "kind",
    [
        "",
        "application/json",
        "multipart/form-data",
        "multipart/mixed; boundary=mark",
        "multipart/form-data; boundary=mark; boundary=other",
        "multipart/form-data; boundary=mark; charset=utf-16",
        "multipart/form-data; boundary=" + "m" * 71,
    ],
)
def test_types_refused(kind: str) -> None:
    assert refused(form(*_GOOD), content_type=kind).code == "invalid_multipart"


def test_an_upload_too_large() -> None:
    assert refused(form(*_GOOD), max_upload_bytes=10).status == 413


_TEXT = st.text(
    st.characters(exclude_characters='"\\\r\n\0', exclude_categories=["Cs"]),
    min_size=1,
    max_size=32,
)


@given(
    st.lists(
        st.tuples(_TEXT, st.binary(max_size=64), st.booleans()),
        min_size=1,
        max_size=8,
    )
)
def test_forms_are_read_as_the_standard_library_reads_them(
    parts: list[tuple[str, bytes, bool]],
) -> None:
    mark = b"a-boundary-that-no-value-holds"
    pieces = [
        b"--%b\r\n%b\r\n" % (mark, field(name, value, '; filename="f"' if is_file else ""))
        for name, value, is_file in parts
    ]
    body = b"".join(pieces) + b"--" + mark + b"--\r\n"
    kind = f'multipart/form-data; boundary="{mark.decode()}"'
    found = parse_multipart(body, kind)
    assert [(p.name, body[p.start : p.end], p.is_file) for p in found] == parts
    head = f"content-type: {kind}\r\n\r\n".encode()
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
    assert len(list(message.iter_parts())) == len(parts)
