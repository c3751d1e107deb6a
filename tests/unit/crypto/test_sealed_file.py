"""Sealed files: what goes in comes out, streamed in any way, and nothing else opens."""

from __future__ import annotations

import base64
import hashlib
import json

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import example, given, settings
from hypothesis import strategies as st

from confide.crypto.kem import load_private_key
from confide.crypto.sealed_file import (
    CHUNK_BYTES,
    FileOpener,
    FileSealer,
    open_file_for,
    open_file_under,
    seal_file_to,
    seal_file_under,
)
from confide.errors import (
    ConfideError,
    FormatError,
    LocalProtocolError,
    Reason,
    SealedFileRejected,
)
from confide.wire.ohttp import Kem

KEY, SALT, NAME = bytes(range(32)), bytes(range(32, 64)), "rows/1"
OWNER = load_private_key(Kem.X_WING, bytes(range(64, 96)))
STRANGER = load_private_key(Kem.X_WING, bytes(32))
SEALED_CHUNK = CHUNK_BYTES + 16


def ended(sealer: FileSealer, plain: bytes) -> bytes:
    return b"".join(sealer.write(plain) + sealer.finish())


def sealed(plain: bytes, *, name: str = NAME, salt: bytes = SALT, key: bytes = KEY) -> bytes:
    sealer = seal_file_under(key, name=name, salt=salt)
    return ended(sealer, plain)


def opened(raw: bytes, opener: FileOpener | None = None, *, step: int = 1 << 20) -> bytes:
    opener = opener or open_file_under(KEY, name=NAME)
    found = [opener.write(raw[at : at + step]) for at in range(0, len(raw), step)]
    return b"".join(found) + opener.end()


def parts(raw: bytes) -> tuple[bytes, list[bytes]]:
    """The header line and the chunks."""
    line, _, rest = raw.partition(b"\n")
    chunks = [rest[at : at + SEALED_CHUNK] for at in range(0, len(rest), SEALED_CHUNK)]
    return line + b"\n", chunks


THREE = bytes(hashlib.shake_256(b"plain").digest(2 * CHUNK_BYTES + 100))


