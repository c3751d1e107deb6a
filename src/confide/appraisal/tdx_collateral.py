"""Steps over collateral alone: anchored, signed, current. Clauses docs/protocols/tdx.md#5 to #15.

Collateral is hostile whoever delivered it; step 11 makes its origin irrelevant. State is derived
lazily and without judgement, so that every refusal belongs to a numbered step. Policy (age, floors)
is not here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from confide.appraisal.steps import Refused, Step, lazy
from confide.crypto.ecdsa import verify
from confide.crypto.errors import BadSignature
from confide.crypto.x509 import (
    Certificate,
    Crl,
    parse_certificate_der,
    parse_crl_der,
    split_pem_chain,
    verify_crl,
    verify_issued_by,
)
from confide.errors import FormatError, Reason
from confide.wire.collateral import parse_qe_identity, parse_tcb_info
from confide.wire.pck import SGX_EXTENSION_OID

if TYPE_CHECKING:
    from datetime import datetime

    from confide.trust.anchors import TdxAnchor
    from confide.wire.collateral import Collateral, QeIdentity, TcbInfo

__all__ = [
    "COLLATERAL_STEPS",
    "CollateralState",
    "require_current",
    "require_root",
    "require_understood",
    "require_valid",
]

_DOC = "docs/protocols/tdx.md"
# One more than the two permitted, so that a longer chain is a refusal of role and not of format.
_MAX_ISSUERS: Final = 4
# From: RFC 5280 §4.2: key usage and basic constraints.
_UNDERSTOOD: Final = frozenset({"2.5.29.15", "2.5.29.19"})


class CollateralState:
    """The working state of one collateral appraisal; every part is parsed at most once."""

    def __init__(
        self, collateral: Collateral, *, roots: tuple[TdxAnchor, ...], now: datetime
    ) -> None:
        self.collateral = collateral
        self.roots = roots
        self.now = now

    @lazy
    def tcb_chain(self) -> tuple[Certificate, ...]:
        """The chain that came with the TCB info, as delivered."""
        return self._chain(self.collateral.tcb_info_chain, "TCB info issuer chain")

    @lazy
    def qe_chain(self) -> tuple[Certificate, ...]:
        """The chain that came with the QE identity, as delivered."""
        if self.collateral.qe_identity_chain == self.collateral.tcb_info_chain:
            return self.tcb_chain
        return self._chain(self.collateral.qe_identity_chain, "QE identity issuer chain")

    @property
    def signers(self) -> tuple[Certificate, ...]:
        """The signers of the two documents, once where it is one."""
        tcb, qe = self.tcb_chain[0], self.qe_chain[0]
        return (tcb,) if tcb == qe else (tcb, qe)

    @lazy
    def anchors(self) -> tuple[tuple[TdxAnchor, Certificate], ...]:
        """The caller's anchors with their certificates."""
        return tuple(
            (anchor, _certificate(anchor.der, "anchor", Reason.ROOT_MISMATCH))
            for anchor in self.roots
        )

    @lazy
    def matching(self) -> tuple[TdxAnchor, Certificate] | None:
        """The anchor whose public key ends both chains; None where no anchor does."""
        ends = {self.tcb_chain[-1].public_key.point, self.qe_chain[-1].public_key.point}
        for anchor, root in self.anchors:
            if ends == {root.public_key.point}:
                return anchor, root
        return None

    @property
    def anchor(self) -> TdxAnchor:
        """The anchor everything is held against; without a match the caller's first."""
        return (self.matching or self.anchors[0])[0]

    @property
    def root(self) -> Certificate:
        """The certificate of `anchor`."""
        return (self.matching or self.anchors[0])[1]

    @lazy
    def root_crl(self) -> Crl:
        """The root's revocation list."""
        return _crl(self.collateral.root_crl, "root revocation list")

    @lazy
    def pck_crl(self) -> Crl:
        """The PCK CA's revocation list."""
        return _crl(self.collateral.pck_crl, "PCK revocation list")

    @lazy
    def tcb_info(self) -> TcbInfo:
        """The TCB info."""
        return parse_tcb_info(self.collateral.tcb_info)

    @lazy
    def qe_identity(self) -> QeIdentity:
        """The QE identity."""
        return parse_qe_identity(self.collateral.qe_identity)

    @lazy
    def pck_authority(self) -> Certificate | None:
        """
        The CA in `pck_crl_issuer_chain` where the anchor issued it and it signed the PCK list.

        Informative: anything unexpected in that chain yields None, and the quote's own CA is
        verified from scratch.
        """
        try:
            authority = self._chain(self.collateral.pck_crl_chain, "PCK list issuer chain")[0]
            verify_issued_by(authority, self.root)
            verify_crl(self.pck_crl, authority)
        except (FormatError, BadSignature):
            return None
        return authority

    def _chain(self, pem: bytes, what: str) -> tuple[Certificate, ...]:
        """Parse a PEM chain; an anchor that stands in it was parsed before."""
        reason = Reason.COLLATERAL_FORMAT
        ders = split_pem_chain(pem, max_certificates=_MAX_ISSUERS, what=what, reason=reason)
        known = {root.der: root for _, root in self.anchors}
        return tuple(known.get(der) or _certificate(der, what, reason) for der in ders)


