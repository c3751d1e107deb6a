"""Saved bundles: docs/protocols/bundle.md."""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from confide.errors import FormatError, Reason
from confide.wire.bundle import decode_bundle, encode_bundle, looks_like_bundle
from confide.wire.endorsements import Endorsements, SigstoreBundle, SnpEndorsement
from confide.wire.evidence import NvidiaEndorsements, OcspAnswer, RimDocument
from confide.wire.service import Capture

_CAPTURE = Capture(
    documents={"report": b'{ "not":  "canonical"}\r\n', "keys": b"\x00\xff binary"},
    format="near",
    nonce=bytes(range(32)),
    url="https://service.example/v1?x=1",
    tls_spki_sha256=bytes(32),
    at=datetime(2026, 11, 22, 12, 0, 5, tzinfo=UTC),
)
_ENDORSEMENTS = Endorsements(
    tdx=(b"{second}", b"{first}"),
    snp=(
        SnpEndorsement(leaf_der=b"leaf", chain_pem=b"chain", crl_der=b"crl"),
        SnpEndorsement(leaf_der=b"leaf", chain_pem=b"chain", crl_der=None),
    ),
    nvidia=NvidiaEndorsements(
        (RimDocument("NV_B", b"<b/>"), RimDocument("NV_A", b"<a/>")),
        (OcspAnswer("ab" * 32, b"good"), OcspAnswer("00" * 32, b"good")),
    ),
    nras_keys=(b'{"keys":[]}',),
    sigstore=(SigstoreBundle(sha256=bytes(32), bundle=b"{}"),),
)


def _document() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(encode_bundle(_CAPTURE, _ENDORSEMENTS))
    return document


def _refused(document: object) -> Reason:
    raw = document if isinstance(document, bytes) else json.dumps(document).encode()
    with pytest.raises(FormatError) as caught:
        decode_bundle(raw)
    return caught.value.reason


def test_everything_comes_back_byte_for_byte_and_in_order() -> None:
    assert decode_bundle(encode_bundle(_CAPTURE, _ENDORSEMENTS)) == (_CAPTURE, _ENDORSEMENTS)


def test_the_first_document_stays_the_first() -> None:
    capture = Capture(documents={"z": b"1", "a": b"2", "m": b"3"})
    found, _ = decode_bundle(encode_bundle(capture, Endorsements()))
    assert list(found.documents) == ["z", "a", "m"]


def test_what_is_absent_stays_absent() -> None:
    bare = Capture(documents={"quote": b"q"})
    assert decode_bundle(encode_bundle(bare, Endorsements())) == (bare, Endorsements())


def test_equal_values_give_equal_bytes_and_read_back_to_the_same_bytes() -> None:
    raw = encode_bundle(_CAPTURE, _ENDORSEMENTS)
    assert raw == encode_bundle(*decode_bundle(raw))


def test_a_blob_is_stored_once() -> None:
    digest = hashlib.sha256(b"good").hexdigest()
    document = _document()
    assert [each["der"] for each in document["endorsements"]["nvidia"]["ocsp"]] == [digest] * 2
    assert document["blobs"][digest] == base64.b64encode(b"good").decode()


def test_looks_like_bundle_is_true_of_bundles_only() -> None:
    assert looks_like_bundle(encode_bundle(_CAPTURE, _ENDORSEMENTS))
    assert not looks_like_bundle(b'{"type":"confide/evidence/v1"}')


def test_a_blob_that_is_not_what_its_name_says_is_refused() -> None:
    document = _document()
    name = document["capture"]["documents"][0]["raw"]
    document["blobs"][name] = base64.b64encode(b"another report").decode()
    assert _refused(document) is Reason.DIGEST_MISMATCH


def _drop(path: str) -> Any:
    *parents, last = path.split("/")

    def edit(document: dict[str, Any]) -> None:
        for name in parents:
            document = document[name]
        del document[last]

    return edit


def _put(path: str, value: object) -> Any:
    *parents, last = path.split("/")

    def edit(document: dict[str, Any]) -> None:
        for name in parents:
            document = document[name]
        document[last] = value

    return edit


