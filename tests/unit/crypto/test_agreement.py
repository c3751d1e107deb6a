"""Keys of signatures used for key agreement: the maps agree with the curves, points are checked."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, x25519

from confide.crypto.aead import OpenError
from confide.crypto.agreement import (
    agree_secp256k1,
    agree_x25519,
    ed25519_public_to_x25519,
    ed25519_seed_to_x25519,
    x25519_public,
)

SEEDS = [hashlib.sha256(b"seed %d" % at).digest() for at in range(16)]


@pytest.mark.parametrize("seed", SEEDS)
def test_both_maps_lead_to_one_key_pair(seed: bytes) -> None:
    public = ed25519.Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    assert ed25519_public_to_x25519(public) == x25519_public(ed25519_seed_to_x25519(seed))


def test_the_map_of_the_base_point_is_that_of_rfc_7748() -> None:
    # From: RFC 8032 §5.1: y = 4/5; RFC 7748 §4.1: u = 9.
    y = 4 * pow(5, -1, 2**255 - 19) % (2**255 - 19)
    assert ed25519_public_to_x25519(y.to_bytes(32, "little")) == (9).to_bytes(32, "little")


@pytest.mark.parametrize(
    "public",
    [
        bytes(31),
        bytes(33),
        (1).to_bytes(32, "little"),
        (2).to_bytes(32, "little"),
        (2**255 - 19).to_bytes(32, "little"),
        (2**255 - 1).to_bytes(32, "little"),
    ],
    ids=["short", "long", "neutral", "off the curve", "p", "above p"],
)
def test_what_is_no_point_is_refused(public: bytes) -> None:
    with pytest.raises(OpenError):
        ed25519_public_to_x25519(public)


def test_both_ends_have_the_same_secret() -> None:
    ours, theirs = SEEDS[:2]
    assert agree_x25519(ours, x25519_public(theirs)) == agree_x25519(theirs, x25519_public(ours))
    expected = x25519.X25519PrivateKey.from_private_bytes(ours).exchange(
        x25519.X25519PublicKey.from_public_bytes(x25519_public(theirs))
    )
    assert agree_x25519(ours, x25519_public(theirs)) == expected


def test_a_point_of_small_order_gives_no_secret() -> None:
    with pytest.raises(OpenError):
        agree_x25519(SEEDS[0], bytes(32))


def _point(secret: bytes) -> bytes:
    numbers = ec.derive_private_key(int.from_bytes(secret, "big"), ec.SECP256K1())
    point = numbers.public_key().public_numbers()
    return point.x.to_bytes(32, "big") + point.y.to_bytes(32, "big")


def test_secp256k1_gives_the_x_coordinate_to_both_ends() -> None:
    ours, theirs = SEEDS[:2]
    assert agree_secp256k1(ours, _point(theirs)) == agree_secp256k1(theirs, _point(ours))
    one = (1).to_bytes(32, "big")
    assert agree_secp256k1(one, _point(ours)) == _point(ours)[:32]


@pytest.mark.parametrize("public", [bytes(64), b"\1" * 64, _point(SEEDS[0])[:63]])
def test_what_is_no_point_of_secp256k1_is_refused(public: bytes) -> None:
    with pytest.raises(OpenError):
        agree_secp256k1(SEEDS[0], public)
