"""Steps over a quote and its collateral: genuine, and at which patch level.

Clauses docs/protocols/tdx.md#5.2 to #27. The quote is hostile. The steps that need signed
collateral name the collateral steps they rest on; nothing here knows a policy.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from confide.appraisal.steps import Refused, Step, lazy
from confide.appraisal.tdx_collateral import require_root, require_understood, require_valid
from confide.appraisal.tdx_tcb import (
    find_module,
    find_platform_level,
    find_svn_level,
    merge_advisories,
    merge_status,
    relaunch_status,
)
from confide.appraisal.tdx_types import EndorsedCollateral, TcbVerdict
from confide.crypto.ecdsa import Curve, load_public_key, verify
from confide.crypto.errors import BadSignature
from confide.crypto.x509 import (
    Certificate,
    parse_certificate_der,
    split_pem_chain,
    verify_crl,
    verify_issued_by,
)
from confide.errors import FormatError, Reason
from confide.wire.collateral import TcbStatus
from confide.wire.pck import SGX_EXTENSION_OID, parse_pck_extension
from confide.wire.tdx import TdBody15

if TYPE_CHECKING:
    from datetime import datetime

    from confide.crypto.ecdsa import PublicKey
    from confide.wire.collateral import (
        PlatformLevel,
        SvnLevel,
        TdxModule,
    )
    from confide.wire.pck import PckExtension
    from confide.wire.tdx import TdxQuote

__all__ = ["QUOTE_STEPS", "QuoteState"]

_DOC = "docs/protocols/tdx.md"
# From: RFC 5280 §4.2.1.3.
_CA_USAGE: Final = frozenset({"key_cert_sign", "crl_sign"})
# From: Intel SGX SDK, sgx_attributes_t: DEBUG is bit 1 of the flags.
_QE_DEBUG: Final = 0x02


class QuoteState:
    """The working state of one quote appraisal; every part is parsed at most once."""

    def __init__(self, quote: TdxQuote, endorsed: EndorsedCollateral, *, now: datetime) -> None:
        self.quote = quote
        self.endorsed = endorsed
        self.now = now

    @lazy
    def ders(self) -> tuple[bytes, ...]:
        """The embedded chain, split."""
        return split_pem_chain(
            self.quote.pck_chain, max_certificates=3, what="PCK chain", reason=Reason.PCK_CHAIN
        )

    @lazy
    def chain(self) -> tuple[Certificate, Certificate, Certificate]:
        """Leaf, CA and root as the quote carries them."""
        if len(self.ders) != 3:
            raise FormatError(
                f"PCK chain: {len(self.ders)} certificates instead of 3",
                reason=Reason.PCK_CHAIN,
                clause=f"{_DOC}#5",
            )
        leaf, authority, root = self.ders
        known = {self.endorsed.root.der: self.endorsed.root}
        if self.endorsed.pck_authority is not None:
            known[self.endorsed.pck_authority.der] = self.endorsed.pck_authority
        return (
            _certificate(leaf, "PCK certificate"),
            known.get(authority) or _certificate(authority, "PCK CA"),
            known.get(root) or _certificate(root, "root of the PCK chain"),
        )

    @property
    def leaf(self) -> Certificate:
        """The PCK certificate."""
        return self.chain[0]

    @property
    def authority(self) -> Certificate:
        """The PCK CA."""
        return self.chain[1]

    @lazy
    def authority_is_known(self) -> bool:
        """Whether the CA is, byte for byte, the one already verified with the collateral."""
        return self.authority == self.endorsed.pck_authority

    @lazy
    def attestation_key(self) -> PublicKey:
        """The key that signed header and body, as a point on the curve."""
        return load_public_key(
            Curve.P256, self.quote.attestation_key, what="attestation key", reason=Reason.AK_BINDING
        )

    @lazy
    def platform(self) -> PckExtension:
        """The SGX extension of the leaf."""
        der = self.leaf.extension(SGX_EXTENSION_OID)
        if der is None:
            raise FormatError(
                "PCK certificate: no SGX extension",
                reason=Reason.PCK_EXTENSION,
                clause=f"{_DOC}#7",
            )
        return parse_pck_extension(der)

    @lazy
    def qe_level(self) -> SvnLevel | None:
        """The level of the QE."""
        report = self.quote.qe_report
        return find_svn_level(self.endorsed.qe_identity.levels, report.isv_svn)

    @lazy
    def module(self) -> TdxModule | None:
        """The identity of the module at launch."""
        return find_module(self.endorsed.tcb_info, self.quote.body.tee_tcb_svn)

    @lazy
    def module_level(self) -> SvnLevel | None:
        """The level of the module at launch; None also for module version 0, which has none."""
        return _module_level(self.module, self.quote.body.tee_tcb_svn)

    @lazy
    def current_module(self) -> TdxModule | None:
        """The identity of the module now (TD 1.5)."""
        body = self.quote.body
        if not isinstance(body, TdBody15):
            return None
        return find_module(self.endorsed.tcb_info, body.tee_tcb_svn2)

    @lazy
    def current_level(self) -> SvnLevel | None:
        """The level of the module now (TD 1.5)."""
        body = self.quote.body
        if not isinstance(body, TdBody15):
            return None
        return _module_level(self.current_module, body.tee_tcb_svn2)

    @lazy
    def platform_level(self) -> PlatformLevel | None:
        """The level of the platform."""
        return find_platform_level(
            self.endorsed.tcb_info.levels,
            self.platform.cpu_svn,
            self.platform.pce_svn,
            self.quote.body.tee_tcb_svn,
        )

    @lazy
    def status(self) -> TcbStatus:
        """The merged status of docs/protocols/tdx.md#26 and #27."""
        platform, qe = self.platform_level, self.qe_level
        launch, current = self.module_level, self.current_level
        body = self.quote.body
        launch_is_missing = launch is None and body.tee_tcb_svn[1] > 0
        current_is_missing = (
            current is None and isinstance(body, TdBody15) and body.tee_tcb_svn2[1] > 0
        )
        if platform is None or qe is None or launch_is_missing or current_is_missing:
            return TcbStatus.REVOKED
        if launch is not None and current is not None:
            relaunch = relaunch_status(platform.status, launch.status, current.status, qe.status)
            if relaunch is not None:
                return relaunch
        found = (level.status for level in (platform, qe, launch, current) if level is not None)
        return merge_status(found)

    def verdict(self) -> TcbVerdict:
        """Return the patch level; only after every step passed."""
        platform, qe = self.platform_level, self.qe_level
        if platform is None or qe is None:
            raise RuntimeError("the verdict was asked for before the steps passed")
        module, current = self.module_level, self.current_level
        return TcbVerdict(
            status=self.status,
            platform=platform,
            module=module,
            module_now=current,
            qe=qe,
            advisories=merge_advisories((platform, module, current, qe)),
        )


