"""Key configurations, request headers, chunk framing and varints: limits and refusals."""

from __future__ import annotations

import pytest

from confide.errors import FormatError, Reason
from confide.wire.ohttp import (
    Aead,
    Chunk,
    ChunkDecoder,
    Kdf,
    Kem,
    KeyConfig,
    RequestHeader,
    encode_chunk,
    encode_key_config,
    encode_key_configs,
    parse_key_config,
    parse_key_configs,
    parse_request_header,
)
from confide.wire.reader import Reader
from confide.wire.varint import MAX_VARINT, ByteQueue, encode_varint, read_varint

CONFIG = KeyConfig(7, Kem.X25519, bytes(range(32)), ((1, 2), (3, 9)))


def read(raw: bytes) -> int:
    return read_varint(Reader(raw, what="v", clause="c", truncated=Reason.CHANNEL_FORMAT))


@pytest.mark.parametrize(
    ("value", "encoded"),
    [  # From: RFC 9000 §A.1, and the edges of each length.
        (151288809941952652, "c2197c5eff14e88c"),
        (494878333, "9d7f3e7d"),
        (15293, "7bbd"),
        (37, "25"),
        (63, "3f"),
        (64, "4040"),
        (16383, "7fff"),
        (16384, "80004000"),
        (2**30 - 1, "bfffffff"),
        (2**30, "c000000040000000"),
        (MAX_VARINT, "ff" * 8),
    ],
)
def test_varints(value: int, encoded: str) -> None:
    raw = bytes.fromhex(encoded)
    assert encode_varint(value) == raw
    assert read(raw) == value
    queue = ByteQueue()
    for byte in raw[:-1]:
        queue.append(bytes([byte]))
        assert queue.take_varint() is None
    queue.append(raw[-1:])
    assert queue.take_varint() == value
    assert len(queue) == 0


def test_a_varint_may_be_longer_than_needed() -> None:
    assert read(bytes.fromhex("4025")) == 37


def test_what_is_no_varint() -> None:
    for value in (-1, MAX_VARINT + 1):
        with pytest.raises(ValueError, match="varint"):
            encode_varint(value)
    with pytest.raises(FormatError):
        read(b"\x40")


def test_a_queue_gives_what_it_holds_and_no_more() -> None:
    queue = ByteQueue()
    with pytest.raises(IndexError):
        queue.take(1)
    for _ in range(3):
        queue.append(bytes(50000))
    assert len(queue.take(70000)) == 70000
    assert len(queue) == 80000
    with pytest.raises(IndexError):
        queue.take(-1)


def test_key_configurations_keep_pairs_they_do_not_know() -> None:
    assert parse_key_config(encode_key_config(CONFIG)) == CONFIG
    unknown = b"\x01\x12\x34" + bytes(10)
    listed = encode_key_configs((CONFIG,))
    assert parse_key_configs(len(unknown).to_bytes(2, "big") + unknown + listed) == (CONFIG,)


@pytest.mark.parametrize("cut", range(45))
def test_a_cut_key_configuration_is_malformed(cut: int) -> None:
    raw = encode_key_config(CONFIG)
    assert len(raw) == 45
    with pytest.raises(FormatError):
        parse_key_config(raw[:cut])


def test_what_is_no_key_configuration() -> None:
    raw = encode_key_config(CONFIG)
    for bad in (raw + b"\0", b"\x01\x12\x34" + raw[3:]):
        with pytest.raises(FormatError):
            parse_key_config(bad)
    for bad in (b"", b"\0\x03\x01\x12\x34", b"\0\xff"):
        with pytest.raises(FormatError):
            parse_key_configs(bad)
    for values in (
        (256, bytes(32), ((1, 2),)),
        (1, bytes(31), ((1, 2),)),
        (1, bytes(32), ()),
    ):
        with pytest.raises(ValueError, match="key"):
            KeyConfig(values[0], Kem.X25519, values[1], values[2])


def test_request_headers() -> None:
    header = RequestHeader(3, Kem.X_WING, Kdf.HKDF_SHA256, Aead.AES_256_GCM)
    assert header.encode().hex() == "03647a00010002"
    assert parse_request_header(header.encode()) == header
    for bad in (
        "03647a0001",
        "03ffff00010002",
        "03647a00090002",
        "03647a00010009",
        "03647a0001ffff",
    ):
        with pytest.raises(FormatError):
            parse_request_header(bytes.fromhex(bad))


def test_chunks_come_out_whole_in_any_cuts() -> None:
    sealed = (b"a" * 16, b"b" * 300, b"c" * 16)
    wire = b"".join(encode_chunk(item, final=item is sealed[-1]) for item in sealed)
    for size in (1, 3, len(wire)):
        decoder = ChunkDecoder()
        found = [c for at in range(0, len(wire), size) for c in decoder.feed(wire[at : at + size])]
        assert found == [Chunk(item, final=False) for item in sealed[:-1]]
        assert decoder.end() == Chunk(sealed[-1], final=True)
        with pytest.raises(FormatError):
            decoder.feed(b"x")


def test_chunk_framing_is_bounded() -> None:
    for bad in (
        encode_varint(15),
        encode_varint(16384 + 17),
        bytes.fromhex("ff" * 8),
        b"\0" + bytes(16384 + 17),
    ):
        with pytest.raises(FormatError):
            ChunkDecoder().feed(bad)
    largest = ChunkDecoder()
    largest.feed(b"\0" + bytes(16384 + 16))
    assert largest.end() is not None


def test_an_end_without_a_final_chunk() -> None:
    decoder = ChunkDecoder()
    decoder.feed(encode_chunk(bytes(16), final=False))
    assert decoder.end() is None
    short = ChunkDecoder()
    short.feed(b"\0" + bytes(15))
    with pytest.raises(FormatError):
        short.end()
