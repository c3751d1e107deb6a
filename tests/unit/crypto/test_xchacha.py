"""XChaCha20-Poly1305 against the vectors of its draft, and whatever is not sealed is refused."""

from __future__ import annotations

import pytest

from confide.crypto.aead import OpenError
from confide.crypto.xchacha import hchacha20, open_xchacha, seal_xchacha

KEY = bytes(range(0x80, 0xA0))
NONCE = bytes(range(0x40, 0x58))
AAD = bytes.fromhex("50515253c0c1c2c3c4c5c6c7")
TEXT = (
    b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the "
    b"future, sunscreen would be it."
)


def test_hchacha20_of_the_draft() -> None:
    # From: draft-irtf-cfrg-xchacha-03 §2.2.1.
    nonce = bytes.fromhex("000000090000004a0000000031415927")
    assert hchacha20(bytes(range(32)), nonce) == bytes.fromhex(
        "82413b4227b27bfed30e42508a877d73a0f9e4d58a74a853c12ec41326d3ecdc"
    )


def test_the_aead_of_the_draft() -> None:
    # From: draft-irtf-cfrg-xchacha-03 §A.3.1.
    sealed = seal_xchacha(KEY, NONCE, TEXT, AAD)
    assert sealed == bytes.fromhex(
        "bd6d179d3e83d43b9576579493c0e939572a1700252bfaccbed2902c21396cbb731c7f1b0b4aa6440bf3a82f4eda7e39"
        "ae64c6708c54c216cb96b72e1213b4522f8c9ba40db5d945b11b69b982c1bb9e3f3fac2bc369488f76b2383565d3fff9"
        "21f9664c97637da9768812f615c68b13b52e"
        "c0875924c1c7987947deafd8780acf49"
    )
    assert open_xchacha(KEY, NONCE, sealed, AAD) == TEXT


@pytest.mark.parametrize("at", [0, 57, 113, 129])
def test_one_bit_is_enough_to_refuse(at: int) -> None:
    sealed = bytearray(seal_xchacha(KEY, NONCE, TEXT, AAD))
    sealed[at] ^= 1
    with pytest.raises(OpenError):
        open_xchacha(KEY, NONCE, bytes(sealed), AAD)


def test_other_associated_data_key_or_nonce_do_not_open() -> None:
    sealed = seal_xchacha(KEY, NONCE, TEXT, AAD)
    for key, nonce, aad in [
        (KEY[::-1], NONCE, AAD),
        (KEY, NONCE[::-1], AAD),
        (KEY, NONCE, b""),
        # The end of the nonce is that of the inner cipher, the start enters the key.
        (KEY, NONCE[:-1] + b"\0", AAD),
        (KEY, b"\0" + NONCE[1:], AAD),
    ]:
        with pytest.raises(OpenError):
            open_xchacha(key, nonce, sealed, aad)
    with pytest.raises(OpenError):
        open_xchacha(KEY, NONCE, sealed[:15], AAD)


@pytest.mark.parametrize(("key", "nonce"), [(KEY[1:], NONCE), (KEY, NONCE[1:])])
def test_other_sizes_are_our_own_mistake(key: bytes, nonce: bytes) -> None:
    with pytest.raises(ValueError, match="bytes"):
        seal_xchacha(key, nonce, TEXT)