def _certificate(der: bytes, what: str) -> Certificate:
    return parse_certificate_der(der, what=what, reason=Reason.PCK_CHAIN)


def _module_level(module: TdxModule | None, tee_tcb_svn: bytes) -> SvnLevel | None:
    return None if module is None else find_svn_level(module.levels, tee_tcb_svn[0])


def _step_5_2(state: QuoteState) -> str:
    leaf, authority, root = state.chain
    try:
        verify_issued_by(leaf, authority)
        if not state.authority_is_known:
            verify_issued_by(authority, root)
    except BadSignature as error:
        raise Refused(Reason.PCK_CHAIN, error.what) from error
    if root.public_key != state.endorsed.root.public_key:
        raise Refused(Reason.ROOT_MISMATCH, "the quote's root is not the anchor")
    require_root(root, state.endorsed.root)
    return f"PCK {leaf.sha256}"


def _step_6(state: QuoteState) -> None:
    given = state.endorsed.collateral.pck_chain
    if given is not None and given.rstrip(b"\0") != state.quote.pck_chain.rstrip(b"\0"):
        raise Refused(Reason.PCK_CHAIN_OVERRIDE, "the collateral names another PCK chain")


def _step_7(state: QuoteState) -> None:
    leaf, authority = state.leaf, state.authority
    names = state.endorsed.anchor.names
    if authority.subject not in names.pck_authorities or leaf.subject != names.pck_leaf:
        raise Refused(Reason.PCK_ROLE, "a certificate has another common name")
    if not authority.is_ca or not authority.key_usage >= _CA_USAGE:
        raise Refused(Reason.PCK_ROLE, "the PCK CA may not sign certificates and lists")
    if leaf.is_ca:
        raise Refused(Reason.PCK_ROLE, "the PCK is a CA")
    require_understood(authority, Reason.PCK_ROLE, "the PCK CA")
    require_understood(leaf, Reason.PCK_ROLE, "the PCK")
    if leaf.extension(SGX_EXTENSION_OID) is None:
        raise Refused(Reason.PCK_EXTENSION, "the PCK has no SGX extension")


