"""What a sealed request of NEAR's protocol may hold, member by member (near-face.md §5)."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from confide.channel.near_answer import AnswerSealer
from confide.channel.near_request import NotProtected, OpenedFields, open_request
from confide.channel.near_seal import FieldKey, FieldScheme, client_key, open_field, seal_field
from confide.crypto.aead import OpenError
from confide.crypto.agreement import (
    agree_x25519,
    ed25519_public_to_x25519,
    ed25519_seed_to_x25519,
    x25519_public,
)
from confide.crypto.ed25519 import Ed25519Signer
from confide.crypto.kem import hkdf_expand, hkdf_extract
from confide.crypto.xchacha import seal_xchacha

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SECRET = hashlib.sha256(b"node").digest()
KEY = FieldKey(FieldScheme.ED25519, SECRET)
PUBLIC = client_key(FieldScheme.ED25519, Ed25519Signer(SECRET).public_key.hex())
_DRAWN = [0]


def draw(size: int) -> bytes:
    _DRAWN[0] += 1
    return hashlib.shake_256(b"%d" % _DRAWN[0]).digest(size)


def sealed(text: str) -> str:
    return seal_field(FieldScheme.ED25519, PUBLIC, text, draw)


def opened(path: str, request: dict[str, Any], *, all_fields: bool = True) -> OpenedFields:
    return open_request(path, request, KEY, all_fields=all_fields)


def message(**members: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", **members}]}


def tool(**members: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": members}]}


OPENED: dict[str, tuple[str, dict[str, Any], Any]] = {
    "no content": (CHAT, message(content=None), message(content=None)),
    "reasoning": (
        CHAT,
        message(content="", reasoning=sealed("r"), reasoning_content=sealed("c")),
        message(content="", reasoning="r", reasoning_content="c"),
    ),
    "audio": (
        CHAT,
        message(audio={"id": "a", "data": sealed("d")}),
        message(audio={"id": "a", "data": "d"}),
    ),
    "a name that is null": (CHAT, message(name=None), message(name=None)),
    "a function call of old": (
        CHAT,
        message(function_call={"name": sealed("f"), "arguments": sealed("{}")}),
        message(function_call={"name": "f", "arguments": "{}"}),
    ),
    "a call in words": (CHAT, {"function_call": "auto"}, {"function_call": "auto"}),
    "a call by name": (
        CHAT,
        {"function_call": {"name": sealed("f")}},
        {"function_call": {"name": "f"}},
    ),
    "a choice in words": (CHAT, {"tool_choice": "auto"}, {"tool_choice": "auto"}),
    "no tools": (CHAT, {"tools": None}, {"tools": None}),
    "no parameters": (CHAT, tool(name=sealed("f"), parameters=""), tool(name="f", parameters="")),
    "one prompt": (COMPLETIONS, {"prompt": sealed("p")}, {"prompt": "p"}),
    "several prompts": (COMPLETIONS, {"prompt": [sealed("p"), ""]}, {"prompt": ["p", ""]}),
    "no log probabilities": (
        CHAT,
        {"logprobs": False, "top_logprobs": None},
        {"logprobs": False, "top_logprobs": None},
    ),
    "an object": (
        CHAT,
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_object"}},
    ),
    "no format": (CHAT, {"response_format": None}, {"response_format": None}),
}


@pytest.mark.parametrize(("path", "request_", "wanted"), OPENED.values(), ids=OPENED)
def test_what_is_opened(path: str, request_: dict[str, Any], wanted: Any) -> None:
    found = opened(path, request_)
    assert found.request == wanted
    assert len(found.marks) == len(set(found.marks))


def test_every_field_leaves_one_mark() -> None:
    request = {**message(content=sealed("a"), name=sealed("b")), **tool(name=sealed("c"))}
    assert len(set(opened(CHAT, request).marks)) == 3


UNOPENED: dict[str, tuple[str, dict[str, Any]]] = {
    "messages that are no list": (CHAT, {"messages": {}}),
    "a message that is none": (CHAT, {"messages": ["hello"]}),
    "tools that are no list": (CHAT, {"tools": "all"}),
    "a tool that is none": (CHAT, {"tools": [1]}),
    "a part that is none": (CHAT, message(content=["hello"])),
    "a number in a part": (CHAT, message(content=[{"type": "text", "text": 1}])),
    "parameters in clear": (CHAT, tool(parameters={"type": "object"})),
    "parameters that are no JSON": (CHAT, tool(parameters=sealed("{"))),
    "a prompt of tokens": (COMPLETIONS, {"prompt": [1, 2]}),
    "a call that is none": (CHAT, message(tool_calls=["f"])),
}


@pytest.mark.parametrize(("path", "request_"), UNOPENED.values(), ids=UNOPENED)
def test_what_does_not_open(path: str, request_: dict[str, Any]) -> None:
    with pytest.raises(OpenError):
        opened(path, request_)


UNPROTECTED: dict[str, tuple[str, dict[str, Any]]] = {
    "a prompt in a chat": (CHAT, {"prompt": sealed("p")}),
    "messages in completions": (COMPLETIONS, message(content=sealed("p"))),
    "tools in completions": (COMPLETIONS, {"tools": []}),
    "an echo": (COMPLETIONS, {"echo": True}),
    "log probabilities": (COMPLETIONS, {"logprobs": 5}),
    "a suffix": (COMPLETIONS, {"suffix": sealed("p")}),
    "a format in words": (CHAT, {"response_format": "json"}),
    "a member of a message": (CHAT, message(annotations=[])),
    "a member of audio": (CHAT, message(audio={"transcript": "t"})),
    "a member of a tool": (CHAT, {"tools": [{"type": "custom", "custom": {}}]}),
    "a member of a function": (CHAT, tool(example="e")),
    "a member of a choice": (CHAT, {"tool_choice": {"type": "custom", "custom": {}}}),
    "a member of a call": (CHAT, message(tool_calls=[{"id": "1", "custom": {}}])),
}


@pytest.mark.parametrize(("path", "request_"), UNPROTECTED.values(), ids=UNPROTECTED)
def test_what_would_stay_readable(path: str, request_: dict[str, Any]) -> None:
    with pytest.raises(NotProtected):
        opened(path, request_)


@pytest.mark.parametrize(
    "request_",
    [
        message(name=sealed("n")),
        message(refusal=sealed("n")),
        message(tool_calls=[]),
        message(function_call={"name": sealed("n")}),
        tool(name=sealed("n")),
        {"tool_choice": {"type": "function"}},
        {"function_call": {"name": sealed("n")}},
    ],
)
def test_what_only_all_fields_seals(request_: dict[str, Any]) -> None:
    with pytest.raises(NotProtected):
        opened(CHAT, request_, all_fields=False)


def test_a_field_that_is_no_text_does_not_open() -> None:
    ephemeral, nonce = b"e" * 32, b"n" * 24
    shared = agree_x25519(ephemeral, ed25519_public_to_x25519(Ed25519Signer(SECRET).public_key))
    key = hkdf_expand(hkdf_extract(bytes(32), shared), b"ed25519_encryption", 32)
    raw = x25519_public(ephemeral) + nonce + seal_xchacha(key, nonce, b"\xff")
    with pytest.raises(OpenError, match="UTF-8"):
        open_field(KEY, raw.hex())


def test_a_seed_has_its_size() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        ed25519_seed_to_x25519(b"s" * 31)


def test_log_probabilities_and_tokens_are_left_out_of_answers() -> None:
    sealer = AnswerSealer(FieldScheme.ED25519, PUBLIC, draw)
    answer: Any = {
        "id": "c",
        "choices": [{"index": 0, "logprobs": {"content": ["t"]}, "token_ids": [1], "done": True}],
        "usage": {"total_tokens": 3, "note": "t", "details": {"cached_tokens": 1}},
        "created": 7,
        "score": 0.5,
    }
    assert sealer.seal(answer) == {
        "id": "c",
        "choices": [{"index": 0, "logprobs": None, "token_ids": None, "done": True}],
        "usage": {"total_tokens": 3, "note": None, "details": {"cached_tokens": 1}},
        "created": 7,
        "score": None,
    }


@pytest.mark.parametrize("answer", [None, [], "text", 1, {"error": "text"}])
def test_what_is_no_answer_becomes_a_fixed_error(answer: Any) -> None:
    found: Any = AnswerSealer(FieldScheme.ED25519, PUBLIC, draw).seal(answer)
    assert found["error"]["code"] == "engine_failed"


def test_an_id_that_is_no_text_is_left_out() -> None:
    sealer = AnswerSealer(FieldScheme.ED25519, PUBLIC, draw)
    assert sealer.seal({"id": 17}) == {"id": None}
