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


@pytest.mark.parametrize(
    "der",
    [
        b"",
        b"garbage",
        _answer() + b"\0",
        _answer()[:-1],
        bytes(17 * 1024),
        _answer().replace(
            bytes.fromhex("0609608648016503040202"), b"\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01"
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
