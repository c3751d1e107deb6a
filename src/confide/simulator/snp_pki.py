"""A SIMULATED AMD hierarchy: ARK, ASK or ASVK, VCEK or VLEK, and the revocation list.

Same shapes as AMD's (57230): RSA-4096 authorities, RSA-PSS, leafs on P-384 with serial number 0 and
AMD's extensions, under names that begin with Simulated. Written as DER directly, because the usual
builder refuses serial number 0. Specs are plain data, so that a fault is an edited spec and goes
through the same issuing as the honest case. Deterministic: equal inputs, equal bytes.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from confide.crypto.ecdsa import Curve, SigningKey, derive_signing_key
from confide.crypto.x509_rsa import PSS_ALGORITHM
from confide.simulator.snp_keys import simulated_rsa_key
from confide.trust.amd import AmdAnchor, AmdRoots
from confide.wire.der import (
    OCTET_STRING,
    SEQUENCE,
    encode_boolean,
    encode_integer,
    encode_oid,
    encode_tlv,
)
from confide.wire.snp import Product, SigningKeyKind, SnpTcb

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "CertificateSpec",
    "CrlSpec",
    "SimulatedAmdPki",
    "certificate_specs",
    "crl_spec",
    "leaf_extensions",
    "simulated_amd_roots",
]

_Extension = tuple[str, bytes, bool]

_UTF8_STRING, _PRINTABLE_STRING, _IA5_STRING = 0x0C, 0x13, 0x16
_UTC_TIME, _SET, _BIT_STRING = 0x17, 0x31, 0x03
_AMD: Final = "1.3.6.1.4.1.3704.1"
_BASIC_CONSTRAINTS, _KEY_USAGE = "2.5.29.19", "2.5.29.15"
# From: RFC 5280 §4.2.1.3: keyCertSign alone, and with cRLSign.
_CERT_SIGN, _CERT_AND_CRL_SIGN = bytes.fromhex("03020204"), bytes.fromhex("03020106")
# Only the names decide what is simulated; these make it plain to a reader.
_SUBJECT: Final = (
    ("2.5.4.11", _UTF8_STRING, "SIMULATED"),
    ("2.5.4.6", _PRINTABLE_STRING, "XX"),
    ("2.5.4.10", _UTF8_STRING, "SIMULATED - not AMD"),
)
# Fixed, so that the roots depend on the seed alone and a relying party can keep them in a file.
_ROOT_FROM: Final = datetime(2020, 1, 1, tzinfo=UTC)
_ROOT_UNTIL: Final = datetime(2045, 1, 1, tzinfo=UTC)
_ISSUED_BEFORE: Final = timedelta(hours=1)
# From: AMD 57230: a VCEK lives seven years, a VLEK one.
_LIFETIMES: Final = {
    SigningKeyKind.VCEK: timedelta(days=7 * 365),
    SigningKeyKind.VLEK: timedelta(days=365),
}
_CRL_LIFETIME: Final = timedelta(days=365)


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateSpec:
    """
    One certificate to issue for `key`, under `issuer`'s name, signed with `signing_key`.

    `key` is a label: of an RSA key for authorities, of a derived key for the leaf.
    """

    name: str
    key: str
    issuer: str
    signing_key: str
    serial: int
    not_before: datetime
    not_after: datetime
    extensions: tuple[_Extension, ...]
    curve: Curve | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CrlSpec:
    """The revocation list; `revoked` are serial numbers."""

    signing_key: str
    this_update: datetime
    next_update: datetime | None
    revoked: tuple[int, ...] = ()


def _name(common_name: str) -> bytes:
    attributes = (*_SUBJECT, ("2.5.4.3", _UTF8_STRING, common_name))
    return encode_tlv(
        SEQUENCE,
        *(
            encode_tlv(_SET, encode_tlv(SEQUENCE, encode_oid(oid), encode_tlv(tag, text.encode())))
            for oid, tag, text in attributes
        ),
    )


def _time(value: datetime) -> bytes:
    return encode_tlv(_UTC_TIME, value.astimezone(UTC).strftime("%y%m%d%H%M%SZ").encode())


def _extensions(found: Iterable[_Extension]) -> bytes:
    return encode_tlv(
        SEQUENCE,
        *(
            encode_tlv(
                SEQUENCE,
                encode_oid(oid),
                encode_boolean(True) if critical else b"",  # noqa: FBT003 - the value itself
                encode_tlv(OCTET_STRING, der),
            )
            for oid, der, critical in found
        ),
    )


@lru_cache(maxsize=256)
def _signed(body: bytes, label: str) -> bytes:
    # Kept: the same authorities are issued again and again, at 45 ms for each signature.
    signature = simulated_rsa_key(label).sign(body)
    algorithm = encode_tlv(SEQUENCE, PSS_ALGORITHM)
    return encode_tlv(SEQUENCE, body, algorithm, encode_tlv(_BIT_STRING, b"\0", signature))


def _authority(path_length: int | None, usage: bytes) -> tuple[_Extension, ...]:
    limit = b"" if path_length is None else encode_integer(path_length)
    constraints = encode_tlv(SEQUENCE, encode_boolean(True), limit)  # noqa: FBT003 - the value
    return ((_KEY_USAGE, usage, True), (_BASIC_CONSTRAINTS, constraints, True))


def leaf_extensions(
    product: Product, tcb: SnpTcb, *, hardware_id: bytes | None, operator: str | None
) -> tuple[_Extension, ...]:
    """Return AMD's extensions for a leaf; `hardware_id` of a chip or `operator` of a VLEK."""
    turin = product is Product.TURIN
    stepping = "" if operator else "-B0"
    numbers = {1: tcb.boot_loader, 2: tcb.tee, 3: tcb.snp, 5: 0, 6: 0, 7: 0, 8: tcb.microcode}
    numbers |= {9: tcb.fmc} if turin else {4: 0}
    found = [
        (f"{_AMD}.1", encode_integer(int(turin)), False),
        (f"{_AMD}.2", encode_tlv(_IA5_STRING, f"{product}{stepping}".encode()), False),
    ]
    found += [(f"{_AMD}.3.{arc}", encode_integer(numbers[arc]), False) for arc in sorted(numbers)]
    if hardware_id is not None:
        found.append((f"{_AMD}.4", hardware_id, False))
    if operator is not None:
        found.append((f"{_AMD}.5", encode_tlv(_IA5_STRING, operator.encode()), False))
    return tuple(found)


