"""OCSP answers: read strictly, attributed exactly, signed by whom the caller says."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache

import pytest

from confide.crypto.errors import BadSignature
from confide.crypto.ocsp import (
    OcspStatus,
    cert_id,
    extended_key_usages,
    is_about,
    is_responder,
    parse_ocsp,
    verify_ocsp_signature,
)
from confide.crypto.x509 import Certificate, parse_certificate_der
from confide.errors import FormatError, Reason
from confide.simulator.nvidia_pki import (
    FOREVER,
    Authority,
    Period,
    authority,
    name,
    ocsp_response,
    ocsp_unavailable,
    responder,
)
from confide.wire.der import encode_tlv

NOW = datetime(2026, 11, 22, 8, 0, tzinfo=UTC)
PERIOD = Period(NOW - timedelta(days=1), FOREVER)


@cache
def _root() -> Authority:
    return authority(b"ocsp", "root", name(CN="TEST root"), PERIOD)


@cache
def _child() -> Authority:
    return authority(b"ocsp", "child", name(CN="TEST child"), PERIOD, parent=_root())


def _parsed(of: Authority) -> Certificate:
    return parse_certificate_der(of.der, what="test", reason=Reason.CHAIN_MALFORMED)


def _answer(status: OcspStatus = OcspStatus.GOOD, signer: Authority | None = None) -> bytes:
    return ocsp_response(
        serial=_child().serial,
        issuer=_root(),
        signer=signer or responder(b"ocsp", _root(), NOW),
        this_update=NOW,
        status=status,
    )


@pytest.mark.parametrize("status", list(OcspStatus))
def test_every_status_is_read(status: OcspStatus) -> None:
    response = parse_ocsp(_answer(status))
    assert response.status is status
    assert response.this_update == NOW
    assert response.next_update == NOW + timedelta(hours=24)
    assert response.nonce is None


def test_it_is_about_one_certificate_of_one_issuer() -> None:
    response = parse_ocsp(_answer())
    assert response.cert_id == cert_id(_parsed(_child()), _parsed(_root()))
    assert response.cert_id != cert_id(_parsed(_root()), _parsed(_root()))
    assert response.cert_id != cert_id(_parsed(_child()), _parsed(_child()))


def test_the_responder_is_named_by_its_key() -> None:
    response = parse_ocsp(_answer())
    (certificate,) = response.certificates
    assert is_responder(response, certificate)
    assert not is_responder(response, _parsed(_root()))
    assert extended_key_usages(certificate) == {"1.3.6.1.5.5.7.3.9"}
    assert extended_key_usages(_parsed(_root())) == frozenset()


def test_the_issuer_itself_may_sign() -> None:
    response = parse_ocsp(_answer(signer=_root()))
    assert is_responder(response, _parsed(_root()))
    verify_ocsp_signature(response, _parsed(_root()).public_key)


def test_another_key_did_not_sign() -> None:
    response = parse_ocsp(_answer())
    verify_ocsp_signature(response, response.certificates[0].public_key)
    with pytest.raises(BadSignature):
        verify_ocsp_signature(response, _parsed(_child()).public_key)


_SHA384_ID = bytes.fromhex("0609608648016503040202")


def _with_id(oid: bytes, algorithm: str) -> bytes:
    """Our answer with a certificate id of another digest; the signature does not matter here."""
    der, wanted = _answer(), cert_id(_parsed(_child()), _parsed(_root()), algorithm)
    own = cert_id(_parsed(_child()), _parsed(_root()))
    for old, new in (
        (_SHA384_ID, oid),
        (own.issuer_name_hash, wanted.issuer_name_hash),
        (own.issuer_key_hash, wanted.issuer_key_hash),
    ):
        der = replace_in_der(der, old, new)
    return der


@pytest.mark.parametrize(
    ("oid", "algorithm"),
    [("2b0e03021a", "sha1"), ("608648016503040201", "sha256"), ("608648016503040202", "sha384")],
)
def test_the_digest_of_a_certificate_id_is_the_responders_choice(oid: str, algorithm: str) -> None:
    raw = bytes.fromhex(oid)
    response = parse_ocsp(_with_id(bytes([6, len(raw)]) + raw, algorithm))
    assert response.cert_id.algorithm == algorithm
    assert is_about(response, _parsed(_child()), _parsed(_root()))
    assert not is_about(response, _parsed(_root()), _parsed(_root()))
    assert not is_about(response, _parsed(_child()), _parsed(_child()))


def replace_in_der(der: bytes, old: bytes, new: bytes) -> bytes:
    """Replace the one `old` in `der` and write every length around it anew."""
    if der == old:
        return new
    if old not in der or len(der) < 2:
        return der
    out, at = b"", 0
    while at < len(der):
        tag, size, head = der[at], der[at + 1], 2
        if size & 0x80:
            head += size & 0x7F
            size = int.from_bytes(der[at + 2 : at + head], "big")
        value = der[at + head : at + head + size]
        whole = der[at : at + head + size]
        if whole == old:
            out += new
        elif value == old:
            out += encode_tlv(tag, new)
        elif old in value and (tag & 0x20 or tag == 0x04):
            out += encode_tlv(tag, replace_in_der(value, old, new))
        else:
            out += whole
        at += head + size
    return out


@pytest.mark.parametrize(
    "der",
    [
        b"",
        b"garbage",
        _answer() + b"\0",
        _answer()[:-1],
        bytes(17 * 1024),
        _answer().replace(
            bytes.fromhex("0609608648016503040202"), b"\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x03"
        ),
        _answer().replace(bytes.fromhex("2a8648ce3d040303"), bytes.fromhex("2a8648ce3d040302")),
    ],
)
def test_everything_else_is_malformed(der: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        parse_ocsp(der)
    assert caught.value.reason is Reason.OCSP_MALFORMED


def test_no_answer_is_unavailable_and_not_malformed() -> None:
    with pytest.raises(FormatError) as caught:
        parse_ocsp(ocsp_unavailable())
    assert caught.value.reason is Reason.OCSP_UNAVAILABLE


def test_a_responder_name_that_cannot_be_read_is_malformed() -> None:
    # The library reads names when they are asked for: this one must not wait until then.
    by_key = _answer()
    start = by_key.index(b"\xa2\x16\x04\x14")
    name_of_20_bytes = bytes.fromhex("3112301006035504030c09") + b"\xff" * 9
    by_name = by_key[:start] + b"\xa1\x16\x30\x14" + name_of_20_bytes + by_key[start + 24 :]
    readable = by_name.replace(b"\xff" * 9, b"responder")
    assert not is_responder(parse_ocsp(readable), _parsed(_root()))
    with pytest.raises(FormatError) as caught:
        parse_ocsp(by_name)
    assert caught.value.reason is Reason.OCSP_MALFORMED


def test_a_signature_is_whole_octets() -> None:
    # Only where the bits in question are zero does the library let their number pass.
    for second in range(64):
        der = ocsp_response(
            serial=_child().serial,
            issuer=_root(),
            signer=responder(b"ocsp", _root(), NOW),
            this_update=NOW + timedelta(seconds=second),
        )
        signature = parse_ocsp(der).handle.signature
        if signature[-1] % 2 == 0:
            break
    at = der.index(signature) - 1
    assert der[at] == 0
    with pytest.raises(FormatError) as caught:
        parse_ocsp(der[:at] + b"\1" + der[at + 1 :])
    assert caught.value.reason is Reason.OCSP_MALFORMED
