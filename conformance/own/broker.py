"""Candidates of stage `broker`: names and messages, and the receipt of a release."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from confide.broker.beside import secret_version
from confide.broker.info import BrokerInfo, sign_broker_info
from confide.broker.receipt import issue_release_receipt
from confide.crypto.jwe import derive_unwrapping_key
from confide.errors import Reason
from confide.wire.dsse import Envelope, pae
from confide.wire.jose import b64url_decode, b64url_encode
from confide.wire.json import jcs
from confide.wire.jwe import encode_wrapping_key
from confide.wire.kbs import runtime_claim
from confide.wire.release_receipt import ReleaseReceipt, StateStep
from conformance.own import broker_attestation, broker_jwe, broker_run, broker_state
from conformance.own.broker_case import BROKER, OTHER_BROKER, make
from conformance.own.candidate import NOW, drawn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from confide.crypto.ed25519 import Ed25519Signer
    from confide.wire.json import JsonValue
    from confide.wire.jwe import KeyCurve
    from conformance.own.candidate import Candidate

__all__ = ["candidates", "document"]

_DATASET: Final = "acme/secret/dataset"
# From: RFC 7638 §3.1: the key of its example, and the thumbprint that is given there.
_RFC_MODULUS: Final = (
    "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebW"
    "KRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQM"
    "icAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcR"
    "wr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"
)
_RFC_THUMBPRINT: Final = "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"


def document() -> dict[str, Any]:
    """Return the top of the index."""
    return {}


def _requests() -> Iterator[Candidate]:
    honest: dict[str, JsonValue] = {"version": "0.4.0", "tee": "tdx", "extra-params": {}}
    hashes: JsonValue = {"supported-hash-algorithms": ["sha1", "sha256", "sha512"]}
    for slug, changed, reason, hash_ in (
        ("plain", {}, None, "sha384"),
        ("chooses-a-hash", {"extra-params": hashes}, None, "sha512"),
        ("extra-params-empty-text", {"extra-params": ""}, None, "sha384"),
        ("of-version-0-1-1", {"version": "0.1.1"}, Reason.PROTOCOL_VERSION, ""),
        ("of-a-sample", {"tee": "sample"}, Reason.TEE_TYPE, ""),
        ("with-another-member", {"debug": True}, Reason.BROKER_FORMAT, ""),
        (
            "no-hash-we-know",
            {"extra-params": {"supported-hash-algorithms": ["sha1"]}},
            Reason.BROKER_FORMAT,
            "",
        ),
    ):
        claims = {"claims": {"tee": "tdx", "hash": hash_}} if reason is None else {}
        raw = jcs({**honest, **changed})
        yield make("request", f"request-{slug}", reason, {"request.json": raw}, **claims)


def _names() -> Iterator[Candidate]:
    parts = {"repository": "acme", "type": "secret", "tag": "dataset"}
    yield make("resource", "name", claims=parts, name=_DATASET)
    for slug, name in (
        ("of-two-parts", "acme/dataset"),
        ("that-climbs", "acme/secret/.."),
        ("in-capitals", "acme/secret/Dataset"),
        ("with-a-line-break", "acme/secret/dataset\n"),
        ("too-long", f"acme/secret/{'a' * 65}"),
    ):
        yield make("resource", f"name-{slug}", Reason.RESOURCE_UNKNOWN, name=name)


def _ec_key(curve: KeyCurve = "P-256") -> dict[str, JsonValue]:
    return encode_wrapping_key(derive_unwrapping_key(curve, drawn(f"{curve} key", 96)).public)


def _rsa_key(**changes: JsonValue) -> dict[str, JsonValue]:
    return {"kty": "RSA", "alg": "RSA-OAEP-256", "n": _RFC_MODULUS, "e": "AQAB", **changes}


def _keys() -> Iterator[Candidate]:
    nonce = drawn("nonce")
    curves: tuple[KeyCurve, ...] = ("P-256", "P-521")
    for curve in curves:
        key = _ec_key(curve)
        claim = runtime_claim(nonce=nonce, tee_pubkey=key).hex()
        said = {"nonce": nonce.hex(), "tee_pubkey": key}
        yield make("tee-pubkey", f"claim-of-{curve.lower()}", **said, claim=claim)
        other = {**said, "nonce": drawn("another nonce").hex()}
        slug = f"claim-of-another-nonce-{curve.lower()}"
        yield make("tee-pubkey", slug, Reason.CLAIM_MISMATCH, **other, claim=claim)
    known = b64url_decode(_RFC_THUMBPRINT, what="thumbprint", reason=Reason.BROKER_FORMAT)
    claims = {"thumbprint": known.hex()}
    yield make("tee-pubkey", "key-of-rfc-7638", claims=claims, tee_pubkey=_rsa_key())
    short = b64url_encode(b"\xff" * 128)
    for slug, bad in (
        ("rsa1-5", _rsa_key(alg="RSA1_5")),
        ("of-1024-bits", _rsa_key(n=short)),
        ("exponent-3", _rsa_key(e="Aw")),
        ("p-384", {**_ec_key(), "crv": "P-384"}),
        ("off-curve", {**_ec_key(), "y": _ec_key()["x"]}),
        ("short-coordinate", {**_ec_key(), "x": b64url_encode(bytes(31))}),
        ("without-alg", {name: value for name, value in _ec_key().items() if name != "alg"}),
        ("with-its-private-half", {**_ec_key(), "d": b64url_encode(bytes(32))}),
    ):
        yield make("tee-pubkey", f"key-{slug}", Reason.BROKER_FORMAT, tee_pubkey=bad)


def _versions() -> Iterator[Candidate]:
    salt, value = drawn("salt"), b"a value"
    said = {"salt": salt.hex(), "version": secret_version(salt, value).hex()}
    yield make("version", "version", **said, value=value.hex())
    yield make("version", "version-of-nothing", salt=salt.hex(), value="",
               version=secret_version(salt, b"").hex())  # fmt: skip
    other = b"another value".hex()
    yield make("version", "version-of-another", Reason.RELEASE_FORMAT, **said, value=other)
    plain = hashlib.sha256(salt + value).hexdigest()
    yield make("version", "version-without-its-label", Reason.RELEASE_FORMAT, salt=salt.hex(),
               value=value.hex(), version=plain)  # fmt: skip


def _info() -> Iterator[Candidate]:
    info = BrokerInfo(BROKER.public_key, drawn("seal"), {"acme": drawn("owners")}, simulated=True)
    body, key = info.encode(), BROKER.public_key.hex()
    claims = {
        "seal": drawn("seal").hex(),
        "repositories": {"acme": drawn("owners").hex()},
        "simulated": True,
    }
    broken = replace(info, repositories={"..": drawn("owners")}).encode()
    other = replace(info, key=OTHER_BROKER.public_key).encode()
    mine = sign_broker_info(body, BROKER)
    for slug, said, signature, reason in (
        ("", body, mine, None),
        ("-signed-by-another", body, sign_broker_info(body, OTHER_BROKER), Reason.BROKER_FORMAT),
        ("-signed-without-its-label", body, BROKER.sign(body), Reason.BROKER_FORMAT),
        ("-about-another-key", other, sign_broker_info(other, BROKER), Reason.BROKER_FORMAT),
        ("-with-a-name-that-is-none", broken, sign_broker_info(broken, BROKER),
         Reason.BROKER_FORMAT),
    ):  # fmt: skip
        members = {"claims": claims} if reason is None else {}
        yield make("broker-info", f"info{slug}", reason, {"body.json": said},
                   signature=signature.hex(), key=key, **members)  # fmt: skip


_RELEASED: Final = ReleaseReceipt(
    broker=BROKER.public_key,
    resource=_DATASET,
    version=drawn("version"),
    reason=None,
    accepts="expectation",
    against=drawn("Expectation"),
    evidence=drawn("evidence"),
    session=drawn("session"),
    tee_pubkey=drawn("thumbprint"),
    release=drawn("release"),
    jwe=drawn("jwe"),
    at=NOW,
)
_REFUSED: Final = replace(_RELEASED, reason="release-revoked", jwe=None, release=None)
_OPENED: Final = replace(
    _RELEASED,
    resource="acme/state/agent",
    version=drawn("state"),
    state=StateStep("open", 7, drawn("state")),
)


def _signed(payload: bytes, *by: Ed25519Signer) -> Envelope:
    lines = tuple((each.public_key.hex(), each.sign(pae(payload))) for each in by)
    return Envelope(payload, lines)


def _receipt(
    slug: str, envelope: Envelope, reason: Reason | None = None, **changes: str
) -> Candidate:
    asked: dict[str, Any] = {
        "key": BROKER.public_key.hex(),
        "session": drawn("session").hex(),
        "tee_pubkey": drawn("thumbprint").hex(),
        "resource": _DATASET,
        "jwe": drawn("jwe").hex(),
        **changes,
    }
    if reason is None:
        version = drawn("version" if asked["resource"] == _DATASET else "state").hex()
        asked["claims"] = {"version": version, "release": drawn("release").hex()}
    slug = f"receipt-{slug}"
    return make("release-receipt", slug, reason, {"receipt.json": envelope.encode()}, **asked)


def _receipts() -> Iterator[Candidate]:
    released = issue_release_receipt(BROKER, _RELEASED)
    yield _receipt("of-a-release", released)
    yield _receipt(
        "of-an-opening", issue_release_receipt(BROKER, _OPENED), resource="acme/state/agent"
    )
    mismatch, signature = Reason.SECRET_MISMATCH, Reason.RECEIPT_SIGNATURE
    for name in ("session", "tee_pubkey", "jwe"):
        slug = f"about-another-{name.replace('_', '-')}"
        yield _receipt(slug, released, mismatch, **{name: drawn("another").hex()})
    yield _receipt("about-another-resource", released, mismatch, resource="acme/secret/other")
    refusal = issue_release_receipt(BROKER, _REFUSED)
    yield _receipt("of-a-refusal", refusal, mismatch)
    payload = _RELEASED.payload()
    yield _receipt("of-another-broker", _signed(payload, OTHER_BROKER), signature)
    yield _receipt("signed-by-two", _signed(payload, BROKER, OTHER_BROKER), signature)
    yield _receipt("unsigned", Envelope(payload, ()), signature)
    (line,) = released.signatures
    changed = replace(_RELEASED, version=drawn("another")).payload()
    yield _receipt("changed", Envelope(changed, (line,)), signature)
    elsewhere = replace(_RELEASED, broker=OTHER_BROKER.public_key).payload()
    yield _receipt("naming-another-broker", _signed(elsewhere, BROKER), mismatch)
    form = Reason.RECEIPT_FORMAT
    half = replace(_RELEASED, release=None).payload()
    yield _receipt("by-nobodys-word", _signed(half, BROKER), form)
    answered = replace(_REFUSED, jwe=drawn("jwe")).payload()
    yield _receipt("of-a-refusal-with-an-answer", _signed(answered, BROKER), form)
    two = payload.replace(b'"name":"acme/secret/dataset"', b'"name":"acme/secret/other"')
    yield _receipt("with-another-subject", _signed(two, BROKER), form)


def candidates() -> Iterator[Candidate]:
    """Yield every candidate."""
    yield from _requests()
    yield from _names()
    yield from _keys()
    yield from _versions()
    yield from _info()
    yield from broker_jwe.candidates()
    yield from _receipts()
    yield from broker_run.candidates()
    yield from broker_attestation.candidates()
    yield from broker_state.candidates()
