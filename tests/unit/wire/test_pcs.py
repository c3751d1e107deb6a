"""Answers of Intel's service, cut as they are: docs/protocols/fetching.md 10."""

from __future__ import annotations

import base64
from urllib.parse import quote

import pytest

from confide.errors import FormatError, Reason
from confide.wire.pcs import issuer_chain, revocation_list, signed_document

_DOCUMENT = b'{"id":"TDX", "text":"}{\\"\\\\", "levels":[{"a":{}},{}],\t"u":"\xc3\xa9"}'
_SIGNATURE = bytes(range(64))
_HEX = _SIGNATURE.hex().encode()
_PEM = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


def _wrapped(document: bytes = _DOCUMENT, signature: bytes = _HEX) -> bytes:
    return b'{"tcbInfo":%b,"signature":"%b"}' % (document, signature)


@pytest.mark.parametrize(
    "raw",
    [
        _wrapped(),
        b'\n{ "tcbInfo" :\t%b ,\r\n "signature" : "%b" } \n' % (_DOCUMENT, _HEX.upper()),
        b'{"signature":"%b", "tcbInfo":%b}' % (_HEX, _DOCUMENT),
    ],
    ids=["as Intel writes it", "with space", "the other way round"],
)
def test_the_document_is_cut_out_byte_for_byte(raw: bytes) -> None:
    assert signed_document(raw, "tcbInfo") == (_DOCUMENT, _SIGNATURE)


@pytest.mark.parametrize("document", [b"{}", b'{"a":"{"}', b'{"a":"\\\\"}', b'{"a":"\\u007b\\""}'])
def test_brackets_in_strings_are_text(document: bytes) -> None:
    assert signed_document(_wrapped(document), "tcbInfo") == (document, _SIGNATURE)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\xff",
        _wrapped()[:-1],
        _wrapped() + b"x",
        b'{"tcbInfo":%b}' % _DOCUMENT,
        b'{"enclaveIdentity":%b,"signature":"%b"}' % (_DOCUMENT, _HEX),
        b'{"tcbInfo":%b,"signature":"%b","more":1}' % (_DOCUMENT, _HEX),
        b'{"tcbInfo":%b,"tcbInfo":{},"signature":"%b"}' % (_DOCUMENT, _HEX),
        b'{"tcb\\u0049nfo":%b,"signature":"%b"}' % (_DOCUMENT, _HEX),
        _wrapped(b'{"a":1,"a":2}'),
        _wrapped(b'"{}"'),
        _wrapped(b"[{}]"),
        _wrapped(b"7"),
        _wrapped(signature=_HEX[:-2]),
        _wrapped(signature=_HEX + b"00"),
        _wrapped(signature=b"g" * 128),
        b'{"tcbInfo":{},"signature":7}',
        _wrapped(b'{"a":' * 20 + b"1" + b"}" * 20),
        _wrapped(b'{"a":"%b"}' % (b"x" * (512 * 1024))),
    ],
)
def test_everything_else_is_refused(raw: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        signed_document(raw, "tcbInfo")
    assert caught.value.reason is Reason.COLLATERAL_FORMAT


def test_an_issuer_chain_is_url_decoded() -> None:
    assert issuer_chain(quote(_PEM.decode(), safe="")) == _PEM
    # Base64 may hold a plus sign: it is not a space here.
    assert b"+" in issuer_chain(_PEM.decode().replace("AAAA", "A+A=").replace("\n", "%0A"))


@pytest.mark.parametrize(
    "header", ["", "AAAA", quote("-----BEGIN CERTIFICATE-----\xe9"), "\xe9", "A" * 300_000]
)
def test_a_header_that_holds_no_chain_is_refused(header: str) -> None:
    with pytest.raises(FormatError):
        issuer_chain(header)


_DER = b"\x30\x03\x02\x01\x07"


@pytest.mark.parametrize(
    "body",
    [
        _DER,
        _DER.hex().encode(),
        _DER.hex().upper().encode() + b"\n",
        b'"%b"' % _DER.hex().encode(),
        b"-----BEGIN X509 CRL-----\r\n%b\r\n-----END X509 CRL-----\n" % base64.b64encode(_DER),
    ],
    ids=["DER", "hex", "HEX", "JSON", "PEM"],
)
def test_a_list_comes_as_der_hex_or_pem(body: bytes) -> None:
    assert revocation_list(body) == _DER


def test_what_is_none_of_these_is_left_to_the_parser_of_lists() -> None:
    for body in (b"", b"abc", b"zz", b"\x30"):
        assert revocation_list(body) == body


def test_pem_that_is_not_base64_is_refused() -> None:
    with pytest.raises(FormatError):
        revocation_list(b"-----BEGIN X509 CRL-----\nAAA\n-----END X509 CRL-----")