@pytest.mark.parametrize(
    "size",
    [0, 1, 100, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES, 3 * CHUNK_BYTES],
)
def test_every_size_comes_back_for_both_kinds_of_key(size: int) -> None:
    plain = hashlib.shake_256(b"%d" % size).digest(size)
    raw = sealed(plain)
    assert opened(raw) == plain
    assert len(parts(raw)[1]) == max(1, -(-size // CHUNK_BYTES))
    sealer = seal_file_to(OWNER.public_key, name=NAME, ephemeral=SALT)
    for_owner = ended(sealer, plain)
    assert opened(for_owner, open_file_for(OWNER, name=NAME)) == plain
    assert sealer.sha256.digest() == hashlib.sha256(for_owner).digest()


@given(
    st.integers(min_value=0, max_value=3 * CHUNK_BYTES),
    st.lists(st.integers(min_value=1, max_value=2 * CHUNK_BYTES), min_size=1, max_size=5),
    st.integers(min_value=1, max_value=2 * CHUNK_BYTES),
)
@example(2 * CHUNK_BYTES, [CHUNK_BYTES], SEALED_CHUNK)
@settings(max_examples=40)
def test_how_it_is_cut_makes_no_difference(size: int, writes: list[int], step: int) -> None:
    plain = THREE[:1000] * (size // 1000 + 1)
    plain = plain[:size]
    sealer = seal_file_under(KEY, name=NAME, salt=SALT)
    found: list[bytes] = []
    at = turn = 0
    while at < size:
        width = writes[turn % len(writes)] + size // 64
        found += sealer.write(plain[at : at + width])
        at, turn = at + width, turn + 1
    raw = b"".join(found + sealer.finish())
    assert raw == sealed(plain)
    assert opened(raw, step=step + size // 64) == plain


def test_every_bit_counts() -> None:
    raw = sealed(b"some rows")
    for bit in range(8 * len(raw)):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises((FormatError, SealedFileRejected)):
            opened(bytes(changed))


def test_every_bit_of_an_owners_header_counts() -> None:
    sealer = seal_file_to(OWNER.public_key, name=NAME, ephemeral=SALT)
    raw = ended(sealer, b"adapter")
    for bit in range(8 * len(parts(raw)[0])):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises((FormatError, SealedFileRejected)):
            opened(bytes(changed), open_file_for(OWNER, name=NAME))


@pytest.mark.parametrize("at", [0, 7, CHUNK_BYTES, 2 * CHUNK_BYTES, 2 * CHUNK_BYTES + 40])
def test_a_changed_byte_of_a_large_file_is_found(at: int) -> None:
    head, chunks = parts(sealed(THREE))
    body = bytearray(b"".join(chunks))
    body[at] ^= 0x80
    with pytest.raises(SealedFileRejected) as caught:
        opened(head + bytes(body))
    assert caught.value.reason is Reason.SEALED_OPEN


def test_chunks_have_their_place() -> None:
    head, (one, two, three) = parts(sealed(THREE))
    _, (other, *_) = parts(sealed(THREE, salt=KEY))
    for chunks in (
        (two, one, three),
        (one, one, two, three),
        (two, three),
        (one, three),
        (one, other, three),
        (one, two, three, three),
        (one, two, three, b"x" * 20),
    ):
        with pytest.raises(SealedFileRejected) as caught:
            opened(head + b"".join(chunks))
        assert caught.value.reason is Reason.SEALED_OPEN


def test_a_file_cut_anywhere_is_refused() -> None:
    raw = sealed(THREE)
    head, chunks = parts(raw)
    for size in (len(raw) - 1, len(raw) - 101, len(head) + SEALED_CHUNK + 5, len(head) + 15):
        with pytest.raises(SealedFileRejected) as caught:
            opened(raw[:size])
        assert caught.value.reason is Reason.SEALED_OPEN
    for whole in range(3):
        with pytest.raises(SealedFileRejected) as caught:
            opened(head + b"".join(chunks[:whole]))
        assert caught.value.reason is Reason.SEALED_CUT
    for size in (0, 5, len(head) - 1):
        with pytest.raises(FormatError):
            opened(raw[:size])


def test_an_empty_chunk_after_others_is_no_way_to_end_a_file() -> None:
    sealer = seal_file_under(KEY, name=NAME, salt=SALT)
    whole = sealer.write(THREE[: CHUNK_BYTES + 1])
    raw = b"".join([*whole, sealer._seal(bytearray(), last=True)])
    with pytest.raises(FormatError, match="empty chunk"):
        opened(raw)


def test_another_key_or_another_name_opens_nothing() -> None:
    sealer = seal_file_to(OWNER.public_key, name=NAME, ephemeral=SALT)
    for_owner = ended(sealer, b"x")
    under = sealed(b"x")
    for raw, opener, reason in (
        (under, open_file_under(SALT, name=NAME), Reason.SEALED_OPEN),
        (under, open_file_under(KEY, name="rows/2"), Reason.SEALED_KEY),
        (under, open_file_for(OWNER, name=NAME), Reason.SEALED_KEY),
        (for_owner, open_file_for(STRANGER, name=NAME), Reason.SEALED_KEY),
        (for_owner, open_file_for(OWNER, name="rows/2"), Reason.SEALED_KEY),
        (for_owner, open_file_under(KEY, name=NAME), Reason.SEALED_KEY),
    ):
        with pytest.raises(SealedFileRejected) as caught:
            opened(raw, opener)
        assert caught.value.reason is reason


def test_an_encapsulation_that_gives_no_secret_is_refused() -> None:
    sealer = seal_file_to(OWNER.public_key, name=NAME, ephemeral=SALT)
    raw = ended(sealer, b"x")
    enc = base64.b64decode(json.loads(parts(raw)[0])["enc"])
    low_order = base64.b64encode(enc[:-32] + bytes(32)).decode()
    with pytest.raises(SealedFileRejected) as caught:
        opened(_respelt(raw, enc=low_order), open_file_for(OWNER, name=NAME))
    assert caught.value.reason is Reason.SEALED_KEY


def test_a_header_that_claims_another_recipient_opens_for_nobody() -> None:
    sealer = seal_file_to(OWNER.public_key, name=NAME, ephemeral=SALT)
    raw = ended(sealer, b"x")
    mine, theirs = (
        hashlib.sha256(key.public_key.raw).hexdigest().encode() for key in (OWNER, STRANGER)
    )
    with pytest.raises(SealedFileRejected) as caught:
        opened(raw.replace(mine, theirs), open_file_for(STRANGER, name=NAME))
    assert caught.value.reason is Reason.SEALED_OPEN


def _respelt(raw: bytes, **changes: object) -> bytes:
    head, chunks = parts(raw)
    value = {**json.loads(head), **changes}
    return json.dumps(value, separators=(",", ":")).encode() + b"\n" + b"".join(chunks)


@pytest.mark.parametrize(
    "raw",
    [
        b"x" * 5000,
        b"\n" + sealed(b""),
        sealed(b"").replace(b'{"', b'{ "'),
        sealed(b"").replace(b"file/v1", b"file/v2"),
        _respelt(sealed(b""), more=1),
        _respelt(sealed(b""), salt="00"),
        _respelt(sealed(b""), name=3),
        b'{"enc":"AA==","name":"n","recipient":"%064x","type":"confide/sealed-file/v1"}\n' % 7,
    ],
)  # fmt: skip
def test_a_header_of_another_form_is_refused(raw: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        opened(raw)
    assert caught.value.reason is Reason.SEALED_FORMAT


def test_misuse_is_an_error_of_the_caller() -> None:
    sealer = seal_file_under(KEY, name=NAME, salt=SALT)
    sealer.finish()
    with pytest.raises(LocalProtocolError):
        sealer.write(b"more")
    with pytest.raises(LocalProtocolError):
        sealer.finish()
    with pytest.raises(ValueError, match="32 bytes"):
        seal_file_under(KEY[1:], name=NAME, salt=SALT)
    with pytest.raises(ValueError, match="32 bytes"):
        open_file_under(KEY[1:], name=NAME)
    opener = open_file_under(KEY, name=NAME)
    with pytest.raises(LocalProtocolError):
        opener.skip(1)
    opener.write(b"".join(seal_file_under(KEY, name=NAME, salt=SALT).finish()))
    with pytest.raises(LocalProtocolError):
        opener.skip(1)


def test_a_second_implementation_opens_it() -> None:
    """From sealed-file.md §1 and §2 alone, with the library's own HKDF and AES-GCM."""
    line, chunks = parts(sealed(THREE))
    header = json.loads(line)
    info = b"confide/sealed-file/v1\0" + hashlib.sha256(line).digest()
    key = HKDF(hashes.SHA256(), 32, bytes.fromhex(header["salt"]), info).derive(KEY)
    plain = b""
    for index, chunk in enumerate(chunks):
        flag = b"\1" if index == len(chunks) - 1 else b"\0"
        plain += AESGCM(key).decrypt(index.to_bytes(11, "big") + flag, chunk, None)
    assert plain == THREE


@given(st.binary(max_size=300))
def test_hostile_bytes_open_or_are_one_of_our_errors(raw: bytes) -> None:
    head, _ = parts(sealed(b""))
    for each in (raw, head + raw):
        with pytest.raises(ConfideError):
            opened(each)
