"""HPKE contexts against the library's own single-shot HPKE, and what they refuse."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric import ec, mlkem, x25519

from confide.crypto.aead import OpenError, SealingKey
from confide.crypto.hpke import Context, Psk, Suite, setup_recipient, setup_sender
from confide.crypto.kem import (
    derive_private_key,
    hkdf_expand,
    load_private_key,
    load_public_key,
)
from confide.errors import FormatError, LocalProtocolError
from confide.wire.ohttp import Aead, Kdf, Kem

SECRET = bytes(range(32))
EPHEMERAL = bytes(range(1, 33))
_KEMS = {Kem.X25519: hpke.KEM.X25519, Kem.P256: hpke.KEM.P256, Kem.X_WING: hpke.KEM.MLKEM768_X25519}
_AEADS = {
    Aead.AES_128_GCM: hpke.AEAD.AES_128_GCM,
    Aead.AES_256_GCM: hpke.AEAD.AES_256_GCM,
    Aead.CHACHA20_POLY1305: hpke.AEAD.CHACHA20_POLY1305,
}


def suite(kem: Kem = Kem.X_WING, aead: Aead = Aead.AES_256_GCM) -> Suite:
    return Suite(kem, Kdf.HKDF_SHA256, aead)


def pair(kem: Kem = Kem.X_WING, aead: Aead = Aead.AES_256_GCM) -> tuple[Context, Context]:
    key = load_private_key(kem, SECRET)
    chosen = suite(kem, aead)
    enc, sealing = setup_sender(key.public_key, suite=chosen, info=b"i", ephemeral=EPHEMERAL)
    return sealing, setup_recipient(enc, key, suite=chosen, info=b"i")


def library_private(kem: Kem) -> Any:
    """The same private key, made by the library alone."""
    if kem is Kem.X25519:
        return x25519.X25519PrivateKey.from_private_bytes(SECRET)
    if kem is Kem.P256:
        return ec.derive_private_key(int.from_bytes(SECRET, "big"), ec.SECP256R1())
    seed = hashlib.shake_256(SECRET).digest(96)
    return hpke.MLKEM768X25519PrivateKey(
        mlkem.MLKEM768PrivateKey.from_seed_bytes(seed[:64]),
        x25519.X25519PrivateKey.from_private_bytes(seed[64:]),
    )


@pytest.mark.parametrize("kem", list(_KEMS))
@pytest.mark.parametrize("aead", list(_AEADS))
def test_the_library_opens_what_we_seal_and_the_reverse(kem: Kem, aead: Aead) -> None:
    library = hpke.Suite(_KEMS[kem], hpke.KDF.HKDF_SHA256, _AEADS[aead])
    ours, theirs = load_private_key(kem, SECRET), library_private(kem)

    enc, context = setup_sender(
        load_public_key(kem, ours.public_key.raw),
        suite=suite(kem, aead),
        info=b"info",
        ephemeral=EPHEMERAL,
    )
    assert len(enc) == kem.enc_bytes
    assert library.decrypt(enc + context.seal(b"", b"to them"), theirs, b"info") == b"to them"

    sealed = library.encrypt(b"to us", theirs.public_key(), b"info")
    enc, ciphertext = sealed[: kem.enc_bytes], sealed[kem.enc_bytes :]
    opening = setup_recipient(enc, ours, suite=suite(kem, aead), info=b"info")
    assert opening.open(b"", ciphertext) == b"to us"


def test_messages_open_in_order_only() -> None:
    sealing, opening = pair()
    first, second = sealing.seal(b"", b"1"), sealing.seal(b"", b"2")
    with pytest.raises(OpenError):
        opening.open(b"", second)
    assert opening.sequence == 0
    assert opening.open(b"", first) == b"1"
    with pytest.raises(OpenError):
        opening.open(b"", first)
    assert opening.open(b"", second) == b"2"


def test_associated_data_and_info_are_bound() -> None:
    sealing, opening = pair()
    sealed = sealing.seal(b"a", b"x")
    with pytest.raises(OpenError):
        opening.open(b"b", sealed)
    key = load_private_key(Kem.X_WING, SECRET)
    enc, sealing = setup_sender(key.public_key, suite=suite(), info=b"i", ephemeral=EPHEMERAL)
    other = setup_recipient(enc, key, suite=suite(), info=b"j")
    with pytest.raises(OpenError):
        other.open(b"", sealing.seal(b"", b"x"))


def test_a_sender_does_not_open_and_a_recipient_does_not_seal() -> None:
    sealing, opening = pair()
    with pytest.raises(LocalProtocolError):
        opening.seal(b"", b"x")
    with pytest.raises(LocalProtocolError):
        sealing.open(b"", bytes(32))


def test_export_only_exports_and_seals_nothing() -> None:
    sealing, opening = pair(Kem.X25519, Aead.EXPORT_ONLY)
    assert sealing.export(b"c", 32) == opening.export(b"c", 32)
    with pytest.raises(LocalProtocolError):
        sealing.seal(b"", b"x")


def test_exhausted_sequence_numbers_are_refused() -> None:
    sealing, _ = pair()
    sealing._sequence = (1 << 96) - 1
    with pytest.raises(LocalProtocolError):
        sealing.seal(b"", b"x")


def test_both_halves_of_xwing_matter() -> None:
    key = load_private_key(Kem.X_WING, SECRET)
    enc, shared = key.public_key.encapsulate(EPHEMERAL)
    for position in (0, 1087, 1088, 1119):
        forged = bytearray(enc)
        forged[position] ^= 1
        assert key.decapsulate(bytes(forged)) != shared


@pytest.mark.parametrize("kem", [Kem.X25519, Kem.X_WING])
def test_an_all_zero_secret_is_no_encapsulation(kem: Kem) -> None:
    key = load_private_key(kem, SECRET)
    with pytest.raises(OpenError):
        key.decapsulate(bytes(kem.enc_bytes))


def test_encapsulations_that_are_none() -> None:
    for kem in _KEMS:
        with pytest.raises(OpenError):
            load_private_key(kem, SECRET).decapsulate(bytes(kem.enc_bytes - 1))
    with pytest.raises(OpenError):
        load_private_key(Kem.P256, SECRET).decapsulate(b"\x04" + bytes(64))


@pytest.mark.parametrize("kem", list(_KEMS))
def test_public_keys_that_are_none(kem: Kem) -> None:
    raw = load_private_key(kem, SECRET).public_key.raw
    for bad in (b"", raw[:-1], raw + b"\0"):
        with pytest.raises(FormatError):
            load_public_key(kem, bad)
    if kem is Kem.X_WING:
        with pytest.raises(FormatError):  # coefficients above q
            load_public_key(kem, b"\xff" * len(raw))
    if kem is Kem.P256:
        with pytest.raises(FormatError):
            load_public_key(kem, b"\x04" + b"\x01" * 64)


def test_a_recipient_key_without_secrets_is_refused_when_sealing() -> None:
    with pytest.raises(OpenError):
        load_public_key(Kem.X25519, bytes(32)).encapsulate(EPHEMERAL)


def test_misuse_is_a_value_error() -> None:
    key = load_private_key(Kem.X_WING, SECRET)
    other = load_private_key(Kem.X25519, SECRET)
    with pytest.raises(ValueError, match="suite"):
        setup_sender(key.public_key, suite=suite(Kem.X25519), info=b"", ephemeral=EPHEMERAL)
    with pytest.raises(ValueError, match="suite"):
        setup_recipient(b"", key, suite=suite(Kem.X25519), info=b"")
    with pytest.raises(ValueError, match="32"):
        key.public_key.encapsulate(b"short")
    with pytest.raises(ValueError, match="authenticate"):
        key.public_key.encapsulate(EPHEMERAL, sender=other)
    with pytest.raises(ValueError, match="authenticate"):
        key.decapsulate(bytes(1120), sender=other.public_key)
    with pytest.raises(ValueError, match="32"):
        load_private_key(Kem.X25519, b"short")
    with pytest.raises(ValueError, match="32"):
        derive_private_key(Kem.P256, b"short")
    with pytest.raises(ValueError, match="seeds"):
        derive_private_key(Kem.X_WING, SECRET)
    with pytest.raises(ValueError, match="PSK"):
        Psk(b"short", b"id")
    with pytest.raises(ValueError, match="8160"):
        hkdf_expand(SECRET, b"", 8161)
    with pytest.raises(ValueError, match="size"):
        SealingKey(Aead.AES_256_GCM, b"short")
    with pytest.raises(ValueError, match="cipher"):
        SealingKey(Aead.EXPORT_ONLY, b"")
    with pytest.raises(TypeError, match="curves"):
        load_private_key(Kem.P256, SECRET)._exchange_with(other.public_key)


def test_secrets_stay_out_of_repr() -> None:
    key = load_private_key(Kem.X25519, SECRET)
    assert SECRET.hex() not in repr(key)
    assert "object at" not in repr(key)
    assert "secret" not in repr(Psk(b"secret" * 6, b"id"))
