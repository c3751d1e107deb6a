"""Candidates of stage `broker`, kind `jwe`: what opens, and one fault at a time."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.asymmetric import ec

from confide.crypto.jwe import JweSecrets, seal_jwe
from confide.errors import Reason
from confide.wire.jose import b64url_decode, b64url_encode
from confide.wire.json import jcs, parse_json
from confide.wire.jwe import EcPoint, FlattenedJwe, KeyCurve
from conformance.own.broker_case import make
from conformance.own.candidate import drawn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from confide.wire.json import JsonValue
    from conformance.own.candidate import Candidate

__all__ = ["candidates"]

_VALUE: Final = b"a value that only this key opens"
_SIZES: Final[dict[KeyCurve, tuple[ec.EllipticCurve, int]]] = {
    "P-256": (ec.SECP256R1(), 32),
    "P-521": (ec.SECP521R1(), 66),
}


def _key(curve: KeyCurve, name: str = "own") -> dict[str, str]:
    """Return a private key as RFC 7517 writes it."""
    group, size = _SIZES[curve]
    # 31 bytes are below either order, and not zero.
    scalar = int.from_bytes(drawn(f"{name} {curve}", 31), "big")
    numbers = ec.derive_private_key(scalar, group).public_key().public_numbers()
    found = {"x": numbers.x, "y": numbers.y, "d": scalar}
    texts = {part: b64url_encode(value.to_bytes(size, "big")) for part, value in found.items()}
    return {"kty": "EC", "crv": curve, **texts}


def _point(curve: KeyCurve, key: dict[str, str]) -> EcPoint:
    x, y = (b64url_decode(key[part], what=part, reason=Reason.BROKER_FORMAT) for part in "xy")
    return EcPoint(curve, x + y)


def _sealed(curve: KeyCurve, value: bytes = _VALUE, *, name: str = "own") -> FlattenedJwe:
    secrets = JweSecrets(
        drawn(f"content {curve}"), drawn(f"iv {curve}", 12), drawn(f"ephemeral {curve}", 96)
    )
    return seal_jwe(_point(curve, _key(curve, name)), value, secrets=secrets)


def _case(
    slug: str, raw: bytes, reason: Reason | None = None, *, curve: KeyCurve = "P-256",
    value: bytes = _VALUE,
) -> Candidate:  # fmt: skip
    claims = {} if reason else {"claims": {"plaintext": hashlib.sha256(value).hexdigest()}}
    return make("jwe", f"jwe-{slug}", reason, {"jwe.json": raw}, key=_key(curve), **claims)


def _header(jwe: FlattenedJwe, **changes: JsonValue) -> FlattenedJwe:
    """Return `jwe` with members of its header changed, None for one that is left out."""
    raw = b64url_decode(jwe.protected, what="header", reason=Reason.BROKER_FORMAT)
    header = parse_json(raw, what="header", reason=Reason.BROKER_FORMAT)
    if not isinstance(header, dict):
        raise TypeError("a header is an object")
    kept = {name: value for name, value in {**header, **changes}.items() if value is not None}
    return replace(jwe, protected=b64url_encode(jcs(kept)))


def _flipped(raw: bytes) -> bytes:
    return raw[:-1] + bytes((raw[-1] ^ 1,))


def _headers(honest: FlattenedJwe) -> Iterator[Candidate]:
    point = honest.ephemeral
    if point is None:
        raise TypeError("sealed to a point")
    epk = point.document()
    bad: tuple[tuple[str, dict[str, JsonValue]], ...] = (
        ("rsa1-5", {"alg": "RSA1_5", "epk": None}),
        ("dir", {"alg": "dir", "epk": None}),
        ("none", {"alg": "none"}),
        ("ecdh-es-alone", {"alg": "ECDH-ES"}),
        ("a128gcm", {"enc": "A128GCM"}),
        ("zip", {"zip": "DEF"}),
        ("crit", {"crit": ["exp"], "exp": 1}),
        ("apu", {"apu": "QQ"}),
        ("kid", {"kid": "somebody"}),
        ("without-epk", {"epk": None}),
        ("rsa-with-epk", {"alg": "RSA-OAEP-256"}),
        ("epk-with-alg", {"epk": {**epk, "alg": "ECDH-ES+A256KW"}}),
        ("epk-short", {"epk": {**epk, "x": b64url_encode(point.point[:31])}}),
        ("epk-p-384", {"epk": {**epk, "crv": "P-384"}}),
    )
    for slug, changes in bad:
        yield _case(f"header-{slug}", _header(honest, **changes).encode(), Reason.BROKER_FORMAT)
    off = {**epk, "y": epk["x"]}
    yield _case("epk-off-curve", _header(honest, epk=off).encode(), Reason.SECRET_MISMATCH)
    rsa = _header(honest, alg="RSA-OAEP-256", epk=None)
    yield _case("wrapped-another-way", rsa.encode(), Reason.SECRET_MISMATCH)


def _documents(honest: FlattenedJwe) -> Iterator[Candidate]:
    raw = honest.encode()
    for slug, changed in (
        ("iv-of-16-bytes", replace(honest, iv=bytes(16)).encode()),
        ("tag-of-12-bytes", replace(honest, tag=honest.tag[:12]).encode()),
        ("unprotected-header", raw[:-1] + b',"header":{"kid":"somebody"}}'),
        ("aad", raw[:-1] + b',"aad":"QQ"}'),
        ("tag-twice", raw[:-1] + b',"tag":"AAAAAAAAAAAAAAAAAAAAAA"}'),
        ("padded-base64", raw.replace(b'","encrypted_key"', b'=","encrypted_key"')),
        ("compact", b'"a.b.c.d.e"'),
    ):
        yield _case(slug, changed, Reason.BROKER_FORMAT)


def _tampered(honest: FlattenedJwe) -> Iterator[Candidate]:
    rewritten = (
        b'{"enc":"A256GCM",'
        + b64url_decode(honest.protected, what="header", reason=Reason.BROKER_FORMAT).replace(
            b'"enc":"A256GCM",', b""
        )[1:]
    )
    for slug, changed in (
        ("tag", replace(honest, tag=_flipped(honest.tag))),
        ("ciphertext", replace(honest, ciphertext=_flipped(honest.ciphertext))),
        ("iv", replace(honest, iv=_flipped(honest.iv))),
        ("wrapped-key", replace(honest, encrypted_key=_flipped(honest.encrypted_key))),
        ("short-wrapped-key", replace(honest, encrypted_key=honest.encrypted_key[:24])),
        # The same members in another order are other authenticated bytes.
        ("header-order", replace(honest, protected=b64url_encode(rewritten))),
    ):
        yield _case(f"changed-{slug}", changed.encode(), Reason.SECRET_MISMATCH)


def candidates() -> Iterator[Candidate]:
    """Yield every candidate."""
    honest = _sealed("P-256")
    yield _case("to-p-256", honest.encode())
    yield _case("to-p-521", _sealed("P-521").encode(), curve="P-521")
    yield _case("of-nothing", _sealed("P-256", b"").encode(), value=b"")
    yield from _headers(honest)
    yield from _documents(honest)
    yield from _tampered(honest)
    mismatch = Reason.SECRET_MISMATCH
    yield _case("to-another-key", _sealed("P-256", name="another").encode(), mismatch)
    yield _case("of-another-curve", _sealed("P-521").encode(), mismatch)
