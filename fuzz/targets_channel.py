"""Targets: the sealed channel and the inference formats that travel in it."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache

from confide.channel.aci import keyset_digest
from confide.channel.aci import verify_receipt as verify_aci_receipt
from confide.channel.ehbp import RequestOpening, open_request_body, seal_request_body
from confide.channel.exchange import Exchange
from confide.channel.keys import KeyRing, RecipientKey, key_config, key_ring, recipient_key
from confide.channel.message import ClientMessages, MessageLimits, NodeMessages, Stamp
from confide.channel.padding import CellDecoder, PaddingPolicy, encode_cells, parse_cell_bytes
from confide.channel.replay import ReplayPolicy, ReplayWindow
from confide.channel.single import open_request, seal_request
from confide.crypto.kem import load_private_key
from confide.errors import Reason
from confide.inference.digest import parse_record
from confide.inference.models import ServedModel
from confide.inference.responses_answer import ResponseContext, response_body
from confide.inference.responses_stream import ResponsesStream
from confide.inference.rewrite import ModelRenamer, UsageTail
from confide.inference.routes import Endpoint, EngineRoutes, RequestLimits, plan_request
from confide.wire.bhttp import (
    MessageKind,
    RequestHead,
    ResponseHead,
    encode_content,
    encode_end,
    encode_known_request,
    encode_known_response,
    encode_request_head,
)
from confide.wire.bhttp_decoder import BhttpDecoder
from confide.wire.json import JsonValue, jcs
from confide.wire.keyset import KeysetKey
from confide.wire.ohttp import (
    ChunkDecoder,
    Kem,
    KeyConfig,
    encode_chunk,
    encode_key_config,
    encode_key_configs,
    parse_key_config,
    parse_key_configs,
    parse_request_header,
)
from fuzz.driver import Target
from fuzz.pieces import cuts, document, fixed

_NOW = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)
_XWING = load_private_key(Kem.X_WING, b"x" * 32)
_X25519 = load_private_key(Kem.X25519, b"y" * 32)
_RING: KeyRing = key_ring(((0, _X25519), (1, _XWING)))
_SERVED = ServedModel(
    name="support-notes",
    upstream_name="engine/model",
    weights_digest="0" * 64,
    manifest_digest="1" * 64,
    max_context=2048,
    created=1,
)
_ROUTES = EngineRoutes(chat=True, completions=True, responses=False, models=True)


@cache
def _config(kem: Kem) -> KeyConfig:
    private = _XWING if kem is Kem.X_WING else _X25519
    name = "MLKEM768-X25519" if kem is Kem.X_WING else "X25519"
    return key_config(KeysetKey(int(kem is Kem.X_WING), name, private.public_key.raw))


def _recipient(kem: Kem) -> RecipientKey:
    return recipient_key(_config(kem))


def _key_config(raw: bytes) -> None:
    recipient_key(parse_key_config(raw))


def _key_configs(raw: bytes) -> None:
    for config in parse_key_configs(raw):
        recipient_key(config)


def _chunks(raw: bytes) -> None:
    decoder = ChunkDecoder()
    for piece in cuts(raw):
        decoder.feed(piece)
    decoder.end()


def _bhttp(kind: MessageKind, raw: bytes) -> None:
    decoder = BhttpDecoder(kind)
    for piece in cuts(raw):
        decoder.feed(piece)
    decoder.end()


_HEAD = RequestHead("POST", "https", "confide.invalid", "/v1/x", ((b"content-type", b"a/b"),))
_REQUESTS = fixed(
    encode_known_request(_HEAD, b"content", ((b"t", b"u"),)) + bytes(8),
    encode_request_head(_HEAD) + encode_content(b"abc") + encode_content(b"d") + encode_end(),
)
_RESPONSES = fixed(
    encode_known_response(ResponseHead(200, ((b"content-length", b"2"),)), b"ok"),
    encode_known_response(ResponseHead(404, ()), b""),
)


@cache
def _sealed_request(kem: Kem) -> bytes:
    client = ClientMessages(
        _recipient(kem),
        ephemeral=b"e" * 32,
        stamp=Stamp(b"n" * 32, _NOW),
        padding=PaddingPolicy(),
        limits=MessageLimits(),
        cell_bytes=64,
    )
    return client.seal_whole("POST", "/v1/x", (), b"prompt" * 100)


def _node(raw: bytes) -> None:
    node = NodeMessages(
        _RING,
        response_nonce=b"r" * 32,
        window=ReplayWindow(ReplayPolicy()),
        padding=PaddingPolicy(),
        limits=MessageLimits(),
    )
    for piece in cuts(raw):
        node.receive(piece, now=_NOW)
    node.receive_end(now=_NOW)


def _dishonest_client(raw: bytes) -> None:
    """Sealed by somebody who holds the public key: the binary HTTP inside is hostile."""
    client = Exchange.client(_recipient(Kem.X25519), ephemeral=b"e" * 32)
    _node(client.seal(raw, final=True))


def _dishonest_seeds() -> tuple[bytes, ...]:
    fields = (*Stamp(b"n" * 32, _NOW).fields(), (b"confide-cells", b"64"))
    head = RequestHead("POST", "https", "confide.invalid", "/v1/x", fields)
    return (encode_known_request(head, b"content"),)


def _client(raw: bytes) -> None:
    client = ClientMessages(
        _recipient(Kem.X25519),
        ephemeral=b"e" * 32,
        stamp=Stamp(b"n" * 32, _NOW),
        padding=PaddingPolicy(),
        limits=MessageLimits(),
        cell_bytes=64,
    )
    sealed = client.seal_whole("POST", "/v1/x", (), b"prompt")
    # A dishonest node: it holds the keys, and what it seals is `raw`.
    node = Exchange.node(_RING, response_nonce=b"r" * 32)
    node.receive(sealed)
    node.receive_end()
    answer = node.seal(raw, final=True)
    for piece in cuts(answer):
        client.receive(piece)
    client.receive_end()


def _client_seeds() -> tuple[bytes, ...]:
    cells = b"".join(encode_cells(b"answer" * 30, 64))
    head = ResponseHead(200, ((b"confide-cells", b"64"),))
    return (encode_known_response(head, cells), encode_known_response(ResponseHead(503, ()), b"no"))


def _single(raw: bytes) -> None:
    open_request(raw, _RING)


def _ehbp(raw: bytes) -> None:
    open_request_body(raw[:32], raw[32:], _RING)


def _ehbp_pieces(raw: bytes) -> None:
    opening = RequestOpening(raw[:32], ((0, _X25519),), max_bytes=1 << 16)
    for piece in cuts(raw[32:]):
        opening.receive(piece)
    opening.receive_end()


def _ehbp_seeds() -> tuple[bytes, ...]:
    chunks = (b"one", b"two")
    enc, body, _context = seal_request_body(_recipient(Kem.X25519), chunks, ephemeral=b"e" * 32)
    return (enc + body,)


def _cells(raw: bytes) -> None:
    decoder = CellDecoder(64)
    for piece in cuts(raw):
        decoder.feed(piece)
    decoder.end()


_ACI_KEYS: dict[str, JsonValue] = {
    "receipt_signing_keys": [{"key_id": "1", "algo": "ed25519", "public_key": "0" * 64}]
}
_ACI = jcs(
    {
        "api_version": "aci/1",
        "receipt_id": "r",
        "workload_keyset_digest": keyset_digest(_ACI_KEYS),
        "key_id": "1",
        "event_log": [{"type": "request.received"}],
        "signature": "0" * 128,
    }
)


def _aci(raw: bytes) -> None:
    verify_aci_receipt(raw, keyset=_ACI_KEYS)


def _plan(endpoint: Endpoint, raw: bytes) -> None:
    plan_request(endpoint, raw, served=_SERVED, routes=_ROUTES, limits=RequestLimits())


_CHAT = jcs(
    {
        "model": "support-notes",
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "hello"}]},
            {"role": "assistant", "content": "x", "tool_calls": []},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        "stream": True,
        "max_tokens": 5,
    }
)
_RESPONSES_BODY = jcs(
    {
        "model": "support-notes",
        "input": [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "1"},
        ],
        "instructions": "be short",
        "store": False,
        "tools": [{"type": "function", "name": "f", "parameters": {}, "strict": False}],
        "tool_choice": "auto",
        "text": {"format": {"type": "text"}},
        "reasoning": {"effort": "low"},
    }
)
_ANSWER = jcs(
    {
        "id": "1",
        "model": "engine/model",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {
                    "role": "assistant",
                    "content": "hi",
                    "tool_calls": [
                        {"id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}
                    ],
                },
            }
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
    }
)
_DELTAS = (
    b'data: {"model":"engine/model","choices":[{"index":0,"delta":{"content":"a"},'
    b'"finish_reason":null}]}\n\n'
    b'data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"c","function":'
    b'{"name":"f","arguments":"{"}}]},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,'
    b'"completion_tokens":1,"total_tokens":2}}\n\ndata: [DONE]\n\n'
)
_CONTEXT = ResponseContext(token="ab", created_at=1, model="support-notes", echo={})  # noqa: S106


def _mapped_stream(raw: bytes) -> None:
    stream = ResponsesStream(_CONTEXT)
    stream.start()
    for piece in cuts(raw):
        stream.feed(piece)
    stream.close()


def _rename(raw: bytes) -> None:
    renamer, tail = ModelRenamer(_SERVED), UsageTail()
    for piece in cuts(raw):
        renamer.feed(piece)
        tail.feed(piece)
    renamer.close()
    tail.usage()


_RECORD = jcs(
    {
        "endpoint": "chat.completions",
        "model": "m",
        "request": "0" * 64,
        "forwarded": None,
        "upstream": "1" * 64,
        "response": "2" * 64,
        "status": 200,
        "streamed": False,
        "usage": {"input_tokens": 1, "output_tokens": 2},
        "transformations": ["x"],
        "finish": "complete",
    }
)
_CONFIGS = tuple(_config(kem) for kem in (Kem.X25519, Kem.X_WING))
_SSE_TOKENS = (b"data: [DONE]\n\n", b"data: ", b"\n\n", b'"usage":{', b'"model":"', b"[" * 80)

CHANNEL_TARGETS: tuple[Target, ...] = (
    Target("ohttp-key-config", _key_config, fixed(*map(encode_key_config, _CONFIGS))),
    Target("ohttp-key-configs", _key_configs, fixed(encode_key_configs(_CONFIGS))),
    Target(
        "ohttp-request-header",
        parse_request_header,
        fixed(*(_recipient(kem).header.encode() for kem in (Kem.X25519, Kem.X_WING))),
    ),
    Target(
        "ohttp-chunks",
        _chunks,
        fixed(encode_chunk(bytes(99), final=False) + encode_chunk(bytes(20), final=True)),
    ),
    Target("bhttp-request", lambda raw: _bhttp(MessageKind.REQUEST, raw), _REQUESTS),
    Target("bhttp-response", lambda raw: _bhttp(MessageKind.RESPONSE, raw), _RESPONSES),
    Target(
        "sealed-request",
        _node,
        lambda: tuple(_sealed_request(kem) for kem in (Kem.X25519, Kem.X_WING)),
    ),
    Target("dishonest-client", _dishonest_client, _dishonest_seeds),
    Target("dishonest-node", _client, _client_seeds),
    Target(
        "single-request",
        _single,
        lambda: (seal_request(_recipient(Kem.X25519), b"hi", ephemeral=b"e" * 32)[0],),
    ),
    Target("ehbp", _ehbp, _ehbp_seeds),
    Target("ehbp-pieces", _ehbp_pieces, _ehbp_seeds),
    Target("cells", _cells, fixed(b"".join(encode_cells(b"content" * 30, 64)))),
    Target("cell-size", parse_cell_bytes, fixed(b"64", b"16128")),
    Target("aci-receipt", _aci, fixed(_ACI), json_values=True),
    Target(
        "inference-record",
        document(lambda value: parse_record(value, what="x", reason=Reason.RECEIPT_FORMAT)),
        fixed(_RECORD),
        json_values=True,
    ),
    Target("chat-request", lambda raw: _plan(Endpoint.CHAT, raw), fixed(_CHAT), json_values=True),
    Target(
        "completions-request",
        lambda raw: _plan(Endpoint.COMPLETIONS, raw),
        fixed(b'{"model":"support-notes","prompt":["a"],"stream":false,"n":1}'),
        json_values=True,
    ),
    Target(
        "responses-request",
        lambda raw: _plan(Endpoint.RESPONSES, raw),
        fixed(_RESPONSES_BODY),
        json_values=True,
    ),
    Target(
        "engine-answer",
        lambda raw: response_body(raw, _CONTEXT),
        fixed(_ANSWER),
        json_values=True,
    ),
    Target("engine-stream", _mapped_stream, fixed(_DELTAS), tokens=_SSE_TOKENS),
    Target("engine-rename", _rename, fixed(_DELTAS, _ANSWER), tokens=_SSE_TOKENS),
)
