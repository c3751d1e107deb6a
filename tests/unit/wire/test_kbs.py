"""Messages of the attestation protocol: read as written, everything else refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from confide.errors import FormatError, Reason
from confide.wire.json import jcs
from confide.wire.jwe import EcPoint, encode_wrapping_key
from confide.wire.kbs import (
    KbsChallenge,
    KbsError,
    KbsRequest,
    encode_token,
    parse_attestation,
    parse_challenge,
    parse_kbs_error,
    parse_node_evidence,
    parse_request,
    parse_token,
    runtime_claim,
)

KEY = encode_wrapping_key(EcPoint("P-256", bytes(range(64))))
NONCE = bytes(range(32))
BODY: dict[str, Any] = {
    "runtime-data": {"nonce": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", "tee-pubkey": KEY},
    "tee-evidence": {"primary_evidence": {"quote": "AA=="}, "additional_evidence": ""},
}


def test_each_is_read_as_it_was_written() -> None:
    assert parse_request(KbsRequest("snp", "sha512").encode()) == KbsRequest("snp", "sha512")
    challenge = KbsChallenge(NONCE, "sha256")
    assert parse_challenge(challenge.encode()) == challenge
    assert parse_token(encode_token("e30.e30.AA")) == "e30.e30.AA"
    error = KbsError("PolicyDeny", "no", "release-revoked").encode()
    assert parse_kbs_error(error) is Reason.RELEASE_REVOKED
    assert parse_kbs_error(KbsError("PolicyDeny", "no").encode()) is None
    assert parse_kbs_error(KbsError("PolicyDeny", "no", "unheard-of").encode()) is None


def test_an_attestation_keeps_what_was_bound() -> None:
    found = parse_attestation(jcs(BODY))
    assert (found.nonce, found.tee_pubkey, found.node) == (NONCE, KEY, None)
    assert not found.has_init_data
    assert parse_attestation(jcs({**BODY, "init-data": {}})).has_init_data
    assert not parse_attestation(jcs({**BODY, "init-data": None})).has_init_data


def test_the_claim_of_a_node_commits_to_nonce_and_key() -> None:
    claim = runtime_claim(nonce=NONCE, tee_pubkey=KEY)
    assert claim != runtime_claim(nonce=bytes(32), tee_pubkey=KEY)
    assert claim != runtime_claim(nonce=NONCE, tee_pubkey={**KEY, "x": KEY["y"]})


def edited(path: str, value: object) -> bytes:
    body = json.loads(json.dumps(BODY))
    *folders, name = path.split(".")
    target = body
    for folder in folders:
        target = target[folder]
    if value is None:
        del target[name]
    else:
        target[name] = value
    return json.dumps(body).encode()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("runtime-data", None),
        ("runtime-data.nonce", None),
        ("runtime-data.nonce", "AAAA"),
        ("runtime-data.nonce", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh9="),
        ("runtime-data.more", 1),
        ("runtime-data.tee-pubkey", None),
        ("runtime-data.tee-pubkey.alg", "RSA1_5"),
        ("tee-evidence", None),
        ("tee-evidence.primary_evidence", None),
        ("tee-evidence.additional_evidence", {}),
        ("tee-evidence.additional_evidence", None),
        ("more", 1),
    ],
)
def test_another_attestation_is_refused(path: str, value: object) -> None:
    with pytest.raises(FormatError) as refused:
        parse_attestation(edited(path, value))
    assert refused.value.reason is Reason.BROKER_FORMAT


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"{}",
        b'{"nonce":"AAAA","extra-params":{"selected-hash-algorithm":"sha384"}}',
        KbsChallenge(NONCE, "sha384").encode().replace(b"sha384", b"md5"),
    ],
)
def test_another_challenge_is_refused(raw: bytes) -> None:
    with pytest.raises(FormatError):
        parse_challenge(raw)


@pytest.mark.parametrize(
    "changes", [{"type": "about:blank"}, {"type": "x/1"}, {"detail": None}, {"more": 1}]
)
def test_what_is_no_refusal_is_refused(changes: dict[str, Any]) -> None:
    document = json.loads(KbsError("PolicyDeny", "no").encode())
    with pytest.raises(FormatError):
        parse_kbs_error(json.dumps({**document, **changes}).encode())


@pytest.mark.parametrize("value", [{}, {"role": "agent"}, None, []])
def test_another_nodes_evidence_is_refused(value: Any) -> None:
    with pytest.raises(FormatError):
        parse_node_evidence(value)
