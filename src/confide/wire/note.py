"""Signed notes and verifier keys. Bytes to value and back; verifies nothing.

Sources: C2SP signed-note; docs/protocols/log.md §3.1 to §3.3. `raw` is hostile. A note's text is
kept as the exact characters that were signed.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, NoReturn

from confide.errors import FormatError, Reason
from confide.wire.json import b64decode, b64encode

__all__ = [
    "MAX_NOTE_BYTES",
    "Note",
    "NoteSignature",
    "PrivateKeyText",
    "SignatureType",
    "VerifierKey",
    "make_key_id",
    "parse_note",
    "parse_private_key",
    "parse_signature_lines",
    "parse_verifier_key",
]

# From: log.md 3.1. An ML-DSA-44 line has 3.3 kB; signed-note asks for at least 16 lines.
MAX_NOTE_BYTES = 1024 * 1024
_MAX_SIGNATURES: Final = 64
_CLAUSE: Final = "docs/protocols/log.md#3.1"
_KEY_CLAUSE: Final = "docs/protocols/log.md#3.2"
_REASON: Final = Reason.TLOG_FORMAT
_PRIVATE: Final = "PRIVATE+KEY+"
_DASH: Final = "\u2014 "
_CONTROL: Final = re.compile(r"[\x00-\x09\x0b-\x1f]")
_BAD_NAME: Final = re.compile(r"[\s+\x00-\x1f]")
_HEX: Final = re.compile(r"[0-9a-f]{8}\Z")


class SignatureType(IntEnum):
    """What a key signs and how. From: signed-note, tlog-cosignature."""

    ED25519 = 0x01
    COSIGNATURE = 0x04
    ML_DSA_44 = 0x06


_KEY_BYTES: Final = {
    SignatureType.ED25519: 32,
    SignatureType.COSIGNATURE: 32,
    SignatureType.ML_DSA_44: 1312,
}


def _refuse(what: str, clause: str = _CLAUSE) -> NoReturn:
    raise FormatError(what, reason=_REASON, clause=clause)


def make_key_id(name: str, kind: SignatureType, key: bytes) -> bytes:
    """Return the four bytes that, with the name, say which key signed."""
    return hashlib.sha256(name.encode() + b"\n" + bytes([kind]) + key).digest()[:4]


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A public key with its name. `ValueError` for a name or key that cannot be one."""

    name: str
    kind: SignatureType
    key: bytes
    key_id: bytes = field(init=False)

    def __post_init__(self) -> None:
        if not self.name or _BAD_NAME.search(self.name):
            raise ValueError("a key name is not empty and holds neither spaces nor +")
        if len(self.key) != _KEY_BYTES[self.kind]:
            raise ValueError("a public key of another length than its type has")
        object.__setattr__(self, "key_id", make_key_id(self.name, self.kind, self.key))

    def encode(self) -> str:
        """Return the text form, `name+id+key`."""
        return f"{self.name}+{self.key_id.hex()}+{b64encode(bytes([self.kind]) + self.key)}"


def parse_verifier_key(text: str) -> VerifierKey:
    """Parse `name+id+key`. Raises `FormatError`, also where the id is not that of the key."""
    # The base64 may hold further plus signs; name and id hold none.
    parts = text.split("+", 2)
    if len(parts) != 3 or not _HEX.match(parts[1]):
        _refuse("verifier key: not name+id+key", _KEY_CLAUSE)
    raw = b64decode(parts[2], what="verifier key", reason=_REASON)
    if not raw or raw[0] not in list(SignatureType):
        _refuse("verifier key: unknown type", _KEY_CLAUSE)
    try:
        found = VerifierKey(parts[0], SignatureType(raw[0]), raw[1:])
    except ValueError as error:
        raise FormatError(f"verifier key: {error}", reason=_REASON, clause=_KEY_CLAUSE) from error
    if found.key_id.hex() != parts[1]:
        _refuse("verifier key: the id is not that of the key", _KEY_CLAUSE)
    return found


