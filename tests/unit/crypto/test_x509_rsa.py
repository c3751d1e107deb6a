"""RSA-PSS certificates as AMD issues them: serial number 0, one algorithm, one key size."""

from __future__ import annotations

import warnings
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import NameOID

from confide.crypto.errors import BadSignature
from confide.crypto.rsa import RsaSigningKey, verify_pss
from confide.crypto.x509 import parse_certificate_der, parse_crl_der, split_pem_chain
from confide.crypto.x509_rsa import (
    parse_leaf_der,
    parse_rsa_certificate_der,
    verify_crl_pss,
    verify_issued_by_pss,
)
from confide.errors import FormatError, Reason
from confide.simulator.snp import SimulatedSnpMachine
from confide.simulator.snp_keys import simulated_rsa_key
from confide.trust.amd import AMD_INTERMEDIATES, AMD_ROOTS

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime(2026, 11, 22, tzinfo=UTC)
REASON = Reason.CHAIN
MACHINE = SimulatedSnpMachine(b"crypto", NOW)
ASK_DER, ARK_DER = split_pem_chain(
    MACHINE.chain_pem, max_certificates=2, what="test", reason=REASON
)
ARK = parse_rsa_certificate_der(ARK_DER, what="ARK", reason=REASON)
ASK = parse_rsa_certificate_der(ASK_DER, what="ASK", reason=REASON)
LEAF = parse_leaf_der(MACHINE.leaf_der, what="leaf", reason=REASON)


def test_a_chain_of_each_kind_verifies() -> None:
    verify_issued_by_pss(ARK, ARK)
    verify_issued_by_pss(ASK, ARK)
    verify_issued_by_pss(LEAF, ASK)


def test_genuine_intermediates_stand_under_the_genuine_roots() -> None:
    roots = {anchor.product: anchor.der for anchor in AMD_ROOTS.anchors}
    for (product, kind), der in AMD_INTERMEDIATES.items():
        root = parse_rsa_certificate_der(roots[product], what="ARK", reason=REASON)
        found = parse_rsa_certificate_der(der, what="ASK", reason=REASON)
        verify_issued_by_pss(root, root)
        verify_issued_by_pss(found, root)
        assert found.subject == AMD_ROOTS.authority_name(product, kind)
        assert root.subject == AMD_ROOTS.root_name(product)


def test_the_library_still_warns_about_serial_number_zero() -> None:
    """The day this fails the library refuses AMD's leafs; `parse_leaf_der` goes on."""
    with pytest.warns(CryptographyDeprecationWarning, match="serial number"):
        x509.load_der_x509_certificate(MACHINE.leaf_der)


def test_serial_number_zero_is_read_without_a_warning(vectors: Path) -> None:
    genuine = (vectors / "snp" / "leaf-milan-a.der").read_bytes()
    for der in (MACHINE.leaf_der, genuine):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            leaf = parse_leaf_der(der, what="leaf", reason=REASON)
        assert not seen
        assert leaf.serial == 0
        assert leaf.der == der


def test_serial_number_zero_stays_refused_elsewhere() -> None:
    with pytest.raises(FormatError):
        parse_certificate_der(MACHINE.leaf_der, what="leaf", reason=REASON)


def _serial(der: bytes, encoded: bytes) -> bytes:
    assert der.count(b"\xa0\x03\x02\x01\x02\x02\x01\x00") == 1
    return der.replace(
        b"\xa0\x03\x02\x01\x02\x02\x01\x00", b"\xa0\x03\x02\x01\x02\x02\x01" + encoded
    )


@pytest.mark.parametrize("encoded", [b"\xff", b"\x80"])
def test_a_negative_serial_number_is_refused_without_a_warning(encoded: bytes) -> None:
    with pytest.raises(FormatError) as refused:
        parse_leaf_der(_serial(MACHINE.leaf_der, encoded), what="leaf", reason=REASON)
    assert refused.value.reason is REASON


def test_another_serial_number_is_another_certificate() -> None:
    other = parse_leaf_der(_serial(MACHINE.leaf_der, b"\1"), what="leaf", reason=REASON)
    assert other.serial == 1
    with pytest.raises(BadSignature):
        verify_issued_by_pss(other, ASK)


@pytest.mark.parametrize("size", [0, 1, 5, 40, 200, -1])
def test_a_cut_leaf_is_refused(size: int) -> None:
    with pytest.raises(FormatError):
        parse_leaf_der(MACHINE.leaf_der[:size], what="leaf", reason=REASON)


