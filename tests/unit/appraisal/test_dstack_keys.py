"""Keys of dstack apps: from a key in use to the root of the key server, and no further."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from coincurve import PrivateKey

from confide.appraisal.dstack_keys import (
    app_key_message,
    env_key_message,
    key_claim,
    recover_signer,
    verify_app_key,
    verify_env_key,
)
from confide.appraisal.steps import Refused
from confide.crypto.errors import BadSignature
from confide.crypto.ethereum import derive_secp256k1_public_key, keccak256
from confide.crypto.recoverable import compress_point, recover_secp256k1
from confide.errors import FormatError, Reason

ROOT, APP, OTHER = (bytes([n]) * 32 for n in (1, 2, 3))
APP_ID = b"\x0a" * 20
NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


def public(secret: bytes) -> bytes:
    return compress_point(derive_secp256k1_public_key(secret))


def sign(secret: bytes, message: bytes) -> bytes:
    return PrivateKey(secret).sign_recoverable(keccak256(message), hasher=None)


CLAIM = key_claim(algorithm="ed25519", domain=b"signing", public_key=b"\x04" * 32)
LINK0 = sign(APP, CLAIM)
LINK1 = sign(ROOT, app_key_message(app_id=APP_ID, app_key=public(APP)))


def test_a_chain_to_the_root_gives_the_key_of_the_app() -> None:
    found = verify_app_key(CLAIM, (LINK0, LINK1), app_id=APP_ID, kms_root=public(ROOT))
    assert found == public(APP)


def test_a_chain_of_another_app_claim_or_root_is_refused() -> None:
    other = key_claim(algorithm="ed25519", domain=b"other", public_key=b"\x04" * 32)
    for claim, chain, app_id, root in (
        (CLAIM, (LINK0, LINK1), bytes(20), public(ROOT)),
        (CLAIM, (LINK0, LINK1), APP_ID, public(OTHER)),
        (other, (LINK0, LINK1), APP_ID, public(ROOT)),
        (CLAIM, (sign(OTHER, CLAIM), LINK1), APP_ID, public(ROOT)),
        (CLAIM, (LINK1, LINK0), APP_ID, public(ROOT)),
    ):
        with pytest.raises(Refused) as refused:
            verify_app_key(claim, chain, app_id=app_id, kms_root=root)
        assert refused.value.reason in {Reason.KEY_MISMATCH, Reason.SIGNATURE_INVALID}


def test_a_claim_keeps_its_parts_apart() -> None:
    one = key_claim(algorithm="ed25519", domain=b"a", public_key=b"\x04" * 32)
    two = key_claim(algorithm="ed25519", domain=b"", public_key=b"\x04" * 32)
    assert len(one) == len(two) + 1
    for size in (31, 33, 0):
        with pytest.raises(FormatError):
            key_claim(algorithm="ed25519", domain=b"", public_key=bytes(size))


def _high(signature: bytes) -> bytes:
    s = ORDER - int.from_bytes(signature[32:64], "big")
    return signature[:32] + s.to_bytes(32, "big") + bytes([signature[64] ^ 1])


@pytest.mark.parametrize(
    "signature",
    [
        b"",
        LINK0[:-1],
        LINK0 + b"\x00",
        LINK0[:64] + b"\x04",
        LINK0[:64] + bytes([LINK0[64] + 27]),
        bytes(64) + b"\x00",
        bytes(32) + LINK0[32:],
        ORDER.to_bytes(32, "big") + LINK0[32:],
        _high(LINK0),
        LINK0[:64] + b"\x02",
        b"\x00" * 31 + b"\x05" + LINK0[32:64] + b"\x00",
    ],
)
def test_a_signature_has_one_form(signature: bytes) -> None:
    with pytest.raises(Refused) as refused:
        recover_signer(CLAIM, signature)
    assert refused.value.reason is Reason.SIGNATURE_INVALID


def test_a_digest_has_32_bytes_and_a_point_64() -> None:
    with pytest.raises(BadSignature):
        recover_secp256k1(bytes(31), LINK0)
    with pytest.raises(ValueError, match="64 bytes"):
        compress_point(bytes(33))


def test_the_key_for_secrets_is_signed_with_a_time_and_only_briefly() -> None:
    key = b"\x06" * 32
    signature = sign(ROOT, env_key_message(app_id=APP_ID, public_key=key, signed_at=NOW))

    def verify(signed_at: datetime, now: datetime, public_key: bytes = key) -> None:
        verify_env_key(
            public_key,
            signature,
            app_id=APP_ID,
            kms_key=public(ROOT),
            signed_at=signed_at,
            now=now,
        )

    for late in (-300, 0, 300):
        verify(NOW, NOW + timedelta(seconds=late))
    for late in (-301, 301):
        with pytest.raises(Refused) as refused:
            verify(NOW, NOW + timedelta(seconds=late))
        assert refused.value.reason is Reason.EVIDENCE_STALE
    for signed_at, public_key in ((NOW + timedelta(seconds=1), key), (NOW, b"\x07" * 32)):
        with pytest.raises(Refused) as refused:
            verify(signed_at, NOW, public_key)
        assert refused.value.reason is Reason.KEY_MISMATCH
