"""Flattened JWE and wrapping keys: one spelling, two algorithms, everything else refused."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from confide.errors import FormatError, Reason
from confide.wire.jose import b64url_encode
from confide.wire.json import jcs
from confide.wire.jwe import (
    EcPoint,
    RsaModulus,
    encode_protected,
    encode_wrapping_key,
    parse_jwe,
    parse_wrapping_key,
    thumbprint,
)

if TYPE_CHECKING:
    from confide.wire.json import JsonValue

POINT = EcPoint("P-256", bytes(range(64)))
EC = encode_wrapping_key(POINT)
MODULUS = RsaModulus(b"\xc0" + bytes(254) + b"\x01")
RSA_KEY = encode_wrapping_key(MODULUS)


def jwe(**changes: JsonValue) -> dict[str, JsonValue]:
    found: dict[str, JsonValue] = {
        "protected": encode_protected(POINT),
        "encrypted_key": b64url_encode(bytes(40)),
        "iv": b64url_encode(bytes(12)),
        "ciphertext": b64url_encode(b"sealed"),
        "tag": b64url_encode(bytes(16)),
    }
    return {**found, **changes}


def header(**members: JsonValue) -> str:
    return b64url_encode(jcs(members))


def test_it_is_read_as_it_was_written() -> None:
    raw = jcs(jwe())
    assert parse_jwe(raw).encode() == raw
    assert parse_jwe(raw).ephemeral == POINT
    # The order in which guests write it again: alg, enc, and what is left sorted by name.
    start = b'{"alg":"ECDH-ES+A256KW","enc":"A256GCM","epk":{"crv":"P-256","kty":"EC","x":'
    assert parse_jwe(raw).aad.startswith(b64url_encode(start).encode()[:-2])


@pytest.mark.parametrize(
    "protected",
    [
        header(alg="dir", enc="A256GCM"),
        header(alg="none", enc="A256GCM"),
        header(alg="RSA1_5", enc="A256GCM"),
        header(alg="RSA-OAEP", enc="A256GCM"),
        header(alg="ECDH-ES", enc="A256GCM", epk=POINT.document()),
        header(alg="ECDH-ES+A256KW", enc="A256GCM"),
        header(alg="ECDH-ES+A256KW", enc="A128GCM", epk=POINT.document()),
        header(alg="ECDH-ES+A256KW", enc="A256GCM", epk=POINT.document(), apu="QQ"),
        header(alg="ECDH-ES+A256KW", enc="A256GCM", epk=POINT.document(), zip="DEF"),
        header(alg="ECDH-ES+A256KW", enc="A256GCM", epk={**POINT.document(), "d": "AA"}),
        header(alg="ECDH-ES+A256KW", enc="A256GCM", epk={**POINT.document(), "crv": "P-384"}),
        header(alg="RSA-OAEP-256", enc="A256GCM", jwk={}),
        header(alg="RSA-OAEP-256", enc="A256GCM", crit=["exp"]),
        "not base64url!",
        header(alg="RSA-OAEP-256", enc="A256GCM") + "=",
    ],
)
def test_another_header_is_refused(protected: str) -> None:
    with pytest.raises(FormatError) as refused:
        parse_jwe(jcs(jwe(protected=protected)))
    assert refused.value.reason is Reason.BROKER_FORMAT


@pytest.mark.parametrize(
    "changes",
    [
        {"aad": ""},
        {"header": {}},
        {"unprotected": {}},
        {"recipients": []},
        {"iv": b64url_encode(bytes(16))},
        {"tag": b64url_encode(bytes(12))},
        {"tag": 0},
        {"ciphertext": "A"},
    ],
)
def test_another_shape_is_refused(changes: dict[str, JsonValue]) -> None:
    with pytest.raises(FormatError):
        parse_jwe(jcs(jwe(**changes)))


def test_a_size_is_bounded_before_anything_is_read() -> None:
    with pytest.raises(FormatError, match="bytes, at most"):
        parse_jwe(b" " * (3 << 20))


@pytest.mark.parametrize("key", [POINT, MODULUS, EcPoint("P-521", bytes(132))])
def test_a_key_is_read_as_it_was_written(key: EcPoint | RsaModulus) -> None:
    assert parse_wrapping_key(encode_wrapping_key(key)) == key


def test_a_thumbprint_is_that_of_rfc_7638() -> None:
    # From: RFC 7638 §3.1, as bytes that are hashed.
    text = b'{"crv":"P-256","kty":"EC","x":"%b","y":"%b"}' % (
        b64url_encode(bytes(range(32))).encode(),
        b64url_encode(bytes(range(32, 64))).encode(),
    )
    assert thumbprint(POINT) == hashlib.sha256(text).digest()


@pytest.mark.parametrize(
    "value",
    [
        {**EC, "alg": "ECDH-ES"},
        {**EC, "alg": "RSA-OAEP-256"},
        {**EC, "alg": "none"},
        {**EC, "crv": "P-384"},
        {**EC, "crv": "P-521"},
        {**EC, "kty": "OKP"},
        {**EC, "x": b64url_encode(bytes(31))},
        {**EC, "x": b64url_encode(bytes(33))},
        {**EC, "d": b64url_encode(bytes(32))},
        {**EC, "use": "enc"},
        {**RSA_KEY, "alg": "RSA1_5"},
        {**RSA_KEY, "alg": "RSA-OAEP"},
        {**RSA_KEY, "e": b64url_encode(b"\x03")},
        {**RSA_KEY, "e": b64url_encode(b"\x00\x01\x00\x01")},
        {**RSA_KEY, "n": b64url_encode(b"\x00" + MODULUS.modulus)},
        {**RSA_KEY, "n": b64url_encode(b"\xc0" + bytes(126) + b"\x01")},
        {**RSA_KEY, "n": b64url_encode(b"\x7f" + bytes(254) + b"\x01")},
        {**RSA_KEY, "n": b64url_encode(b"\xc0" + bytes(511) + b"\x01")},
        {**RSA_KEY, "n": b64url_encode(b"\xc0" + bytes(255))},
        {**RSA_KEY, "n": ""},
        {"kty": "oct", "k": "AA", "alg": "dir"},
        "EC",
        None,
    ],
)
def test_another_key_is_refused(value: JsonValue) -> None:
    with pytest.raises(FormatError) as refused:
        parse_wrapping_key(value)
    assert refused.value.reason is Reason.BROKER_FORMAT