@pytest.mark.parametrize("parse", [parse_leaf_der, parse_rsa_certificate_der])
def test_bytes_behind_a_certificate_are_refused(parse: object) -> None:
    assert callable(parse)
    der = MACHINE.leaf_der if parse is parse_leaf_der else ARK_DER
    with pytest.raises(FormatError):
        parse(der + b"\0", what="test", reason=REASON)


def test_keys_of_the_other_kind_are_refused() -> None:
    with pytest.raises(FormatError):
        parse_leaf_der(ARK_DER, what="leaf", reason=REASON)
    with pytest.raises(FormatError):
        parse_certificate_der(ARK_DER, what="ARK", reason=REASON)


def _issue(key: rsa.RSAPrivateKey, pad: padding.AsymmetricPadding | None, digest: object) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test")])
    assert isinstance(digest, hashes.HashAlgorithm)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + timedelta(days=1))
    )
    signed = builder.sign(key, digest, rsa_padding=pad)  # type: ignore[arg-type]
    return signed.public_bytes(serialization.Encoding.DER)


def _private() -> rsa.RSAPrivateKey:
    key = simulated_rsa_key("root")
    d = pow(65537, -1, (key.p - 1) * (key.q - 1))
    return rsa.RSAPrivateNumbers(
        p=key.p,
        q=key.q,
        d=d,
        dmp1=d % (key.p - 1),
        dmq1=d % (key.q - 1),
        iqmp=pow(key.q, -1, key.p),
        public_numbers=key.public.handle.public_numbers(),
    ).private_key()


def _pss(digest: hashes.HashAlgorithm, salt: int) -> padding.PSS:
    return padding.PSS(mgf=padding.MGF1(digest), salt_length=salt)


def test_a_certificate_of_the_library_verifies() -> None:
    der = _issue(_private(), _pss(hashes.SHA384(), 48), hashes.SHA384())
    found = parse_rsa_certificate_der(der, what="test", reason=REASON)
    verify_issued_by_pss(found, found)


@pytest.mark.parametrize(
    ("pad", "digest"),
    [
        (None, hashes.SHA384()),
        (_pss(hashes.SHA256(), 32), hashes.SHA256()),
        (_pss(hashes.SHA384(), 32), hashes.SHA384()),
        (_pss(hashes.SHA512(), 48), hashes.SHA512()),
    ],
    ids=["pkcs1v15", "sha256", "salt-32", "sha512"],
)
def test_other_algorithms_are_refused(
    pad: padding.AsymmetricPadding | None, digest: hashes.HashAlgorithm
) -> None:
    found = parse_rsa_certificate_der(_issue(_private(), pad, digest), what="test", reason=REASON)
    with pytest.raises(BadSignature, match="not signed with RSA-PSS"):
        verify_issued_by_pss(found, found)


@pytest.mark.parametrize("bits", [2048, 3072])
def test_a_shorter_key_is_refused(bits: int) -> None:
    der = _issue(rsa.generate_private_key(65537, bits), _pss(hashes.SHA384(), 48), hashes.SHA384())
    with pytest.raises(FormatError):
        parse_rsa_certificate_der(der, what="test", reason=REASON)


def test_signing_is_repeatable_and_says_what_it_signed() -> None:
    key = simulated_rsa_key("foreign")
    signature = key.sign(b"message")
    assert key.sign(b"message") == signature
    verify_pss(key.public, signature, b"message")
    for wrong in (signature[:-1], signature + b"\0", bytes(512), b"", b"\xff" * 512):
        with pytest.raises(BadSignature):
            verify_pss(key.public, wrong, b"message")
    with pytest.raises(BadSignature):
        verify_pss(key.public, signature, b"messagf")


def test_primes_of_another_size_make_no_key() -> None:
    with pytest.raises(FormatError):
        RsaSigningKey.of_primes(2**89 - 1, 2**107 - 1)


def test_a_revocation_list_is_its_issuers() -> None:
    der = MACHINE.crl_der
    assert der is not None
    crl = parse_crl_der(der, what="list", reason=Reason.CRL_FORMAT)
    verify_crl_pss(crl, ARK)
    with pytest.raises(BadSignature, match="another issuer"):
        verify_crl_pss(crl, ASK)
    assert not crl.contains(0)
