"""What each fault of a SIMULATED TDX platform edits, and the reason it is refused for.

`FAULTS` is the contract between simulator and verifier: docs/protocols/tdx.md names the step that
each reason belongs to.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from confide.crypto.issuing import RawExtension
from confide.errors import Reason
from confide.simulator.tdx_edits import (
    OLD_CPU_SVN,
    Fault,
    add_foreign_module,
    add_second_root,
    edit_body,
    edit_crl,
    edit_crl_time,
    edit_dates,
    edit_lifetime,
    edit_platform,
    edit_qe,
    edit_spec,
    edit_template,
    flip_last,
    flip_register,
    flip_rtmr,
    give_signer_extension,
    put_bytes,
    set_attributes,
    set_members,
    set_status,
    set_svn,
    shorten_components,
    xor_byte,
)
from confide.simulator.tdx_faults import TdxFault

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["FAULTS"]

_SEPT: Final = 1 << 28
# Offsets in a version 4 quote, from docs/protocols/tdx.md#1 to #3: the body ends at 632, four bytes
# of length follow; the inner type stands behind 32 bytes of authentication data.
_SIGNATURE: Final = 636
_OUTER_TYPE: Final = _SIGNATURE + 128
_INNER_TYPE: Final = _SIGNATURE + 584 + 32


def _bump_evaluation(raw: bytes) -> bytes:
    return raw.replace(b'DataNumber":18', b'DataNumber":19')


_BYTES: Final = {
    TdxFault.TRUNCATED_QUOTE: Fault(reason=Reason.QUOTE_TRUNCATED, patch=lambda raw: raw[:-100]),
    TdxFault.OTHER_QUOTE_VERSION: Fault(reason=Reason.QUOTE_VERSION, patch=put_bytes(0, b"\x06\0")),
    TdxFault.OTHER_ATTESTATION_KEY_TYPE: Fault(
        reason=Reason.ATT_KEY_TYPE, patch=put_bytes(2, b"\x03\0")
    ),
    TdxFault.SGX_QUOTE: Fault(reason=Reason.TEE_TYPE, patch=put_bytes(4, bytes(4))),
    TdxFault.RESERVED_WORD: Fault(reason=Reason.QUOTE_FORMAT, patch=xor_byte(10)),
    TdxFault.FOREIGN_QE_VENDOR: Fault(reason=Reason.QE_VENDOR, patch=xor_byte(12)),
    TdxFault.OTHER_BODY_TYPE: Fault(
        reason=Reason.BODY_TYPE, needs_td15=True, patch=put_bytes(48, b"\x04\0")
    ),
    TdxFault.OTHER_OUTER_TYPE: Fault(
        reason=Reason.OUTER_CERT_TYPE, patch=put_bytes(_OUTER_TYPE, b"\x05\0")
    ),
    TdxFault.OTHER_INNER_TYPE: Fault(
        reason=Reason.INNER_CERT_TYPE, patch=put_bytes(_INNER_TYPE, b"\x01\0")
    ),
    TdxFault.TRAILING_BYTES: Fault(
        reason=Reason.TRAILING_BYTES, patch=lambda raw: raw + b"\0\0\x01"
    ),
    TdxFault.PATCHED_REPORT_DATA: Fault(reason=Reason.QUOTE_SIGNATURE, patch=xor_byte(568)),
    TdxFault.PATCHED_USER_DATA: Fault(reason=Reason.QUOTE_SIGNATURE, patch=xor_byte(28)),
}
_CERTIFICATES: Final = {
    TdxFault.WRONG_ROOT: Fault(reason=Reason.ROOT_MISMATCH, seed_suffix=b"/other"),
    TdxFault.FOREIGN_QUOTE_ROOT: Fault(
        reason=Reason.ROOT_MISMATCH,
        certificates=add_second_root("ca"),
        quote_chain=("pck", "ca", "other-root"),
    ),
    TdxFault.FOREIGN_COLLATERAL_ROOT: Fault(
        reason=Reason.ROOT_MISMATCH,
        certificates=add_second_root(),
        signer_chain=("tcb", "other-root"),
    ),
    TdxFault.FORGED_PCK: Fault(
        reason=Reason.PCK_CHAIN, certificates=edit_spec("pck", signing_key="attacker")
    ),
    TdxFault.FORGED_PCK_CA: Fault(
        reason=Reason.PCK_CHAIN, certificates=edit_spec("ca", signing_key="attacker")
    ),
    TdxFault.CHAIN_ORDER: Fault(reason=Reason.PCK_CHAIN, quote_chain=("pck", "root", "ca")),
    TdxFault.CHAIN_OVERRIDE: Fault(
        reason=Reason.PCK_CHAIN_OVERRIDE,
        collateral=lambda found: replace(found, pck_chain=found.pck_crl_chain),
    ),
    TdxFault.PCK_NAME: Fault(
        reason=Reason.PCK_ROLE, certificates=edit_template("pck", common_name="Simulated Leaf")
    ),
    TdxFault.PCK_CA_NAME: Fault(
        reason=Reason.PCK_ROLE, certificates=edit_template("ca", common_name="Simulated CA")
    ),
    TdxFault.PCK_CA_IS_NO_CA: Fault(
        reason=Reason.PCK_ROLE,
        certificates=edit_template("ca", is_ca=False, path_length=None),
    ),
    TdxFault.PCK_IS_CA: Fault(
        reason=Reason.PCK_ROLE, certificates=edit_template("pck", is_ca=True)
    ),
    TdxFault.PCK_CRITICAL_EXTENSION: Fault(
        reason=Reason.PCK_ROLE,
        certificates=edit_template(
            "pck", extensions=(RawExtension("1.2.3.4", b"\x05\0", critical=True),)
        ),
    ),
    TdxFault.PCK_WITHOUT_EXTENSION: Fault(
        reason=Reason.PCK_EXTENSION, certificates=edit_spec("pck", platform=None)
    ),
    TdxFault.PCK_COMPONENTS: Fault(
        reason=Reason.PCK_EXTENSION,
        platform=lambda found: replace(found, components=flip_last(found.components)),
    ),
    TdxFault.EXPIRED_PCK: Fault(
        reason=Reason.CERT_EXPIRED, certificates=edit_lifetime("pck", -30, -1)
    ),
    TdxFault.FUTURE_PCK: Fault(
        reason=Reason.CERT_NOT_YET_VALID, certificates=edit_lifetime("pck", 1, 30)
    ),
    TdxFault.EXPIRED_PCK_CA: Fault(
        reason=Reason.CERT_EXPIRED, certificates=edit_lifetime("ca", -30, -1)
    ),
    TdxFault.EXPIRED_SIGNER: Fault(
        reason=Reason.CERT_EXPIRED, certificates=edit_lifetime("tcb", -30, -1)
    ),
    TdxFault.WRONG_SIGNER_ROLE: Fault(
        reason=Reason.COLLATERAL_SIGNER_ROLE,
        certificates=edit_template("tcb", common_name="Simulated SGX PCK Certificate"),
    ),
    TdxFault.SIGNER_IS_PCK: Fault(
        reason=Reason.COLLATERAL_SIGNER_ROLE, signer_chain=("pck", "ca", "root")
    ),
    TdxFault.SIGNER_UNDER_PCK_CA: Fault(
        reason=Reason.COLLATERAL_SIGNER_ROLE,
        certificates=edit_spec("tcb", issuer="ca", signing_key="ca"),
        signer_chain=("tcb", "ca", "root"),
    ),
    TdxFault.SIGNER_WITH_SGX_EXTENSION: Fault(
        reason=Reason.COLLATERAL_SIGNER_ROLE, certificates=give_signer_extension
    ),
    TdxFault.FORGED_SIGNER: Fault(
        reason=Reason.COLLATERAL_SIGNER_ROLE,
        certificates=edit_spec("tcb", signing_key="attacker"),
    ),
}
_REVOCATION: Final = {
    TdxFault.REVOKED_PCK: Fault(reason=Reason.CERT_REVOKED, lists=edit_crl("ca", revoked=("pck",))),
    TdxFault.REVOKED_CA: Fault(reason=Reason.CERT_REVOKED, lists=edit_crl("root", revoked=("ca",))),
    TdxFault.REVOKED_SIGNER: Fault(
        reason=Reason.CERT_REVOKED, lists=edit_crl("root", revoked=("tcb",))
    ),
    TdxFault.REVOKED_ROOT: Fault(
        reason=Reason.CERT_REVOKED, lists=edit_crl("root", revoked=("root",))
    ),
    TdxFault.MISSING_ROOT_CRL: Fault(
        reason=Reason.CRL_MISSING, lists=edit_crl("root", absent=True)
    ),
    TdxFault.MISSING_PCK_CRL: Fault(reason=Reason.CRL_MISSING, lists=edit_crl("ca", absent=True)),
    TdxFault.BROKEN_CRL: Fault(
        reason=Reason.CRL_FORMAT, collateral=lambda found: replace(found, root_crl=b"0\0")
    ),
    TdxFault.FORGED_ROOT_CRL: Fault(
        reason=Reason.CRL_SIGNATURE, lists=edit_crl("root", signing_key="attacker")
    ),
    TdxFault.FORGED_PCK_CRL: Fault(
        reason=Reason.CRL_SIGNATURE, lists=edit_crl("ca", signing_key="attacker")
    ),
    TdxFault.CRL_WITHOUT_NEXT_UPDATE: Fault(
        reason=Reason.CRL_NO_NEXT_UPDATE, lists=edit_crl("ca", without_next_update=True)
    ),
    TdxFault.FUTURE_CRL: Fault(
        reason=Reason.CRL_NOT_YET_VALID, lists=edit_crl_time("ca", issued_days=1, until_days=40)
    ),
    TdxFault.EXPIRED_ROOT_CRL: Fault(
        reason=Reason.CRL_EXPIRED, lists=edit_crl_time("root", issued_days=-1, until_days=0)
    ),
    TdxFault.EXPIRED_PCK_CRL: Fault(
        reason=Reason.CRL_EXPIRED, lists=edit_crl_time("ca", issued_days=-1, until_days=0)
    ),
    TdxFault.OLD_CRL: Fault(
        reason=Reason.CRL_AGE_FLOOR, lists=edit_crl_time("root", issued_days=-10, until_days=40)
    ),
}
_DOCUMENTS: Final = {
    TdxFault.ALTERED_TCB_INFO: Fault(
        reason=Reason.TCB_INFO_SIGNATURE,
        collateral=lambda found: replace(found, tcb_info=_bump_evaluation(found.tcb_info)),
    ),
    TdxFault.ALTERED_QE_IDENTITY: Fault(
        reason=Reason.QE_IDENTITY_SIGNATURE,
        collateral=lambda found: replace(found, qe_identity=_bump_evaluation(found.qe_identity)),
    ),
    TdxFault.DUPLICATE_MEMBER: Fault(
        reason=Reason.COLLATERAL_FORMAT,
        tcb_text=lambda raw: raw.replace(b'"tcbType":0', b'"tcbType":0,"tcbType":0'),
    ),
    TdxFault.SHORT_COMPONENTS: Fault(reason=Reason.COLLATERAL_FORMAT, tcb_info=shorten_components),
    TdxFault.MISTYPED_MEMBER: Fault(
        reason=Reason.COLLATERAL_FORMAT, qe_identity=set_members(isvprodid="2")
    ),
    TdxFault.SGX_TCB_INFO: Fault(reason=Reason.TCB_INFO_ID, tcb_info=set_members(id="SGX")),
    TdxFault.OTHER_TCB_TYPE: Fault(reason=Reason.TCB_TYPE, tcb_info=set_members(tcbType=1)),
    TdxFault.SGX_QE_IDENTITY: Fault(reason=Reason.QE_IDENTITY_ID, qe_identity=set_members(id="QE")),
    TdxFault.EXPIRED_COLLATERAL: Fault(
        reason=Reason.COLLATERAL_EXPIRED, tcb_info=edit_dates(issued_days=-1, until_days=0)
    ),
    TdxFault.EXPIRED_QE_IDENTITY: Fault(
        reason=Reason.COLLATERAL_EXPIRED, qe_identity=edit_dates(issued_days=-1, until_days=0)
    ),
    TdxFault.FUTURE_COLLATERAL: Fault(
        reason=Reason.COLLATERAL_NOT_YET_VALID, tcb_info=edit_dates(issued_days=1, until_days=30)
    ),
    TdxFault.STALE_COLLATERAL: Fault(
        reason=Reason.COLLATERAL_AGE, tcb_info=edit_dates(issued_days=-31, until_days=30)
    ),
    TdxFault.OTHER_FMSPC: Fault(
        reason=Reason.FMSPC_MISMATCH, tcb_info=set_members(fmspc="5300000000AB")
    ),
    TdxFault.OTHER_PCEID: Fault(reason=Reason.PCEID_MISMATCH, tcb_info=set_members(pceId="0001")),
    TdxFault.OLD_EVALUATION: Fault(
        reason=Reason.TCB_EVAL_FLOOR, qe_identity=set_members(tcbEvaluationDataNumber=17)
    ),
}
_ENCLAVE: Final = {
    TdxFault.FORGED_QE_REPORT: Fault(reason=Reason.QE_REPORT_SIGNATURE, qe_key="attacker"),
    TdxFault.UNBOUND_ATTESTATION_KEY: Fault(
        reason=Reason.AK_BINDING, quote_key="attacker", swaps_key=True
    ),
    TdxFault.BINDING_TAIL: Fault(
        reason=Reason.AK_BINDING,
        qe_report=lambda found: replace(found, report_data=flip_last(found.report_data)),
    ),
    TdxFault.FORGED_QUOTE: Fault(reason=Reason.QUOTE_SIGNATURE, quote_key="attacker"),
    TdxFault.QE_DEBUG: Fault(
        reason=Reason.QE_DEBUG,
        qe_report=edit_qe(attributes=b"\x17" + bytes(7) + b"\xe7" + bytes(7)),
        # An identity that would not object: only the check of the bit itself can.
        qe_identity=set_members(attributesMask="F9" + "FF" * 7 + "00" * 8),
    ),
    TdxFault.QE_PRODUCT: Fault(
        reason=Reason.QE_IDENTITY_MISMATCH, qe_report=edit_qe(isv_prod_id=1)
    ),
    TdxFault.QE_SIGNER: Fault(
        reason=Reason.QE_IDENTITY_MISMATCH, qe_report=edit_qe(mr_signer=bytes(32))
    ),
    TdxFault.QE_MISCSELECT: Fault(
        reason=Reason.QE_IDENTITY_MISMATCH, qe_report=edit_qe(misc_select=b"\x01\0\0\0")
    ),
    TdxFault.OLD_QE: Fault(reason=Reason.TCB_STATUS, qe_report=edit_qe(isv_svn=3)),
    TdxFault.ANCIENT_QE: Fault(reason=Reason.QE_NO_LEVEL, qe_report=edit_qe(isv_svn=1)),
}
_LEVELS: Final = {
    TdxFault.FOREIGN_MODULE: Fault(
        reason=Reason.TDX_MODULE_MISMATCH, body=flip_register("mr_signer_seam")
    ),
    TdxFault.SEAM_ATTRIBUTES: Fault(
        reason=Reason.TDX_MODULE_MISMATCH, body=flip_register("seam_attributes")
    ),
    TdxFault.UNKNOWN_MODULE: Fault(
        reason=Reason.TDX_MODULE_UNKNOWN, body=edit_body(tee_tcb_svn=b"\x06\x02\x03" + bytes(13))
    ),
    TdxFault.OLD_TCB_MODULE: Fault(
        reason=Reason.TCB_STATUS, body=edit_body(tee_tcb_svn=b"\x04\x01\x03" + bytes(13))
    ),
    TdxFault.ANCIENT_MODULE: Fault(
        reason=Reason.TDX_MODULE_NO_LEVEL,
        body=edit_body(tee_tcb_svn=b"\x01\x01\x03" + bytes(13)),
    ),
    TdxFault.OLD_TCB_PLATFORM: Fault(
        reason=Reason.TCB_STATUS,
        platform=edit_platform(components=OLD_CPU_SVN, cpu_svn=OLD_CPU_SVN),
    ),
    TdxFault.ANCIENT_PLATFORM: Fault(
        reason=Reason.TCB_NO_LEVEL, platform=edit_platform(components=bytes(16), cpu_svn=bytes(16))
    ),
    TdxFault.REVOKED_TCB: Fault(reason=Reason.TCB_STATUS, tcb_info=set_status("Revoked")),
    TdxFault.SW_HARDENING_NEEDED: Fault(
        reason=Reason.TCB_STATUS, tcb_info=set_status("SWHardeningNeeded")
    ),
    TdxFault.CONFIGURATION_NEEDED: Fault(
        reason=Reason.TCB_STATUS, tcb_info=set_status("ConfigurationNeeded")
    ),
    TdxFault.CONFIGURATION_AND_SW_HARDENING_NEEDED: Fault(
        reason=Reason.TCB_STATUS, tcb_info=set_status("ConfigurationAndSWHardeningNeeded")
    ),
    TdxFault.OUT_OF_DATE_CONFIGURATION_NEEDED: Fault(
        reason=Reason.TCB_STATUS, tcb_info=set_status("OutOfDateConfigurationNeeded")
    ),
    TdxFault.RELAUNCH: Fault(
        reason=Reason.TCB_STATUS,
        needs_td15=True,
        body=set_svn(launch=b"\x04\x01\x03", now=b"\x06\x01\x03"),
    ),
    TdxFault.RELAUNCH_UNKNOWN_MODULE: Fault(
        reason=Reason.TDX_MODULE_UNKNOWN,
        needs_td15=True,
        body=set_svn(launch=b"\x06\x01\x03", now=b"\x06\x02\x03"),
    ),
    # The module now is a version whose identity has another signer.
    TdxFault.FOREIGN_MODULE_NOW: Fault(
        reason=Reason.TDX_MODULE_MISMATCH,
        needs_td15=True,
        tcb_info=add_foreign_module,
        body=set_svn(launch=b"\x06\x01\x03", now=b"\x06\x02\x03"),
    ),
    TdxFault.MODULE_DOWNGRADED: Fault(
        reason=Reason.TCB_STATUS,
        needs_td15=True,
        body=set_svn(launch=b"\x06\x01\x03", now=b"\x04\x01\x03"),
    ),
}
_GUEST: Final = {
    TdxFault.DEBUG_TD: Fault(reason=Reason.TD_DEBUG, body=set_attributes(_SEPT | 1)),
    TdxFault.TUD_ATTRIBUTE: Fault(reason=Reason.TD_DEBUG, body=set_attributes(_SEPT | 1 << 3)),
    TdxFault.SEPT_VE_CLEAR: Fault(reason=Reason.SEPT_VE_DISABLE, body=set_attributes(0)),
    TdxFault.MIGRATABLE: Fault(reason=Reason.TD_ATTRIBUTES, body=set_attributes(_SEPT | 1 << 29)),
    TdxFault.PKS: Fault(reason=Reason.TD_ATTRIBUTES, body=set_attributes(_SEPT | 1 << 30)),
    TdxFault.KEY_LOCKER: Fault(reason=Reason.TD_ATTRIBUTES, body=set_attributes(_SEPT | 1 << 31)),
    TdxFault.PERFMON: Fault(reason=Reason.TD_ATTRIBUTES, body=set_attributes(_SEPT | 1 << 63)),
    TdxFault.RESERVED_ATTRIBUTE: Fault(
        reason=Reason.TD_ATTRIBUTES, body=set_attributes(_SEPT | 1 << 40)
    ),
    TdxFault.XFAM_MISSING: Fault(reason=Reason.XFAM, body=edit_body(xfam=bytes(8))),
    TdxFault.XFAM_UNKNOWN: Fault(
        reason=Reason.XFAM, body=edit_body(xfam=bytes.fromhex("ff02060000000000"))
    ),
    TdxFault.SERVICE_TD: Fault(
        reason=Reason.SERVICE_TD, needs_td15=True, body=flip_register("mr_service_td")
    ),
    TdxFault.WRONG_MRTD: Fault(reason=Reason.MRTD_MISMATCH, body=flip_register("mr_td")),
    TdxFault.WRONG_RTMR0: Fault(reason=Reason.RTMR0_MISMATCH, body=flip_rtmr(0)),
    TdxFault.WRONG_RTMR1: Fault(reason=Reason.RTMR1_MISMATCH, body=flip_rtmr(1)),
    TdxFault.WRONG_RTMR2: Fault(reason=Reason.RTMR2_MISMATCH, body=flip_rtmr(2)),
    TdxFault.WRONG_RTMR3: Fault(reason=Reason.RTMR3_MISMATCH, body=flip_rtmr(3)),
    TdxFault.WRONG_MRSEAM: Fault(reason=Reason.MRSEAM_NOT_ALLOWED, body=flip_register("mr_seam")),
    TdxFault.WRONG_MRCONFIGID: Fault(
        reason=Reason.MRCONFIGID_MISMATCH, body=flip_register("mr_config_id")
    ),
    TdxFault.WRONG_MROWNER: Fault(reason=Reason.MROWNER_MISMATCH, body=flip_register("mr_owner")),
    TdxFault.WRONG_MROWNERCONFIG: Fault(
        reason=Reason.MROWNER_MISMATCH, body=flip_register("mr_owner_config")
    ),
    TdxFault.OTHER_PLATFORM: Fault(
        reason=Reason.PLATFORM_NOT_ALLOWED,
        platform=edit_platform(ppid=bytes(16), platform_instance=bytes(16)),
    ),
    TdxFault.DYNAMIC_PLATFORM: Fault(
        reason=Reason.DYNAMIC_PLATFORM, platform=edit_platform(dynamic_platform=True)
    ),
    TdxFault.CACHED_KEYS: Fault(
        reason=Reason.PLATFORM_NOT_ALLOWED, platform=edit_platform(cached_keys=True)
    ),
    TdxFault.SMT: Fault(
        reason=Reason.PLATFORM_NOT_ALLOWED, platform=edit_platform(smt_enabled=True)
    ),
    TdxFault.REPLAYED_NONCE: Fault(
        reason=Reason.REPORT_DATA_MISMATCH, body=edit_body(report_data=b"\x5a" * 64)
    ),
}
FAULTS: Final[Mapping[TdxFault, Fault]] = {
    **_BYTES,
    **_CERTIFICATES,
    **_REVOCATION,
    **_DOCUMENTS,
    **_ENCLAVE,
    **_LEVELS,
    **_GUEST,
}