def _serial(seed: bytes, label: str) -> int:
    # From: RFC 5280 §4.1.2.2: positive, at most 20 octets.
    digest = hashlib.sha256(b"simulated-snp/serial/" + label.encode() + b"\0" + seed).digest()
    return int.from_bytes(digest[:16], "big") | 1


_NAMES: Final = AmdRoots((), simulated=True)


def _root_spec(seed: bytes, product: Product) -> CertificateSpec:
    name = _NAMES.root_name(product)
    return CertificateSpec(
        name=name,
        key="root",
        issuer=name,
        signing_key="root",
        serial=_serial(seed, f"ark/{product}"),
        not_before=_ROOT_FROM,
        not_after=_ROOT_UNTIL,
        extensions=_authority(None, _CERT_AND_CRL_SIGN),
    )


def certificate_specs(
    seed: bytes, product: Product, kind: SigningKeyKind, now: datetime, leaf: tuple[_Extension, ...]
) -> dict[str, CertificateSpec]:
    """Return the honest hierarchy, by role: `ark`, `ask`, `leaf`."""
    root, authority = _root_spec(seed, product), _NAMES.authority_name(product, kind)
    return {
        "ark": root,
        "ask": CertificateSpec(
            name=authority,
            key="authority",
            issuer=root.name,
            signing_key="root",
            serial=_serial(seed, f"ask/{kind}/{product}"),
            not_before=_ROOT_FROM,
            not_after=_ROOT_UNTIL,
            extensions=_authority(0, _CERT_SIGN),
        ),
        "leaf": CertificateSpec(
            name=_NAMES.leaf_name(kind),
            key=f"{kind}/{product}",
            issuer=authority,
            signing_key="authority",
            serial=0,
            not_before=now - _ISSUED_BEFORE,
            not_after=now + _LIFETIMES[kind],
            extensions=leaf,
            curve=Curve.P384,
        ),
    }


