"""Flattened JWE and the keys it is wrapped to: bytes to values and back. Verifies nothing.

Sources: RFC 7516 §7.2.2 (flattened JSON), RFC 7518 §4.3, §4.6, §5.3, §6.2, §6.3 (the two ways to
wrap, the one cipher, the keys), RFC 7638 (thumbprints); docs/protocols/broker.md 3.2 and 4.1, which
say what of them is spoken. Everything is hostile. A header names no key but its own ephemeral one
and brings no rules: an algorithm that is not listed here is refused, whatever a library could do.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from confide.errors import Reason
from confide.wire.jose import b64url_decode, b64url_encode
from confide.wire.json import JsonLimits, JsonValue, Members, jcs, parse_json

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "ECDH",
    "MAX_JWE_BYTES",
    "RSA",
    "EcPoint",
    "FlattenedJwe",
    "KeyCurve",
    "RsaModulus",
    "WrappingKey",
    "algorithm_of",
    "encode_protected",
    "encode_wrapping_key",
    "parse_jwe",
    "parse_wrapping_key",
    "thumbprint",
]

KeyCurve = Literal["P-256", "P-521"]
ECDH: Final = "ECDH-ES+A256KW"
RSA: Final = "RSA-OAEP-256"
# A value has at most 1 MiB (release.md 2.3); base64url and the other members come on top.
MAX_JWE_BYTES: Final = 2 << 20
_CURVES: Final[tuple[KeyCurve, ...]] = ("P-256", "P-521")
_COORDINATE_BYTES: Final[Mapping[str, int]] = {"P-256": 32, "P-521": 66}
_CIPHER: Final = "A256GCM"
_REASON: Final = Reason.BROKER_FORMAT
# From: broker.md 3.2. The exponent that every current library draws keys with.
_RSA_BITS: Final = (2048, 4096)
_RSA_EXPONENT: Final = 65537
_MAX_HEADER_CHARS: Final = 4096
_LIMITS: Final = JsonLimits(MAX_JWE_BYTES, 4)
_IV_BYTES, _TAG_BYTES = 12, 16


@dataclass(frozen=True, slots=True)
class EcPoint:
    """A point as it is said to be: `point` is x ‖ y, of the size of the curve and no more."""

    curve: KeyCurve
    point: bytes

    def document(self) -> dict[str, JsonValue]:
        """Return the members that name this key (RFC 7638 §3.2)."""
        half = len(self.point) // 2
        return {
            "crv": self.curve,
            "kty": "EC",
            "x": b64url_encode(self.point[:half]),
            "y": b64url_encode(self.point[half:]),
        }


@dataclass(frozen=True, slots=True)
class RsaModulus:
    """An RSA key as it is said to be: big-endian, odd, 2048 to 4096 bits, exponent 65537."""

    modulus: bytes

    def document(self) -> dict[str, JsonValue]:
        """Return the members that name this key (RFC 7638 §3.2)."""
        exponent = _RSA_EXPONENT.to_bytes(3, "big")
        return {"e": b64url_encode(exponent), "kty": "RSA", "n": b64url_encode(self.modulus)}


WrappingKey: TypeAlias = EcPoint | RsaModulus


def algorithm_of(key: WrappingKey) -> str:
    """Return the one way to wrap to `key`."""
    return ECDH if isinstance(key, EcPoint) else RSA


def thumbprint(key: WrappingKey) -> bytes:
    """Return the RFC 7638 thumbprint, SHA-256."""
    return hashlib.sha256(jcs(key.document())).digest()


def encode_wrapping_key(key: WrappingKey) -> dict[str, JsonValue]:
    """Return the key as a guest sends it (`tee-pubkey`)."""
    return {**key.document(), "alg": algorithm_of(key)}


def parse_wrapping_key(value: JsonValue) -> WrappingKey:
    """
    Parse `tee-pubkey` (broker.md 3.2).

    Raises `FormatError` with BROKER_FORMAT for every other algorithm, curve and size. **Does not
    check** that a point is on its curve.
    """
    members = Members(value, what="tee-pubkey", reason=_REASON)
    kind = members.choice("kty", ("EC", "RSA"))
    members.choice("alg", (ECDH,) if kind == "EC" else (RSA,))
    key = _point(members) if kind == "EC" else _modulus(members)
    members.end()
    return key


def _bytes(members: Members, name: str, *, max_chars: int) -> bytes:
    text = members.text(name, max_chars=max_chars)
    return b64url_decode(text, what=f"JWE: {name}", reason=_REASON)


def _point(members: Members) -> EcPoint:
    curve = members.choice("crv", _CURVES)
    x, y = (_bytes(members, name, max_chars=128) for name in ("x", "y"))
    # From: RFC 7518 §6.2.1.2: the full size of a coordinate, no more and no less.
    if not len(x) == len(y) == _COORDINATE_BYTES[curve]:
        members.refuse(f"the coordinates do not have the size of {curve}")
    return EcPoint(curve, x + y)


def _modulus(members: Members) -> RsaModulus:
    modulus, exponent = (_bytes(members, name, max_chars=1024) for name in ("n", "e"))
    # From: RFC 7518 §6.3.1.1: as few octets as the number needs.
    if not modulus or modulus[0] == 0:
        members.refuse("the modulus is not written in its shortest form")
    if not _RSA_BITS[0] <= int.from_bytes(modulus, "big").bit_length() <= _RSA_BITS[1]:
        members.refuse(f"the modulus does not have {_RSA_BITS[0]} to {_RSA_BITS[1]} bits")
    if not modulus[-1] & 1 or exponent != _RSA_EXPONENT.to_bytes(3, "big"):
        members.refuse(f"the modulus is even, or the exponent is not {_RSA_EXPONENT}")
    return RsaModulus(modulus)


@dataclass(frozen=True, slots=True)
class FlattenedJwe:
    """
    One answer. `protected` is the exact text of the header: the AAD is its ASCII.

    `ephemeral` is the sender's point for ECDH-ES+A256KW, None for RSA-OAEP-256.
    """

    protected: str
    ephemeral: EcPoint | None
    encrypted_key: bytes = field(repr=False)
    iv: bytes
    ciphertext: bytes = field(repr=False)
    tag: bytes

    @property
    def aad(self) -> bytes:
        """What the cipher authenticates besides the plaintext (RFC 7516 §5.1, step 14)."""
        return self.protected.encode("ascii")

    def encode(self) -> bytes:
        """Return the JSON document."""
        return jcs(
            {
                "protected": self.protected,
                "encrypted_key": b64url_encode(self.encrypted_key),
                "iv": b64url_encode(self.iv),
                "ciphertext": b64url_encode(self.ciphertext),
                "tag": b64url_encode(self.tag),
            }
        )


def encode_protected(ephemeral: EcPoint | None) -> str:
    """
    Return the protected header, encoded.

    Canonical order is also the order in which guests of Confidential Containers write it again to
    compute the AAD: they do not keep the text that they received.
    """
    document: dict[str, JsonValue] = {"alg": RSA if ephemeral is None else ECDH, "enc": _CIPHER}
    if ephemeral is not None:
        document["epk"] = ephemeral.document()
    return b64url_encode(jcs(document))


def parse_jwe(raw: bytes) -> FlattenedJwe:
    """
    Parse a flattened JWE with a protected header alone: no `aad`, no unprotected members.

    Raises `FormatError` with BROKER_FORMAT, also for any other algorithm: `dir`, `RSA1_5`, `none`.
    """
    value = parse_json(raw, what="JWE", reason=_REASON, limits=_LIMITS)
    members = Members(value, what="JWE", reason=_REASON)
    protected = members.text("protected", max_chars=_MAX_HEADER_CHARS)
    encrypted_key = _bytes(members, "encrypted_key", max_chars=1024)
    iv, tag = (_bytes(members, name, max_chars=64) for name in ("iv", "tag"))
    ciphertext = _bytes(members, "ciphertext", max_chars=MAX_JWE_BYTES)
    members.end()
    if len(iv) != _IV_BYTES or len(tag) != _TAG_BYTES:
        members.refuse("iv and tag are not of AES-GCM")
    ephemeral = _header(protected)
    return FlattenedJwe(protected, ephemeral, encrypted_key, iv, ciphertext, tag)


def _header(protected: str) -> EcPoint | None:
    raw = b64url_decode(protected, what="JWE: protected", reason=_REASON)
    value = parse_json(raw, what="JWE header", reason=_REASON, limits=_LIMITS)
    header = Members(value, what="JWE header", reason=_REASON)
    algorithm = header.choice("alg", (ECDH, RSA))
    header.choice("enc", (_CIPHER,))
    ephemeral = None
    if algorithm == ECDH:
        key = header.members("epk")
        key.choice("kty", ("EC",))
        ephemeral = _point(key)
        key.end()
    # apu and apv would enter the key derivation; nobody here writes them.
    header.end()
    return ephemeral
