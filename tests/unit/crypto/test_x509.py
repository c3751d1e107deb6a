"""Certificates, revocation lists and ECDSA: what is refused, and that issuing is repeatable."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from confide.crypto.ecdsa import Curve, derive_signing_key, load_public_key, verify
from confide.crypto.errors import BadSignature
from confide.crypto.issuing import (
    CertificateTemplate,
    RawExtension,
    encode_pem,
    issue_certificate,
    issue_crl,
    remove_next_update,
)
from confide.crypto.x509 import (
    Certificate,
    parse_certificate_der,
    parse_crl_der,
    parse_pem_chain,
    verify_crl,
    verify_issued_by,
)
from confide.errors import FormatError, Reason

NOW = datetime(2026, 11, 22, tzinfo=UTC)
REASON = Reason.PCK_CHAIN


def _template(name: str, **changes: object) -> CertificateTemplate:
    values: dict[str, object] = {
        "common_name": name,
        "organization": "SIMULATED",
        "not_before": NOW - timedelta(days=1),
        "not_after": NOW + timedelta(days=1),
        **changes,
    }
    return CertificateTemplate(**values)  # type: ignore[arg-type]


@pytest.fixture(params=list(Curve))
def curve(request: pytest.FixtureRequest) -> Curve:
    return Curve(request.param)


def _pair(curve: Curve) -> tuple[Certificate, Certificate]:
    root_key = derive_signing_key(curve, b"seed", "root")
    leaf_key = derive_signing_key(curve, b"seed", "leaf")
    root = issue_certificate(
        _template("Root", is_ca=True, path_length=1),
        root_key.public,
        issuer=None,
        issuer_key=root_key,
    )
    leaf = issue_certificate(
        _template("Leaf", extensions=(RawExtension("1.2.3.4", b"\x04\x01\x07", critical=True),)),
        leaf_key.public,
        issuer=root,
        issuer_key=root_key,
    )
    return root, leaf


def test_a_certificate_says_what_was_issued(curve: Curve) -> None:
    root, leaf = _pair(curve)
    assert (root.subject, root.issuer, leaf.subject, leaf.issuer) == (
        "Root",
        "Root",
        "Leaf",
        "Root",
    )
    assert root.is_ca
    assert root.path_length == 1
    assert root.key_usage == {"key_cert_sign", "crl_sign"}
    assert not leaf.is_ca
    assert leaf.path_length is None
    assert leaf.key_usage == {"digital_signature"}
    assert leaf.critical == {"1.2.3.4", "2.5.29.15", "2.5.29.19"}
    assert leaf.not_before == NOW - timedelta(days=1)
    assert leaf.not_after.utcoffset() == timedelta(0)
    assert leaf.public_key.curve is curve
    assert len(leaf.public_key.point) == 2 * curve.coordinate_bytes
    assert leaf.extension("1.2.3.4") == b"\x04\x01\x07"
    assert leaf.extension("1.2.3.5") is None
    assert leaf.extension("2.5.29.19") == b"\x30\x00"
    assert leaf.names_of("2.5.4.10") == ("SIMULATED",)


def test_issuing_is_deterministic(curve: Curve) -> None:
    assert _pair(curve) == _pair(curve)


def test_a_certificate_verifies_only_under_its_issuer(curve: Curve) -> None:
    root, leaf = _pair(curve)
    verify_issued_by(leaf, root)
    verify_issued_by(root, root)
    with pytest.raises(BadSignature):
        verify_issued_by(root, leaf)
    impostor_key = derive_signing_key(curve, b"other", "root")
    impostor = issue_certificate(
        _template("Root", is_ca=True), impostor_key.public, issuer=None, issuer_key=impostor_key
    )
    with pytest.raises(BadSignature):
        verify_issued_by(leaf, impostor)
    renamed = issue_certificate(
        _template("Other", is_ca=True), root.public_key, issuer=None, issuer_key=impostor_key
    )
    with pytest.raises(BadSignature):
        verify_issued_by(leaf, renamed)


def test_only_one_accepted_signature_algorithm_is_verified() -> None:
    root, leaf = _pair(Curve.P256)
    # ecdsa-with-SHA256, and its neighbours of the same size: SHA-224, SHA-384.
    sha256, sha224, sha384 = (bytes.fromhex(f"2a8648ce3d0403{last}") for last in ("02", "01", "03"))
    inner, _, outer = leaf.der.partition(sha256)
    assert outer.count(sha256) == 1
    mixed = inner + sha256 + outer.replace(sha256, sha384)
    weak = leaf.der.replace(sha256, sha224)
    for der, why in ((mixed, "another signature algorithm"), (weak, "not accepted")):
        changed = parse_certificate_der(der, what="leaf", reason=REASON)
        with pytest.raises(BadSignature, match=why):
            verify_issued_by(changed, root)


def test_a_certificate_with_a_flipped_bit_never_verifies(curve: Curve) -> None:
    root, leaf = _pair(curve)
    for position in range(0, len(leaf.der), 7):
        flipped = bytearray(leaf.der)
        flipped[position] ^= 1
        with pytest.raises((FormatError, BadSignature)):
            verify_issued_by(
                parse_certificate_der(bytes(flipped), what="leaf", reason=REASON), root
            )


@pytest.mark.parametrize("raw", [b"", b"\x30\x00", b"\x30\x80", b"\xff" * 50, b"\x30" * 20_000])
def test_bytes_that_are_no_certificate_are_refused(raw: bytes) -> None:
    with pytest.raises(FormatError) as refused:
        parse_certificate_der(raw, what="leaf", reason=REASON)
    assert refused.value.reason is REASON
    with pytest.raises(FormatError):
        parse_crl_der(raw, what="list", reason=Reason.CRL_FORMAT)


def test_bytes_after_a_certificate_are_refused() -> None:
    root, _ = _pair(Curve.P256)
    with pytest.raises(FormatError):
        parse_certificate_der(root.der + b"\0", what="root", reason=REASON)


def test_a_pem_chain_is_read_in_order_and_may_end_in_nul() -> None:
    root, leaf = _pair(Curve.P256)
    pem = encode_pem(leaf, root).encode() + b"\0"
    assert parse_pem_chain(pem, max_certificates=2, what="chain", reason=REASON) == (leaf, root)


@pytest.mark.parametrize(
    "change", ["comment", "between", "after", "too-many", "empty", "base64", "nul"]
)
def test_a_pem_chain_with_anything_else_is_refused(change: str) -> None:
    root, leaf = _pair(Curve.P256)
    one, two = encode_pem(leaf).encode(), encode_pem(root).encode()
    broken = {
        "comment": b"# hello\n" + one,
        "between": one + b"x\n" + two,
        "after": one + two + b"x",
        "too-many": one + two + one,
        "empty": b"\n",
        "base64": one.replace(b"MII", b"M=I", 1),
        "nul": one + b"\0" + two,
    }[change]
    with pytest.raises(FormatError) as refused:
        parse_pem_chain(broken, max_certificates=2, what="chain", reason=REASON)
    assert refused.value.reason is REASON


def test_a_list_is_signed_by_its_issuer_and_names_serials(curve: Curve) -> None:
    root, leaf = _pair(curve)
    key = derive_signing_key(curve, b"seed", "root")
    later = NOW + timedelta(days=30)
    der = issue_crl(root, key, this_update=NOW, next_update=later, revoked=(leaf.serial,))
    crl = parse_crl_der(der, what="list", reason=Reason.CRL_FORMAT)
    verify_crl(crl, root)
    assert crl.contains(leaf.serial)
    assert not crl.contains(leaf.serial + 1)
    assert (crl.issuer, crl.this_update, crl.next_update) == ("Root", NOW, later)
    with pytest.raises(BadSignature):
        verify_crl(crl, leaf)
    forged = issue_crl(
        root, derive_signing_key(curve, b"x", "x"), this_update=NOW, next_update=later
    )
    with pytest.raises(BadSignature):
        verify_crl(parse_crl_der(forged, what="list", reason=Reason.CRL_FORMAT), root)


def test_a_list_without_next_update_can_be_made_and_says_so(curve: Curve) -> None:
    root, _ = _pair(curve)
    key = derive_signing_key(curve, b"seed", "root")
    der = issue_crl(root, key, this_update=NOW, next_update=NOW + timedelta(days=1))
    crl = parse_crl_der(remove_next_update(der, key), what="list", reason=Reason.CRL_FORMAT)
    verify_crl(crl, root)
    assert crl.next_update is None


def test_a_signature_verifies_only_as_made(curve: Curve) -> None:
    key = derive_signing_key(curve, b"seed", "k")
    signature = key.sign(b"message")
    verify(key.public, signature, b"message")
    assert signature == key.sign(b"message")
    other = derive_signing_key(curve, b"seed", "other")
    for bad_key, bad_signature, bad_message in (
        (other.public, signature, b"message"),
        (key.public, signature, b"massage"),
        (key.public, signature[:-1], b"message"),
        (key.public, signature + b"\0", b"message"),
        (key.public, bytes(len(signature)), b"message"),
        (key.public, b"\xff" * len(signature), b"message"),
    ):
        with pytest.raises(BadSignature):
            verify(bad_key, bad_signature, bad_message)


def test_points_off_the_curve_are_refused(curve: Curve) -> None:
    key = derive_signing_key(curve, b"seed", "k").public
    assert load_public_key(curve, key.point, what="key", reason=REASON) == key
    bad = key.point[:-1] + bytes([key.point[-1] ^ 1])
    for point in (bad, bytes(len(key.point)), key.point[1:], b"\xff" * len(key.point)):
        with pytest.raises(FormatError):
            load_public_key(curve, point, what="key", reason=REASON)


def test_a_private_key_is_not_printed() -> None:
    assert "handle" not in repr(derive_signing_key(Curve.P256, b"seed", "k"))


@pytest.mark.parametrize("which", [0, 1])
def test_a_name_that_cannot_be_read_is_refused_at_once(which: int) -> None:
    # The library reads the issuer (first) and the subject (second) when they are asked for.
    root, _ = _pair(Curve.P256)
    head, tail = root.der.split(b"Root")[: which + 1], root.der.split(b"Root")[which + 1 :]
    broken = b"Root".join(head) + b"\xff\xfe\xfd\xfc" + b"Root".join(tail)
    assert len(broken) == len(root.der)
    with pytest.raises(FormatError) as caught:
        parse_certificate_der(broken, what="x", reason=REASON)
    assert caught.value.reason is REASON
