"""Targets: what a guest, a node or somebody in the path says to or for a key broker. broker.md."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from functools import cache
from typing import Any, cast

import nodes

from confide.broker.attested import Attested
from confide.broker.receipt import issue_release_receipt
from confide.broker.session import Challenges, Issued, Tokens
from confide.crypto.aead import OpenError
from confide.crypto.ed25519 import Ed25519Signer
from confide.crypto.jwe import JweSecrets, derive_unwrapping_key, seal_jwe
from confide.errors import FormatError, Reason
from confide.node.broker_audit import Kept, parse_kept
from confide.node.broker_evidence import read_presented
from confide.simulator.machine import make_platform
from confide.simulator.trustee import SimulatedPod
from confide.wire.json import jcs
from confide.wire.jwe import RsaModulus, encode_wrapping_key, parse_jwe, parse_wrapping_key
from confide.wire.kbs import (
    KbsChallenge,
    KbsError,
    KbsRequest,
    NodeEvidence,
    encode_attestation,
    encode_token,
    parse_challenge,
    parse_kbs_error,
    parse_request,
    parse_token,
    runtime_claim,
)
from confide.wire.release_receipt import ReleaseReceipt, parse_release_receipt
from fuzz.driver import Target
from fuzz.pieces import document, fixed, text

_KEY = derive_unwrapping_key("P-256", b"k" * 96)
_NONCE = b"n" * 32
_NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
_CHALLENGE = KbsChallenge(_NONCE, "sha384")
_ISSUED = Issued(_CHALLENGE, "tdx", _NOW)
_SECRETS = JweSecrets(b"c" * 32, b"i" * 12, b"e" * 96)
_SIGNER = Ed25519Signer(b"b" * 32)
_VALUE = b"a value"


def _jwe(raw: bytes) -> None:
    try:
        opened = _KEY.open(parse_jwe(raw))
    except OpenError as error:
        raise FormatError(str(error), reason=Reason.BROKER_FORMAT, clause="RFC 7516") from error
    # Whatever opens is what was sealed.
    assert opened == _VALUE


@cache
def _sealed() -> tuple[bytes, ...]:
    modulus = RsaModulus(b"\xc1" * 256)
    return tuple(seal_jwe(key, _VALUE, secrets=_SECRETS).encode() for key in (_KEY.public, modulus))


@cache
def _attestations() -> tuple[bytes, ...]:
    platform = make_platform(nodes.SEED, nodes.NOW, ())
    pubkey = encode_wrapping_key(_KEY.public)
    pod = SimulatedPod(platform=platform, init_data=_INIT_DATA, tee_pubkey=pubkey)

    async def node() -> bytes:
        made = nodes.SimulatedNode("agent")
        await made.boot()
        expectation = nodes.fitting_expectation(nodes.roots())
        claim = runtime_claim(nonce=_NONCE, tee_pubkey=pubkey)
        bundle = await made.attest("release", _NONCE, expectation.digest, claim)
        shown = NodeEvidence("agent", expectation.canonical(), b"r" * 32, bundle)
        return encode_attestation(shown, nonce=_NONCE, key=_KEY.public)

    return (pod.exchange(_NONCE)["attestation"], asyncio.run(node()))


_INIT_DATA = b'version = "0.1.0"\nalgorithm = "sha384"\n[data]\n"aa.toml" = "x"\n'


def _decisions() -> tuple[bytes, ...]:
    return (_DECISION.payload(),)


_DECISION = ReleaseReceipt(
    broker=_SIGNER.public_key,
    resource="acme/secret/key",
    version=b"v" * 32,
    reason=None,
    accepts="policy",
    against=b"a" * 32,
    evidence=b"e" * 32,
    session=b"s" * 32,
    tee_pubkey=b"t" * 32,
    release=b"r" * 32,
    jwe=b"j" * 32,
    at=_NOW,
)


def _decision(raw: bytes) -> None:
    # What is read has one spelling: the one that was read.
    assert parse_release_receipt(raw).payload() == raw


def _cookie(raw: bytes) -> None:
    assert Challenges(b"k" * 32).recognise(raw.decode("latin-1")) == _ISSUED


def _cookies() -> tuple[bytes, ...]:
    _, cookie = Challenges(b"k" * 32).issue(KbsRequest("tdx", "sha384"), nonce=_NONCE, now=_NOW)
    return (cookie.encode(),)


def _tokens() -> tuple[bytes, ...]:
    # Tokens never look at what was proven.
    session = Attested(b"s" * 32, _KEY.public, bytes(32), cast("Any", None), _NOW)
    return (Tokens(b"s" * 32).issue(session, now=_NOW).encode(),)


BROKER_TARGETS: tuple[Target, ...] = (
    Target("jwe", _jwe, lambda: _sealed()[:1], json_values=True),
    Target(
        "jwe-header",
        parse_jwe,
        _sealed,
        tokens=(b"ECDH-ES", b"RSA1_5", b"dir", b"none"),
    ),
    Target(
        "wrapping-key",
        document(parse_wrapping_key),
        lambda: (jcs(encode_wrapping_key(_KEY.public)),),
        json_values=True,
    ),
    Target(
        "kbs-request",
        parse_request,
        fixed(KbsRequest("tdx", "sha384").encode(), KbsRequest("snp", "sha256").encode()),
        json_values=True,
    ),
    Target("kbs-challenge", parse_challenge, fixed(_CHALLENGE.encode()), json_values=True),
    Target(
        "kbs-attestation",
        lambda raw: read_presented(raw, _ISSUED),
        _attestations,
        json_values=True,
    ),
    Target("kbs-token-answer", parse_token, fixed(encode_token("e30.e30.AA")), json_values=True),
    Target(
        "kbs-error",
        parse_kbs_error,
        fixed(KbsError("PolicyDeny", "no", "release-missing").encode()),
        json_values=True,
    ),
    Target("kbs-cookie", _cookie, _cookies, tokens=(b"-", b"_", b"=")),
    Target("kbs-token", text(Tokens(b"s" * 32).recognise), _tokens, tokens=(b".", b"e30")),
    Target("broker-receipt", _decision, _decisions, json_values=True),
    Target(
        "broker-decision",
        parse_kept,
        fixed(Kept(issue_release_receipt(_SIGNER, _DECISION), release=True, proof=b"p").encode()),
        json_values=True,
    ),
)
