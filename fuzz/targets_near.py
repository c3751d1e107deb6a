"""Targets: sealed requests of NEAR's protocol, and the answers of engines that are to be sealed."""

from __future__ import annotations

import hashlib
import json

from confide.channel.near_answer import AnswerSealer, SealedEvents
from confide.channel.near_request import open_request
from confide.channel.near_seal import FieldKey, FieldScheme, client_key, open_field, seal_field
from confide.crypto.aead import OpenError
from confide.crypto.ed25519 import Ed25519Signer
from confide.errors import Reason
from confide.wire.json import parse_json
from fuzz.driver import Target
from fuzz.pieces import fixed

_CHAT = "/v1/chat/completions"
_SECRET = hashlib.sha256(b"fuzz").digest()
_KEY = FieldKey(FieldScheme.ED25519, _SECRET)
_PUBLIC = client_key(FieldScheme.ED25519, Ed25519Signer(_SECRET).public_key.hex())
_WORD = b"secretly"


def _draw(size: int) -> bytes:
    return hashlib.shake_256(b"draw").digest(size)


_SEALED = seal_field(FieldScheme.ED25519, _PUBLIC, "hello", _draw)
_REQUEST = {
    "model": "m",
    "temperature": 1,
    "messages": [{"role": "user", "content": _SEALED}],
    "tools": [{"type": "function", "function": {"name": _SEALED}}],
}
_EVENT = {"id": "c", "choices": [{"index": 0, "delta": {"content": _WORD.decode()}}]}


def _opened(raw: bytes) -> None:
    value = parse_json(raw, what="request", reason=Reason.REQUEST_FORMAT)
    if not isinstance(value, dict):
        return
    try:
        found = open_request(_CHAT, value, _KEY, all_fields=True)
    except OpenError:
        return
    # Nothing is opened without leaving its mark.
    assert (b'"hello"' in json.dumps(found.request).encode()) <= bool(found.marks)


def _field(raw: bytes) -> None:
    try:
        assert open_field(_KEY, raw.decode("latin-1")).text == "hello"
    except OpenError:
        return


def _events(raw: bytes) -> None:
    sealer = AnswerSealer(FieldScheme.ED25519, _PUBLIC, _draw)
    whole = SealedEvents(sealer).feed(raw)
    stream = SealedEvents(sealer)
    # Cut anywhere, the same goes out; what an engine says in `content` never does.
    assert stream.feed(raw[: len(raw) // 2]) + stream.feed(raw[len(raw) // 2 :]) == whole
    assert b'"content":"' + _WORD not in whole


NEAR_TARGETS: tuple[Target, ...] = (
    Target("near-request", _opened, fixed(json.dumps(_REQUEST).encode()), json_values=True),
    Target("near-field", _field, fixed(_SEALED.encode()), tokens=(b"00", b"ff")),
    Target(
        "near-events",
        _events,
        fixed(b"data: " + json.dumps(_EVENT).encode() + b"\n\ndata: [DONE]\n\n"),
        tokens=(b"data: ", b"\n\n", b"[DONE]", b'"error"'),
    ),
)
