"""Enveloped signatures: one shape, and nothing unsigned ever comes out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache

import pytest

from confide.crypto.ecdsa import Curve, derive_signing_key
from confide.crypto.errors import BadSignature
from confide.crypto.xmldsig import BadDigest, parse_tree, sign_enveloped, verify_enveloped
from confide.errors import FormatError, Reason
from confide.simulator.nvidia_pki import FOREVER, Authority, Period, authority, name

NOW = datetime(2026, 11, 22, tzinfo=UTC)
BODY = (
    b'<SoftwareIdentity xmlns="urn:x" xmlns:n="urn:n">\n'
    b' <n:A k="1"/> text <B/>\n</SoftwareIdentity>'
)


@cache
def _signer() -> Authority:
    return authority(b"xml", "signer", name(CN="TEST"), Period(NOW - timedelta(days=1), FOREVER))


@cache
def _signed() -> bytes:
    return sign_enveloped(BODY, _signer().key, (_signer().der,) * 4)


def refused(xml: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        verify_enveloped(xml)
    assert caught.value.reason is Reason.RIM_MALFORMED


def test_what_was_signed_comes_out() -> None:
    signed = verify_enveloped(_signed())
    assert signed.root.tag == "{urn:x}SoftwareIdentity"
    assert [child.tag for child in signed.root.children] == ["{urn:n}A", "{urn:x}B"]
    assert signed.root.children[0].get("k") == "1"
    assert signed.root.children[0].get("absent") is None
    assert [certificate.der for certificate in signed.certificates] == [_signer().der] * 4


def test_a_signature_without_siblings_is_verified() -> None:
    xml = sign_enveloped(b'<a xmlns="urn:x">text</a>', _signer().key, (_signer().der,) * 4)
    assert verify_enveloped(xml).root.children == ()
    with pytest.raises(BadDigest):
        verify_enveloped(xml.replace(b"text", b"next"))


def test_a_digest_of_another_size_is_refused() -> None:
    start = _signed().index(b"<ds:DigestValue>") + len(b"<ds:DigestValue>")
    refused(_signed()[:start] + b"AAAA" + _signed()[start + 64 :])


def test_signing_is_deterministic() -> None:
    assert sign_enveloped(BODY, _signer().key, (_signer().der,) * 4) == _signed()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'k="1"', b'k="2"'),
        (b" text ", b" other "),
        (b"<B/>", b"<B/><C/>"),
        (b"\n<ds:Signature", b"<ds:Signature"),
        (b"</ds:Signature>", b"</ds:Signature> "),
    ],
)
def test_an_edited_document_is_told_apart(old: bytes, new: bytes) -> None:
    assert old in _signed()
    with pytest.raises(BadDigest):
        verify_enveloped(_signed().replace(old, new, 1))


def test_an_equal_document_in_other_bytes_is_accepted() -> None:
    other = _signed().replace(b'<n:A k="1"/>', b"<n:A   k='1'></n:A>")
    assert other != _signed()
    assert verify_enveloped(other).root == verify_enveloped(_signed()).root


def test_another_key_is_a_bad_signature_and_no_bad_digest() -> None:
    key = derive_signing_key(Curve.P384, b"xml", "somebody else")
    with pytest.raises(BadSignature) as caught:
        verify_enveloped(sign_enveloped(BODY, key, (_signer().der,) * 4))
    assert not isinstance(caught.value, BadDigest)


def test_how_many_certificates_make_a_chain_is_for_the_caller_to_say() -> None:
    for count in (1, 3, 5, 8):
        xml = sign_enveloped(BODY, _signer().key, (_signer().der,) * count)
        assert len(verify_enveloped(xml).certificates) == count
    refused(sign_enveloped(BODY, _signer().key, ()))
    refused(sign_enveloped(BODY, _signer().key, (_signer().der,) * 9))


def test_the_root_has_the_name_that_was_asked_for() -> None:
    name = "{urn:x}SoftwareIdentity"
    assert verify_enveloped(_signed(), root_name=name).root.tag == name
    with pytest.raises(FormatError) as caught:
        verify_enveloped(_signed(), root_name="{urn:y}SoftwareIdentity")
    assert caught.value.reason is Reason.RIM_MALFORMED


_C14N = b"http://www.w3.org/2006/12/xml-c14n11"
_ENVELOPED = b"http://www.w3.org/2000/09/xmldsig#enveloped-signature"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (_C14N, b"http://www.w3.org/2001/10/xml-exc-c14n#"),
        (_ENVELOPED, _C14N),
        (_ENVELOPED, b"http://www.w3.org/TR/1999/REC-xslt-19991116"),
        (b"xmldsig-more#sha384", b"xmlenc#sha256"),
        (b"ecdsa-sha384", b"ecdsa-sha256"),
        (b"ecdsa-sha384", b"hmac-sha384"),
        (b'URI=""', b'URI="#a"'),
        (b'<ds:Reference URI="">', b'<ds:Reference URI="" Id="a">'),
        (b"<ds:Transforms>", b'<ds:Transforms><ds:Transform Algorithm=""/>'),
        (b"<ds:SignedInfo>", b"<ds:SignedInfo><ds:Object/>"),
        (b"</ds:KeyInfo>", b"</ds:KeyInfo><ds:Object/>"),
        (b"<ds:X509Data>", b"<ds:KeyName>a</ds:KeyName><ds:X509Data>"),
        (b"<ds:DigestValue>", b"<ds:DigestValue>AA"),
        (b"</ds:DigestValue>", b"<B/></ds:DigestValue>"),
    ],
)
def test_any_other_shape_of_signature_is_refused(old: bytes, new: bytes) -> None:
    assert old in _signed()
    refused(_signed().replace(old, new, 1))


@pytest.mark.parametrize(
    "xml",
    [
        BODY,
        b"",
        b"text",
        b"<a>",
        _signed().replace(b"<SoftwareIdentity", b"<!DOCTYPE a><SoftwareIdentity", 1),
        _signed().replace(b"<SoftwareIdentity", b"<!-- c --><SoftwareIdentity", 1),
        _signed().replace(b"<B/>", b"<!-- c --><B/>", 1),
        _signed().replace(b"<B/>", b"<?p?><B/>", 1),
        _signed().replace(b"<B/>", b'<B xml:base="urn:b"/>', 1),
        _signed().replace(b"<B/>", b"<B>&e;</B>", 1),
        _signed().replace(b"</SoftwareIdentity>", b"</SoftwareIdentity><!-- c -->", 1),
        _signed().replace(b"<B/>", b"<B/>" * 1100, 1),
        _signed().replace(b" text ", b" " * 300_000, 1),
        b'<a xmlns:ds="http://www.w3.org/2000/09/xmldsig#"><b><ds:Signature/></b></a>',
        _signed().decode().encode("utf-16"),
    ],
)
def test_documents_outside_the_profile_are_refused(xml: bytes) -> None:
    refused(xml)


def test_a_second_signature_is_refused() -> None:
    start, end = _signed().index(b"<ds:Signature"), _signed().index(b"</SoftwareIdentity>")
    signature = _signed()[start:end]
    refused(_signed().replace(signature, signature * 2, 1))
    # Wrapped: the signed content moves into a child, something else takes its place.
    inner = _signed()
    refused(b'<SoftwareIdentity xmlns="urn:x">' + inner + b"</SoftwareIdentity>")


def test_a_tree_without_signature_can_be_read_for_tests() -> None:
    assert parse_tree(BODY).tag == "{urn:x}SoftwareIdentity"


def test_the_signature_needs_a_root_with_an_end_tag() -> None:
    with pytest.raises(ValueError, match="closed by a tag"):
        sign_enveloped(b"<a/>", _signer().key, ())


def test_a_document_without_canonical_form_is_refused() -> None:
    # A relative namespace URI: well-formed, and an error of the library when it is canonicalised.
    for before in (b"<SoftwareIdentity ", b"<ds:SignedInfo"):
        assert before in _signed()
        refused(_signed().replace(before, before.rstrip() + b' xmlns:q="relative" ', 1))
