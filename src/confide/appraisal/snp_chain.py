"""Steps over AMD's certificates and revocation list. Clauses docs/protocols/snp.md#2 and #3.

Everything but the anchors and the time is hostile. The state parses each part at most once; what
does not parse is a finding of the first step that looks at it.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Final

from confide.appraisal.snp_leaf import read_components, read_owner, read_product
from confide.appraisal.steps import Refused, Step
from confide.crypto.ecdsa import Curve
from confide.crypto.errors import BadSignature
from confide.crypto.x509 import parse_crl_der, split_pem_chain
from confide.crypto.x509_rsa import (
    parse_leaf_der,
    parse_rsa_certificate_der,
    verify_crl_pss,
    verify_issued_by_pss,
)
from confide.errors import FormatError, Reason
from confide.wire.snp import SigningKeyKind

if TYPE_CHECKING:
    from datetime import datetime

    from confide.crypto.x509 import Certificate, CertificateBody, Crl
    from confide.crypto.x509_rsa import RsaCertificate
    from confide.trust.amd import AmdAnchor, AmdRoots
    from confide.wire.snp import Product, SnpReport

__all__ = ["CHAIN_STEPS", "SnpState"]

_DOC = "docs/protocols/snp.md"
# From: RFC 5280 §4.2.1.9 and §4.2.1.3: the critical extensions that the steps here understand.
_UNDERSTOOD: Final = frozenset({"2.5.29.19", "2.5.29.15"})


class SnpState:
    """The working state of one appraisal of authenticity."""

    def __init__(
        self,
        report: SnpReport,
        *,
        leaf_der: bytes,
        chain_pem: bytes,
        crl_der: bytes | None,
        roots: AmdRoots,
        now: datetime,
    ) -> None:
        self.report = report
        self.roots = roots
        self.now = now
        self._leaf_der = leaf_der
        self._chain_pem = chain_pem
        self._crl_der = crl_der

    @cached_property
    def ders(self) -> tuple[bytes, bytes]:
        """ASK (or ASVK) and ARK as the chain carries them."""
        found = split_pem_chain(
            self._chain_pem, max_certificates=2, what="AMD chain", reason=Reason.CHAIN
        )
        if len(found) != 2:
            raise FormatError(
                f"AMD chain: {len(found)} certificate instead of 2",
                reason=Reason.CHAIN,
                clause=f"{_DOC}#2",
            )
        authority, root = found
        return authority, root

    @cached_property
    def anchor(self) -> AmdAnchor | None:
        """The anchor that the chain ends in."""
        return self.roots.find(self.ders[1])

    @cached_property
    def root(self) -> RsaCertificate:
        """The ARK."""
        return parse_rsa_certificate_der(self.ders[1], what="ARK", reason=Reason.CHAIN)

    @cached_property
    def authority(self) -> RsaCertificate:
        """The ASK or ASVK."""
        return parse_rsa_certificate_der(self.ders[0], what="ASK", reason=Reason.CHAIN)

    @cached_property
    def leaf(self) -> Certificate:
        """The VCEK or VLEK certificate."""
        return parse_leaf_der(self._leaf_der, what="leaf certificate", reason=Reason.CHAIN)

    @cached_property
    def kind(self) -> SigningKeyKind | None:
        """The kind of the leaf by its name, None for another name."""
        names = {self.roots.leaf_name(kind): kind for kind in SigningKeyKind}
        return names.get(self.leaf.subject)

    @cached_property
    def product(self) -> tuple[Product | None, str]:
        """The product that the leaf names, and its words."""
        return read_product(self.leaf)

    @cached_property
    def components(self) -> dict[int, int]:
        """The security versions in the leaf."""
        return read_components(self.leaf)

    @cached_property
    def owner(self) -> tuple[bytes | None, str | None]:
        """Hardware id and operator in the leaf."""
        return read_owner(self.leaf)

    @cached_property
    def crl(self) -> Crl | None:
        """The revocation list, None where none was given."""
        if self._crl_der is None:
            return None
        return parse_crl_der(self._crl_der, what="AMD revocation list", reason=Reason.CRL_FORMAT)

    @property
    def certificates(self) -> tuple[CertificateBody, ...]:
        """ARK, ASK and leaf."""
        return self.root, self.authority, self.leaf

    @property
    def simulated(self) -> bool:
        """Whether the roots are simulated."""
        return self.roots.simulated

    @property
    def not_before(self) -> datetime:
        """Since when all certificates and the list are valid."""
        issued = [found.not_before for found in self.certificates]
        return max(issued if self.crl is None else [*issued, self.crl.this_update])

    @property
    def not_after(self) -> datetime:
        """Until when all certificates and the list are valid."""
        until = [found.not_after for found in self.certificates]
        if self.crl is not None and self.crl.next_update is not None:
            until.append(self.crl.next_update)
        return min(until)


def _step_2_1(state: SnpState) -> str:
    if state.anchor is None:
        raise Refused(Reason.ARK_NOT_PINNED, "the chain ends in a root that nobody here trusts")
    return f"{state.anchor.product}, {state.anchor.sha256}"


def _step_2_2(state: SnpState) -> None:
    for child, issuer, what in (
        (state.root, state.root, "ARK"),
        (state.authority, state.root, "ASK"),
        (state.leaf, state.authority, "leaf"),
    ):
        try:
            verify_issued_by_pss(child, issuer)
        except BadSignature as error:
            raise Refused(Reason.CHAIN, f"{what}: {error.what}") from error


def _require_name(certificate: CertificateBody, name: str, what: str) -> None:
    if certificate.subject != name:
        raise Refused(Reason.CHAIN, f"{what}: not named as this position asks")


def _step_2_3(state: SnpState) -> str:
    for certificate, what in ((state.root, "ARK"), (state.authority, "ASK")):
        if not certificate.is_ca or "key_cert_sign" not in certificate.key_usage:
            raise Refused(Reason.CHAIN, f"{what}: may not sign certificates")
    if state.leaf.is_ca:
        raise Refused(Reason.CHAIN, "leaf: is a CA")
    if state.leaf.public_key.curve is not Curve.P384:
        raise Refused(Reason.CHAIN, "leaf: the key is not on P-384")
    if any(found.critical - _UNDERSTOOD for found in state.certificates):
        raise Refused(Reason.CHAIN, "a critical extension that is not understood")
    anchor = state.anchor
    if anchor is None:  # pragma: no cover - the step needs 2.1
        raise RuntimeError("a step ran before the step that it needs")
    _require_name(state.root, state.roots.root_name(anchor.product), "ARK")
    # A leaf of neither name is refused by 4.1; here it may stand under either authority.
    kinds = tuple(SigningKeyKind) if state.kind is None else (state.kind,)
    names = {state.roots.authority_name(anchor.product, kind) for kind in kinds}
    if state.authority.subject not in names:
        raise Refused(Reason.CHAIN, "ASK: not the authority of this product for this kind of key")
    return state.authority.subject


def _step_3_1(state: SnpState) -> str:
    for found, what in ((state.root, "ARK"), (state.authority, "ASK"), (state.leaf, "leaf")):
        if state.now < found.not_before:
            raise Refused(Reason.CERT_TIME, f"{what}: not valid before {found.not_before}")
        if state.now > found.not_after:
            raise Refused(Reason.CERT_TIME, f"{what}: expired on {found.not_after}")
    return f"until {min(found.not_after for found in state.certificates)}"


def _step_3_2(state: SnpState) -> str:
    crl = state.crl
    if crl is None:
        return "no revocation list was given"
    try:
        verify_crl_pss(crl, state.root)
    except BadSignature as error:
        raise Refused(Reason.CRL_SIGNATURE, error.what) from error
    if "crl_sign" not in state.root.key_usage:
        raise Refused(Reason.CRL_SIGNATURE, "the ARK may not sign revocation lists")
    if crl.next_update is None:
        raise Refused(Reason.CRL_NO_NEXT_UPDATE, "the list does not say when the next one comes")
    if state.now < crl.this_update:
        raise Refused(Reason.CRL_NOT_YET_VALID, f"issued on {crl.this_update}")
    if state.now > crl.next_update:
        raise Refused(Reason.CRL_EXPIRED, f"a newer list was due on {crl.next_update}")
    for found, what in ((state.root, "ARK"), (state.authority, "ASK"), (state.leaf, "leaf")):
        if crl.contains(found.serial):
            raise Refused(Reason.CERT_REVOKED, f"{what} is on AMD's revocation list")
    return f"issued {crl.this_update}"


CHAIN_STEPS: Final[tuple[Step[SnpState], ...]] = (
    Step("snp/2.1", f"{_DOC}#2", _step_2_1),
    Step("snp/2.2", f"{_DOC}#2", _step_2_2),
    Step("snp/2.3", f"{_DOC}#2", _step_2_3, ("snp/2.1", "snp/2.2")),
    Step("snp/3.1", f"{_DOC}#3", _step_3_1),
    Step("snp/3.2", f"{_DOC}#3", _step_3_2, ("snp/2.1", "snp/2.2")),
)