def _step_8_2(state: QuoteState) -> None:
    names = ("the PCK", "the PCK CA", "the quote's root")
    for certificate, what in zip(state.chain, names, strict=True):
        require_valid(certificate, state.now, what)


def _step_9_2(state: QuoteState) -> None:
    if state.authority_is_known:
        return
    try:
        verify_crl(state.endorsed.pck_crl, state.authority)
    except BadSignature as error:
        raise Refused(Reason.CRL_SIGNATURE, f"PCK revocation list: {error.what}") from error


def _step_10_2(state: QuoteState) -> None:
    if state.endorsed.root_crl.contains(state.authority.serial):
        raise Refused(Reason.CERT_REVOKED, "the PCK CA is on the root revocation list")
    if state.endorsed.pck_crl.contains(state.leaf.serial):
        raise Refused(Reason.CERT_REVOKED, "the PCK is on the PCK revocation list")


def _step_16(state: QuoteState) -> None:
    info, platform = state.endorsed.tcb_info, state.platform
    if info.fmspc != platform.fmspc:
        raise Refused(Reason.FMSPC_MISMATCH, "the TCB info is for another platform family")
    if info.pce_id != platform.pce_id:
        raise Refused(Reason.PCEID_MISMATCH, "the TCB info is for another PCE")


def _step_17(state: QuoteState) -> str:
    platform = state.platform
    if platform.components != platform.cpu_svn:
        raise Refused(Reason.PCK_EXTENSION, "component numbers and CPUSVN differ")
    return f"FMSPC {platform.fmspc.hex()}"


def _step_19(state: QuoteState) -> None:
    quote = state.quote
    try:
        verify(state.leaf.public_key, quote.qe_report_signature, quote.qe_report.raw)
    except BadSignature as error:
        raise Refused(Reason.QE_REPORT_SIGNATURE, error.what) from error


def _step_20(state: QuoteState) -> None:
    quote = state.quote
    bound = hashlib.sha256(state.attestation_key.point + quote.auth_data).digest() + bytes(32)
    if quote.qe_report.report_data != bound:
        raise Refused(Reason.AK_BINDING, "the QE report does not bind the attestation key")


def _step_21(state: QuoteState) -> None:
    quote = state.quote
    try:
        verify(state.attestation_key, quote.signature, quote.signed)
    except BadSignature as error:
        raise Refused(Reason.QUOTE_SIGNATURE, error.what) from error


def _masked(value: bytes, mask: bytes) -> bytes:
    if len(value) != len(mask):
        raise ValueError("a mask has the length of what it masks")
    masked = int.from_bytes(value, "big") & int.from_bytes(mask, "big")
    return masked.to_bytes(len(value), "big")


