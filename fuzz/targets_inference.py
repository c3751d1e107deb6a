"""Targets: requests beside chat, and the heads of weights files."""

from __future__ import annotations

import struct

from confide.inference.gguf import gguf_types
from confide.inference.models import ServedModel
from confide.inference.passing import PassRoute, plan_pass
from confide.inference.quantised import derive_quantisation, safetensors_types
from confide.inference.routes import Endpoint, EngineRoutes, RequestLimits, plan_request
from fuzz.driver import Target
from fuzz.pieces import fixed

_SERVED = ServedModel(name="m", upstream_name="m", weights_digest="", manifest_digest="", created=1)
_ROUTES = EngineRoutes.of(frozenset(Endpoint), models=True)


def _plan(endpoint: Endpoint, raw: bytes) -> None:
    plan_request(
        endpoint,
        raw,
        served=_SERVED,
        routes=_ROUTES,
        limits=RequestLimits(),
        content_type="multipart/form-data; boundary=mark",
    )


def _pass(raw: bytes) -> None:
    plan_pass(
        PassRoute("POST", "/v1/messages"),
        raw,
        query="",
        content_type="application/json",
        served=_SERVED,
        limits=RequestLimits(),
    )


def _query(raw: bytes) -> None:
    plan_pass(
        PassRoute("POST", "/v1/messages"),
        b"x",
        query=raw.decode("latin-1"),
        content_type="text/plain",
        served=_SERVED,
        limits=RequestLimits(),
    )


def _config(raw: bytes) -> None:
    derive_quantisation(raw, ("BF16",))


_UPLOAD = (
    b'--mark\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n'
    b'--mark\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n'
    b"Content-Type: audio/wav\r\n\r\nRIFF\r\n--mark--\r\n"
)
_GGUF = (
    b"GGUF" + struct.pack("<IQQ", 3, 1, 1)
    + struct.pack("<Q", 1) + b"k" + struct.pack("<II", 4, 7)
    + struct.pack("<Q", 1) + b"t" + struct.pack("<IQIQ", 1, 8, 12, 0)
)  # fmt: skip
_HEADER = b'{"a":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}'

INFERENCE_TARGETS: tuple[Target, ...] = (
    Target(
        "embeddings-request",
        lambda raw: _plan(Endpoint.EMBEDDINGS, raw),
        fixed(b'{"model":"m","input":["a"],"dimensions":8}'),
        json_values=True,
    ),
    Target(
        "rerank-request",
        lambda raw: _plan(Endpoint.RERANK, raw),
        fixed(b'{"model":"m","query":"a","documents":["b",{"text":"c"}]}'),
        json_values=True,
    ),
    Target("upload-request", lambda raw: _plan(Endpoint.TRANSCRIPTIONS, raw), fixed(_UPLOAD)),
    Target("passed-request", _pass, fixed(b'{"model":"m","x":{"url":null}}'), json_values=True),
    Target("passed-query", _query, fixed(b"model=m&a=%20b")),
    Target("gguf-head", gguf_types, fixed(_GGUF)),
    Target(
        "safetensors-head",
        safetensors_types,
        fixed(struct.pack("<Q", len(_HEADER)) + _HEADER + b"\0\0"),
    ),
    Target(
        "weights-config",
        _config,
        fixed(b'{"quantization_config":{"quant_method":"gptq","bits":4}}'),
        json_values=True,
    ),
)