def crl_spec(now: datetime) -> CrlSpec:
    """Return the honest revocation list."""
    return CrlSpec(
        signing_key="root", this_update=now - _ISSUED_BEFORE, next_update=now + _CRL_LIFETIME
    )


@dataclass(frozen=True, slots=True)
class SimulatedAmdPki:
    """The hierarchy that `specs` describe; leaf keys follow from `seed`."""

    seed: bytes = field(repr=False)
    specs: dict[str, CertificateSpec]

    def leaf_key(self, label: str, curve: Curve = Curve.P384) -> SigningKey:
        """Return the private key called `label`."""
        return derive_signing_key(curve, self.seed, f"simulated-snp/{label}")

    def _spki(self, spec: CertificateSpec) -> bytes:
        if spec.curve is None:
            return simulated_rsa_key(spec.key).public.spki()
        return self.leaf_key(spec.key, spec.curve).public.spki()

    def certificate(self, role: str) -> bytes:
        """Return the DER of `role`."""
        spec = self.specs[role]
        body = encode_tlv(
            SEQUENCE,
            encode_tlv(0xA0, encode_integer(2)),
            encode_integer(spec.serial),
            encode_tlv(SEQUENCE, PSS_ALGORITHM),
            _name(spec.issuer),
            encode_tlv(SEQUENCE, _time(spec.not_before), _time(spec.not_after)),
            _name(spec.name),
            self._spki(spec),
            encode_tlv(0xA3, _extensions(spec.extensions)),
        )
        return _signed(body, spec.signing_key)

    def pem(self, roles: tuple[str, ...]) -> bytes:
        """Return the PEM chain of `roles`."""
        lines: list[str] = []
        for role in roles:
            text = base64.b64encode(self.certificate(role)).decode("ascii")
            lines.append("-----BEGIN CERTIFICATE-----")
            lines += [text[at : at + 64] for at in range(0, len(text), 64)]
            lines.append("-----END CERTIFICATE-----")
        return ("\n".join(lines) + "\n").encode("ascii")

    def crl(self, spec: CrlSpec) -> bytes:
        """Return the DER of the revocation list that `spec` describes, under the ARK's name."""
        revoked = [
            encode_tlv(SEQUENCE, encode_integer(serial), _time(spec.this_update))
            for serial in spec.revoked
        ]
        body = encode_tlv(
            SEQUENCE,
            encode_integer(1),
            encode_tlv(SEQUENCE, PSS_ALGORITHM),
            _name(self.specs["ark"].name),
            _time(spec.this_update),
            b"" if spec.next_update is None else _time(spec.next_update),
            encode_tlv(SEQUENCE, *revoked) if revoked else b"",
            encode_tlv(0xA0, _extensions([("2.5.29.20", encode_integer(1), False)])),
        )
        return _signed(body, spec.signing_key)


def simulated_amd_roots(seed: bytes, products: tuple[Product, ...] = tuple(Product)) -> AmdRoots:
    """Return the SIMULATED roots of `seed`; they depend on nothing else."""
    anchors = []
    for product in products:
        pki = SimulatedAmdPki(seed, {"ark": _root_spec(seed, product)})
        anchors.append(AmdAnchor(product, pki.certificate("ark")))
    return replace(_NAMES, anchors=tuple(anchors))