def _certificate(der: bytes, what: str, reason: Reason) -> Certificate:
    return parse_certificate_der(der, what=what, reason=reason)


def _crl(der: bytes, what: str) -> Crl:
    if not der:
        raise FormatError(f"{what}: empty", reason=Reason.CRL_MISSING, clause=f"{_DOC}#9")
    return parse_crl_der(der, what=what, reason=Reason.CRL_FORMAT)


def require_valid(certificate: Certificate, now: datetime, what: str) -> None:
    """Refuse a certificate that is not valid at `now`."""
    if now < certificate.not_before:
        raise Refused(Reason.CERT_NOT_YET_VALID, f"{what} is valid from {certificate.not_before}")
    if now > certificate.not_after:
        raise Refused(Reason.CERT_EXPIRED, f"{what} was valid until {certificate.not_after}")


def require_current(crl: Crl, now: datetime, what: str) -> None:
    """Refuse a revocation list that is not current at `now`."""
    if crl.next_update is None:
        raise Refused(Reason.CRL_NO_NEXT_UPDATE, f"{what} does not say when the next one comes")
    if now < crl.this_update:
        raise Refused(Reason.CRL_NOT_YET_VALID, f"{what} is from {crl.this_update}")
    if now > crl.next_update:
        raise Refused(Reason.CRL_EXPIRED, f"{what} was current until {crl.next_update}")


def require_root(given: Certificate, anchor: Certificate) -> None:
    """Refuse a root that is neither `anchor` nor another certificate of the same root."""
    if given == anchor:
        return
    try:
        verify_issued_by(given, anchor)
    except BadSignature as error:
        raise Refused(Reason.ROOT_MISMATCH, "the root was altered") from error


def require_understood(certificate: Certificate, reason: Reason, what: str) -> None:
    """Refuse a certificate with a critical extension that no step looks at (RFC 5280 §4.2)."""
    if certificate.critical - _UNDERSTOOD:
        raise Refused(reason, f"{what} has a critical extension that is not understood")


def _step_5_1(state: CollateralState) -> str:
    if state.matching is None:
        raise Refused(Reason.ROOT_MISMATCH, "the issuer chains end in no given anchor")
    for chain in (state.tcb_chain, state.qe_chain):
        require_root(chain[-1], state.root)
    return f"anchor {state.anchor.sha256}"


def _step_8_1(state: CollateralState) -> None:
    require_valid(state.root, state.now, "the anchor")
    for signer in state.signers:
        require_valid(signer, state.now, "a collateral signer")


def _step_9_1(state: CollateralState) -> str:
    # Both are parsed before either is judged: a missing list is missing whatever the other says.
    root_crl, pck_crl = state.root_crl, state.pck_crl
    try:
        verify_crl(root_crl, state.root)
    except BadSignature as error:
        raise Refused(Reason.CRL_SIGNATURE, f"root revocation list: {error.what}") from error
    require_current(root_crl, state.now, "the root revocation list")
    require_current(pck_crl, state.now, "the PCK revocation list")
    return f"root list of {root_crl.this_update}, PCK list of {pck_crl.this_update}"


def _step_10_1(state: CollateralState) -> None:
    for certificate, what in (
        (state.root, "the anchor"),
        *((signer, "a collateral signer") for signer in state.signers),
    ):
        if state.root_crl.contains(certificate.serial):
            raise Refused(Reason.CERT_REVOKED, f"{what} is on the root revocation list")


