"""A SIMULATED certificate hierarchy for TDX: root, PCK CA, PCK leaf, TCB signer, revocation lists.

Same shapes as Intel's (PCK Certificate and CRL Profile Specification), under names that say
Simulated. Every private key follows from a seed, so nothing signed here proves anything about
hardware. Specs are plain data, so that a fault is an edited spec and goes through the same issuing
as the honest case.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from confide.crypto.ecdsa import Curve, SigningKey, derive_signing_key
from confide.crypto.issuing import (
    CertificateTemplate,
    RawExtension,
    encode_pem,
    issue_certificate,
    issue_crl,
    remove_next_update,
)
from confide.trust.roots import SIMULATED_TDX_NAMES
from confide.wire.pck import SGX_EXTENSION_OID, PckExtension, encode_pck_extension

if TYPE_CHECKING:
    from confide.crypto.x509 import Certificate

__all__ = [
    "LIFETIME",
    "CertificateSpec",
    "CrlSpec",
    "SimulatedPki",
    "certificate_specs",
    "crl_specs",
]

_ORGANIZATION: Final = "SIMULATED - not Intel"
# Lists and documents are renewed by making the platform again; Intel's live 30 days.
LIFETIME: Final = timedelta(days=45)
# A node's clock and a client's may differ; nothing simulated is younger than this.
_ISSUED_BEFORE: Final = timedelta(hours=1)
_CERTIFICATE_LIFETIME: Final = timedelta(days=3650)
# Fixed, so that the root depends on the seed alone and a relying party can keep it in a file.
_ROOT_FROM: Final = datetime(2025, 1, 1, tzinfo=UTC)
_ROOT_UNTIL: Final = datetime(2049, 12, 31, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class CertificateSpec:
    """One certificate to issue: for `key`, under the role `issuer`, signed with `signing_key`."""

    template: CertificateTemplate
    key: str
    issuer: str
    signing_key: str
    platform: PckExtension | None = None


@dataclass(frozen=True, slots=True)
class CrlSpec:
    """One revocation list to issue; `revoked` are roles."""

    issuer: str
    signing_key: str
    this_update: datetime
    next_update: datetime
    revoked: tuple[str, ...] = ()
    without_next_update: bool = False
    absent: bool = False


def certificate_specs(platform: PckExtension, now: datetime) -> dict[str, CertificateSpec]:
    """Return the honest hierarchy, by role: `root`, `ca`, `pck`, `tcb`."""

    def template(name: str, *, is_ca: bool, path_length: int | None) -> CertificateTemplate:
        return CertificateTemplate(
            common_name=name,
            organization=_ORGANIZATION,
            not_before=now - _ISSUED_BEFORE,
            not_after=now + _CERTIFICATE_LIFETIME,
            is_ca=is_ca,
            path_length=path_length,
        )

    names = SIMULATED_TDX_NAMES
    root = replace(
        template(names.root, is_ca=True, path_length=1),
        not_before=_ROOT_FROM,
        not_after=_ROOT_UNTIL,
    )
    authority = template(names.pck_authorities[0], is_ca=True, path_length=0)
    leaf = template(names.pck_leaf, is_ca=False, path_length=None)
    signer = template(names.tcb_signer, is_ca=False, path_length=None)
    return {
        "root": CertificateSpec(root, "root", "root", "root"),
        "ca": CertificateSpec(authority, "ca", "root", "root"),
        "pck": CertificateSpec(leaf, "pck", "ca", "ca", platform),
        "tcb": CertificateSpec(signer, "tcb", "root", "root"),
    }


def crl_specs(now: datetime) -> dict[str, CrlSpec]:
    """Return the honest revocation lists, by issuing role."""
    issued, until = now - _ISSUED_BEFORE, now + LIFETIME
    return {role: CrlSpec(role, role, issued, until) for role in ("root", "ca")}


@dataclass(slots=True)
class SimulatedPki:
    """The issued hierarchy. Certificates are made on first use and kept."""

    seed: bytes = field(repr=False)
    specs: dict[str, CertificateSpec]
    _issued: dict[str, Certificate] = field(default_factory=dict, init=False, repr=False)

    def key(self, label: str) -> SigningKey:
        """Return the private key called `label`."""
        return derive_signing_key(Curve.P256, self.seed, f"simulated-tdx/{label}")

    def certificate(self, role: str) -> Certificate:
        """Return the certificate of `role`."""
        if role not in self._issued:
            spec = self.specs[role]
            template = spec.template
            if spec.platform is not None:
                sgx = RawExtension(SGX_EXTENSION_OID, encode_pck_extension(spec.platform))
                template = replace(template, extensions=(*template.extensions, sgx))
            issuer = None if spec.issuer == role else self.certificate(spec.issuer)
            self._issued[role] = issue_certificate(
                template,
                self.key(spec.key).public,
                issuer=issuer,
                issuer_key=self.key(spec.signing_key),
            )
        return self._issued[role]

    def pem(self, *roles: str) -> bytes:
        """Return the PEM chain of `roles`."""
        return encode_pem(*(self.certificate(role) for role in roles)).encode("ascii")

    def crl(self, spec: CrlSpec) -> bytes:
        """Return the DER of the list that `spec` describes, nothing where it is absent."""
        if spec.absent:
            return b""
        key = self.key(spec.signing_key)
        der = issue_crl(
            self.certificate(spec.issuer),
            key,
            this_update=spec.this_update,
            next_update=spec.next_update,
            revoked=tuple(self.certificate(role).serial for role in spec.revoked),
        )
        return remove_next_update(der, key) if spec.without_next_update else der
