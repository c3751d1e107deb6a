"""Oblivious HTTP on the wire: key configurations, request headers and chunk framing.

Specification: RFC 9458 §3.1 (key configuration), §4.1 (header), §4.3;
draft-ietf-ohai-chunked-ohttp-08 §3 (chunks). Algorithm numbers: IANA HPKE registry (RFC 9180 §7),
X-Wing from its draft. Nothing is opened here: a well-formed header may name a key nobody has, a
well-framed chunk may be forged.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum, auto
from functools import lru_cache

from confide.errors import FormatError, Reason
from confide.wire.reader import Reader
from confide.wire.varint import ByteQueue, encode_varint

__all__ = [
    "HEADER_BYTES",
    "MAX_CHUNK_BYTES",
    "TAG_BYTES",
    "Aead",
    "Chunk",
    "ChunkDecoder",
    "Kdf",
    "Kem",
    "KeyConfig",
    "RequestHeader",
    "encode_chunk",
    "encode_key_config",
    "encode_key_configs",
    "parse_key_config",
    "parse_key_configs",
    "parse_request_header",
]

# From: draft-ietf-ohai-chunked-ohttp-08 §3: the plaintext every receiver accepts.
MAX_CHUNK_BYTES = 16384
# From: RFC 9180 §7.3: all three AEADs have a 16-byte tag.
TAG_BYTES = 16
# From: RFC 9458 §4.1.
HEADER_BYTES = 7

_CONFIG_CLAUSE = "RFC 9458 §3.1"
_HEADER_CLAUSE = "RFC 9458 §4.1"
_CHUNK_CLAUSE = "draft-ietf-ohai-chunked-ohttp-08 §3"


class Kem(IntEnum):
    """A key encapsulation mechanism; the value is its IANA number."""

    P256 = 0x0010
    X25519 = 0x0020
    X_WING = 0x647A

    @property
    def public_bytes(self) -> int:
        """Npk: bytes of a public key."""
        return _KEM_SIZES[int(self)][0]

    @property
    def enc_bytes(self) -> int:
        """Nenc: bytes of an encapsulated key."""
        return _KEM_SIZES[int(self)][1]


# From: RFC 9180 §7.1; draft-connolly-cfrg-xwing-kem §5.2.
# Keyed by plain integers: hashing an enumeration member is a call in Python.
_KEM_SIZES = {0x0010: (65, 65), 0x0020: (32, 32), 0x647A: (1216, 1120)}


class Kdf(IntEnum):
    """A key derivation function; the value is its IANA number."""

    HKDF_SHA256 = 0x0001


class Aead(IntEnum):
    """An authenticated cipher; the value is its IANA number."""

    AES_128_GCM = 0x0001
    AES_256_GCM = 0x0002
    CHACHA20_POLY1305 = 0x0003
    EXPORT_ONLY = 0xFFFF

    @property
    def key_bytes(self) -> int:
        """Nk: bytes of a key; 0 for export-only."""
        return _AEAD_KEY_BYTES[int(self)]


# From: RFC 9180 §7.3.
_AEAD_KEY_BYTES = {0x0001: 16, 0x0002: 32, 0x0003: 32, 0xFFFF: 0}


def _format(what: str, clause: str, offset: int = -1) -> FormatError:
    return FormatError(what, reason=Reason.CHANNEL_FORMAT, clause=clause, offset=offset)


def _reader(raw: bytes, what: str, clause: str) -> Reader:
    return Reader(raw, what=what, clause=clause, truncated=Reason.CHANNEL_FORMAT)


@dataclass(frozen=True, slots=True)
class KeyConfig:
    """
    One published key: `algorithms` are (KDF, AEAD) numbers in the order of preference.

    Pairs that this package does not implement are kept as numbers, so that encoding is exact.
    """

    key_id: int
    kem: Kem
    public_key: bytes
    algorithms: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        if not 0 <= self.key_id <= 0xFF:
            raise ValueError("a key id is one byte")
        if len(self.public_key) != self.kem.public_bytes:
            raise ValueError("the public key does not have the size of its KEM")
        if not self.algorithms or len(self.algorithms) > 0x3FFF:
            raise ValueError("a key configuration has 1 to 16383 algorithm pairs")


def encode_key_config(config: KeyConfig) -> bytes:
    """Return the bytes of one key configuration (RFC 9458 §3.1)."""
    pairs = b"".join(
        kdf.to_bytes(2, "big") + aead.to_bytes(2, "big") for kdf, aead in config.algorithms
    )
    return b"".join(
        (
            config.key_id.to_bytes(1, "big"),
            config.kem.to_bytes(2, "big"),
            config.public_key,
            len(pairs).to_bytes(2, "big"),
            pairs,
        )
    )


def parse_key_config(raw: bytes) -> KeyConfig:
    """
    Parse exactly one key configuration.

    Raises `FormatError`, also for a KEM this package does not have: its key has no known size.
    """
    reader = _reader(raw, "key configuration", _CONFIG_CLAUSE)
    key_id = reader.u8()
    number = reader.uint(2, "big")
    try:
        kem = Kem(number)
    except ValueError as error:
        raise _format("key configuration: unknown KEM", _CONFIG_CLAUSE, 1) from error
    public_key = reader.take(kem.public_bytes)
    size = reader.uint(2, "big")
    if size < 4 or size % 4:
        raise _format(
            "key configuration: the algorithms are not pairs", _CONFIG_CLAUSE, reader.offset
        )
    pairs = _reader(reader.take(size), "key configuration algorithms", _CONFIG_CLAUSE)
    algorithms = tuple((pairs.uint(2, "big"), pairs.uint(2, "big")) for _ in range(size // 4))
    reader.end(Reason.CHANNEL_FORMAT)
    return KeyConfig(key_id=key_id, kem=kem, public_key=public_key, algorithms=algorithms)


def encode_key_configs(configs: tuple[KeyConfig, ...]) -> bytes:
    """Return `application/ohttp-keys`: each configuration after its two-byte length."""
    encoded = tuple(encode_key_config(config) for config in configs)
    return b"".join(len(item).to_bytes(2, "big") + item for item in encoded)


def parse_key_configs(raw: bytes) -> tuple[KeyConfig, ...]:
    """
    Parse `application/ohttp-keys`, leaving out configurations whose KEM is unknown here.

    Raises `FormatError` when a known one is malformed or none is left.
    """
    reader = _reader(raw, "key configurations", _CONFIG_CLAUSE)
    found: list[KeyConfig] = []
    while reader.remaining:
        item = reader.take(reader.uint(2, "big"))
        head = _reader(item, "key configuration", _CONFIG_CLAUSE)
        head.u8()
        if head.uint(2, "big") in _KEM_SIZES:
            found.append(parse_key_config(item))
    if not found:
        raise _format("key configurations: none that is usable", _CONFIG_CLAUSE)
    return tuple(found)


@dataclass(frozen=True, slots=True)
class RequestHeader:
    """The clear header of a request: which key, which algorithms. HPKE `info` authenticates it."""

    key_id: int
    kem: Kem
    kdf: Kdf
    aead: Aead

    def encode(self) -> bytes:
        """Return the seven bytes."""
        return b"".join(
            (
                self.key_id.to_bytes(1, "big"),
                self.kem.to_bytes(2, "big"),
                self.kdf.to_bytes(2, "big"),
                self.aead.to_bytes(2, "big"),
            )
        )


@lru_cache(maxsize=64)
def parse_request_header(raw: bytes) -> RequestHeader:
    """
    Parse the first seven bytes of a request; `FormatError` for algorithms unknown here.

    A node sees the same few headers all day: the frozen results are kept, refusals are not.
    """
    reader = _reader(raw, "request header", _HEADER_CLAUSE)
    key_id = reader.u8()
    try:
        header = RequestHeader(
            key_id=key_id,
            kem=Kem(reader.uint(2, "big")),
            kdf=Kdf(reader.uint(2, "big")),
            aead=Aead(reader.uint(2, "big")),
        )
    except ValueError as error:
        raise _format("request header: unknown algorithm", _HEADER_CLAUSE, reader.offset) from error
    if header.aead is Aead.EXPORT_ONLY:
        raise _format("request header: an export-only suite seals nothing", _HEADER_CLAUSE, 5)
    return header


@dataclass(frozen=True, slots=True)
class Chunk:
    """One sealed chunk as framed; `final` is the frame's word and proven only by opening."""

    sealed: bytes
    final: bool


