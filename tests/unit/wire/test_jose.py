"""Compact JWS and key sets: what is read, and what is refused before anything is verified."""

from __future__ import annotations

import json
from typing import Any

import pytest

from confide.errors import FormatError, Reason
from confide.wire.jose import (
    b64url_decode,
    b64url_encode,
    parse_compact_jws,
    parse_jwks,
)

REASON = Reason.TOKEN_MALFORMED
EC = {"kty": "EC", "crv": "P-384", "kid": "a", "x": b64url_encode(bytes(48))}
KEY: dict[str, Any] = {**EC, "y": b64url_encode(b"\1" * 48)}


def token(header: object, payload: bytes = b"{}", signature: bytes = b"s") -> str:
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    return ".".join(b64url_encode(part) for part in (head, payload, signature))


def test_a_token_keeps_the_bytes_that_were_signed() -> None:
    text = token({"alg": "ES384", "kid": "k"}, b'{"a":1}')
    jws = parse_compact_jws(text, what="token", reason=REASON)
    assert (jws.algorithm, jws.key_id, jws.text) == ("ES384", "k", text)
    assert jws.signing_input.decode() == text.rpartition(".")[0]
    assert jws.payload(what="x", reason=REASON) == {"a": 1}
    assert jws.signature(what="x", reason=REASON) == b"s"


def test_an_empty_signature_is_for_the_verifier_to_refuse() -> None:
    text = token({"alg": "none"}, signature=b"")
    assert parse_compact_jws(text, what="token", reason=REASON).signature_text == ""


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a.b",
        "a.b.c.d",
        "..",
        token({"alg": "ES384"}) + "\n",
        " " + token({"alg": "ES384"}),
        token({"alg": "ES384"}) + "=",
        token({"alg": "ES384"}).replace(".", ".é", 1),
        token({}),
        token({"alg": 1}),
        token([]),
        token(b"not json"),
        token(b'{"alg":"ES384","alg":"none"}'),
        token({"alg": "ES384", "crit": ["x"]}),
        token({"alg": "ES384", "jwk": KEY}),
        token({"alg": "ES384", "jku": "https://example.com"}),
        token({"alg": "ES384", "x5c": []}),
        token({"alg": "ES384", "kid": "k" * 300}),
        "A" * 70_000 + ".a.a",
    ],
)
def test_a_malformed_token_is_refused(text: str) -> None:
    with pytest.raises(FormatError) as refusal:
        parse_compact_jws(text, what="token", reason=REASON)
    assert refusal.value.reason is REASON


@pytest.mark.parametrize("payload", [b"[]", b"1", b"{", b'{"a":1,"a":2}', b"\xff", b"[" * 99])
def test_a_payload_is_one_strict_object(payload: bytes) -> None:
    jws = parse_compact_jws(token({"alg": "x"}, payload), what="token", reason=REASON)
    with pytest.raises(FormatError):
        jws.payload(what="payload", reason=REASON)


@pytest.mark.parametrize("text", ["A", "AB", "AA==", "A+", "A/", "é", "AA A"])
def test_base64url_is_canonical(text: str) -> None:
    with pytest.raises(FormatError):
        b64url_decode(text, what="x", reason=REASON)


@pytest.mark.parametrize("size", range(5))
def test_base64url_comes_back(size: int) -> None:
    raw = bytes(range(250, 250 + size))
    assert b64url_decode(b64url_encode(raw), what="x", reason=REASON) == raw


def test_a_key_set_is_read_and_other_kinds_are_kept_without_a_point() -> None:
    rsa = {"kty": "RSA", "kid": "r", "n": "AQ", "e": "AQAB"}
    odd = {**KEY, "crv": "secp256k1", "kid": "s", "extra": 1}
    keys = parse_jwks(
        json.dumps({"keys": [{**KEY, "x5c": ["AAAA"]}, rsa, odd]}).encode(),
        what="keys",
        reason=REASON,
    )
    assert [(key.kind, key.curve, key.point is None) for key in keys] == [
        ("EC", "P-384", False),
        ("RSA", "", True),
        ("EC", "secp256k1", True),
    ]
    assert keys[0].point == bytes(48) + b"\1" * 48
    assert keys[0].certificates == (bytes(3),)


@pytest.mark.parametrize(
    "key",
    [
        {},
        EC,
        {**KEY, "kid": 1},
        {**KEY, "d": "AA"},
        {**KEY, "use": "enc"},
        {**KEY, "alg": "HS256"},
        {**KEY, "x": "AA"},
        {**KEY, "x": b64url_encode(bytes(48)) + "="},
        {**KEY, "x5c": []},
        {**KEY, "x5c": ["A A="]},
        {**KEY, "x5c": ["A-_="]},
        {**KEY, "x5c": ["AAAA"] * 5},
        {"kty": "oct", "kid": "k", "k": "AA"},
        [],
    ],
)
def test_a_bad_key_refuses_the_set(key: object) -> None:
    with pytest.raises(FormatError) as refusal:
        parse_jwks(json.dumps({"keys": [key]}).encode(), what="keys", reason=REASON)
    assert refusal.value.reason is REASON


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b'{"keys":{}}', json.dumps({"keys": [KEY, KEY]}).encode()]
)
def test_a_bad_set_is_refused(raw: bytes) -> None:
    with pytest.raises(FormatError):
        parse_jwks(raw, what="keys", reason=REASON)