def _step_11(state: CollateralState) -> None:
    for chain, what in ((state.tcb_chain, "TCB info"), (state.qe_chain, "QE identity")):
        if len(chain) != 2:
            raise Refused(
                Reason.COLLATERAL_SIGNER_ROLE,
                f"{what}: a chain of {len(chain)} certificates instead of 2",
            )
    for signer in state.signers:
        if signer.subject != state.anchor.names.tcb_signer:
            raise Refused(Reason.COLLATERAL_SIGNER_ROLE, "the signer has another common name")
        if signer.is_ca or signer.extension(SGX_EXTENSION_OID) is not None:
            raise Refused(Reason.COLLATERAL_SIGNER_ROLE, "the signer is a CA or a PCK")
        require_understood(signer, Reason.COLLATERAL_SIGNER_ROLE, "the signer")
        try:
            verify_issued_by(signer, state.root)
        except BadSignature as error:
            raise Refused(
                Reason.COLLATERAL_SIGNER_ROLE, "the anchor did not issue the signer"
            ) from error


def _step_12_1(state: CollateralState) -> None:
    collateral = state.collateral
    try:
        verify(state.tcb_chain[0].public_key, collateral.tcb_info_signature, collateral.tcb_info)
    except BadSignature as error:
        raise Refused(Reason.TCB_INFO_SIGNATURE, error.what) from error


def _step_12_2(state: CollateralState) -> None:
    collateral = state.collateral
    signature, document = collateral.qe_identity_signature, collateral.qe_identity
    try:
        verify(state.qe_chain[0].public_key, signature, document)
    except BadSignature as error:
        raise Refused(Reason.QE_IDENTITY_SIGNATURE, error.what) from error


def _step_13_1(state: CollateralState) -> str:
    return f"{len(state.tcb_info.levels)} platform levels"


def _step_13_2(state: CollateralState) -> str:
    return f"{len(state.qe_identity.levels)} QE levels"


def _step_14_1(state: CollateralState) -> None:
    info = state.tcb_info
    if (info.id, info.version) != ("TDX", 3):
        raise Refused(Reason.TCB_INFO_ID, "not a TDX TCB info of version 3")
    if info.tcb_type != 0:
        raise Refused(Reason.TCB_TYPE, f"TCB type {info.tcb_type}")


def _step_14_2(state: CollateralState) -> None:
    identity = state.qe_identity
    if (identity.id, identity.version) != ("TD_QE", 2):
        raise Refused(Reason.QE_IDENTITY_ID, "not a TD_QE identity of version 2")


def _step_15_1(state: CollateralState) -> None:
    for document, what in ((state.tcb_info, "TCB info"), (state.qe_identity, "QE identity")):
        if state.now < document.issued:
            raise Refused(Reason.COLLATERAL_NOT_YET_VALID, f"{what} is from {document.issued}")
        if state.now > document.next_update:
            raise Refused(
                Reason.COLLATERAL_EXPIRED, f"{what} was current until {document.next_update}"
            )


COLLATERAL_STEPS: Final[tuple[Step[CollateralState], ...]] = (
    Step("tdx/5.1", f"{_DOC}#5", _step_5_1),
    Step("tdx/8.1", f"{_DOC}#8", _step_8_1, ("tdx/5.1",)),
    Step("tdx/9.1", f"{_DOC}#9", _step_9_1, ("tdx/5.1",)),
    Step("tdx/10.1", f"{_DOC}#10", _step_10_1, ("tdx/9.1",)),
    Step("tdx/11", f"{_DOC}#11", _step_11),
    Step("tdx/12.1", f"{_DOC}#12", _step_12_1, ("tdx/11",)),
    Step("tdx/12.2", f"{_DOC}#12", _step_12_2, ("tdx/11",)),
    Step("tdx/13.1", f"{_DOC}#13", _step_13_1, ("tdx/12.1",)),
    Step("tdx/13.2", f"{_DOC}#13", _step_13_2, ("tdx/12.2",)),
    Step("tdx/14.1", f"{_DOC}#14", _step_14_1, ("tdx/13.1",)),
    Step("tdx/14.2", f"{_DOC}#14", _step_14_2, ("tdx/13.2",)),
    Step("tdx/15.1", f"{_DOC}#15", _step_15_1, ("tdx/13.1", "tdx/13.2")),
)
