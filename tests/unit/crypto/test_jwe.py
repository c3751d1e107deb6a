"""JWE: the vector of RFC 7518, both curves, RSA, and nobody else who opens or is sealed to."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from hypothesis import given
from hypothesis import strategies as st

from confide.crypto.aead import OpenError, SealingKey
from confide.crypto.jwe import (
    EPHEMERAL_BYTES,
    JweSecrets,
    concat_kdf,
    derive_unwrapping_key,
    require_usable,
    seal_jwe,
)
from confide.errors import FormatError, Reason
from confide.wire.jose import b64url_decode, b64url_encode
from confide.wire.jwe import EcPoint, KeyCurve, RsaModulus, parse_jwe, parse_wrapping_key
from confide.wire.ohttp import Aead

CURVES: tuple[KeyCurve, ...] = ("P-256", "P-521")


def secrets(seed: int = 0) -> JweSecrets:
    return JweSecrets(
        bytes([seed + 1]) * 32, bytes([seed + 2]) * 12, bytes([seed + 3]) * EPHEMERAL_BYTES
    )


def test_key_agreement_gives_the_key_of_rfc_7518_appendix_c() -> None:
    def number(text: str) -> int:
        raw = b64url_decode(text, what="vector", reason=Reason.BROKER_FORMAT)
        return int.from_bytes(raw, "big")

    # Alice's ephemeral key and Bob's public key.
    alice = ec.derive_private_key(
        number("0_NxaRPUMQoAJt50Gz8YiTr8gRTwyEaCumd-MToTmIo"), ec.SECP256R1()
    )
    bob = ec.EllipticCurvePublicNumbers(
        number("weNJy2HscCSM6AEDTDg04biOvhFhyyWvOHQfeF_PxMQ"),
        number("e8lnCO-AlStT-NJVX-crhB7QRYhiix03illJOVAOyck"),
        ec.SECP256R1(),
    ).public_key()
    agreed = alice.exchange(ec.ECDH(), bob)
    assert list(agreed[:4]) == [158, 86, 217, 29]
    derived = concat_kdf(agreed, algorithm="A128GCM", bits=128, apu=b"Alice", apv=b"Bob")
    assert b64url_encode(derived) == "VqqN6vgjbSBcIijNcacQGg"


@pytest.mark.parametrize("curve", CURVES)
@given(plaintext=st.binary(max_size=200))
def test_what_was_sealed_is_opened_by_its_key_and_no_other(
    curve: KeyCurve, plaintext: bytes
) -> None:
    own, other = (derive_unwrapping_key(curve, bytes([n]) * 96) for n in (1, 2))
    sealed = parse_jwe(seal_jwe(own.public, plaintext, secrets=secrets()).encode())
    assert own.open(sealed) == plaintext
    with pytest.raises(OpenError):
        other.open(sealed)


@pytest.mark.parametrize("curve", CURVES)
def test_nothing_of_it_can_be_exchanged(curve: KeyCurve) -> None:
    own = derive_unwrapping_key(curve, bytes(96))
    one, two = (seal_jwe(own.public, b"value %d" % n, secrets=secrets(n)) for n in (1, 2))
    for part in ("protected", "encrypted_key", "iv", "ciphertext", "tag"):
        mixed = replace(one, **{part: getattr(two, part)})
        if part == "protected":
            mixed = replace(mixed, ephemeral=two.ephemeral)
        with pytest.raises(OpenError):
            own.open(mixed)


def test_a_key_of_the_other_curve_opens_nothing() -> None:
    small, large = (derive_unwrapping_key(curve, bytes(96)) for curve in CURVES)
    with pytest.raises(OpenError):
        large.open(seal_jwe(small.public, b"x", secrets=secrets()))


def test_a_header_that_reads_the_same_is_not_the_same() -> None:
    own = derive_unwrapping_key("P-256", bytes(96))
    sealed = seal_jwe(own.public, b"x", secrets=secrets())
    header = json.loads(b64url_decode(sealed.protected, what="", reason=Reason.BROKER_FORMAT))
    spaced = b64url_encode(json.dumps(header).encode())
    with pytest.raises(OpenError):
        own.open(replace(sealed, protected=spaced))


@pytest.mark.parametrize("curve", CURVES)
def test_a_point_off_its_curve_is_no_key(curve: KeyCurve) -> None:
    own = derive_unwrapping_key(curve, bytes(96))
    point = own.public.point
    for wrong in (bytes(len(point)), point[:-1] + bytes([point[-1] ^ 1])):
        key = EcPoint(curve, wrong)
        with pytest.raises(FormatError, match="not a point"):
            require_usable(key)
        with pytest.raises(FormatError, match="not a point"):
            seal_jwe(key, b"x", secrets=secrets())
        with pytest.raises(OpenError):
            own.open(replace(seal_jwe(own.public, b"x", secrets=secrets()), ephemeral=key))


@cache
def rsa_key(bits: int) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


def modulus(bits: int) -> RsaModulus:
    n = rsa_key(bits).public_key().public_numbers().n
    return RsaModulus(n.to_bytes((n.bit_length() + 7) // 8, "big"))


def test_rsa_oaep_256_wraps_the_content_key() -> None:
    key = parse_wrapping_key({**modulus(2048).document(), "alg": "RSA-OAEP-256"})
    assert key == modulus(2048)
    require_usable(key)
    sealed = parse_jwe(seal_jwe(key, b"the value", secrets=secrets()).encode())
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
    content = rsa_key(2048).decrypt(sealed.encrypted_key, oaep)
    assert content == secrets().key
    cipher = SealingKey(Aead.AES_256_GCM, content)
    assert cipher.open(sealed.iv, sealed.aad, sealed.ciphertext + sealed.tag) == b"the value"
    with pytest.raises(OpenError, match="another way"):
        derive_unwrapping_key("P-256", bytes(96)).open(sealed)


def test_randomness_has_its_size_and_is_not_printed() -> None:
    for sizes in ((31, 12, 96), (32, 16, 96), (32, 12, 32)):
        with pytest.raises(ValueError, match="randomness"):
            JweSecrets(*(bytes(size) for size in sizes))
    with pytest.raises(ValueError, match="96"):
        derive_unwrapping_key("P-256", bytes(32))
    shown = repr(secrets()) + repr(derive_unwrapping_key("P-256", bytes(96)))
    assert secrets().key.hex() not in shown
    assert "handle" not in shown