def encode_chunk(sealed: bytes, *, final: bool) -> bytes:
    """Return the frame of `sealed`; the final chunk has length 0 and runs to the end."""
    return (b"\0" if final else encode_varint(len(sealed))) + sealed


class _Framing(Enum):
    LENGTH = auto()
    BODY = auto()
    FINAL = auto()
    DONE = auto()


class ChunkDecoder:
    """
    Cut a stream of bytes into chunks, holding at most one.

    `feed` returns the complete chunks; the final one is known only at `end`. After a
    `FormatError` the decoder is useless. Says nothing about authenticity.
    """

    __slots__ = ("_queue", "_state", "_wanted")

    def __init__(self) -> None:
        self._queue = ByteQueue()
        self._state = _Framing.LENGTH
        self._wanted = 0

    def feed(self, data: bytes) -> tuple[Chunk, ...]:
        """Add `data` and return what became complete; `FormatError` for a bad length."""
        if self._state is _Framing.DONE:
            raise _format("chunks: bytes after the end", _CHUNK_CLAUSE)
        self._queue.append(data)
        found: list[Chunk] = []
        while self._state is not _Framing.FINAL:
            if self._state is _Framing.LENGTH:
                length = self._queue.take_varint()
                if length is None:
                    break
                self._start(length)
            elif len(self._queue) >= self._wanted:
                found.append(Chunk(self._queue.take(self._wanted), final=False))
                self._state = _Framing.LENGTH
            else:
                break
        if self._state is _Framing.FINAL and len(self._queue) > MAX_CHUNK_BYTES + TAG_BYTES:
            raise _format("chunks: the final chunk is too long", _CHUNK_CLAUSE)
        return tuple(found)

    def _start(self, length: int) -> None:
        if length == 0:
            self._state = _Framing.FINAL
        elif length < TAG_BYTES:
            raise _format("chunks: a chunk is shorter than its tag", _CHUNK_CLAUSE)
        elif length > MAX_CHUNK_BYTES + TAG_BYTES:
            raise _format("chunks: a chunk is longer than 16384 bytes and its tag", _CHUNK_CLAUSE)
        else:
            self._wanted = length
            self._state = _Framing.BODY

    def end(self) -> Chunk | None:
        """Return the final chunk, or None when the stream ended before one began."""
        final = self._state is _Framing.FINAL
        self._state = _Framing.DONE
        if not final:
            return None
        if len(self._queue) < TAG_BYTES:
            raise _format("chunks: the final chunk is shorter than its tag", _CHUNK_CLAUSE)
        return Chunk(self._queue.take(len(self._queue)), final=True)
