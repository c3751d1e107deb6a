"""Compact JWS and JSON Web Key Sets: bytes to values. Verifies nothing.

Sources: RFC 7515 §3.1 and §7.1 (compact serialisation), RFC 7517 §4 and §5, RFC 7518 §6.2 (EC
keys), RFC 4648 §5 (base64url, here always without padding and canonical). Everything is hostile.

A header may name an algorithm and a key, and nothing else: a token never brings its own key and
never extends the rules by which it is read. What the algorithm must be is the caller's to say.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from confide.errors import FormatError
from confide.wire.json import JsonLimits, JsonValue, Members, b64decode, parse_json

if TYPE_CHECKING:
    from confide.errors import Reason

__all__ = [
    "CompactJws",
    "Jwk",
    "b64url_decode",
    "b64url_encode",
    "parse_compact_jws",
    "parse_jwks",
]

# Precedent: a device token of NVIDIA's service with every index listed as a mismatch is 30 KiB.
_MAX_JWS_CHARS = 64 * 1024
_MAX_HEADER_CHARS = 4096
_MAX_KEY_ID = 256
# Precedent: NVIDIA's set has 36 keys of below 4 KiB each.
_MAX_JWKS_BYTES = 1024 * 1024
_MAX_KEYS = 256
_MAX_CERTIFICATES = 4
_MAX_CERTIFICATE_CHARS = 16 * 1024
_JWS_CLAUSE = "RFC 7515 §7.1"
_PARTS = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]*)\Z")
# From: RFC 7518 §6.2.1.2: coordinates have the full size of the curve.
_COORDINATE_BYTES = {"P-256": 32, "P-384": 48, "P-521": 66}
_DEPTH = 16


def b64url_encode(raw: bytes) -> str:
    """Return base64url without padding (RFC 7515 §2)."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def b64url_decode(text: str, *, what: str, reason: Reason) -> bytes:
    """Decode base64url without padding, strictly: alphabet, length, zero trailing bits."""
    try:
        padded = text.encode("ascii") + b"=" * (-len(text) % 4)
        raw = base64.b64decode(padded, altchars=b"-_", validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise FormatError(f"{what}: not base64url", reason=reason, clause="RFC 4648 §5") from error
    if b64url_encode(raw) != text:
        raise FormatError(
            f"{what}: base64url is not canonical", reason=reason, clause="RFC 4648 §3.5"
        )
    return raw


@dataclass(frozen=True, slots=True)
class CompactJws:
    """
    One token, its header read and nothing verified.

    `text` is the whole token, `signing_input` the ASCII that a signature covers. `key_id` is empty
    where the header names no key. Payload and signature are decoded when they are asked for.
    """

    text: str
    algorithm: str
    key_id: str
    signing_input: bytes = field(repr=False)
    payload_text: str = field(repr=False)
    signature_text: str = field(repr=False)

    def payload(self, *, what: str, reason: Reason) -> dict[str, JsonValue]:
        """Return the claims, unverified unless the caller verified them. Raises `FormatError`."""
        raw = b64url_decode(self.payload_text, what=what, reason=reason)
        value = parse_json(raw, what=what, reason=reason, limits=JsonLimits(_MAX_JWS_CHARS, _DEPTH))
        if not isinstance(value, dict):
            raise FormatError(f"{what}: not an object", reason=reason, clause="RFC 7519 §7.2")
        return value

    def signature(self, *, what: str, reason: Reason) -> bytes:
        """Return the signature's bytes. Raises `FormatError`."""
        return b64url_decode(self.signature_text, what=what, reason=reason)


def parse_compact_jws(text: str, *, what: str, reason: Reason) -> CompactJws:
    """
    Read the shape and the header of one compact JWS; the signature may be empty.

    The header holds `alg`, perhaps `kid` and `typ`, and nothing else. Raises `FormatError`.
    """
    parts = _PARTS.match(text) if len(text) <= _MAX_JWS_CHARS else None
    if parts is None or len(parts.group(1)) > _MAX_HEADER_CHARS:
        raise FormatError(
            f"{what}: not three parts of base64url of at most {_MAX_JWS_CHARS} characters",
            reason=reason,
            clause=_JWS_CLAUSE,
        )
    header, payload, signature = parts.groups()
    raw = b64url_decode(header, what=f"{what}: header", reason=reason)
    value = parse_json(
        raw, what=f"{what}: header", reason=reason, limits=JsonLimits(_MAX_HEADER_CHARS, 4)
    )
    members = Members(value, what=f"{what}: header", reason=reason)
    algorithm = members.text("alg", max_chars=32)
    key_id = members.text("kid", max_chars=_MAX_KEY_ID) if members.has("kid") else ""
    if members.has("typ"):
        members.text("typ", max_chars=64)
    members.end()
    return CompactJws(
        text=text,
        algorithm=algorithm,
        key_id=key_id,
        signing_input=f"{header}.{payload}".encode("ascii"),
        payload_text=payload,
        signature_text=signature,
    )


@dataclass(frozen=True, slots=True)
class Jwk:
    """
    One public key of a set, unverified.

    `point` is x ‖ y for an EC key on a known curve, None for every other kind. `certificates` are
    the DER of `x5c`, the key's own first; empty where there is none.
    """

    key_id: str
    kind: str
    curve: str
    point: bytes | None
    certificates: tuple[bytes, ...]


def parse_jwks(raw: bytes, *, what: str, reason: Reason) -> tuple[Jwk, ...]:
    """
    Read a key set; members that nobody needs are ignored (RFC 7517 §4).

    Refused: a `kid` that is missing or there twice, a private key, a key that is not for
    signatures, an EC key off the size of its curve. Raises `FormatError`.
    """
    value = parse_json(raw, what=what, reason=reason, limits=JsonLimits(_MAX_JWKS_BYTES, _DEPTH))
    top = Members(value, what=what, reason=reason)
    keys = tuple(
        _parse_jwk(Members(item, what=f"{what}: keys[{number}]", reason=reason), reason)
        for number, item in enumerate(top.items("keys", max_items=_MAX_KEYS))
    )
    if len({key.key_id for key in keys}) != len(keys):
        top.refuse("one kid names two keys")
    return keys


def _parse_jwk(members: Members, reason: Reason) -> Jwk:
    key_id = members.text("kid", max_chars=_MAX_KEY_ID)
    kind = members.text("kty", max_chars=16)
    # From: RFC 7518 §6.2.2, §6.3.2, §6.4: private parts and symmetric keys have no place here.
    if members.has("d") or kind == "oct":
        members.refuse("holds a secret")
    if members.has("use"):
        members.choice("use", ("sig",))
    if kind != "EC":
        return Jwk(key_id, kind, "", None, ())
    if members.has("alg"):
        members.choice("alg", ("ES256", "ES384", "ES512"))
    curve = members.text("crv", max_chars=16)
    x, y = (
        b64url_decode(members.text(name, max_chars=256), what=f"key {name}", reason=reason)
        for name in ("x", "y")
    )
    size = _COORDINATE_BYTES.get(curve)
    if size is not None and not len(x) == len(y) == size:
        members.refuse(f"the coordinates are not {size} bytes each")
    chain: tuple[str, ...] = ()
    if members.has("x5c"):
        chain = members.texts("x5c", max_items=_MAX_CERTIFICATES)
        if not chain or any(len(text) > _MAX_CERTIFICATE_CHARS for text in chain):
            members.refuse("x5c is empty or too long")
    # From: RFC 7517 §4.7: each is standard base64 of DER.
    certificates = tuple(b64decode(text, what="key x5c", reason=reason) for text in chain)
    return Jwk(key_id, kind, curve, x + y if size is not None else None, certificates)
