"""Our own evidence files as a service among others: recomputed, compared, and not taken further."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from functools import cache
from typing import Any

import pytest
from reader_cases import NOW, capture, edited, failed, gpus, platform, quote

from confide.appraisal.binding import Statement, devices_digest
from confide.appraisal.claim_names import ClaimName
from confide.errors import FormatError
from confide.formats.node import FORMAT, SCHEME
from confide.wire.evidence import EvidenceBundle, NvidiaEndorsements, encode_evidence_file
from confide.wire.keyset import Keyset, KeysetKey
from confide.wire.tdx import parse_quote

NONCE = b"n" * 32
EXPECTATION = b'{"SIMULATED":"expectation"}'
KEYSET = Keyset(
    "model",
    bytes(32),
    NOW,
    NOW + timedelta(hours=24),
    (KeysetKey(1, "X25519", b"x" * 32), KeysetKey(2, "Ed25519", b"e" * 32)),
)


def statement(*, devices: bool) -> Statement:
    found = gpus()
    return Statement(
        "channel",
        NONCE,
        KEYSET.digest,
        hashlib.sha256(EXPECTATION).digest(),
        devices=devices_digest(found) if devices else None,
    )


@cache
def evidence_file(*, devices: bool = True) -> bytes:
    said = statement(devices=devices)
    return encode_evidence_file(
        EvidenceBundle(
            said.document(),
            KEYSET.document(),
            quote(said.report_data),
            platform().collateral(),
            b"log",
            [{"event": "confide-node"}],
            gpus() if devices else (),
            NvidiaEndorsements((), ()),
        )
    )


@pytest.mark.parametrize("devices", [True, False])
def test_the_statement_is_what_the_hardware_signed(devices: bool) -> None:
    raw = evidence_file(devices=devices)
    assert FORMAT.recognise(raw)
    evidence = FORMAT.read(capture({"evidence": raw, "expectation": EXPECTATION}, nonce=NONCE))
    attester = evidence.attesters[0]
    assert attester.tdx is not None
    assert attester.binding.scheme == SCHEME
    assert attester.binding.expected == parse_quote(attester.tdx.quote).body.report_data
    assert attester.binding.nonce == evidence.nonce == NONCE
    keys = {(key.use, key.algorithm, key.value) for key in attester.keys}
    assert keys == {("hpke", "x25519", b"x" * 32), ("signing", "ed25519", b"e" * 32)}
    assert {key.name for key in attester.keys} < attester.binding.covers
    assert ("gpu-evidence" in attester.binding.covers) == devices
    assert (attester.devices is not None) == devices
    if attester.devices is not None:
        assert attester.devices.nonce == statement(devices=True).gpu_nonce
        assert len(attester.devices.devices) == len(gpus())
    assert attester.launch is not None
    assert attester.launch.raw == EXPECTATION
    assert attester.firmware_log == b"log"
    assert not failed(evidence)


def _other_key(value: Any) -> None:
    value["evidence"]["keyset"]["keys"][0]["public_key"] = "A" * 43 + "="


def _no_devices(value: Any) -> None:
    value["evidence"]["devices"].pop()


@pytest.mark.parametrize(
    ("edit", "claim"), [(_other_key, ClaimName.KEYS), (_no_devices, ClaimName.GPU_BINDING)]
)
def test_what_was_exchanged_is_a_contradiction(edit: Any, claim: str) -> None:
    evidence = FORMAT.read(capture(edited(evidence_file(), edit)))
    assert failed(evidence) == {claim}
    names = {key.name for key in evidence.attesters[0].keys}
    assert (names <= evidence.attesters[0].binding.covers) == (claim != ClaimName.KEYS)


def test_another_expectation_is_a_contradiction() -> None:
    documents = {"evidence": evidence_file(), "expectation": EXPECTATION + b" "}
    assert failed(FORMAT.read(capture(documents))) == {ClaimName.WORKLOAD}


def test_the_only_document_may_have_any_name() -> None:
    assert FORMAT.read(capture({"saved.json": evidence_file()})).attesters[0].launch is None


@pytest.mark.parametrize(
    "document",
    [b"{}", b'{"evidence":{"type":"confide/evidence/v1"}}', b'"confide/evidence/v1"', b"{"],
)
def test_other_documents_are_not_recognised(document: bytes) -> None:
    assert not FORMAT.recognise(document)
    with pytest.raises(FormatError):
        FORMAT.read(capture(document))
