"""Evidence and envelopes on the wire: what is absent, foreign or ambiguous is refused."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest

from confide.errors import FormatError, Reason
from confide.wire.dsse import Envelope, pae, parse_envelope, parse_statement_payload
from confide.wire.evidence import (
    EvidenceBundle,
    GpuEvidence,
    NvidiaEndorsements,
    OcspAnswer,
    RimDocument,
    decode_evidence,
    encode_evidence_file,
)
from confide.wire.json import jcs

BUNDLE = EvidenceBundle(
    statement={"a": 1},
    keyset={"b": 2},
    quote=b"quote",
    collateral=b"collateral",
    firmware_log=b"log",
    runtime_log=[],
    devices=(GpuEvidence(b"report", b"chain"), GpuEvidence(b"report 2", b"chain")),
    endorsements=NvidiaEndorsements(
        (RimDocument("RIM", b"<xml/>"),), (OcspAnswer("00" * 32, b"answer"),)
    ),
)


def document() -> Any:
    return json.loads(encode_evidence_file(BUNDLE))


def refuse(value: Any) -> Reason:
    with pytest.raises(FormatError) as error:
        decode_evidence(jcs(value))
    return error.value.reason


def test_it_reads_back() -> None:
    assert decode_evidence(encode_evidence_file(BUNDLE)) == BUNDLE


def test_a_switch_travels_as_one_and_a_gpu_as_before() -> None:
    switch = replace(BUNDLE.devices[1], kind="switch")
    mixed = replace(BUNDLE, devices=(BUNDLE.devices[0], switch))
    assert decode_evidence(encode_evidence_file(mixed)) == mixed
    devices = json.loads(encode_evidence_file(mixed))["evidence"]["devices"]
    assert [set(device) for device in devices] == [
        {"report", "chain"},
        {"report", "chain", "kind"},
    ]


@pytest.mark.parametrize("kind", ["gpu", "Switch", "", None, 1])
def test_a_device_has_one_spelling_of_what_it_is(kind: object) -> None:
    value = document()
    value["evidence"]["devices"][0]["kind"] = kind
    assert refuse(value) is Reason.EVIDENCE_MISSING


def test_what_is_shared_travels_once() -> None:
    assert len(document()["blobs"]) == 5


def test_its_digest_covers_blobs_by_name() -> None:
    assert BUNDLE.digest == hashlib.sha256(jcs(document()["evidence"])).digest()


PLACES = [
    *((name,) for name in document()["evidence"]),
    *(("tdx", name) for name in document()["evidence"]["tdx"]),
    *(("endorsements", name) for name in ("rims", "ocsp")),
    ("devices", 0, "report"),
    ("devices", 1, "chain"),
]


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_no_part_may_be_absent_or_joined_by_another(place: tuple[Any, ...]) -> None:
    value = document()
    holder = value["evidence"]
    for step in place[:-1]:
        holder = holder[step]
    kept = holder.pop(place[-1])
    assert refuse(value) is Reason.EVIDENCE_MISSING
    holder[place[-1]] = kept
    if place[0] != "endorsements" or len(place) == 1:
        holder["extra"] = 1
        assert refuse(value) is Reason.EVIDENCE_MISSING


@pytest.mark.parametrize("name", sorted(document()["blobs"]))
def test_every_blob_is_needed_and_is_what_its_name_says(name: str) -> None:
    value = document()
    kept = value["blobs"].pop(name)
    assert refuse(value) is Reason.EVIDENCE_MISSING
    value["blobs"][name] = "b3RoZXI="
    assert refuse(value) is Reason.DIGEST_MISMATCH
    value["blobs"][name] = kept + "\n"
    assert refuse(value) is Reason.EVIDENCE_MISSING
    value["blobs"][name] = None
    assert refuse(value) is Reason.EVIDENCE_MISSING


@pytest.mark.parametrize(
    "edit",
    [
        lambda v: v["evidence"].update(type="confide/evidence/v2"),
        lambda v: v["evidence"].update(devices={}),
        lambda v: v["evidence"].update(devices=v["evidence"]["devices"] * 9),
        lambda v: v["evidence"]["endorsements"].update(rims=[]),
        lambda v: v["evidence"]["endorsements"].update(rims={"RIM": None}),
        lambda v: v["evidence"]["endorsements"].update(ocsp={"x": "y"}),
        lambda v: v["evidence"]["tdx"].update(quote="QR=="),
        lambda v: v.update(blobs=[]),
        lambda v: v.update(blobs={str(n): "" for n in range(513)}),
        lambda v: v.update(note=""),
    ],
)
def test_a_document_that_is_no_evidence_is_refused(edit: Any) -> None:
    value = document()
    edit(value)
    assert refuse(value) is Reason.EVIDENCE_MISSING


# Envelopes

STATEMENT = {
    "_type": "https://in-toto.io/Statement/v1",
    "predicate": {"a": 1},
    "predicateType": "confide:test/v1",
    "subject": [{"digest": {"sha256": "00" * 32}, "name": "x"}],
}


def test_the_pre_authentication_encoding_is_that_of_dsse() -> None:
    # From: DSSE protocol v1.0, "PAE".
    assert pae(b"hello world") == (b"DSSEv1 28 application/vnd.in-toto+json 11 hello world")


def test_an_envelope_reads_back() -> None:
    envelope = Envelope(b"payload", (("1", b"a"), ("2", b"b")))
    assert parse_envelope(envelope.document()) == envelope
    assert envelope.digest == hashlib.sha256(b"payload").digest()


@pytest.mark.parametrize(
    "edit",
    [
        {"payloadType": "application/json"},
        {"payload": "QR=="},
        {"signatures": {}},
        {"signatures": [{"keyid": "1"}]},
        {"signatures": [{"keyid": "1", "sig": "", "cert": ""}]},
        {"signatures": [{"keyid": "1", "sig": ""}] * 17},
        {"extra": 1},
    ],
)
def test_what_is_no_envelope_is_refused(edit: dict[str, Any]) -> None:
    with pytest.raises(FormatError) as error:
        parse_envelope({**Envelope(b"", ()).document(), **edit})
    assert error.value.reason is Reason.RECEIPT_FORMAT


def read(value: Any, encode: Any = jcs) -> Any:
    return parse_statement_payload(encode(value), predicate_type="confide:test/v1")


def test_a_statement_payload_reads_back() -> None:
    subjects, predicate = read(STATEMENT)
    assert subjects == (("x", bytes(32)),)
    assert predicate.integer("a") == 1


@pytest.mark.parametrize(
    "edit",
    [
        {"_type": "https://in-toto.io/Statement/v0.1"},
        {"predicateType": "confide:inference/v1"},
        {"predicate": []},
        {"subject": {}},
        {"subject": [{"name": "x"}]},
        {"subject": [{"name": "x", "digest": {"sha256": "00" * 32, "md5": ""}}]},
        {"subject": [{"name": "x", "digest": {"sha256": "00" * 31}}]},
        {"extra": 1},
    ],
)
def test_what_is_no_statement_payload_is_refused(edit: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        read({**STATEMENT, **edit})


def test_a_payload_has_one_spelling() -> None:
    with pytest.raises(FormatError, match="canonical"):
        read(STATEMENT, lambda value: json.dumps(value).encode())
