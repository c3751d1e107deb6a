"""EHBP on the wire: header fields, the key configuration, frames. Bytes to values and back.

Clauses: docs/protocols/ehbp-face.md §2 and §3. Frames are `u32 length ‖ sealed`; an empty one is
skipped and does not count. There is no end marker: a body that is cut between frames is well
formed. Nothing is opened here.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from confide.errors import FormatError, Reason
from confide.wire.ohttp import TAG_BYTES, Aead, Kdf, Kem, KeyConfig, encode_key_config
from confide.wire.varint import ByteQueue

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "ENCAPSULATED_KEY_FIELD",
    "KEYS_MEDIA_TYPE",
    "KEYS_PATH",
    "KEY_PROBLEM_TYPE",
    "MAX_FRAMES",
    "MAX_FRAME_BYTES",
    "RESPONSE_NONCE_FIELD",
    "FrameDecoder",
    "encode_frame",
    "encode_keys",
    "parse_encapsulated_key",
]

# From: EHBP, protocol description: names and media types.
KEYS_PATH = "/.well-known/hpke-keys"
KEYS_MEDIA_TYPE = "application/ohttp-keys"
ENCAPSULATED_KEY_FIELD = b"ehbp-encapsulated-key"
RESPONSE_NONCE_FIELD = b"ehbp-response-nonce"
KEY_PROBLEM_TYPE = "urn:ietf:params:ehbp:error:key-config"
# From: ehbp-face.md 3.2: the frame that every published client opens, and no more than one is held.
MAX_FRAME_BYTES = 64 * 1024 * 1024
# Small frames cost time, not memory: 65536 of a client's usual 64 KiB are 4 GiB.
MAX_FRAMES = 1 << 16
_LENGTH_BYTES = 4
_ENC = re.compile(rb"[0-9a-f]{64}\Z")


def encode_keys(key_id: int, public_key: bytes) -> bytes:
    """
    Return the body of `/.well-known/hpke-keys`: one bare key configuration with one suite.

    Clients of EHBP read exactly this, not the length-prefixed list of RFC 9458 §3.2.
    """
    suite = ((int(Kdf.HKDF_SHA256), int(Aead.AES_256_GCM)),)
    return encode_key_config(KeyConfig(key_id, Kem.X25519, public_key, suite))


def parse_encapsulated_key(values: Sequence[bytes]) -> bytes:
    """
    Return the 32 bytes of the one `Ehbp-Encapsulated-Key` field: 64 lower-case hex characters.

    Raises `FormatError`, also where there is none or more than one.
    """
    if len(values) != 1 or not _ENC.match(values[0]):
        raise _format("Ehbp-Encapsulated-Key: 64 lower-case hex characters, once", clause="3.1")
    return bytes.fromhex(values[0].decode("ascii"))


def encode_frame(sealed: bytes) -> bytes:
    """Return the frame of one sealed chunk."""
    return len(sealed).to_bytes(_LENGTH_BYTES, "big") + sealed


class FrameDecoder:
    """
    Cut a body into sealed chunks, holding at most one frame of `max_bytes`.

    After a `FormatError` the decoder is useless. Says nothing about authenticity, nor whether
    more frames should have followed.
    """

    __slots__ = ("_frames", "_max_bytes", "_queue", "_wanted")

    def __init__(self, max_bytes: int = MAX_FRAME_BYTES) -> None:
        self._queue = ByteQueue()
        self._max_bytes = max_bytes
        self._wanted: int | None = None
        self._frames = 0

    def feed(self, data: bytes) -> tuple[bytes, ...]:
        """Add `data` and return the chunks that became complete. Raises `FormatError`."""
        self._queue.append(data)
        found: list[bytes] = []
        while True:
            if self._wanted is None:
                if len(self._queue) < _LENGTH_BYTES:
                    break
                self._wanted = self._length(int.from_bytes(self._queue.take(_LENGTH_BYTES), "big"))
            elif len(self._queue) >= self._wanted:
                found.append(self._queue.take(self._wanted))
                self._wanted = None
            else:
                break
        return tuple(found)

    def _length(self, length: int) -> int | None:
        self._frames += 1
        if self._frames > MAX_FRAMES:
            raise _format("EHBP body: too many frames", Reason.LIMIT_EXCEEDED)
        if length == 0:
            return None
        if length < TAG_BYTES:
            raise _format("EHBP body: a frame is shorter than its tag")
        if length > self._max_bytes:
            raise _format("EHBP body: a frame is longer than the limit", Reason.LIMIT_EXCEEDED)
        return length

    def end(self) -> None:
        """The body has no more bytes. Raises `FormatError` when it ends inside a frame."""
        if self._wanted is not None or len(self._queue):
            raise _format("EHBP body: it ends inside a frame", Reason.CHANNEL_TRUNCATED)


def _format(
    what: str, reason: Reason = Reason.CHANNEL_FORMAT, *, clause: str = "3.2"
) -> FormatError:
    return FormatError(what, reason=reason, clause=f"ehbp-face.md {clause}")