@dataclass(frozen=True, slots=True)
class PrivateKeyText:
    """
    A private key as a file holds it; the id is not yet compared with the key.

    From: the signer keys of Go's note package, `PRIVATE+KEY+name+id+base64(type ‖ seed)`.
    """

    name: str
    kind: SignatureType
    key_id: bytes
    seed: bytes = field(repr=False)

    def encode(self) -> str:
        """Return the text form."""
        raw = b64encode(bytes([self.kind]) + self.seed)
        return f"{_PRIVATE}{self.name}+{self.key_id.hex()}+{raw}"


def parse_private_key(text: str) -> PrivateKeyText:
    """Parse a private key file without its newline. Raises `FormatError`, never showing it."""
    parts = text.removeprefix(_PRIVATE).split("+", 2)
    if not text.startswith(_PRIVATE) or len(parts) != 3 or not _HEX.match(parts[1]):
        _refuse("private key: not PRIVATE+KEY+name+id+key", _KEY_CLAUSE)
    raw = b64decode(parts[2], what="private key", reason=_REASON)
    if len(raw) != 33 or raw[0] not in list(SignatureType):
        _refuse("private key: unknown type or length", _KEY_CLAUSE)
    return PrivateKeyText(parts[0], SignatureType(raw[0]), bytes.fromhex(parts[1]), raw[1:])


@dataclass(frozen=True, slots=True)
class NoteSignature:
    """One signature line: who says to have signed, and the bytes after the key id."""

    name: str
    key_id: bytes
    blob: bytes

    def line(self) -> str:
        """Return the line, with its newline."""
        return f"{_DASH}{self.name} {b64encode(self.key_id + self.blob)}\n"


@dataclass(frozen=True, slots=True)
class Note:
    """A text, newline at its end included, and unverified signatures in order."""

    text: str
    signatures: tuple[NoteSignature, ...]

    def encode(self) -> bytes:
        """Return the note as it is served."""
        return (self.text + "\n" + "".join(each.line() for each in self.signatures)).encode()

    def with_signatures(self, more: tuple[NoteSignature, ...]) -> Note:
        """Return the note with `more` in the place of older lines of the same keys."""
        fresh = {(each.name, each.key_id) for each in more}
        kept = (each for each in self.signatures if (each.name, each.key_id) not in fresh)
        return Note(self.text, (*kept, *more))


def parse_note(raw: bytes) -> Note:
    """Parse a signed note. Raises `FormatError`; verifies nothing."""
    text = _decode(raw, "note")
    # The last empty line separates; the text before it may hold empty lines of its own.
    head, separator, tail = text.rpartition("\n\n")
    if not separator or not head:
        _refuse("note: no empty line between text and signatures")
    return Note(head + "\n", _lines(tail))


def parse_signature_lines(raw: bytes) -> tuple[NoteSignature, ...]:
    """Parse signature lines alone, as a witness answers them. Raises `FormatError`."""
    return _lines(_decode(raw, "signature lines"))


def _decode(raw: bytes, what: str) -> str:
    if len(raw) > MAX_NOTE_BYTES:
        _refuse(f"{what}: {len(raw)} bytes, at most {MAX_NOTE_BYTES}")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(
            f"{what}: not UTF-8", reason=_REASON, clause=_CLAUSE, offset=error.start
        ) from error
    if _CONTROL.search(text):
        _refuse(f"{what}: a control character")
    return text


def _lines(text: str) -> tuple[NoteSignature, ...]:
    if not text.endswith("\n"):
        _refuse("signature lines: no newline at the end")
    lines = text[:-1].split("\n")
    if len(lines) > _MAX_SIGNATURES:
        _refuse(f"signature lines: more than {_MAX_SIGNATURES}")
    return tuple(_line(line) for line in lines)


def _line(line: str) -> NoteSignature:
    name, separator, encoded = line.removeprefix(_DASH).partition(" ")
    if not line.startswith(_DASH) or not separator:
        _refuse("signature line: not dash, name, signature")
    if not name or _BAD_NAME.search(name):
        _refuse("signature line: a bad key name")
    raw = b64decode(encoded, what="signature line", reason=_REASON)
    if len(raw) < 5:
        _refuse("signature line: too short for a key id and a signature")
    return NoteSignature(name, raw[:4], raw[4:])
