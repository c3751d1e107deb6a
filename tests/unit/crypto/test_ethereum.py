"""Keccak-256, addresses and personal signatures: published values, and every way to be wrong."""

from __future__ import annotations

import hashlib

import pytest

from confide.crypto.errors import BadSignature
from confide.crypto.ethereum import (
    address_of,
    derive_secp256k1_public_key,
    keccak256,
    personal_message,
    recover_personal_sign,
    sign_personal_message,
)

_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
_SECRET = hashlib.sha256(b"SIMULATED secp256k1 key").digest()
_PUBLIC = derive_secp256k1_public_key(_SECRET)
_TEXT = b"model/a:" + b"0" * 64 + b":" + b"1" * 64


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        # From: the Keccak team's known answers, used throughout Ethereum (the empty code hash).
        (b"", "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"),
        (b"abc", "4e03657aea45a94fc7d47ba826c8d667c0d1e6e33a64a036ec44f58fa12d6c45"),
    ],
)
def test_keccak_is_the_original_and_not_the_standardised_one(data: bytes, expected: str) -> None:
    assert keccak256(data).hex() == expected
    assert keccak256(data) != hashlib.sha3_256(data).digest()


def test_address_of_the_generator() -> None:
    # The key with the secret 1, an address that is known to every Ethereum tool.
    public = derive_secp256k1_public_key((1).to_bytes(32, "big"))
    assert address_of(public).hex() == "7e5f4552091a69125d5dfcb7b8c2659029395bdf"


@pytest.mark.parametrize("public", [b"", bytes(63), b"\x04" + bytes(64)])
def test_an_address_is_of_64_bytes(public: bytes) -> None:
    with pytest.raises(ValueError, match="64 bytes"):
        address_of(public)


def test_the_prefix_counts_bytes_and_not_characters() -> None:
    assert personal_message("é".encode()) == b"\x19Ethereum Signed Message:\n2\xc3\xa9"


def test_the_signer_is_recovered() -> None:
    assert recover_personal_sign(_TEXT, sign_personal_message(_SECRET, _TEXT)) == _PUBLIC


def test_another_text_recovers_another_key() -> None:
    signature = sign_personal_message(_SECRET, _TEXT)
    assert recover_personal_sign(_TEXT + b"x", signature) != _PUBLIC


def test_no_flipped_bit_recovers_the_signer() -> None:
    signature = sign_personal_message(_SECRET, _TEXT)
    for bit in range(8 * len(signature)):
        flipped = bytearray(signature)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            found = recover_personal_sign(_TEXT, bytes(flipped))
        except BadSignature:
            continue
        assert found != _PUBLIC


def test_the_other_form_of_a_signature_is_refused() -> None:
    # (r, n - s) with the other parity recovers the same key: one of the two forms has to go.
    signature = sign_personal_message(_SECRET, _TEXT)
    high = _ORDER - int.from_bytes(signature[32:64], "big")
    other = signature[:32] + high.to_bytes(32, "big") + bytes([27 + 28 - signature[64]])
    with pytest.raises(BadSignature, match="high one"):
        recover_personal_sign(_TEXT, other)


@pytest.mark.parametrize("v", [0, 1, 26, 29, 30, 37, 38, 255])
def test_only_27_and_28_are_recovery_bytes(v: int) -> None:
    signature = sign_personal_message(_SECRET, _TEXT)[:64] + bytes([v])
    with pytest.raises(BadSignature, match="recovery byte"):
        recover_personal_sign(_TEXT, signature)


@pytest.mark.parametrize(
    ("r", "s"),
    [(0, 1), (1, 0), (_ORDER, 1), (1, _ORDER), (1, _ORDER // 2 + 1), (2**256 - 1, 1)],
)
def test_r_and_s_are_in_range(r: int, s: int) -> None:
    with pytest.raises(BadSignature, match="out of range"):
        recover_personal_sign(_TEXT, r.to_bytes(32, "big") + s.to_bytes(32, "big") + b"\x1b")


def test_r_that_is_no_coordinate_recovers_nothing() -> None:
    # x = 5 is not on y^2 = x^3 + 7: 132 is no square modulo p.
    five = (5).to_bytes(32, "big")
    with pytest.raises(BadSignature, match="no key"):
        recover_personal_sign(_TEXT, five + five + b"\x1b")


@pytest.mark.parametrize("size", [0, 64, 66, 130])
def test_a_signature_has_65_bytes(size: int) -> None:
    with pytest.raises(BadSignature, match="bytes"):
        recover_personal_sign(_TEXT, bytes(size))
