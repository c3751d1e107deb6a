"""Sealed files: streams at rest, sealed to an owner's key or under a symmetric one. Sans-IO.

docs/protocols/sealed-file.md. One line of JSON, then chunks of AES-256-GCM in the STREAM
construction (Hoang, Reyhanitabar, Rogaway, Vizár: "Online authenticated encryption and its
nonce-reuse misuse-resistance"): a counter and a flag for the last chunk are the nonce.

What is opened is hostile. Nobody is named as the one who sealed it: that is for a record.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn

from confide.crypto.aead import NONCE_BYTES, OpenError, SealingKey
from confide.crypto.hpke import Suite, setup_recipient, setup_sender
from confide.crypto.kem import hkdf_expand, hkdf_extract
from confide.errors import FormatError, LocalProtocolError, Reason, SealedFileRejected
from confide.rats import Finding, Status
from confide.wire.json import JsonLimits, Members, b64encode, jcs, parse_json
from confide.wire.ohttp import TAG_BYTES, Aead, Kdf, Kem

if TYPE_CHECKING:
    from collections.abc import Callable

    from confide.crypto.kem import PrivateKey, PublicKey
    from confide.wire.json import JsonValue

__all__ = [
    "CHUNK_BYTES",
    "KEY_BYTES",
    "MAX_HEADER_BYTES",
    "SALT_BYTES",
    "SEALED_CHUNK_BYTES",
    "FileOpener",
    "FileSealer",
    "SealedHeader",
    "open_file_for",
    "open_file_under",
    "seal_file_to",
    "seal_file_under",
]

# From: docs/protocols/sealed-file.md 1.4.
CHUNK_BYTES: Final = 64 * 1024
KEY_BYTES: Final = 32
SALT_BYTES: Final = 32
_TYPE: Final = "confide/sealed-file/v1"
_LABEL: Final = b"confide/sealed-file/v1\0"
MAX_HEADER_BYTES: Final = 4096
_MAX_NAME_CHARS: Final = 256
_LIMITS: Final = JsonLimits(max_bytes=MAX_HEADER_BYTES, max_depth=2)
_SUITE: Final = Suite(Kem.X_WING, Kdf.HKDF_SHA256, Aead.EXPORT_ONLY)
_CLAUSE: Final = "docs/protocols/sealed-file.md#3"
SEALED_CHUNK_BYTES: Final = CHUNK_BYTES + TAG_BYTES


@dataclass(frozen=True, slots=True)
class SealedHeader:
    """
    The first line of a sealed file: public, and bound to every chunk.

    `recipient` (SHA-256 of a public key) and `enc` for an owner; `salt` for a symmetric key.
    """

    name: str
    recipient: bytes = b""
    enc: bytes = b""
    salt: bytes = b""

    def encode(self) -> bytes:
        """Return the line with its LF."""
        value: dict[str, JsonValue] = {"type": _TYPE, "name": self.name}
        if self.salt:
            value["salt"] = self.salt.hex()
        else:
            value |= {"recipient": self.recipient.hex(), "enc": b64encode(self.enc)}
        return jcs(value) + b"\n"


def _parse_header(line: bytes) -> SealedHeader:
    what = "sealed file"
    value = parse_json(line, what=what, reason=Reason.SEALED_FORMAT, limits=_LIMITS)
    members = Members(value, what=what, reason=Reason.SEALED_FORMAT)
    members.choice("type", (_TYPE,))
    name = members.text("name", max_chars=_MAX_NAME_CHARS)
    if members.has("salt"):
        header = SealedHeader(name, salt=members.hexes("salt", SALT_BYTES))
    else:
        recipient = members.hexes("recipient", 32)
        header = SealedHeader(name, recipient, members.base64("enc"))
        if len(header.enc) != Kem.X_WING.enc_bytes:
            members.refuse("enc is not an X-Wing encapsulation")
    members.end()
    if header.encode() != line + b"\n":
        # One spelling, the one that keys are derived from.
        members.refuse("the header is not in its canonical form")
    return header


def _chunk_key(secret: bytes, header: SealedHeader) -> SealingKey:
    bound = hashlib.sha256(header.encode()).digest()
    return SealingKey(Aead.AES_256_GCM, hkdf_expand(secret, _LABEL + bound, KEY_BYTES))


def _nonce(index: int, *, last: bool) -> bytes:
    return index.to_bytes(NONCE_BYTES - 1, "big") + (b"\1" if last else b"\0")


class FileSealer:
    """Plaintext in, the bytes of one sealed file out. Memory is one chunk."""

    __slots__ = ("_done", "_held", "_index", "_key", "_start", "sha256")

    def __init__(self, header: SealedHeader, secret: bytes) -> None:
        self._key = _chunk_key(secret, header)
        self._start = header.encode()
        self._held = bytearray()
        self._index = 0
        self._done = False
        # Of the sealed bytes so far: what records and checkpoints name.
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes | memoryview) -> list[bytes]:
        """Seal `data`; return what is complete. The last full chunk waits, it may be the last."""
        if self._done:
            raise LocalProtocolError("the sealed file was finished")
        given = self._begin()
        rest = memoryview(data)
        if self._held:
            room = CHUNK_BYTES - len(self._held)
            self._held += rest[:room]
            rest = rest[room:]
            if rest:
                given.append(self._seal(self._held, last=False))
                self._held = bytearray()
        # Out of `data` itself: copying it would cost as much as sealing it.
        while len(rest) > CHUNK_BYTES:
            given.append(self._seal(rest[:CHUNK_BYTES], last=False))
            rest = rest[CHUNK_BYTES:]
        self._held += rest
        return given

    def finish(self) -> list[bytes]:
        """Return the rest; nothing can be written after it."""
        if self._done:
            raise LocalProtocolError("the sealed file was finished")
        self._done = True
        return [*self._begin(), self._seal(self._held, last=True)]

    def _begin(self) -> list[bytes]:
        start, self._start = self._start, b""
        self.sha256.update(start)
        return [start] if start else []

    def _seal(self, chunk: bytearray | memoryview, *, last: bool) -> bytes:
        sealed = self._key.seal(_nonce(self._index, last=last), b"", chunk)
        self._index += 1
        self.sha256.update(sealed)
        return sealed


class FileOpener:
    """
    The bytes of one sealed file in, plaintext out as it authenticates. Memory is one chunk.

    Until `end` returned, the file may still be cut: what came before is genuine, and not whole.
    Raises `FormatError` and `SealedFileRejected`, and is of no use afterwards.
    """

    __slots__ = ("_held", "_index", "_key", "_unlock")

    def __init__(self, unlock: Callable[[SealedHeader], bytes]) -> None:
        """Take what gives the secret of a header, or raises."""
        self._unlock = unlock
        self._key: SealingKey | None = None
        self._held = bytearray()
        self._index = 0

    def write(self, data: bytes) -> bytes:
        """Take the next bytes; return what they complete."""
        self._held += data
        key = self._key or self._begin()
        if key is None:
            return b""
        opened: list[bytes] = []
        at = 0
        whole = memoryview(self._held)
        try:
            # A chunk is the last one or not by what follows it: one is always held back.
            while len(whole) - at > SEALED_CHUNK_BYTES:
                opened.append(self._open(key, whole[at : at + SEALED_CHUNK_BYTES], last=False))
                at += SEALED_CHUNK_BYTES
        finally:
            whole.release()
        del self._held[:at]
        return b"".join(opened)

    def skip(self, chunks: int) -> None:
        """
        Take the chunk of this number as the next one, instead of the first.

        For who reads from the middle of a file: after the header and before anything else. What is
        given is authentic at its place; what was skipped is not known to be there.
        """
        if self._key is None or self._held or self._index:
            raise LocalProtocolError("only what stands before the first chunk is skipped")
        self._index = chunks

    def end(self) -> bytes:
        """The file has no more bytes: return the last of the plaintext."""
        key = self._key
        if key is None:
            _malformed("no header")
        if self._is_cut(key):
            _reject("sealed-file/3", "the file is cut after a whole chunk", Reason.SEALED_CUT)
        opened = self._open(key, self._held, last=True)
        if not opened and self._index > 1:
            _malformed("an empty chunk after others")
        return opened

    def _begin(self) -> SealingKey | None:
        line, end, _ = bytes(self._held[: MAX_HEADER_BYTES + 1]).partition(b"\n")
        if not end:
            if len(line) > MAX_HEADER_BYTES:
                _malformed("no header line")
            return None
        header = _parse_header(line)
        self._key = _chunk_key(self._unlock(header), header)
        del self._held[: len(line) + 1]
        return self._key

    def _is_cut(self, key: SealingKey) -> bool:
        # Only so that it can be said: as a last chunk this one does not open either.
        if len(self._held) != SEALED_CHUNK_BYTES:
            return not self._held
        try:
            key.open(_nonce(self._index, last=False), b"", self._held)
        except OpenError:
            return False
        return True

    def _open(self, key: SealingKey, chunk: bytearray | memoryview, *, last: bool) -> bytes:
        try:
            opened = key.open(_nonce(self._index, last=last), b"", chunk)
        except OpenError:
            detail = f"chunk {self._index} does not open: changed, moved, cut or of another file"
            _reject("sealed-file/2", detail, Reason.SEALED_OPEN)
        self._index += 1
        return opened


def _malformed(why: str) -> NoReturn:
    raise FormatError(f"sealed file: {why}", reason=Reason.SEALED_FORMAT, clause=_CLAUSE)


def _reject(step: str, detail: str, reason: Reason) -> NoReturn:
    finding = Finding(Status.FAIL, step, _CLAUSE, "sealed file", detail, reason)
    raise SealedFileRejected((finding,))


def seal_file_to(recipient: PublicKey, *, name: str, ephemeral: bytes) -> FileSealer:
    """
    Begin a file that the owner of an X-Wing key opens (2.1).

    `ephemeral` is 32 fresh random bytes; `name` says what the file is, and is not hidden.
    """
    enc, context = setup_sender(recipient, suite=_SUITE, info=_LABEL, ephemeral=ephemeral)
    header = SealedHeader(name, hashlib.sha256(recipient.raw).digest(), enc)
    return FileSealer(header, context.export(_LABEL, KEY_BYTES))


def open_file_for(private_key: PrivateKey, *, name: str) -> FileOpener:
    """Begin to open a file that was sealed to this X-Wing key as `name`."""

    def unlock(header: SealedHeader) -> bytes:
        _require_name(header, name)
        if header.recipient != hashlib.sha256(private_key.public_key.raw).digest():
            _reject("sealed-file/1", "sealed to another key", Reason.SEALED_KEY)
        try:
            context = setup_recipient(header.enc, private_key, suite=_SUITE, info=_LABEL)
        except OpenError:
            _reject("sealed-file/1", "the encapsulation gives no key", Reason.SEALED_KEY)
        return context.export(_LABEL, KEY_BYTES)

    return FileOpener(unlock)


def seal_file_under(key: bytes, *, name: str, salt: bytes) -> FileSealer:
    """Begin a file under a symmetric `key` (2.2); `salt` is 32 fresh random bytes."""
    if len(key) != KEY_BYTES or len(salt) != SALT_BYTES:
        raise ValueError("a key and a salt have 32 bytes each")
    return FileSealer(SealedHeader(name, salt=salt), hkdf_extract(salt, key))


def open_file_under(key: bytes, *, name: str) -> FileOpener:
    """Begin to open a file that was sealed under `key` as `name`."""
    if len(key) != KEY_BYTES:
        raise ValueError("a key has 32 bytes")

    def unlock(header: SealedHeader) -> bytes:
        _require_name(header, name)
        if not header.salt:
            _reject("sealed-file/1", "sealed to an owner's key", Reason.SEALED_KEY)
        return hkdf_extract(header.salt, key)

    return FileOpener(unlock)


def _require_name(header: SealedHeader, name: str) -> None:
    if header.name != name:
        _reject("sealed-file/1", "sealed as another file", Reason.SEALED_KEY)