def _step_22(state: QuoteState) -> None:
    report, identity = state.quote.qe_report, state.endorsed.qe_identity
    if report.attributes[0] & _QE_DEBUG:
        raise Refused(Reason.QE_DEBUG, "the QE runs in debug mode")
    if report.mr_signer != identity.mr_signer or report.isv_prod_id != identity.isv_prod_id:
        raise Refused(Reason.QE_IDENTITY_MISMATCH, "another signer or product")
    misc = _masked(report.misc_select, identity.misc_select_mask)
    attributes = _masked(report.attributes, identity.attributes_mask)
    if misc != identity.misc_select or attributes != identity.attributes:
        raise Refused(Reason.QE_IDENTITY_MISMATCH, "MISCSELECT or ATTRIBUTES differ")


def _step_23(state: QuoteState) -> str:
    if state.qe_level is None:
        raise Refused(Reason.QE_NO_LEVEL, f"no level for {state.quote.qe_report.isv_svn}")
    return str(state.qe_level.status)


def _require_module(state: QuoteState, module: TdxModule | None, svn: bytes) -> str:
    body = state.quote.body
    if module is None:
        raise Refused(Reason.TDX_MODULE_UNKNOWN, f"no single identity for version {svn[1]}")
    if (
        body.mr_signer_seam != module.mr_signer
        or _masked(body.seam_attributes, module.attributes_mask) != module.attributes
    ):
        raise Refused(Reason.TDX_MODULE_MISMATCH, "another module signer or other attributes")
    if svn[1] == 0:
        return "version 0: judged with the platform"
    level = _module_level(module, svn)
    if level is None:
        raise Refused(Reason.TDX_MODULE_NO_LEVEL, f"no level for {svn[0]}")
    return str(level.status)


def _step_24(state: QuoteState) -> str:
    return _require_module(state, state.module, state.quote.body.tee_tcb_svn)


def _step_25(state: QuoteState) -> str:
    if state.platform_level is None:
        raise Refused(Reason.TCB_NO_LEVEL, "the platform is below every level")
    return str(state.platform_level.status)


def _step_26(state: QuoteState) -> str:
    return str(state.status)


def _step_27(state: QuoteState) -> str:
    body = state.quote.body
    if not isinstance(body, TdBody15):
        return "TD 1.0: the module is the one at launch"
    return _require_module(state, state.current_module, body.tee_tcb_svn2)


QUOTE_STEPS: Final[tuple[Step[QuoteState], ...]] = (
    Step("tdx/5.2", f"{_DOC}#5", _step_5_2),
    Step("tdx/6", f"{_DOC}#6", _step_6),
    Step("tdx/7", f"{_DOC}#7", _step_7, ("tdx/5.2",)),
    Step("tdx/8.2", f"{_DOC}#8", _step_8_2, ("tdx/5.2",)),
    Step("tdx/9.2", f"{_DOC}#9", _step_9_2, ("tdx/5.2",)),
    Step("tdx/10.2", f"{_DOC}#10", _step_10_2, ("tdx/9.1", "tdx/9.2")),
    Step("tdx/16", f"{_DOC}#16", _step_16, ("tdx/7", "tdx/14.1")),
    Step("tdx/17", f"{_DOC}#17", _step_17, ("tdx/7",)),
    Step("tdx/19", f"{_DOC}#19", _step_19, ("tdx/5.2",)),
    Step("tdx/20", f"{_DOC}#20", _step_20, ("tdx/19",)),
    Step("tdx/21", f"{_DOC}#21", _step_21, ("tdx/20",)),
    Step("tdx/22", f"{_DOC}#22", _step_22, ("tdx/19", "tdx/14.2")),
    Step("tdx/23", f"{_DOC}#23", _step_23, ("tdx/22",)),
    Step("tdx/24", f"{_DOC}#24", _step_24, ("tdx/21", "tdx/14.1")),
    Step("tdx/25", f"{_DOC}#25", _step_25, ("tdx/16", "tdx/17", "tdx/21")),
    Step("tdx/26", f"{_DOC}#26", _step_26, ("tdx/23", "tdx/24", "tdx/25")),
    Step("tdx/27", f"{_DOC}#27", _step_27, ("tdx/21", "tdx/14.1")),
)