_MEMBERS = (
    *("type", "capture", "endorsements", "blobs"),
    *(f"capture/{n}" for n in ("format", "url", "nonce", "tls_spki_sha256", "at", "documents")),
    *(f"endorsements/{n}" for n in ("tdx", "snp", "nvidia", "nras_keys", "sigstore")),
    *("endorsements/nvidia/rims", "endorsements/nvidia/ocsp"),
)


@pytest.mark.parametrize("path", _MEMBERS)
def test_absent_is_refused(path: str) -> None:
    document = _document()
    _drop(path)(document)
    assert _refused(document) is Reason.BUNDLE_FORMAT


@pytest.mark.parametrize("path", _MEMBERS)
@pytest.mark.parametrize("value", [7, "x", [], {}, [7], {"x": 7}, True])
def test_another_type_is_refused(path: str, value: object) -> None:
    document = _document()
    _put(path, value)(document)
    allowed = {("capture/format", "x"), ("capture/url", "x")}
    if isinstance(value, str) and (path, value) in allowed:
        decode_bundle(json.dumps(document).encode())
        return
    assert _refused(document) is Reason.BUNDLE_FORMAT


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("type", "confide/bundle/v2"),
        ("extra", None),
        ("capture/extra", None),
        ("endorsements/extra", []),
        ("endorsements/nvidia/extra", []),
        ("capture/nonce", "AB"),
        ("capture/nonce", "abc"),
        ("capture/tls_spki_sha256", "ab" * 31),
        ("capture/at", "2026-11-22T12:00:05+01:00"),
        ("capture/at", "2026-11-22 12:00:05"),
        ("capture/documents", []),
        ("capture/documents", [{"name": "report", "raw": "00" * 32}]),
        ("capture/documents", [{"name": "../report", "raw": hashlib.sha256(b"crl").hexdigest()}]),
        ("capture/documents", [{"name": "Report", "raw": hashlib.sha256(b"crl").hexdigest()}]),
        ("capture/documents", [{"name": "report", "raw": hashlib.sha256(b"crl").hexdigest()}] * 2),
        ("endorsements/tdx", ["00" * 32]),
        ("endorsements/nvidia/ocsp", [{"certificate": "AB" * 32, "der": "x"}]),
    ],
)
def test_a_value_outside_the_format_is_refused(path: str, value: object) -> None:
    document = _document()
    _put(path, value)(document)
    assert _refused(document) is Reason.BUNDLE_FORMAT


def test_a_blob_that_nothing_names_is_refused() -> None:
    document = _document()
    document["blobs"][hashlib.sha256(b"more").hexdigest()] = base64.b64encode(b"more").decode()
    assert _refused(document) is Reason.BUNDLE_FORMAT


@pytest.mark.parametrize(("group", "label"), [("rims", "id"), ("ocsp", "certificate")])
def test_one_label_twice_is_refused(group: str, label: str) -> None:
    document = _document()
    entries = document["endorsements"]["nvidia"][group]
    entries[1][label] = entries[0][label]
    assert _refused(document) is Reason.BUNDLE_FORMAT


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff\xfe",
        b"null",
        b"[" * 100_000,
        b'{"type":"confide/bundle/v1","type":"confide/bundle/v1"}',
        b" " * (16 * 1024 * 1024 + 1),
    ],
    ids=["empty", "not UTF-8", "null", "deep", "twice", "large"],
)
def test_garbage_is_refused(raw: bytes) -> None:
    assert _refused(raw) is Reason.BUNDLE_FORMAT


@pytest.mark.parametrize("name", ["", "A", "a/b", ".hidden", "a" * 65])
def test_a_name_that_could_not_be_read_back_is_not_written(name: str) -> None:
    with pytest.raises(ValueError, match="not representable"):
        encode_bundle(Capture(documents={name: b""}), Endorsements())


def test_more_than_the_limit_is_not_written() -> None:
    large = Capture(documents={"report": bytes(13 * 1024 * 1024)})
    with pytest.raises(ValueError, match="not representable"):
        encode_bundle(large, Endorsements())
